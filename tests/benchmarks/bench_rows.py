"""What each method costs beside the model's own forward, and beside what one would run otherwise.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_rows [--lengths 128 512 2048] [--json rows.json] [--gate]

A random Llama (768 wide, 12 heads, 4 key heads; queries and keys sharpened, so that attention is uneven), its last row,
certificates included.  All in one process and in turn: medians of ratios of processor time, or on a GPU of the time
until it is idle.  Memory is the peak above that of the forward.  ``error`` is the largest difference from the method on
the model in float64, as a part of the largest score.  The tables are Markdown, as in ``docs/benchmarks.md``; ``--gate``
fails where a ratio is above its limit, which is wide.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from captum.attr import FeatureAblation, IntegratedGradients, LayerIntegratedGradients
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from captum_norm import (
    ALTI,
    AttentionBlockNorm,
    AttentionNorm,
    AttentionRollout,
    AttentionWeights,
    DecompX,
    GenerationAttribution,
    GlobEnc,
    attention_maps,
)
from captum_norm.forward import HFForward
from captum_norm.token_shares import ShareCounter

# The largest ratio to the forward that is let pass, with room for a busy machine: by method, and from which length on.
GATES = {
    "AttentionWeights": 1.4, "AttentionNorm": 1.5, "AttentionBlockNorm": 1.7, "AttentionRollout": 2.2,
    "AttentionNorm, rollout": 2.6, "GlobEnc": 3.0, "AttentionWeights, mean of rows": 2.2, "generate, norms": 3.0,
}  # fmt: skip
GATED_FROM = 512
SLOW = ("IntegratedGradients, 50 steps", "FeatureAblation", "Captum's BERT tutorial, 50 steps")


@dataclass(frozen=True)
class Setting:
    """One column of the tables."""

    length: int
    attention: str
    dtype: str
    batch: int

    def __str__(self) -> str:
        return f"{self.length}, {self.attention}"


def llama(setting: Setting, layers: int, device: str = "cpu") -> LlamaForCausalLM:
    """Random, its queries and keys sharpened."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=768, intermediate_size=2048, num_hidden_layers=layers, num_attention_heads=12,
        num_key_value_heads=4, max_position_embeddings=setting.length + 64, attn_implementation=setting.attention,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                projection.weight.mul_(4)
    return model.to(device=device, dtype=getattr(torch, setting.dtype))


