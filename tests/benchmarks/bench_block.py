"""What the norms of whole blocks cost beside the model's own forward: residual, norms, mixing ratios, GlobEnc, ALTI.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_block [--lengths 128 512] [--repeats 5] [--layers 12]

A BERT-base-shaped model (random weights, one example), one thread, everything in one process and interleaved; medians
of ratios of processor time, certificates and the check of each block included.  Every layer costs the same, so a ratio
is that of one layer, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from transformers import BertConfig, BertModel

from captum_norm import ALTI, AttentionBlockNorm, AttentionNorm, GlobEnc, attention_maps
from tests.benchmarks.bench_attribution import ratios

OF_2021 = (
    "res_norms",
    "res_ln_norms",
    "mixing_attn",
    "mixing_res",
    "mixing_res_ln",
    "mixing_weights",
    "mixing_res_weights",
)


def against_the_forward(implementation: str, length: int, layers: int, repeats: int) -> dict[str, float]:
    """Each method's processor time over the forward's."""
    config = BertConfig(
        attn_implementation=implementation, max_position_embeddings=max(512, length), num_hidden_layers=layers
    )
    model, ids = BertModel(config, add_pooling_layer=False).eval(), torch.randint(1000, 30000, (1, length))

    def forward() -> None:
        with torch.no_grad():
            model(ids)

    methods: dict[str, Callable[[], object]] = {
        "forward": forward,
        "summed_norms alone": lambda: attention_maps(model, ids, ("summed_norms",)),
        "all quantities of 2021": lambda: attention_maps(model, ids, OF_2021),
        "AttentionNorm, one row": lambda: AttentionNorm(model).attribute(ids),
        "AttentionBlockNorm, one row": lambda: AttentionBlockNorm(model).attribute(ids),
        "GlobEnc, one row": lambda: GlobEnc(model).attribute(ids),
        "ALTI, one row": lambda: ALTI(model).attribute(ids),
        "ALTI(p=2), one row": lambda: ALTI(model, p=2).attribute(ids),
    }
    return ratios(methods, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--implementations", nargs="+", default=["eager", "sdpa"])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("times a forward of the same model")
    for implementation in chosen.implementations:
        for length in chosen.lengths:
            print(f"  {implementation}, {length} tokens", flush=True)
            for name, ratio in against_the_forward(implementation, length, chosen.layers, chosen.repeats).items():
                print(f"    {ratio:6.3f}  {name}")


if __name__ == "__main__":
    main()
