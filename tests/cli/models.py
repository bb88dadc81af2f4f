"""Tiny tokenizers and a config for the models that commands meet."""

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel, WordPiece
from transformers import BertConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PIECES = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] a warm film that never feels forced delight ##ful . , ! the plot is thin".split()
)
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16}
TEXT = "A warm film, delightful!"


def bert_tokenizer() -> PreTrainedTokenizerFast:
    pieces = Tokenizer(WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    pieces.normalizer, pieces.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    pieces.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=pieces, model_max_length=24, **special)


def gpt_tokenizer() -> PreTrainedTokenizerFast:
    pieces = Tokenizer(WordLevel({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="[UNK]")


def bert_config() -> BertConfig:
    labels = {0: "bad", 1: "good"}
    return BertConfig(
        vocab_size=len(PIECES), max_position_embeddings=32, initializer_range=0.3, id2label=labels, **SIZES
    )


def counting_model() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A language model whose vocabulary has numerals, none of them at its own number."""
    words = {word: i for i, word in enumerate(["[UNK]", "two", "plus", "five", "is", "7", "8", "cat", "4", "2"])}
    pieces = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=50, **SIZES)).eval()
    return model, PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="[UNK]")
