"""What attribution costs beside the model's own forward, and beside the recipe written out by hand.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_attribution [--lengths 128 512] [--repeats 9]

A BERT-base-shaped model (random weights, one example), one thread, everything in one process and interleaved; medians
of ratios, certificate included.  Processor time: a busy machine stretches wall time, not these.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from captum_norm import AttentionNorm, AttentionRollout, LayerAttentionNorm, attention_maps


def bert(implementation: str, length: int) -> BertModel:
    config = BertConfig(attn_implementation=implementation, max_position_embeddings=max(512, length))
    return BertModel(config, add_pooling_layer=False).eval()


@torch.no_grad()
def recipe(model: BertModel, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The norms as Captum's BERT tutorial builds them on ``output_attentions``: every vector alpha f(x), all layers."""
    output = model(ids, output_attentions=True, output_hidden_states=True)
    f = []
    for layer, hidden in zip(model.encoder.layer, output.hidden_states, strict=False):
        attention = layer.attention
        heads, size = attention.self.num_attention_heads, attention.self.attention_head_size
        values = attention.self.value(hidden).unflatten(-1, (heads, size)).transpose(1, 2)
        f.append(values @ attention.output.dense.weight.view(-1, heads, size).permute(1, 2, 0))
    fx = torch.stack(f)
    weighted = torch.einsum("lbhks,lbhsd->lbhksd", torch.stack(output.attentions), fx)
    return fx.norm(dim=-1), weighted.norm(dim=-1), weighted.sum(2).norm(dim=-1)


def ratios(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median processor time of each function over that of the first, measured in turn."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats + 2):  # the first two rounds make what is kept per parameter
        for name, function in functions.items():
            start = time.process_time()
            function()
            taken[name].append(time.process_time() - start)
    first = next(iter(functions))
    return {
        name: statistics.median(t / base for t, base in zip(times[2:], taken[first][2:], strict=True))
        for name, times in taken.items()
    }


def against_the_forward(implementation: str, length: int, repeats: int) -> dict[str, float]:
    model, ids = bert(implementation, length), torch.randint(1000, 30000, (1, length))

    def forward() -> None:
        with torch.no_grad():
            model(ids)

    layers = [layer.attention for layer in model.encoder.layer]
    return ratios(
        {
            "forward": forward,
            "AttentionNorm": lambda: AttentionNorm(model).attribute(ids),
            'AttentionNorm(position="all")': lambda: AttentionNorm(model).attribute(ids, position="all"),
            "AttentionRollout": lambda: AttentionRollout(model).attribute(ids),
            "LayerAttentionNorm, all layers": lambda: LayerAttentionNorm(model, layers).attribute(ids, heads="sum"),
            "attention_maps": lambda: attention_maps(model, ids),
        },
        repeats,
    )


def against_the_recipe(length: int, repeats: int) -> tuple[float, float]:
    """How many times slower the recipe is than the same three quantities here: in all, and beyond the forward."""
    model, ids = bert("eager", length), torch.randint(1000, 30000, (1, length))
    quantities = ("transformed_norms", "head_norms", "summed_norms")

    def forward() -> None:
        with torch.no_grad():
            model(ids)

    found = ratios(
        {
            "forward": forward,
            "maps": lambda: attention_maps(model, ids, quantities),
            "recipe": lambda: recipe(model, ids),
        },
        repeats,
    )
    return found["recipe"] / found["maps"], (found["recipe"] - 1) / max(1e-9, found["maps"] - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--repeats", type=int, default=9)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("times a forward of the same model")
    for implementation in ("eager", "sdpa"):
        for length in chosen.lengths:
            found = against_the_forward(implementation, length, chosen.repeats)
            print(f"  {implementation}, {length} tokens")
            for name, ratio in found.items():
                print(f"    {ratio:6.3f}  {name}")
    total, beyond = against_the_recipe(128, 3)
    print("Captum's recipe, 128 tokens, all layers (needs 8 GB)")
    print(f"    {total:.0f} times slower in all, {beyond:.0f} times slower beyond the forward")


if __name__ == "__main__":
    main()
