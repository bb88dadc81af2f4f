"""A small decoder in the file format of llama2.c (https://github.com/karpathy/llama2.c), as a transformers model.

Both files are little-endian.  A model is seven ints (width, hidden width, layers, heads, key heads, vocabulary, longest
text), then its float32 weights, layer by layer within each kind; a tokenizer is the longest token's length, then for
each token its score, its length and its bytes.  Tokens merge as in SentencePiece: the pair whose merged token has the
highest score first.
"""

from __future__ import annotations

import struct
from itertools import product
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def load_model(path: Path) -> LlamaForCausalLM:
    """The model, in float32 and evaluation mode."""
    data = path.read_bytes()
    width, hidden, layers, heads, key_heads, vocabulary, longest = struct.unpack("<7i", data[:28])
    numbers = torch.from_numpy(np.frombuffer(data, dtype="<f4", offset=28).copy())
    head, place = width // heads, 0

    def take(*shape: int) -> Tensor:
        nonlocal place
        place += int(np.prod(shape))
        return numbers[place - int(np.prod(shape)) : place].reshape(shape)

    def halves(weight: Tensor) -> Tensor:
        """Rotary pairs: neighbours there, half a head apart in transformers."""
        return weight.reshape(-1, head // 2, 2, width).transpose(1, 2).reshape(weight.shape)

    weights = {"model.embed_tokens.weight": take(vocabulary, width)}
    kinds = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (heads * head, width),
        "self_attn.k_proj": (key_heads * head, width),
        "self_attn.v_proj": (key_heads * head, width),
        "self_attn.o_proj": (width, width),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
        "mlp.up_proj": (hidden, width),
    }
    for (name, shape), layer in product(kinds.items(), range(layers)):
        weight = take(*shape)
        rotary = name.endswith(("q_proj", "k_proj"))
        weights[f"model.layers.{layer}.{name}.weight"] = halves(weight) if rotary else weight
    weights["model.norm.weight"] = take(width)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=key_heads, max_position_embeddings=longest, rms_norm_eps=1e-5,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.load_state_dict(weights)
    return model.eval()


def load_tokenizer(path: Path, vocabulary: int) -> PreTrainedTokenizerFast:
    """Its tokenizer: SentencePiece's byte-pair encoding, ``<s>`` before each text."""
    data, place = path.read_bytes(), 4
    scores: dict[str, float] = {}
    for _ in range(vocabulary):
        score, length = struct.unpack_from("<fi", data, place)
        token = data[place + 8 : place + 8 + length].decode().strip("\n").replace(" ", "▁")
        scores[token], place = score, place + 8 + length
    ranked = sorted((t for t in scores if len(t) > 1), key=lambda t: -scores[t])
    merges = [(t[:cut], t[cut:]) for t in ranked for cut in range(1, len(t)) if t[:cut] in scores and t[cut:] in scores]
    numbers = {token: number for number, token in enumerate(scores)}
    tokenizer = Tokenizer(models.BPE(numbers, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", numbers["<s>"])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
