"""Records made of random numbers, and errors of calls that cannot be read."""


import torch

from captum_norm.capture import AttentionCall, AttentionRecord, Certificate, InexactCaptureError, Positions

QUANTITIES = ("weights", "transformed_norms", "head_norms", "summed_norms")


IDS = torch.tensor([[3, 4, 5, 6, 7], [3, 4, 5, 0, 0]])


MASK = (IDS != 0).long()


def record(
    name="layer.0.attention", query=4, key=5, heads=3, dtype=torch.float64, gate=None, call=0
) -> AttentionRecord:
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64).to(dtype)  # noqa: E731
    return AttentionRecord(
        call=AttentionCall(name, "self", call, heads, f"{name}.dense.weight"),
        weights=draw(2, heads, query, key).softmax(-1),
        values=draw(2, heads, key, 6),
        W_O=draw(heads, 6, 8),
        b_O=None,
        gate=gate,
        queries=Positions(0, torch.arange(query)),
        keys=Positions(0, torch.arange(key)),
        unknown_keys="",
        query_mask=torch.ones(2, query, dtype=torch.bool),
        key_mask=None,
        certificate=Certificate(1e-15, 1e-12),
    )


def inexact(name="layer.1.attention") -> InexactCaptureError:
    error = InexactCaptureError(f"{name}: off by 0.5")
    error.call = AttentionCall(name, "self", 0, 2, "")
    return error
