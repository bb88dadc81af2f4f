"""A real translation model without a download: German to English, of Marian's type, trained here.

Three encoder and four decoder layers of four heads, 256 dimensions, one vocabulary of 6,000 pieces for both languages:
6.4 M parameters.  :mod:`captum_norm.models.training.translation` trained it.  The package ships its weights in half
precision, with a description (``translation.json``) and its pieces (``translation.pieces.json``).  It reads lower-cased
words, punctuation apart (:func:`captum_norm.models.translation_words` makes them).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import MarianConfig, MarianMTModel, PreTrainedTokenizerFast

from captum_norm.models.shipped import existing, read_card, read_tensors

TRANSLATION_WEIGHTS = Path(__file__).with_name("translation.safetensors")
PAD, EOS, UNK = 0, 1, 2
SPECIAL_PIECES = ["<pad>", "</s>", "<unk>"]
_LONGEST = 512


def load_translation(
    *, attn_implementation: str | None = None, weights: str | Path | None = None
) -> tuple[MarianMTModel, PreTrainedTokenizerFast]:
    """The embedded translation model, German to English, and its tokenizer for both languages.

    An ordinary ``MarianMTModel`` in evaluation mode and float32.  It is small and has seen little text: study
    cross-attention on it, and do not rely on its translations.  :func:`translation_card` says how good it is.

    Args:
        attn_implementation: ``"eager"``, ``"sdpa"`` and so on; None leaves the choice to transformers.
        weights: a file written by :mod:`captum_norm.models.training.translation`; None takes the one shipped.

    Returns:
        The model and the tokenizer, which lower-cases, writes ß as ss and ends a sentence with ``</s>``.

    Raises:
        FileNotFoundError: if a file of weights, its description or its pieces are missing.
        ValueError: if a file is corrupt.

    Example:
        >>> model, tokenizer = load_translation()
        >>> ids = model.generate(**tokenizer("das ist gut .", return_tensors="pt"), max_new_tokens=20)
        >>> "good" in tokenizer.decode(ids[0], skip_special_tokens=True)
        True
    """
    path = TRANSLATION_WEIGHTS if weights is None else Path(weights)
    read_card(path)
    tensors = read_tensors(path, path.read_bytes(), "captum-norm")
    tokenizer = as_tokenizer(read_pieces(pieces_beside(path)))
    with torch.random.fork_rng(devices=[]):
        model = build_translation(len(tokenizer), attn_implementation)
    loaded = model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=False)
    lacking = {name for name, _ in model.named_parameters()} & set(loaded.missing_keys) - untrained_names(model)
    if lacking or loaded.unexpected_keys:
        raise ValueError(
            f"{path} has the weights of another model: {sorted(lacking) or sorted(loaded.unexpected_keys)} do not fit. "
            "Reinstall captum-norm or train again."
        )
    return model.train(False), tokenizer


def translation_card(weights: str | Path | None = None) -> dict[str, Any]:
    """The description of the model: how good it is, its data and their licences, its training, the versions used.

    Args:
        weights: a file written by :mod:`captum_norm.models.training.translation`; None takes the one shipped.

    Example:
        >>> translation_card()["languages"]
        ['de', 'en']
    """
    return read_card(TRANSLATION_WEIGHTS if weights is None else Path(weights))


def build_translation(vocabulary: int, attn_implementation: str | None = None) -> MarianMTModel:
    """The model before training, with weights drawn from torch's random numbers."""
    model = MarianMTModel(_config(vocabulary, attn_implementation))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "model.shared.weight":
                torch.nn.init.normal_(parameter, 0, parameter.shape[1] ** -0.5)
            elif parameter.dim() == 2 and name not in untrained_names(model):
                torch.nn.init.xavier_uniform_(parameter)
    return model


def untrained_names(model: MarianMTModel) -> set[str]:
    """The names of the position tables: fixed sinusoids, the same in every such model."""
    return {name for name, _ in model.named_parameters() if "embed_positions" in name}


def pieces_beside(weights: Path) -> Path:
    """The path of the pieces that belong to a file of weights."""
    return weights.with_suffix(".pieces.json")


def read_pieces(path: Path) -> Tokenizer:
    """The pieces of a file.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is corrupt.
    """
    try:
        return Tokenizer.from_str(existing(path, "captum-norm").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except Exception as error:  # of no narrower type: tokenizers raises it
        raise ValueError(f"{path} is corrupt ({error}). Reinstall captum-norm or train again.") from error


def as_tokenizer(pieces: Tokenizer) -> PreTrainedTokenizerFast:
    """The pieces as a tokenizer of transformers."""
    make: Any = PreTrainedTokenizerFast  # its constructor carries no types
    return make(
        tokenizer_object=pieces,
        model_max_length=_LONGEST,
        model_input_names=["input_ids", "attention_mask"],
        pad_token=SPECIAL_PIECES[PAD],
        eos_token=SPECIAL_PIECES[EOS],
        unk_token=SPECIAL_PIECES[UNK],
    )


def _config(vocabulary: int, attn_implementation: str | None) -> MarianConfig:
    chosen: dict[str, Any] = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    return MarianConfig(
        vocab_size=vocabulary,
        d_model=256,
        encoder_layers=3,
        decoder_layers=4,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=512,
        decoder_ffn_dim=512,
        max_position_embeddings=_LONGEST,
        activation_function="relu",
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=None,
        decoder_start_token_id=PAD,
        forced_eos_token_id=EOS,
        scale_embedding=True,
        tie_word_embeddings=True,
        share_encoder_decoder_embeddings=True,
        **chosen,
    )
