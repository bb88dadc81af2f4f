"""Attention maps written by hand, and a page read back as the page's script reads it."""

import base64
import json
import re
import zlib

import torch

from captum_norm.capture import AttentionCall, Certificate, Positions
from captum_norm.maps import AttentionMaps

HOSTILE = (
    "<s>", "</s>", "<script>window.injected=1</script>", "</script><script>window.injected=1</script>",
    "<img src=x onerror=window.injected=1>", '"', "'", "&amp;", "\\u003c", "\u2028", "\u2029", "\u202eevil", "שלום",
    "🎉", "👩‍👩‍👧", "<!--", "]]>", "{{CONTENT}}", "a\tb", "\n", "${1}", "\ud800",
)  # fmt: skip


def call(name: str = "layer.0.self", kind: str = "self", heads: int = 2) -> AttentionCall:
    return AttentionCall(name, kind, 0, heads, "out.weight")


def made_maps(results, tokens=(), *, calls=None, masks=None, keys=None, queries=None, **other) -> AttentionMaps:
    """Maps with the given results by name: lists over calls.  ``tokens`` are those of each example."""
    shapes = [result.shape for result in next(iter(results.values()))]
    count = len(shapes)
    heads = [shape[1] if len(shape) == 4 else 2 for shape in shapes]
    everywhere = [Positions("input_ids", torch.arange(shape[-1])) for shape in shapes]
    return AttentionMaps(
        calls=tuple(calls or [call(f"layer.{i}.self", heads=n) for i, n in enumerate(heads)]),
        certificate=tuple(Certificate(1e-7, 1e-5) for _ in range(count)),
        keys=tuple(keys or everywhere),
        queries=tuple(queries or everywhere),
        key_masks=tuple([masks] * count),
        query_masks=tuple([masks] * count),
        input_tokens={"input_ids": tuple(map(tuple, tokens))} if tokens else {},
        versions={"model": "Made"},
        results={name: list(found) for name, found in results.items()},
        **other,
    )


def attention(count: int, heads: int = 2, calls: int = 2, batch: int = 1, seed: int = 0):
    """Weights, norms per head and of the sum, (batch, head, query, key), that belong together."""
    generator = torch.Generator().manual_seed(seed)
    weights, norms, summed = [], [], []
    for _ in range(calls):
        alpha = torch.randn(batch, heads, count, count, generator=generator).mul(2).softmax(-1)
        lengths = torch.rand(batch, heads, 1, count, generator=generator) * 3
        weights.append(alpha)
        norms.append(alpha * lengths)
        summed.append((alpha * lengths).sum(1) * 0.8)
    return {"weights": weights, "head_norms": norms, "summed_norms": summed}


def content_of(page: str):
    """The data in a page."""
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def arrays_of(stored, of: str):
    """An array of one call as the page reads it: s (c / L)², slowly."""
    content = zlib.decompress(base64.b64decode(stored["data"]))
    [told] = [array for array in stored["arrays"] if array["name"] == of]
    count = torch.tensor(told["shape"]).prod()
    codes = torch.tensor(list(content[told["offset"] : told["offset"] + count]), dtype=torch.float64)
    if told["bits"] == 16:
        start = told["offset"] + count
        codes = 256 * codes + torch.tensor(list(content[start : start + count]), dtype=torch.float64)
    levels = 2 ** told["bits"] - 1
    scales = torch.tensor(told["scales"], dtype=torch.float64)[:, None]
    codes = codes.reshape(len(scales), -1)
    if told["signed"]:
        roots = (codes - levels // 2) / (levels // 2)
        values = scales * roots * roots.abs()
    else:
        values = scales * (codes / levels) ** 2
    return values.reshape(told["shape"]).float()
