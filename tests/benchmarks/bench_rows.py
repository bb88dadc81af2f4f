"""What each method costs beside the model's own forward, and beside what one would run otherwise.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_rows [--lengths 128 512 2048] [--json rows.json] [--gate]

A random Llama (768 wide, 12 heads, 4 key heads; queries and keys sharpened, so that attention is uneven), its last row,
certificates included.  Each setting has a process of its own, in which all run in turn: medians of ratios of processor
time, or on a GPU of the time until it is idle; freed memory is kept for what comes next, as on a GPU.  Memory is the
peak above that of the forward, in a process of its own in which freed memory is given back at once.  ``error`` is the
largest difference from the method on the model in float64, as a part of the largest score; what the model itself rounds
is in it.  Beyond 2,048 tokens the quick methods run alone.
The tables are Markdown; ``--gate`` fails where a ratio is above its limit, which is wide.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from captum.attr import FeatureAblation, IntegratedGradients, LayerIntegratedGradients
from torch import Tensor
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from captum_norm import (
    ALTI,
    AttentionBlockNorm,
    AttentionNorm,
    AttentionRollout,
    AttentionWeights,
    DecompX,
    GenerationAttribution,
    GlobEnc,
    LLMAttentionAttribution,
    attention_maps,
)
from captum_norm.forward import HFForward
from captum_norm.token_shares import MEASURES, ShareCounter
from tests.attr.test_llm import byte_level
from tests.benchmarks.measuring import freed_memory_is_given_back, freed_memory_is_kept, in_a_process, peak, ratios
from tests.benchmarks.tables_of_rows import tables

# The largest ratio to the forward that is let pass, with room for a busy machine: by method, and from which length on.
GATES = {
    "AttentionWeights": 1.4, "AttentionNorm": 1.5, "AttentionBlockNorm": 1.7, "AttentionRollout": 2.2,
    "AttentionNorm, rollout": 2.6, "GlobEnc": 3.0, "AttentionWeights, mean of rows": 2.2,
    "AttentionNorm, mean of rows": 2.2, "token shares, all three": 2.4, "ALTI": 3.0, "DecompX": 3.0,
    "all rows, summed norms": 2.2, "generate, norms, 32 tokens": 3.0,
}  # fmt: skip
GATED_FROM = 512
LONG = 2048
LONG_ALTI = 4096
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
    if length > LONG:
        left_out = () if length <= LONG_ALTI else ("GlobEnc", "ALTI")
        return {name: function for name, function in found.items() if name not in left_out}
    for name in ("AttentionWeights", "AttentionNorm"):
        method = built[name]
        found[f"{name}, mean of rows"] = lambda method=method: method.attribute(ids, **given, position="mean")
    classes = [[("[CLS]", "punctuation", "other")[place % 3] for place in range(length)]] * len(ids)
    asked = {"input_ids": ids, "attention_mask": mask}
    found["token shares, all three"] = lambda: ShareCounter(model).add(asked, classes)
    for name in MEASURES if length == LONG else ():
        found[f"token shares, {name}"] = lambda name=name: ShareCounter(model, [name]).add(asked, classes)
    if len(ids) > 1:
        return {name: function for name, function in found.items() if name not in ("GlobEnc", "ALTI")}
    if length > 512:
        answers = LLMAttentionAttribution(built["AttentionNorm"], tokenizer())
        found["LLMAttentionAttribution, norms, 64 targets"] = lambda: answers.attribute(ids[0, :-64], ids[0, -64:])
    found["DecompX"] = lambda: DecompX(model, bias="token").attribute(ids, target=(length - 1, 0))
    if length <= 512:
        found["all rows, summed norms"] = lambda: attention_maps(model, asked, ("summed_norms",)).summed_norms[0]
    return found


@cache
def tokenizer() -> Any:
    """Any: prompts are ids.  Made once, as its training leaves threads behind that are busy for a while."""
    return byte_level()


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


def errors(setting: Setting, layers: int, device: str = "cpu") -> dict[str, float]:
    """Of each method the largest difference from the one on the model in float64."""
    if setting.length > 512 or setting.batch > 1:
        return {}
    model, (ids, mask) = llama(setting, layers, device), inputs_of(setting, device)
    exact = methods(deepcopy(model).double(), ids, mask)
    found = {}
    for name, function in methods(model, ids, mask).items():
        ours, theirs = function(), exact[name]()
        if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
            found[name] = float((ours.double() - theirs.double()).abs().max() / theirs.abs().max())
    return found


def asked_of(setting: Setting, layers: int, device: str = "cpu") -> dict[str, Callable[[], Any]]:
    """The forward, our methods and what one would run otherwise; what is kept per parameter has been made."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model, (ids, mask) = llama(setting, layers, device), inputs_of(setting, device)

    @torch.no_grad()
    def forward() -> Tensor:
        return model(ids, attention_mask=mask, use_cache=False).logits[:, -1]

    few = slice(None, min(setting.length, 512))
    tokenizer()
    for function in methods(model, ids[:, few], mask[:, few]).values():
        function()
    return {"forward": forward} | methods(model, ids, mask) | others(model, ids)


