"""Small random encoder-decoders of several families, and tokenizers that cut words as theirs do."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

TEXT = ["der kleine hund schläft unter dem tisch .", "the little dog sleeps under the table .", "naïve 日本 kühe ! a b"]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "de_DE", "en_XX"]
START, PAD, END, UNK, GERMAN, ENGLISH = range(6)
SIZE = 160


def _trained(model: Any, trainer: Any, pre: Any, decoder: Any = None) -> Tokenizer:
    pieces = Tokenizer(model)
    pieces.pre_tokenizer = pre
    if decoder is not None:
        pieces.decoder = decoder
    pieces.train_from_iterator(TEXT * 3, trainer)
    return pieces


def byte_level() -> Tokenizer:
    """As BART's: spaces belong to the piece after them, the first word has none, bytes may be cut apart."""
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE + 200, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    return _trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel())


# In order of frequency; written out, as a trainer of unigrams comes out otherwise each time.
UNIGRAMS = "▁ e t h le a r i ▁t l n b . sch ▁k ▁de und s ▁un ▁d ï m ä ! 本 f o p ü v g 日 ▁s u k c d de"


def sentence_piece() -> Tokenizer:
    """As Marian's, T5's, mBART's and NLLB's: ▁ begins a word."""
    scored = [(piece, -1.8 - 0.1 * rank) for rank, piece in enumerate(UNIGRAMS.split())]
    pieces = Tokenizer(models.Unigram([(token, 0.0) for token in SPECIAL] + scored, unk_id=UNK))
    pieces.add_special_tokens(SPECIAL)
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    pieces.normalizer = normalizers.NFKC()
    return pieces


def word_piece() -> Tokenizer:
    """As BERT's: ## goes on with a word, punctuation is cut off."""
    trainer = trainers.WordPieceTrainer(vocab_size=SIZE, special_tokens=SPECIAL, show_progress=False)
    return _trained(models.WordPiece(unk_token="<unk>"), trainer, pre_tokenizers.BertPreTokenizer())


class TwoSided(PreTrainedTokenizerFast):
    """A tokenizer with one frame around source sentences and another around target sentences."""

    def __init__(self, frames: tuple[str, str], **how: Any) -> None:
        super().__init__(**how)
        self.frames = frames
        self._switch_to_input_mode()

    def _frame(self, frame: str) -> None:
        ids = [(name, self.convert_tokens_to_ids(name)) for name in SPECIAL]
        self.backend_tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=ids)

    def _switch_to_input_mode(self) -> None:
        self._frame(self.frames[0])

    def _switch_to_target_mode(self) -> None:
        self._frame(self.frames[1])


def tokenizer(pieces: Tokenizer, source: str = "$A </s>", target: str = "$A </s>") -> TwoSided:
    pieces.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    return TwoSided(
        (source, target), tokenizer_object=pieces, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        bos_token="<s>", extra_special_tokens=["de_DE", "en_XX"],
    )  # fmt: skip


class Slow:
    """A tokenizer written in Python, which keeps no offsets: SentencePiece's marks, ids by hand."""

    is_fast = False
    all_special_ids = (PAD, END, UNK)

    def __init__(self) -> None:
        self._fast = sentence_piece()

    def __call__(self, text: str = "", text_target: str = "", add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = self._fast.encode(text or text_target, add_special_tokens=False).ids
        return {"input_ids": [*([GERMAN] if text else [ENGLISH]), *ids, END] if add_special_tokens else ids}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self._fast.id_to_token(i) for i in ids]


COMMON = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 64,
    "pad_token_id": PAD, "eos_token_id": END, "bos_token_id": START, "init_std": 0.5,
}  # fmt: skip


def marian() -> tuple[Any, Any]:
    config = MarianConfig(vocab_size=SIZE, decoder_start_token_id=PAD, forced_eos_token_id=END, **COMMON)
    return MarianMTModel(config), tokenizer(sentence_piece())


def bart() -> tuple[Any, Any]:
    config = BartConfig(vocab_size=SIZE + 200, decoder_start_token_id=END, forced_eos_token_id=END, **COMMON)
    return BartForConditionalGeneration(config), tokenizer(byte_level(), "<s> $A </s>", "<s> $A </s>")


def mbart() -> tuple[Any, Any]:
    config = MBartConfig(vocab_size=SIZE, **COMMON)
    return MBartForConditionalGeneration(config), tokenizer(sentence_piece(), "$A </s> de_DE", "$A </s> en_XX")


def nllb() -> tuple[Any, Any]:
    config = M2M100Config(vocab_size=SIZE, decoder_start_token_id=END, **COMMON)
    return M2M100ForConditionalGeneration(config), tokenizer(sentence_piece(), "de_DE $A </s>", "en_XX $A </s>")


def t5() -> tuple[Any, Any]:
    config = T5Config(
        vocab_size=SIZE, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_decoder_layers=2, num_heads=2,
        decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=END, initializer_factor=1.0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config), tokenizer(word_piece())


FAMILIES = {"marian": marian, "bart": bart, "mbart": mbart, "nllb": nllb, "t5": t5}


def family(name: str, seed: int = 0) -> tuple[Any, Any]:
    """A model at rest and its tokenizer."""
    torch.manual_seed(seed)
    model, pieces = FAMILIES[name]()
    return model.eval(), pieces
