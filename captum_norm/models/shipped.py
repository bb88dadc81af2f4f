"""Are a file of weights and the description beside it there and whole, and do they belong together?"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor


def read_card(path: Path) -> dict[str, Any]:
    """The description beside a file of weights, checked to be that of this very file.

    Raises:
        FileNotFoundError: if one of the two is missing.
        ValueError: if the description is of another file, or cannot be read.
    """
    card_path = existing(path.with_suffix(".json"), "captum-norm")
    content = existing(path, "captum-norm").read_bytes()
    try:
        card: dict[str, Any] = json.loads(card_path.read_text(encoding="utf-8"))
        expected = card["weights"]["blake2b"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{card_path} is corrupt ({error!r}). Reinstall captum-norm or train again.") from error
    if hashlib.blake2b(content).hexdigest() != expected:
        raise ValueError(
            f"{path} is corrupt: it is not the file that {card_path.name} describes. "
            "Reinstall captum-norm or train again."
        )
    return card


def read_tensors(path: Path, content: bytes, package: str) -> dict[str, Tensor]:
    """The tensors in the content of a safetensors file.

    Raises:
        ValueError: if the content is corrupt; it names ``package`` as what to reinstall.
    """
    try:
        return load(content)
    except SafetensorError as error:
        raise ValueError(f"{path} is corrupt ({error}). Reinstall {package}.") from error


def existing(path: Path, package: str) -> Path:
    """The path itself; FileNotFoundError if no file is there."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. Reinstall {package}.")
    return path