def peaks(setting: Setting, layers: int, device: str = "cpu") -> dict[str, float]:
    """MiB of each method, run once, when what the first ones leave behind for good is there."""
    freed_memory_is_given_back()
    asked = asked_of(setting, layers, device)
    for name in ("forward", "AttentionWeights"):
        asked[name]()
    return {name: peak(function, device) for name, function in asked.items() if name not in SLOW}


def times_and_errors(
    setting: Setting, layers: int, repeats: int, device: str = "cpu"
) -> tuple[dict[str, float], dict[str, float]]:
    """The ratio of each method to the forward, and its error."""
    freed_memory_is_kept()
    taken = ratios(asked_of(setting, layers, device), repeats, device, SLOW)
    return taken, errors(setting, layers, device)


def rows(setting: Setting, layers: int, repeats: int, device: str = "cpu") -> list[dict[str, Any]]:
    """One line for each method, from processes of their own: one for memory and one for the rest."""
    highest = in_a_process(peaks, setting, layers, device)
    found, error = in_a_process(times_and_errors, setting, layers, repeats, device)
    return [
        asdict(setting) | {"method": name, "ratio": ratio, "error": error.get(name)}
        | {"extra MiB": highest[name] - highest["forward"] if name in highest else None}
        for name, ratio in found.items()
    ]  # fmt: skip


def bert(length: int, attention: str) -> dict[str, Callable[[], Any]]:
    """The forward of a random model of BERT-base's shape, and all rows of all of its calls."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model = BertModel(BertConfig(attn_implementation=attention)).eval()
    asked = {"input_ids": inputs_of(Setting(length, attention, "float32", 1))[0]}

    @torch.no_grad()
    def forward() -> Tensor:
        return model(**asked).last_hidden_state

    return {
        "forward": forward,
        "BERT-base, all rows, summed norms": lambda: attention_maps(model, asked, ("summed_norms",)).summed_norms[0],
    }


def bert_ratios(length: int, attention: str, repeats: int) -> dict[str, float]:
    """The ratio of all rows to the forward."""
    freed_memory_is_kept()
    asked = bert(length, attention)
    for function in asked.values():
        function()
    return ratios(asked, repeats)


def bert_rows(length: int, attention: str, repeats: int) -> list[dict[str, Any]]:
    """One line: all rows of BERT-base."""
    found = in_a_process(bert_ratios, length, attention, repeats)
    return [
        asdict(Setting(length, attention, "float32", 1))
        | {"method": name, "ratio": ratio, "extra MiB": None, "error": None}
        for name, ratio in found.items()
    ]


def generation_ratios(length: int, layers: int, repeats: int, device: str = "cpu") -> dict[str, float]:
    """The ratio of each method to ``generate`` by itself."""
    freed_memory_is_kept()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    setting = Setting(length, "sdpa", "float32", 1)
    model, (ids, _) = llama(setting, layers, device), inputs_of(setting, device)
    asked = generation(model, ids)
    asked["generate, norms"]()
    return ratios(asked, repeats, device)


def generation_rows(length: int, layers: int, repeats: int, device: str = "cpu") -> list[dict[str, Any]]:
    """One line for each method while 32 tokens are written."""
    found = in_a_process(generation_ratios, length, layers, repeats, device)
    return [
        asdict(Setting(length, "sdpa", "float32", 1))
        | {"method": f"{name}, 32 tokens", "ratio": ratio, "extra MiB": None, "error": None}
        for name, ratio in found.items()
    ]


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
    parser.add_argument("--generate", type=int, help="the length of a prompt that 32 tokens are written after")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="where the numbers go as well")
    parser.add_argument("--gate", action="store_true", help="fail where a ratio is above its limit")
    asked = parser.parse_args()
    found: list[dict[str, Any]] = []
    for setting in itertools.product(asked.lengths, asked.attention, asked.dtypes, asked.batches):
        found += rows(Setting(*setting), asked.layers, asked.repeats, asked.device)
    if asked.generate:
        found += generation_rows(asked.generate, asked.layers, asked.repeats, asked.device)
    print(tables(found))
    print(f"load {os.getloadavg()[0]:.1f}")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))
    failed = above_their_gates(found) if asked.gate else []
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
