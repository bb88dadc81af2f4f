"""From ``--model``, ``--device`` and ``--dtype`` to a model that runs; one line for each thing that can fail."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, BatchEncoding

from captum_norm.forward.inputs import longest_input
from captum_norm.models import load_encoder, load_sentiment

Task = Literal["classes", "next token", "none"]

# What the heads of a checkpoint's class compute, by the end of the class's name.
_HEADS: dict[str, Task] = {
    "ForSequenceClassification": "classes",
    "ForCausalLM": "next token",
    "LMHeadModel": "next token",
    "ForConditionalGeneration": "next token",
    "ForSeq2SeqLM": "next token",
    "MTModel": "next token",
}


@dataclass(frozen=True)
class Loaded:
    """A model ready to run.

    Attributes:
        model: in evaluation mode, on its device.
        tokenizer: or None, where none was asked for.
        name: what to call it in print.
        task: what its output says: ``"classes"``, ``"next token"`` or ``"none"`` (neither).
    """

    model: Any
    tokenizer: Any
    name: str
    task: Task

    def encode(self, texts: str | list[str], **how: Any) -> BatchEncoding:
        """Token ids and masks, on the model's device."""
        return self.tokenizer(texts, return_tensors="pt", **how).to(self.model.device)

    def forward_inputs(self, encoding: Mapping[str, Any]) -> Any:
        """What the model itself takes: for an encoder-decoder, with the start token that its decoder begins with."""
        config = self.model.config
        if not getattr(config, "is_encoder_decoder", False):
            return encoding
        start = getattr(config, "decoder_start_token_id", None) or 0
        ids = encoding["input_ids"]
        return {**encoding, "decoder_input_ids": torch.full_like(ids[:, :1], start)}

    def text_model(self) -> Any:
        """The part that reads the text: the model, or the encoder of an encoder-decoder."""
        split = getattr(self.model.config, "is_encoder_decoder", False)
        return self.model.get_encoder() if split else self.model

    def label(self, index: int) -> str:
        """What an output stands for: a class, or a next token in quotes."""
        if self.task == "next token":
            return repr(self.tokenizer.decode([index]))
        return str(self.model.config.id2label.get(index, index))


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings and progress bars of the libraries below; as before afterwards."""
    speech = transformers.utils.logging
    hub = logging.getLogger("huggingface_hub")
    levels, bars = (speech.get_verbosity(), hub.level), speech.is_progress_bar_enabled()
    speech.set_verbosity_error()  # type: ignore[no-untyped-call]
    speech.disable_progress_bar()  # type: ignore[no-untyped-call]
    hub.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        speech.set_verbosity(levels[0])
        hub.setLevel(levels[1])
        if bars:
            speech.enable_progress_bar()  # type: ignore[no-untyped-call]


def load(asked: Any, *, head: bool = True, tokenizer: bool = True, translation: bool = False) -> Loaded:
    """The model that ``--model``, ``--device`` and ``--dtype`` ask for; the embedded one where none is named.

    Args:
        asked: the parsed arguments.
        head: with the head that its checkpoint was saved with; False: the plain encoder or decoder.
        tokenizer: whether a tokenizer is needed.
        translation: the embedded model is the translation model.

    Raises:
        ValueError: if the device is not there, or the model or its tokenizer cannot be loaded.
    """
    device = _device(asked.device)
    if asked.model is None:
        loaded = _embedded_translation() if translation else _embedded(head)
    else:
        _check_name(asked.model)
        loaded = _from_files(asked.model, head, tokenizer)
    _check_finite(loaded)
    model = loaded.model.to(device=device, dtype=getattr(torch, asked.dtype or "float32")).eval()
    return Loaded(model, loaded.tokenizer, loaded.name, loaded.task)


def check_length(loaded: Loaded, ids: torch.Tensor) -> None:
    """The text fits the model.

    Raises:
        ValueError: naming both lengths.
    """
    limit = longest(loaded)
    if limit is not None and ids.shape[-1] > limit:
        raise ValueError(f"the text has {ids.shape[-1]} tokens, but {loaded.name} takes {limit}. Shorten the text.")


def longest(loaded: Loaded) -> int | None:
    """The most tokens the model takes, as its position table and its tokenizer tell; None where neither does."""
    told = getattr(loaded.tokenizer, "model_max_length", None)
    limits = [longest_input(loaded.model), told if told is not None and told < 10**9 else None]
    return min((limit for limit in limits if limit is not None), default=None)


def _embedded(head: bool) -> Loaded:
    model, tokenizer = load_sentiment() if head else load_encoder()
    name = "the embedded sentiment model" if head else "the embedded MiniLM-L6 encoder"
    return Loaded(model, tokenizer, name, "classes" if head else "none")


def _embedded_translation() -> Loaded:
    from captum_norm.models.translation import load_translation

    model, tokenizer = load_translation()
    return Loaded(model, tokenizer, "the embedded translation model", "next token")


def _from_files(name: str, head: bool, tokenizer: bool) -> Loaded:
    with _explained(f"--model {name}"):
        config = AutoConfig.from_pretrained(name)
        written = (getattr(config, "architectures", None) or [""])[0]
        task = _head(written)
        kind = getattr(transformers, written, None) if head else None
        model, report = (kind or AutoModel).from_pretrained(name, output_loading_info=True, dtype=torch.float32)
    _check_complete(name, model, report)
    if tokenizer:
        with _explained(f"the tokenizer of --model {name}"):
            pieces = AutoTokenizer.from_pretrained(name)
    return Loaded(model, pieces if tokenizer else None, name, task if kind is not None else "none")


def _check_complete(name: str, model: nn.Module, report: dict[str, Any]) -> None:
    """Weights that are not in the files would be random.  A pooler reads the last layer, so no attention sees it."""
    headless = _head(type(model).__name__) == "none"
    missing = [key for key in report["missing_keys"] if not (headless and "pooler" in key)]
    if missing:
        raise ValueError(
            f"--model {name}: its files lack {len(missing)} weights of {type(model).__name__}, for example "
            f"{sorted(missing)[0]}: they would be random. Save the model again with save_pretrained()."
        )


def _check_finite(loaded: Loaded) -> None:
    for name, weight in loaded.model.named_parameters():
        # A finite sum has finite terms, and is cheaper than looking at each.
        if not bool(weight.detach().sum().isfinite()) and not bool(weight.detach().isfinite().all()):
            raise ValueError(
                f"{loaded.name}: its weight {name} holds NaN or infinity, so nothing can be computed with it. The "
                "file is damaged or training diverged: use an earlier checkpoint."
            )


def _head(title: str) -> Task:
    """What the output of a model says, by the name of its class."""
    return next((task for ending, task in _HEADS.items() if title.endswith(ending)), "none")


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Whatever fails while files are read becomes one line that names them."""
    try:
        yield
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        ImportError,
        AttributeError,
        SafetensorError,
    ) as error:
        first = " ".join(re.split(r"\.\s", str(error))[0].split())
        raise ValueError(
            f"{what} cannot be loaded: {first.rstrip('.')}. Give the folder that save_pretrained() wrote, or a hub id "
            "that can be reached."
        ) from error


def _check_name(name: str) -> None:
    path = Path(name).expanduser()
    if path.is_file():
        raise ValueError(f"--model {name} is a file: give the folder it lies in.")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"--model {name}: the folder holds no config.json, so it is no saved model.")
        return
    looks_like_path = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or os.sep == name[-1:]
    if looks_like_path or not name.strip():
        raise ValueError(f"--model {name}: no such folder. Give the folder that save_pretrained() wrote, or a hub id.")


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        if device.type != "meta":
            torch.zeros(1, device=device)
            return device
    except (RuntimeError, AssertionError, NotImplementedError):
        pass
    raise ValueError(f"--device {name} is not available on this machine; here there is {', '.join(_devices())}.")


def _devices() -> list[str]:
    found = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return ["cpu", *found, *(["mps"] if torch.backends.mps.is_available() else [])]
