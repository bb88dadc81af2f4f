"""The arguments that commands share, and what is checked before any work starts."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from captum_norm.files import replacing

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
    parser.add_argument("--json", metavar="FILE", help="save all numbers")


def check_outputs(*paths: str | None) -> None:
    """Every file asked for can be written, as far as can be told before there is anything to write.

    Raises:
        ValueError: naming the file and why it cannot be written.
    """
    for path in filter(None, paths):
        target = Path(path)
        if target.is_dir():
            raise ValueError(f"{path} is a folder: name a file inside it.")
        if not target.parent.is_dir():
            raise ValueError(f"{path} cannot be written: the folder {target.parent} does not exist. Make it first.")
        try:
            with tempfile.TemporaryFile(dir=target.parent):
                pass
        except OSError as error:
            raise ValueError(f"{path} cannot be written: {error.strerror} in {target.parent}.") from error


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


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write JSON as a whole or not at all."""
    with replacing(path) as unfinished:
        unfinished.write_text(
            json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )


def write_figure(path: str | os.PathLike[str], figure: Any) -> None:
    """Write a matplotlib figure as a whole or not at all."""
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=200, bbox_inches="tight")
