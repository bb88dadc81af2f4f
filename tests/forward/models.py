"""Tiny Hugging Face models of many families, and texts for them."""

import functools

import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LongformerConfig,
    LongformerForMaskedLM,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MixtralConfig,
    MixtralForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
    XLNetConfig,
    XLNetLMHeadModel,
)

from captum_norm.forward import HFForward

# Weights large enough that every token matters to every output.
ENCODER = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
    "num_labels": 3,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}


TRANSLATOR = {
    "vocab_size": 50,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 40,
    "init_std": 0.3,
    "scale_embedding": True,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}


GPT = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "initializer_range": 0.3}


IMAGE = {"image_size": 12, "patch_size": 4, "num_labels": 3, "initializer_range": 0.3}


VISION = IMAGE | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}


def specials(**ids: int) -> dict[str, int]:
    return {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1} | ids


MODELS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**ENCODER)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**ENCODER)),
    "deberta": lambda: DebertaV2ForSequenceClassification(
        DebertaV2Config(**ENCODER, relative_attention=True, pos_att_type=["p2c", "c2p"], position_biased_input=False)
    ),
    "modernbert": lambda: ModernBertForMaskedLM(
        ModernBertConfig(**ENCODER, cls_token_id=0, sep_token_id=2, local_attention=4, global_attn_every_n_layers=2)
    ),
    "xlnet": lambda: XLNetLMHeadModel(
        XLNetConfig(vocab_size=50, d_model=32, n_layer=2, n_head=4, d_inner=32, initializer_range=0.3, **specials())
    ),
    "longformer": lambda: LongformerForMaskedLM(LongformerConfig(**ENCODER, attention_window=[4, 4])),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT, **specials())),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**ENCODER, num_key_value_heads=2)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**ENCODER, num_key_value_heads=2, num_local_experts=4)),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4, decoder_start_token_id=0)
    ),
    "bart": lambda: BartForConditionalGeneration(BartConfig(**TRANSLATOR)),
    "marian": lambda: MarianMTModel(MarianConfig(**TRANSLATOR)),
    "m2m100": lambda: M2M100ForConditionalGeneration(M2M100Config(**TRANSLATOR)),
}


CAUSAL = ("gpt2", "llama", "mixtral")


LOOKS_AHEAD = ("roberta", "modernbert", "xlnet", "longformer")


TRANSLATORS = ("t5", "bart", "marian", "m2m100")


@functools.cache
def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def text(padding: str = "right", **more: Tensor) -> dict[str, Tensor]:
    """Three texts of 7, 5 and 3 tokens."""
    ids = torch.randint(5, 50, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0, 0]])
    mask = mask if padding == "right" else mask.flip(1)
    return {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask, **more}


def pair(padding: str = "right") -> dict[str, Tensor]:
    """The same with a translation of 4, 4 and 2 tokens."""
    target = torch.randint(5, 50, (3, 4), generator=torch.Generator().manual_seed(2))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]])
    return text(padding, decoder_input_ids=target.masked_fill(mask == 0, 1), decoder_attention_mask=mask)


def encoding_for(name: str, padding: str = "right") -> dict[str, Tensor]:
    return pair(padding) if name in TRANSLATORS else text(padding)


def call(forward: HFForward, encoding: dict[str, Tensor]) -> Tensor:
    arguments = forward.inputs(encoding)
    with torch.no_grad():
        return forward(arguments["inputs"], *(arguments["additional_forward_args"] or ()))


def hooks(model: nn.Module) -> int:
    kinds = [name for name in vars(model) if name.endswith("_hooks")]
    return sum(len(vars(module)[kind]) for module in model.modules() for kind in kinds)


class HandMade(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(50, 4))

    def forward(self, input_ids):
        return self.weight[input_ids].sum(1)


def bert(*args, **kwargs) -> HFForward:
    return HFForward(model_of("bert"), *args, **kwargs)


IDS = torch.tensor([[5, 6, 7]])
