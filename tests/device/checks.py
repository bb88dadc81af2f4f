"""What has to hold on a device, each check a function that raises or returns what it has measured.

Sizes are small on a CPU, where the same code has to run; ratios on a GPU are of layers of an 8-billion-parameter model.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from captum_norm import (
    ALTI,
    AttentionBlockNorm,
    AttentionNorm,
    AttentionRollout,
    AttentionWeights,
    GenerationAttribution,
    GlobEnc,
)

METHODS: dict[str, Callable[[Any], Any]] = {
    "AttentionWeights": AttentionWeights, "AttentionNorm": AttentionNorm, "AttentionBlockNorm": AttentionBlockNorm,
    "AttentionRollout": AttentionRollout, "GlobEnc": GlobEnc, "ALTI": ALTI,
}  # fmt: skip
DTYPES = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 1e-2}
"""How far rows may be from those of the float64 model on the CPU with the same (rounded) parameters, of the largest."""
LENGTHS = {"cpu": (64, 128), "cuda": (2048, 8192, 32768)}


def on_gpu(device: str) -> bool:
    """Whether sizes are large."""
    return torch.device(device).type != "cpu"


def decoder(device: str, dtype: str = "float32", large: bool = False, attention: str = "sdpa") -> LlamaForCausalLM:
    """Two layers, random, the same numbers on every device."""
    torch.manual_seed(0)
    sizes = (4096, 14336, 32, 8) if large else (64, 96, 8, 4)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=sizes[0], intermediate_size=sizes[1], num_hidden_layers=2,
        num_attention_heads=sizes[2], num_key_value_heads=sizes[3], max_position_embeddings=1 << 16,
        attn_implementation=attention, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().to(device=device, dtype=getattr(torch, dtype))


def ids_of(length: int, device: str) -> Tensor:
    """(1, length)."""
    return torch.randint(5, 1000, (1, length), generator=torch.Generator().manual_seed(1)).to(device)


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest difference as a part of the largest score."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).abs().max() / expected.abs().max())


def exactness(device: str) -> dict[str, float]:
    """Rows are those of the float64 model on the CPU, in every number format."""
    found, ids = {}, ids_of(40, device)
    for dtype, allowed in DTYPES.items():
        model = decoder(device, dtype)
        exact = deepcopy(model).to("cpu").double()
        for name, build in METHODS.items():
            method = build(model)
            error = distance(method.attribute(ids, position=-1), build(exact).attribute(ids.cpu(), position=-1))
            found[f"{name}, {dtype}"] = error
            assert error <= allowed, f"{name} in {dtype} is off by {error:.1e}, at most {allowed:.0e}"
            assert all(float(c) <= c.tolerance for _, c in method.report.certificates)
    return found


def rows_and_sums(device: str) -> dict[str, float]:
    """A row is that of the whole map, and the mean that of all rows."""
    found, ids = {}, ids_of(40, device)
    for name, build in METHODS.items():
        method = build(decoder(device))
        rows = method.attribute(ids, position="all")
        for what, position, expected in (("row", 17, rows[:, 17]), ("mean", "mean", rows.mean(1))):
            error = found[f"{name}, {what}"] = distance(method.attribute(ids, position=position), expected)
            assert error <= 1e-5, f"{name}: the {what} is off by {error:.1e}"
    return found


def ratios(device: str) -> dict[str, float]:
    """Seconds of a row beside those of the forward, in bfloat16 on a GPU."""
    found, large = {}, on_gpu(device)
    model = decoder(device, "bfloat16" if large else "float32", large)
    for length in LENGTHS["cuda" if large else "cpu"]:
        ids = ids_of(length, device)
        methods = {"AttentionWeights": AttentionWeights(model), "AttentionNorm": AttentionNorm(model)}
        base = _seconds(lambda: _forward(model, ids), large)  # noqa: B023
        for name, method in methods.items():
            found[f"{name}, {length}"] = _seconds(lambda: method.attribute(ids, position=-1), large) / base  # noqa: B023
    return found


@torch.no_grad()
def _forward(model: LlamaForCausalLM, ids: Tensor) -> None:
    model(ids, use_cache=False)


def _seconds(run: Callable[[], Any], on_gpu: bool, repeats: int = 3) -> float:
    """On a GPU until it is idle, else of the processor, whatever else is running."""
    clock = time.perf_counter if on_gpu else time.process_time
    run()
    taken = []
    for _ in range(repeats):
        start = clock()
        run()
        if on_gpu:
            torch.cuda.synchronize()
        taken.append(clock() - start)
    return min(taken)


def generation(device: str) -> dict[str, float]:
    """What is said while a model writes is what the whole text says, for each cache."""
    model, ids = decoder(device), ids_of(12, device)
    method, found = AttentionNorm(model), {}
    for cache in ("dynamic", "static"):
        with GenerationAttribution(method) as steps:
            written = model.generate(ids, max_new_tokens=6, do_sample=False, cache_implementation=cache)
        rows = method.attribute(written[:, :-1], position="all")[:, ids.shape[1] - 1 :]
        error = found[cache] = distance(steps.scores(written)[:, :, :-1], rows)
        assert error <= 1e-4, f"generation with a {cache} cache is off by {error:.1e}"
    return found


def other_kernels(device: str) -> dict[str, float]:
    """A model with flash attention is read with SDPA for the pass, and has its own kernel again."""
    try:
        model = decoder(device, "bfloat16", attention="flash_attention_2")
    except (ImportError, ValueError) as error:
        return {f"left out: {str(error)[:60]}": 0.0}
    ids = ids_of(40, device)
    model.set_attn_implementation("sdpa")
    found = AttentionNorm(model).attribute(ids, position=-1)
    model.set_attn_implementation("flash_attention_2")
    assert model.config._attn_implementation == "flash_attention_2"
    _forward(model, ids)
    return {"flash attention": distance(found, AttentionNorm(decoder(device, "bfloat16")).attribute(ids, position=-1))}


def compiled(device: str) -> dict[str, float]:
    """A compiled model gives the scores of the model that was compiled."""
    model, ids = decoder(device), ids_of(40, device)
    found = AttentionNorm(torch.compile(model)).attribute(ids, position=-1)
    error = distance(found, AttentionNorm(model).attribute(ids, position=-1))
    assert error <= 1e-5, f"a compiled model is off by {error:.1e}"
    return {"compiled": error}


def device_map(device: str) -> dict[str, float]:
    """Layers on several devices are read where they run."""
    from accelerate import dispatch_model

    plain, ids = decoder(device), ids_of(40, device)
    expected = AttentionNorm(plain).attribute(ids, position=-1)
    places: dict[str, Any] = dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.layers.0"), device)
    places |= {"model.layers.1": "cpu", "model.norm": device, "lm_head": device}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = dispatch_model(decoder("cpu"), places, main_device=device, force_hooks=True)
    error = distance(AttentionNorm(model).attribute(ids, position=-1), expected)
    assert error <= 1e-5, f"a model on several devices is off by {error:.1e}"
    return {"device_map": error}


CHECKS = (exactness, rows_and_sums, generation, other_kernels, compiled, device_map, ratios)
