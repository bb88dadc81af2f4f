"""The arguments that commands share, and what is checked before any work starts."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from captum_norm.files import check_writable, replacing
from captum_norm.text_files import check_characters

DTYPES = ("float32", "float64", "bfloat16", "float16")


def add_model_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """``--model``, ``--device`` and ``--dtype``."""
    parser.add_argument("--model", metavar="NAME", help=f"hub id or folder of a model (default: {default})")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps ... (default: cpu)")
    parser.add_argument("--dtype", choices=DTYPES, help="what the model computes in (default: float32)")


def add_output_arguments(parser: argparse.ArgumentParser, figure: str | None = None) -> None:
    """``--json`` and, where there is something to draw, ``--figure``."""
    if figure:
        parser.add_argument("--figure", metavar="FILE", help=f"save {figure} (.png, .pdf, .svg)")
    parser.add_argument("--json", metavar="FILE", help="save all numbers; - prints them alone")


def plain_text(text: str) -> str:
    """A text, as an argument's type: what the terminal sent in UTF-8."""
    try:
        check_characters(ascii(text), text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removesuffix(".")) from error
    return text


def positive(text: str) -> int:
    """A whole number of at least 1, as an argument's type."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number of at least 1")
    return int(text)


def check_outputs(*paths: str | None) -> None:
    """Every file asked for can be written, as far as can be told before there is anything to write.

    Raises:
        ValueError: naming the file and why it cannot be written; for one file named twice.
    """
    named = [path for path in paths if path]
    places = ["-" if path == "-" else os.path.realpath(path) for path in named]
    for path, place in zip(named, places, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"{path} is named for two outputs, and one would replace the other. Name another file.")
        if path == "-":
            continue
        try:
            check_writable(path)
        except OSError as error:
            raise ValueError(str(error)) from error


def say(text: str, *outputs: str | None) -> None:
    """Print, unless one of the outputs is ``-``: then standard output is for that alone."""
    if "-" not in outputs:
        print(text)


def from_stdin() -> str:
    """All of standard input, without a byte order mark.

    Raises:
        ValueError: if it is not UTF-8 text.
    """
    try:
        text = sys.stdin.read().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not UTF-8 text ({error.reason}, byte {error.start}).") from error
    check_characters("standard input", text)  # in the locale C Python reads any byte
    return text


def check_figure(path: str | None) -> None:
    """The figure's suffix is a format that matplotlib can write.

    Raises:
        ValueError: naming the formats there are.
    """
    if path is None:
        return
    from matplotlib.backend_bases import FigureCanvasBase

    formats = FigureCanvasBase.get_supported_filetypes()
    if Path(path).suffix.lstrip(".").lower() not in formats:
        raise ValueError(f"--figure {path}: its ending should say the format, one of .{', .'.join(sorted(formats))}.")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text whole or not at all; ``-`` is standard output."""
    sys.stdout.flush()  # the path may be that of standard output
    if path == "-":
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
        return
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all; ``-`` is standard output."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_figure(path: str | os.PathLike[str], figure: Any) -> None:
    """Write a matplotlib figure whole or not at all, in the format that the path's ending says."""
    sys.stdout.flush()
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=200, bbox_inches="tight", format=Path(path).suffix.lstrip(".").lower())
