"""A tiny classifier, its tokenizer, and a few texts with evidence: what the tests of studies run on."""

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from captum_norm.study import Example, Study, Variant

PIECES = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] a warm film that never feels forced delight ##ful . , ! the plot is thin and dull "
    "cast shine ##s"
).split()

TEXTS = (
    ("A warm film.", ((2, 6),)),
    ("The plot is thin.", ((12, 16),)),
    ("A delightful, warm film that never feels forced!", ((2, 12), (14, 18))),
    ("Dull.", ((0, 4),)),
    ("The cast shines and the film is delightful.", ((9, 15), (32, 42))),
    ("A film that is dull, dull and never warm.", ((15, 19), (21, 25))),
    ("The plot feels forced.", None),
    ("Warm and delightful cast.", ((0, 4), (9, 19))),
    ("That film is never dull!", ((13, 18),)),
)


def tokenizer() -> PreTrainedTokenizerFast:
    pieces = Tokenizer(WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    pieces.normalizer, pieces.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    pieces.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=pieces, model_max_length=24, **special)


def classifier(seed: int = 0) -> BertForSequenceClassification:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(PIECES),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=16,
            max_position_embeddings=32,
            initializer_range=0.3,
            id2label={0: "bad", 1: "good"},
        )
        return BertForSequenceClassification(config).eval()


def examples(count: int = len(TEXTS)) -> list[Example]:
    """Texts with and without evidence; from the tenth on, two put together."""
    found = []
    for number in range(count):
        text, evidence = TEXTS[number % len(TEXTS)]
        more = TEXTS[number // len(TEXTS)][0] if number >= len(TEXTS) else ""
        found.append(Example(f"{text} {more}".strip(), label=number % 2, evidence=evidence))
    return found


def study(methods=None, metrics=None, **options) -> Study:
    """A small study of methods of every kind: attention, gradients, perturbation, random draws."""
    usual = (
        "AttentionNorm",
        Variant("AttentionNorm", options={"aggregate": "rollout"}),
        Variant("IntegratedGradients", arguments={"n_steps": 4}),
        "FeatureAblation",
        Variant("GradientShap", arguments={"n_samples": 3}),
    )
    measured = ("comprehensiveness", "aopc_sufficiency", "infidelity", "auprc")
    return Study(classifier(), tokenizer(), methods or usual, metrics or measured, **{"batch_size": 4, **options})


def language_models() -> list[tuple[torch.nn.Module, PreTrainedTokenizerFast]]:
    """A decoder whose tokenizer has no token for padding, and an encoder-decoder."""
    pieces = Tokenizer(WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    bare = PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="[UNK]")
    sizes = {"vocab_size": len(PIECES), "eos_token_id": 3, "bos_token_id": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=4, n_positions=32, **sizes))
        t5 = T5Config(d_model=16, num_layers=1, num_heads=2, d_kv=8, d_ff=16, decoder_start_token_id=0, **sizes)
        return [(decoder.eval(), bare), (T5ForConditionalGeneration(t5).eval(), tokenizer())]


def run(folder, methods=("AttentionNorm",), metrics=("comprehensiveness",), data=None, name="s.db", **options):
    """The results of a small study."""
    small = study(methods, metrics, **options)
    return small.run(examples() if data is None else data, folder / name, progress=False)
