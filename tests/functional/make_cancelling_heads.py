"""Draws cancelling_heads.safetensors: attention in float32 whose heads almost undo one another.

    python -m tests.functional.make_cancelling_heads

At each of four ratios ||sum|| / sum ||.||, averaged over pairs of positions, two kinds: "pairs", where each head has an
opponent, and "one against all", where the last head undoes the sum of the others.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.functional.definition import slow_head_norms, slow_summed_norms

FILE = Path(__file__).with_name("cancelling_heads.safetensors")
RATIOS = ("1e-1", "1e-2", "1e-3", "1e-4")
KINDS = ("pairs", "one against all")
HEADS, QUERIES, KEYS, HEAD_DIM, MODEL = 6, 3, 16, 8, 48


def draw(kind: str, ratio: float, random: torch.Generator) -> dict[str, Tensor]:
    weights = torch.rand(1, HEADS, QUERIES, KEYS, generator=random)
    values = torch.randn(1, HEADS, KEYS, HEAD_DIM, generator=random)
    W_O, noise = torch.randn(2, HEADS, HEAD_DIM, MODEL, generator=random, dtype=torch.float64)
    if kind == "pairs":
        weights[:, 1::2], values[:, 1::2] = weights[:, 0::2], values[:, 0::2]
        W_O[1::2] = -W_O[0::2]
        noise[0::2] = 0
    else:
        weights[:], values[:] = weights[:, :1].clone(), values[:, :1].clone()
        W_O[-1] = -W_O[:-1].sum(0)
        noise[:-1] = 0
    loud = slow_head_norms(weights, values, W_O).sum(dim=1)
    quiet = slow_summed_norms(weights, values, noise)
    W_O += ratio / (quiet / loud).mean() * noise
    return {"weights": weights, "values": values, "W_O": W_O.float()}


def main() -> None:
    random = torch.Generator().manual_seed(0)
    tensors = {}
    for kind in KINDS:
        for ratio in RATIOS:
            for name, tensor in draw(kind, float(ratio), random).items():
                tensors[f"{kind}/{ratio}/{name}"] = tensor.contiguous()
    save_file(tensors, FILE)


if __name__ == "__main__":
    main()