def inputs_of(setting: Setting, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Ids and their mask; of several examples each is a little shorter, with padding before it."""
    ids = torch.randint(5, 1000, (setting.batch, setting.length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for example in range(1, setting.batch):
        mask[example, : example * setting.length // (2 * setting.batch)] = 0
    return (ids * mask).to(device), mask.to(device)


@torch.no_grad()
def rollout_by_hand(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """The last row of the product of (A + I) / 2, from ``output_attentions=True`` of an eager model."""
    row = torch.eye(ids.shape[1], dtype=torch.float32, device=ids.device)[-1:].expand(len(ids), 1, -1)
    for attention in reversed(model(ids, output_attentions=True).attentions):
        row = (row @ attention.float().mean(1) + row) / 2
    return row[:, 0]


def methods(model: LlamaForCausalLM, ids: Tensor, mask: Tensor) -> dict[str, Callable[[], Any]]:
    """Ours."""
    length, forward = ids.shape[1], HFForward(model)
    given: dict[str, Any] = {"additional_forward_args": (mask,)}
    built = {
        "AttentionWeights": AttentionWeights(forward), "AttentionNorm": AttentionNorm(forward),
        "AttentionBlockNorm": AttentionBlockNorm(forward), "AttentionRollout": AttentionRollout(forward),
        "AttentionNorm, rollout": AttentionNorm(forward, aggregate="rollout"), "GlobEnc": GlobEnc(forward),
        "ALTI": ALTI(forward),
    }  # fmt: skip
    found: dict[str, Callable[[], Any]] = {
        name: lambda method=method: method.attribute(ids, **given, position=-1) for name, method in built.items()
    }
    for name in ("AttentionWeights", "AttentionNorm"):
        method = built[name]
        found[f"{name}, mean of rows"] = lambda method=method: method.attribute(ids, **given, position="mean")
    classes = [[("[CLS]", "punctuation", "other")[place % 3] for place in range(length)]] * len(ids)
    asked = {"input_ids": ids, "attention_mask": mask}
    found["token shares, all three"] = lambda: ShareCounter(model).add(asked, classes)
    if len(ids) == 1:
        found["DecompX"] = lambda: DecompX(model, bias="token").attribute(ids, target=(length - 1, 0))
    if length <= 512:
        found["all rows, summed norms"] = lambda: attention_maps(model, asked, ("summed_norms",)).summed_norms[0]
    return found


def others(model: LlamaForCausalLM, ids: Tensor) -> dict[str, Callable[[], Any]]:
    """What one would run otherwise."""
    found: dict[str, Callable[[], Any]] = {}
    if model.config._attn_implementation == "eager":
        found["rollout by hand"] = lambda: rollout_by_hand(model, ids)
    if ids.shape != (1, 128) or model.dtype != torch.float32:
        return found
    embedding = model.get_input_embeddings()
    vectors, features = embedding(ids).detach(), torch.arange(128, device=ids.device)[None, :, None]

    def by_vectors(vectors: Tensor) -> Tensor:
        return model(inputs_embeds=vectors).logits[:, -1, 0]

    def by_ids(ids: Tensor) -> Tensor:
        return model(ids).logits[:, -1, 0]

    gradients, layer = IntegratedGradients(by_vectors), LayerIntegratedGradients(by_ids, embedding)
    found[SLOW[0]] = lambda: gradients.attribute(vectors, internal_batch_size=1)
    found[SLOW[1]] = lambda: FeatureAblation(by_vectors).attribute(vectors, feature_mask=features)
    found[SLOW[2]] = lambda: layer.attribute(ids, baselines=torch.zeros_like(ids), internal_batch_size=1)
    return found


def generation(model: LlamaForCausalLM, ids: Tensor, tokens: int = 32) -> dict[str, Callable[[], Any]]:
    """``generate`` by itself, and with the scores of every step."""

    def write() -> Tensor:
        return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)

    def explained(method: Any) -> Tensor:
        with GenerationAttribution(method) as steps:
            written = write()
        return steps.scores(written)

    return {
        "generate": write,
        "generate, weights": lambda: explained(AttentionWeights(model)),
        "generate, norms": lambda: explained(AttentionNorm(model)),
    }


def _status(name: str) -> float:
    """A line of /proc/self/status in MiB; 0 where there is none."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name)), 0.0)


def measured(function: Callable[[], Any], device: str = "cpu") -> tuple[float, float]:
    """Seconds, and the peak of memory above the start in MiB."""
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, start = torch.cuda.memory_allocated(), time.perf_counter()
        function()
        torch.cuda.synchronize()
        return time.perf_counter() - start, (torch.cuda.max_memory_allocated() - before) / 2**20
    if Path("/proc/self/clear_refs").exists():
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    resident, start = _status("VmRSS"), time.process_time()
    function()
    return time.process_time() - start, _status("VmHWM") - resident


def compared(asked: dict[str, Callable[[], Any]], repeats: int, device: str = "cpu") -> dict[str, tuple[float, float]]:
    """Ratio to the first, and MiB above it, of each other."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in asked}
    for name, function in asked.items():
        if name not in SLOW:
            function()  # what is kept per parameter
    for turn, (name, function) in itertools.product(range(repeats), asked.items()):
        if turn == 0 or name not in SLOW:
            taken[name].append(measured(function, device))
    first, *rest = asked
    base = taken[first]
    return {
        name: (
            statistics.median(time / own for (time, _), (own, _) in zip(taken[name], base, strict=False)),
            max(memory for _, memory in taken[name]) - max(memory for _, memory in base),
        )
        for name in rest
    }


def errors(setting: Setting, model: LlamaForCausalLM, ids: Tensor, mask: Tensor) -> dict[str, float]:
    """Of each method the largest difference from the one on the model in float64."""
    if setting.length > 512:
        return {}
    exact = methods(deepcopy(model).double(), ids, mask)
    found = {}
    for name, function in methods(model, ids, mask).items():
        ours, theirs = function(), exact[name]()
        if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
            found[name] = float((ours.double() - theirs.double()).abs().max() / theirs.abs().max())
    return found


def rows(setting: Setting, layers: int, repeats: int, device: str = "cpu") -> list[dict[str, Any]]:
    """One line for each method."""
    model, (ids, mask) = llama(setting, layers, device), inputs_of(setting, device)

    @torch.no_grad()
    def forward() -> Tensor:
        return model(ids, attention_mask=mask, use_cache=False).logits[:, -1]

    asked = {"forward": forward} | methods(model, ids, mask) | others(model, ids)
    found = compared(asked, repeats, device)
    if setting.batch == 1:
        found |= compared(generation(model, ids), repeats, device)
    error = errors(setting, model, ids, mask)
    return [
        asdict(setting) | {"method": name, "ratio": ratio, "extra MiB": extra, "error": error.get(name)}
        for name, (ratio, extra) in found.items()
    ]


def tables(found: list[dict[str, Any]]) -> str:
    """Markdown, a table for each number format and batch: a row for each method, a column for each length."""
    parts = []
    for dtype, batch in dict.fromkeys((row["dtype"], row["batch"]) for row in found):
        own = [row for row in found if (row["dtype"], row["batch"]) == (dtype, batch)]
        columns = list(dict.fromkeys((row["length"], row["attention"]) for row in own))
        lines = [f"| {dtype}, batch of {batch} | " + " | ".join(f"{length}, {how}" for length, how in columns) + " |"]
        lines.append("|---" * (1 + len(columns)) + "|")
        for name in dict.fromkeys(row["method"] for row in own):
            cells = {(row["length"], row["attention"]): _cell(row) for row in own if row["method"] == name}
            lines.append(f"| {name} | " + " | ".join(cells.get(column, "") for column in columns) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cell(row: dict[str, Any]) -> str:
    error = "" if row["error"] is None else f"; {row['error']:.0e}"
    return f"{row['ratio']:.2f}; {row['extra MiB']:.0f} MiB{error}"


def above_their_gates(found: list[dict[str, Any]]) -> list[str]:
    """The ratios that are above their limits."""
    return [
        f"{row['method']} at {row['length']} ({row['attention']}, {row['dtype']}): {row['ratio']:.2f}, at most "
        f"{GATES[row['method']]}"
        for row in found
        if row["length"] >= GATED_FROM and row["batch"] == 1 and row["ratio"] > GATES.get(row["method"], float("inf"))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--attention", nargs="+", default=["sdpa", "eager"])
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="where the numbers go as well")
    parser.add_argument("--gate", action="store_true", help="fail where a ratio is above its limit")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found: list[dict[str, Any]] = []
    for setting in itertools.product(asked.lengths, asked.attention, asked.dtypes, asked.batches):
        found += rows(Setting(*setting), asked.layers, asked.repeats, asked.device)
    print(tables(found))
    print(f"load {os.getloadavg()[0]:.1f}")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))
    failed = above_their_gates(found) if asked.gate else []
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
