"""What do the norms cost beside the layer they explain?  Ratios of processor time in one process, one thread;
medians of interleaved runs.

    python tests/benchmarks/bench_norms.py [--lengths 128 512] [--repeats 11]

The layers have the shape of BERT-base (12 heads, 768 dimensions) and attend eagerly.  Twelve different layers are run
in turn, so that no projection is found warm in the processor's cache.  "by definition" builds a vector of the model's
size for each query and key, as the paper's own code does, with the heads summed first.
"""

import argparse
import resource
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from time import process_time

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn.functional import gelu, linear

from captum_norm.functional import FrozenNorm, alti, block_quantities, globenc_norms, head_norms, rollout, summed_norms

LAYERS, HEADS, MODEL = 12, 12, 768

# Attn-N apart, all that Kobayashi et al. (2021) look at.
KOBAYASHI_2021 = [
    "res_norms",
    "res_ln_norms",
    "mixing_attn",
    "mixing_res",
    "mixing_res_ln",
    "mixing_weights",
    "mixing_res_weights",
]


def make_layer() -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(MODEL, HEADS, 4 * MODEL, dropout=0.0, batch_first=True).eval()


def run_layer(layer: nn.TransformerEncoderLayer, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The layer with attention written out: its output, weights, values and the states of its norms."""
    attention = layer.self_attn
    projected = linear(x, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = projected.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    weights = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
    state = x + attention.out_proj((weights @ v).transpose(1, 2).flatten(2))
    x = layer.norm1(state)
    second_state = x + layer.linear2(gelu(layer.linear1(x)))
    return layer.norm2(second_state), weights, v, state, second_state


def blocks_of(layers: list[nn.TransformerEncoderLayer], x: Tensor) -> list[dict]:
    """The arguments of the block norms, layer by layer."""
    blocks = []
    for layer in layers:
        _, weights, values, *states = run_layer(layer, x)
        norms = [
            FrozenNorm(state, norm.weight, norm.bias, norm.eps)
            for state, norm in zip(states, (layer.norm1, layer.norm2), strict=True)
        ]
        W_O = layer.self_attn.out_proj.weight.T.unflatten(0, (HEADS, -1))
        block = {"weights": weights, "values": values, "W_O": W_O, "residual": x}
        blocks.append(block | dict(zip(("norm", "second_norm"), norms, strict=True)))
    return blocks


def summed_norms_by_definition(weights: Tensor, values: Tensor, W_O: Tensor) -> Tensor:
    f = values @ W_O
    return vector_norm(torch.einsum("bhqk,bhkd->bqkd", weights, f), dim=-1)


def seconds(run: Callable[[], object]) -> float:
    start = process_time()
    run()
    return process_time() - start


def megabytes() -> float:
    """The most memory this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def bench(length: int, repeats: int) -> None:
    layers = [make_layer() for _ in range(LAYERS)]
    x = torch.randn(1, length, MODEL)
    read = [run_layer(layer, x)[1:3] for layer in layers]
    W_O = [layer.self_attn.out_proj.weight.T.unflatten(0, (HEADS, -1)) for layer in layers]
    maps = [summed_norms(weights, values, w) for (weights, values), w in zip(read, W_O, strict=True)]

    def over_layers(norms: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], object]:
        return lambda: [norms(weights, values, w) for (weights, values), w in zip(read, W_O, strict=True)]

    blocks = blocks_of(layers, x)

    def over_blocks(norms: Callable[..., object], *kept: str) -> Callable[[], object]:
        """With norms made anew, as each forward pass does: they keep what they divide by."""
        fixed = ("weights", "values", "W_O", "residual")
        return lambda: [norms(**{n: b[n] for n in fixed}, **{n: replace(b[n]) for n in kept}) for b in blocks]

    jobs: dict[str, Callable[[], object]] = {
        "layer": lambda: [run_layer(layer, x) for layer in layers],
        "head_norms": over_layers(head_norms),
        "summed_norms": over_layers(summed_norms),
        "2021 quantities together": over_blocks(partial(block_quantities, KOBAYASHI_2021), "norm"),
        "globenc_norms": over_blocks(globenc_norms, "norm", "second_norm"),
        "alti, L1": over_blocks(alti, "norm"),
        "alti, L2": over_blocks(partial(alti, p=2), "norm"),
        "rollout": lambda: rollout(maps, residual=True),
        "rollout of a row": lambda: rollout(maps, residual=True, position=0),
    }
    for run in list(jobs.values()) * 2:  # the second call with one W_O keeps part of the work
        run()
    before = megabytes()
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, run in jobs.items():
            times[name].append(seconds(run))
    layer = median(times["layer"])
    print(f"L = {length}: a layer takes {1e3 * layer / LAYERS:.1f} ms; the rest as a share of it")
    for name in list(jobs)[1:]:
        ratios = [t / base for t, base in zip(times[name], times["layer"], strict=True)]
        print(f"  {name:28}{median(ratios):8.3f}   ({min(ratios):.3f} to {max(ratios):.3f})")
    print(f"  peak memory grew by {megabytes() - before:.0f} MB in {repeats} rounds")

    weights, values = read[0]
    if length <= 256:
        slow = seconds(lambda: summed_norms_by_definition(weights, values, W_O[0]))
        print(f"  {'summed_norms by definition':28}{slow * LAYERS / layer:8.3f}")
    exact = summed_norms(weights[:, :, :16].double(), values.double(), W_O[0].double())
    error = (maps[0][:, :16] - exact).abs().div(exact).max()
    print(f"  largest relative error against float64 {error:.1e}")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--repeats", type=int, default=11)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        for length in options.lengths:
            bench(length, options.repeats)


if __name__ == "__main__":
    main(sys.argv[1:])
