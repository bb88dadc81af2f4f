"""Fifteen tiny random models of different makes, with inputs: what any claim about "any architecture" is tested on."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn

VOCABULARY, LENGTH, CLASSES = 40, 6, 5

_COMMON: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32,
    "num_labels": CLASSES,
    "pad_token_id": 0,
}
_DECODER = {**_COMMON, "bos_token_id": 1, "eos_token_id": 2}
_GROUPED = {**_DECODER, "num_key_value_heads": 2, "head_dim": 4}
_SEQ2SEQ: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


def ids(batch: int, length: int, seed: int = 0) -> Tensor:
    """Token ids that are neither padding nor special, (batch, length)."""
    return torch.randint(5, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def _text() -> dict[str, Tensor]:
    return {"input_ids": ids(2, LENGTH)}


def _translated() -> dict[str, Tensor]:
    return {"input_ids": ids(2, LENGTH), "decoder_input_ids": ids(2, 4, seed=1)}


def _pictures() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))}


def _speech() -> dict[str, Tensor]:
    sound = torch.randn(2, 8, 20, generator=torch.Generator().manual_seed(0))
    return {"input_features": sound, "decoder_input_ids": ids(2, 4, seed=1)}


@dataclass(frozen=True)
class Architecture:
    """One kind of model.

    Attributes:
        name: what it is called.
        model_class: of transformers.
        config: of its configuration class.
        inputs: what a batch of two is, by name.
        rows: whether the output has a row per token, of which the last is explained.
        casts: whether it computes in float32 inside, whatever its dtype.
        only_float32: whether it runs in float32 alone.
        attention: its implementation of attention: "sdpa" where it has that.
    """

    name: str
    model_class: str
    config: dict[str, Any]
    inputs: Callable[[], dict[str, Tensor]] = _text
    rows: bool = False
    casts: bool = False
    only_float32: bool = False
    attention: str = "sdpa"
    encoder_decoder: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoder_decoder", "decoder_input_ids" in self.inputs())

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.only_float32 else torch.float64

    def build(self, attention: str | None = None, biases: bool = True) -> Any:
        """A model of its own, in evaluation mode and :attr:`dtype`; equal for equal arguments.

        Args:
            attention: its implementation of attention, if not the one it has by default.
            biases: False makes every bias zero, beta of norms included.
        """
        return copy.deepcopy(_built(self.name, attention or self.attention, biases))

    def batch(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The inputs by name, those in floating point in ``dtype``."""
        given = self.inputs()
        return {k: v.to(dtype or self.dtype) if v.is_floating_point() else v for k, v in given.items()}

    def explained(self, output: Any) -> Tensor:
        """Output 3 of each example, at the last row where there are rows: (batch,)."""
        logits = output if isinstance(output, Tensor) else output.logits
        return logits[:, -1, 3] if self.rows else logits[:, 3]


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("BERT", "BertForSequenceClassification", _COMMON),
        Architecture("RoBERTa", "RobertaForSequenceClassification", {**_DECODER, "pad_token_id": 0}),
        Architecture(
            "DeBERTa-v2",
            "DebertaV2ForSequenceClassification",
            {**_COMMON, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4,
             "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False,
             "pooler_hidden_size": 16, "type_vocab_size": 0},
            attention="eager",
        ),
        Architecture(
            "ModernBERT",
            "ModernBertForSequenceClassification",
            {**_DECODER, "global_attn_every_n_layers": 2, "local_attention": 4, "cls_token_id": 3, "sep_token_id": 4,
             "norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True},
        ),
        Architecture(
            "GPT-2",
            "GPT2LMHeadModel",
            {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": VOCABULARY, "bos_token_id": 1,
             "eos_token_id": 2, "pad_token_id": 0},
            rows=True,
        ),
        Architecture(
            "GPT-NeoX", "GPTNeoXForCausalLM", {**_DECODER, "rotary_pct": 0.5, "attention_bias": True}, rows=True
        ),
        Architecture("Llama", "LlamaForCausalLM", {**_GROUPED, "attention_bias": True, "mlp_bias": True}, rows=True,
                     casts=True),
        Architecture("Qwen3", "Qwen3ForCausalLM", _GROUPED, rows=True, casts=True),
        Architecture(
            "Gemma-2",
            "Gemma2ForCausalLM",
            {**_GROUPED, "query_pre_attn_scalar": 4, "sliding_window": 4, "final_logit_softcapping": 30.0},
            rows=True,
            casts=True,
            attention="eager",
        ),
        Architecture(
            "Mixtral", "MixtralForCausalLM", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}, rows=True,
            casts=True, only_float32=True,
        ),
        Architecture(
            "T5",
            "T5ForConditionalGeneration",
            {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "vocab_size": VOCABULARY,
             "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2},
            _translated,
            rows=True,
            casts=True,
        ),
        Architecture("BART", "BartForConditionalGeneration", _SEQ2SEQ, _translated, rows=True),
        Architecture("Marian", "MarianMTModel", {**_SEQ2SEQ, "forced_eos_token_id": 2}, _translated, rows=True),
        Architecture(
            "ViT",
            "ViTForImageClassification",
            {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
             "image_size": 12, "patch_size": 4, "num_labels": CLASSES},
            _pictures,
        ),
        Architecture(
            "Whisper",
            "WhisperForConditionalGeneration",
            {**{k: v for k, v in _SEQ2SEQ.items() if k != "max_position_embeddings"}, "num_mel_bins": 8,
             "max_source_positions": 10, "max_target_positions": 16, "suppress_tokens": None,
             "begin_suppress_tokens": None},
            _speech,
            rows=True,
        ),
    )
}  # fmt: skip


@cache
def _built(name: str, attention: str, biases: bool) -> nn.Module:
    architecture = ARCHITECTURES[name]
    with warnings.catch_warnings():  # transformers 4 compiles parts of some models when they are imported
        warnings.filterwarnings("ignore", r"`torch\.jit\.script(_method)?` is deprecated", DeprecationWarning)
        model_class = getattr(transformers, architecture.model_class)
    config = model_class.config_class(**architecture.config)
    # T5 has no other attention before transformers 5.
    config._attn_implementation = attention if getattr(model_class, "_supports_sdpa", True) else "eager"
    torch.manual_seed(0)
    model = model_class(config).to(architecture.dtype).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim > 1 or "bias" in parameter_name:  # attention far from uniform, biases that are not zero
                parameter.copy_(0.4 * torch.randn_like(parameter))
    if not biases:
        without_biases(model)
    return model  # type: ignore[no-any-return]


@torch.no_grad()
def without_biases(model: nn.Module) -> None:
    """Set every bias to zero: what is left is a sum over tokens and nothing else."""
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] in ("bias", "beta", "final_logits_bias"):
            parameter.zero_()
    for name, buffer in model.named_buffers():
        if name.endswith("final_logits_bias"):
            buffer.zero_()
