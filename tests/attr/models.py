"""Tiny random models of six families, and each attention call of one computed slowly, from the model's own parts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn

VOCABULARY, WIDTH, HEADS, LAYERS = 60, 16, 4, 2

_SIZES: dict[str, dict[str, Any]] = {
    "Bert": {"intermediate_size": 24, "max_position_embeddings": 32},
    "GPT2": {"n_positions": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    "Llama": {"intermediate_size": 24, "num_key_value_heads": 2, "max_position_embeddings": 32},
    "Bart": {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 32, "pad_token_id": 0},
    "T5": {"d_ff": 24, "d_kv": 4, "decoder_start_token_id": 0},
    "ViT": {"intermediate_size": 24, "image_size": 12, "patch_size": 4},
}
_SHAPE: dict[str, dict[str, Any]] = {
    "GPT2": {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS},
    "Bart": dict.fromkeys(("encoder_layers", "decoder_layers"), LAYERS)
    | dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), HEADS)
    | {"d_model": WIDTH},
    "T5": {"d_model": WIDTH, "num_layers": LAYERS, "num_heads": HEADS},
}
_ENCODER = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
_CLASSES = {
    "Bert": "BertForSequenceClassification",
    "GPT2": "GPT2LMHeadModel",
    "Llama": "LlamaForCausalLM",
    "Bart": "BartForConditionalGeneration",
    "T5": "T5ForConditionalGeneration",
    "ViT": "ViTForImageClassification",
}
FAMILIES = tuple(_CLASSES)


class GPT2Classes(transformers.GPT2ForSequenceClassification):
    """A decoder of three classes, read off the last real token, whatever it is given."""

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, inputs_embeds: Any = None, **given: Any
    ) -> Any:
        states = self.transformer(input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds)[0]
        real = torch.ones(states.shape[:2]) if attention_mask is None else attention_mask
        row = (real.long() * torch.arange(real.shape[1])).argmax(1)
        logits = self.score(states[torch.arange(len(row)), row])
        if given.get("return_dict") is False:
            return (logits,)
        return transformers.modeling_outputs.SequenceClassifierOutput(logits=logits)


@cache
def _built(family: str, attention: str) -> nn.Module:
    vocabulary = {} if family == "ViT" else {"vocab_size": VOCABULARY}
    labels = {"num_labels": 3} if family in ("Bert", "ViT", "GPT2Classes") else {}
    of = family.removesuffix("Classes")
    shape = _SHAPE.get(of, _ENCODER)
    config = getattr(transformers, f"{of}Config")(**vocabulary, **shape, **_SIZES[of], **labels)
    config._attn_implementation = attention
    torch.manual_seed(0)
    model = (GPT2Classes if family == "GPT2Classes" else getattr(transformers, _CLASSES[family]))(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # attention far from uniform, biases that are not zero
            if "norm" not in name.lower() and "ln_" not in name:
                parameter.copy_(0.4 * torch.randn_like(parameter))
    return model


def tiny(family: str, attention: str = "eager") -> Any:
    """A model of its own, equal for equal arguments."""
    return copy.deepcopy(_built(family, attention))


def tell_calls(module: nn.Module, tell: Callable[[], Any]) -> None:
    """From now on ``tell`` is called whenever a module's forward is, replays included, which call no hooks."""
    forward = module.forward

    def told(*args: Any, **kwargs: Any) -> Any:
        tell()
        return forward(*args, **kwargs)

    module.forward = told


def ids(*shape: int, seed: int = 0) -> Tensor:
    """Token ids that are neither padding nor special."""
    return torch.randint(5, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class SlowCall:
    """One attention call: weights (batch, head, query, key), values (batch, head, key, e), W_O (head, e, model)."""

    kind: str
    weights: Tensor
    values: Tensor
    W_O: Tensor

    def vectors(self) -> Tensor:
        """alpha_ij f(x_j) for every head: (batch, head, query, key, model)."""
        return torch.einsum("bhqk,bhke,hed->bhqkd", self.weights, self.values, self.W_O)

    def head_norms(self) -> Tensor:
        return self.vectors().norm(dim=-1)

    def summed_norms(self) -> Tensor:
        return self.vectors().sum(dim=1).norm(dim=-1)

    def mean_weights(self) -> Tensor:
        return self.weights.mean(dim=1)


_VALUE_AND_OUTPUT = (
    ("self.value", "output.dense"),
    ("attention.value", "output.dense"),
    ("c_attn", "c_proj"),
    ("v_proj", "o_proj"),
    ("v_proj", "out_proj"),
    ("v", "o"),
)


def slow_calls(model: nn.Module, **inputs: Tensor) -> list[SlowCall]:
    """Every attention call of a Hugging Face model, from its returned attentions and its value layers' outputs.

    The model is changed (hooks, returned attentions stay on): give a copy.
    """
    values: list[Tensor] = []
    projections: list[Tensor] = []
    for name, module in model.named_modules():
        parts = [p for p in _VALUE_AND_OUTPUT if all(_has(module, path) for path in p)]
        if parts and name.lower().endswith(("attention", "attn")):
            value, output = (module.get_submodule(path) for path in parts[0])
            value.register_forward_hook(lambda _m, _a, out: values.append(out.detach()))
            weight = output.weight.detach()
            projections.append(weight if type(output).__name__ == "Conv1D" else weight.T)
    with torch.no_grad():
        output = model(**inputs, output_attentions=True)
    kinds = ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions")
    weights = {kind: output.get(kind) or () for kind in kinds}
    ordered = [("self", w) for w in (*weights["attentions"], *weights["encoder_attentions"])]
    for own, cross in zip(weights["decoder_attentions"], weights["cross_attentions"], strict=True):
        ordered += [("decoder", own), ("cross", cross)]
    return [_call(kind, w, v, o) for (kind, w), v, o in zip(ordered, values, projections, strict=True)]


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def _call(kind: str, weights: Tensor, value: Tensor, W_O: Tensor) -> SlowCall:
    head_dim = W_O.shape[0] // weights.shape[1]
    if value.shape[-1] == 3 * W_O.shape[0]:  # queries, keys and values in one projection
        value = value[..., 2 * W_O.shape[0] :]
    heads = value.unflatten(-1, (-1, head_dim)).transpose(1, 2)
    heads = heads.repeat_interleave(weights.shape[1] // heads.shape[1], dim=1)  # grouped queries
    return SlowCall(kind, weights, heads, W_O.unflatten(0, (-1, head_dim)))
