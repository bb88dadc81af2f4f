"""What a row of attention flow and of value zeroing costs, in seconds and beside the model's own forward.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_paths [--lengths 64 128 256] [--zeroing 200]

Models with random weights, one example, one thread: BERT-base's and GPT-2's shapes, 12 layers, for flow; the same in
width 384 and with 6 layers for value zeroing.  Processor time, everything in one process, medians of three.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import Module
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

from captum_norm import AttentionFlow, ValueZeroing


def models(width: int, layers: int, length: int) -> dict[str, Module]:
    heads, most = width // 64, max(512, length)
    bert = BertConfig(
        hidden_size=width, num_attention_heads=heads, num_hidden_layers=layers, intermediate_size=4 * width,
        max_position_embeddings=most,
    )  # fmt: skip
    gpt2 = GPT2Config(n_embd=width, n_head=heads, n_layer=layers, n_positions=most)
    return {"looks everywhere": BertModel(bert, add_pooling_layer=False), "looks back": GPT2Model(gpt2)}


def seconds(function: Callable[[], object], repeats: int = 3) -> float:
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--zeroing", type=int, nargs="+", default=[200])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    runs = [(AttentionFlow, 768, 12, length) for length in chosen.lengths]
    runs += [(ValueZeroing, 384, 6, length) for length in chosen.zeroing]
    for method, width, layers, length in runs:
        ids = torch.randint(1000, 30000, (1, length))
        for name, model in models(width, layers, length).items():
            with torch.no_grad():
                forward = seconds(lambda: model.eval()(ids))  # noqa: B023
            taken = seconds(lambda: method(model).attribute(ids), 3 if method is AttentionFlow else 1)  # noqa: B023
            beside = f"{taken:.2f} s, {taken / forward:.1f} forwards"
            print(f"{method.__name__}, {length} tokens, {name}: {beside}", flush=True)


if __name__ == "__main__":
    main()
