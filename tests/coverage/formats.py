"""Quantised weights of four libraries: the quantised model's maps beside those of its own matrices, written out.

    python -m tests.coverage.formats

For each format: how far the capture is from what the model computed (the certificate), what was allowed, and how far
weights, norms and answers are from those of a plain model that holds the dequantised matrices, relative to the largest.
The libraries are torchao, optimum-quanto and bitsandbytes; what is missing is passed over.
"""

from __future__ import annotations

import copy
import importlib
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from captum_norm import AttentionNorm, DecompX, attention_maps
from captum_norm.capture import InexactCaptureError

IDS = torch.randint(1, 50, (2, 12), generator=torch.Generator().manual_seed(0))
Made = tuple[nn.Module, Callable[[nn.Module], Tensor]]
"""A quantised model, and the matrix (out, in) that one of its linear modules holds."""


def model() -> nn.Module:
    """A BERT whose attention is far from uniform."""
    torch.manual_seed(0)
    made = BertForSequenceClassification(
        BertConfig(vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
    ).eval()
    for parameter in made.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    return made


def _torchao(config: str) -> Made:
    quantisation = importlib.import_module("torchao.quantization")
    made = model()
    quantisation.quantize_(made.bert, getattr(quantisation, config)())
    return made, lambda module: module.weight.dequantize()


def _quanto() -> Made:
    quanto = importlib.import_module("optimum.quanto")
    made = model()
    quanto.quantize(made, weights=quanto.qint8)
    quanto.freeze(made)
    return made, lambda module: module.weight.dequantize()


def _bitsandbytes(bits: int) -> Made:
    library = importlib.import_module("bitsandbytes")
    made = model()

    def packed(plain: nn.Linear) -> nn.Module:
        if bits == 8:
            module = library.nn.Linear8bitLt(plain.in_features, plain.out_features, has_fp16_weights=False)
            module.weight = library.nn.Int8Params(plain.weight.data, requires_grad=False, has_fp16_weights=False)
        else:
            module = library.nn.Linear4bit(
                plain.in_features, plain.out_features, quant_type="nf4", compute_dtype=torch.float32
            )
            module.weight = library.nn.Params4bit(plain.weight.data, requires_grad=False, quant_type="nf4")
        module.bias = plain.bias
        return module.to("cpu")

    for parent in list(made.bert.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is nn.Linear:
                setattr(parent, name, packed(module))
    with torch.no_grad():
        made(IDS)

    def written_out(module: Any) -> Tensor:
        if bits == 4:
            return library.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        held = module.state if module.state.CB is not None else module.weight
        return held.CB.float() * held.SCB[:, None].float() / 127

    return made, written_out


def _dynamic() -> Made:
    made = torch.ao.quantization.quantize_dynamic(model(), {nn.Linear}, dtype=torch.qint8)
    return made, lambda module: module.weight().dequantize()


FORMATS: dict[str, Callable[[], Made]] = {
    "torchao int8 weights": lambda: _torchao("Int8WeightOnlyConfig"),
    "torchao float8 weights": lambda: _torchao("Float8WeightOnlyConfig"),
    "torchao int8 weights and inputs": lambda: _torchao("Int8DynamicActivationInt8WeightConfig"),
    "optimum-quanto int8 weights": _quanto,
    "bitsandbytes int8": lambda: _bitsandbytes(8),
    "bitsandbytes nf4 weights": lambda: _bitsandbytes(4),
    "torch dynamic int8": _dynamic,
}


def written_out(quantised: nn.Module, matrix: Callable[[Any], Tensor]) -> nn.Module:
    """The plain model whose linear maps are those that the quantised one holds."""
    plain, modules = model(), dict(quantised.named_modules())
    for name, module in plain.named_modules():
        if isinstance(module, nn.Linear) and type(modules[name].weight) is not nn.Parameter:
            module.weight.data = matrix(modules[name]).detach().float().reshape(module.weight.shape)
    return plain


def row(name: str) -> list[str]:
    """The format's line of the table."""
    quantised, matrix = FORMATS[name]()
    plain = written_out(quantised, matrix)
    try:
        found, expected = (attention_maps(m, copy.copy(IDS)) for m in (quantised, plain))
        answered = _apart(AttentionNorm(quantised).attribute(IDS), AttentionNorm(plain).attribute(IDS))
    except InexactCaptureError as error:
        return [name, f"refused: {error}", "", "", "", "", ""]
    pairs = list(zip(found.weights, expected.weights, strict=True))
    norms = list(zip(found.summed_norms, expected.summed_norms, strict=True))
    certificates = found.certificate
    return [
        name,
        f"{max(float(c) for c in certificates):.1e}",
        f"{max(c.tolerance for c in certificates):.1e}",
        f"{max(_apart(*pair) for pair in pairs):.1e}",
        f"{max(_apart(*pair) for pair in norms):.1e}",
        f"{answered:.1e}",
        _decompx(quantised, plain),
    ]


def _decompx(quantised: nn.Module, plain: nn.Module) -> str:
    try:
        return f"{_apart(*(DecompX(m).attribute(IDS, target=1) for m in (quantised, plain))):.1e}"
    except ValueError as error:  # by name: what rounds its inputs is no linear map
        print(error, file=sys.stderr)
        return "refused"


def _apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def table() -> str:
    """All formats that are installed, Markdown."""
    lines = ["| format | certificate | allowed | weights | norms | AttentionNorm | DecompX |", "|" + " --- |" * 7]
    for name in FORMATS:
        try:
            lines.append("| " + " | ".join(row(name)) + " |")
        except ImportError as error:
            print(f"{name}: {error}", file=sys.stderr)
    return "\n".join(lines)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    print(table())
