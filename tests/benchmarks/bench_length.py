"""How much memory does a token take, however long the text?  MiB above the forward's own, for each 1,024 tokens.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_length [--lengths 8192 16384 32768 65536] [--json length.json]

One layer with two heads of 64 (twelve would take an hour at 65,536 tokens), SDPA, in float32, each length in a process
of its own.  A row of norms, and the mean over all rows of a rollout, for which the layer's queries, keys and values are
kept and all of its rows are measured a block at a time.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from captum_norm import AttentionNorm, AttentionRollout, AttentionWeights
from tests.benchmarks.measuring import freed_memory_is_given_back, in_a_process, peak


def of_length(length: int) -> dict[str, float]:
    """MiB of the forward, and of each method beside it."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100, hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=length, attn_implementation="sdpa", eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(5, 100, (1, length), generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def forward(ids: torch.Tensor = ids) -> Any:
        return model(ids, use_cache=False).logits[:, -1]

    methods: dict[str, Callable[..., Any]] = {
        "forward": forward,
        "AttentionWeights": lambda ids=ids: AttentionWeights(model).attribute(ids, target=(length_of(ids), 0)),
        "AttentionNorm": lambda ids=ids: AttentionNorm(model).attribute(ids, target=(length_of(ids), 0)),
        "AttentionRollout, mean": lambda ids=ids: AttentionRollout(model).attribute(
            ids, target=(length_of(ids), 0), position="mean"
        ),
    }
    freed_memory_is_given_back()
    for name, method in methods.items():  # what the first ones leave behind for good is no matter of length
        method(ids=ids[:, : length if name == "AttentionWeights" and length <= 16384 else 64])
    return {name: peak(method) for name, method in methods.items()}


def above_the_forward(length: int) -> dict[str, float]:
    """MiB of each method above the forward's own, for each 1,024 tokens."""
    of = of_length(length)
    return {name: (mib - of["forward"]) / length * 1024 for name, mib in of.items() if name != "forward"}


def length_of(ids: torch.Tensor) -> int:
    """The last position."""
    return ids.shape[1] - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 16384, 32768, 65536])
    parser.add_argument("--json", type=Path, help="where the numbers go")
    asked = parser.parse_args()
    found = {}
    for length in asked.lengths:
        began = time.time()
        found[length] = of = in_a_process(of_length, length)
        own = of["forward"]
        cells = [f"{name} {(mib - own) / length * 1024:.2f}" for name, mib in of.items() if name != "forward"]
        print(f"{length}: forward {own:.0f} MiB; MiB per 1,024 tokens above it:", ", ".join(cells),
              f"({time.time() - began:.0f} s)", flush=True)  # fmt: skip
        if asked.json:
            asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
