"""``captum-norm maps``: the attention maps of a text as a figure, a table or a file to load again."""

from __future__ import annotations

import argparse
from typing import Any

from captum_norm.cli import table as draw
from captum_norm.cli.arguments import (
    add_model_arguments,
    check_figure,
    check_outputs,
    from_stdin,
    plain_text,
    say,
    write_figure,
    write_text,
)
from captum_norm.suggestions import did_you_mean

SUMMARY = "attention maps of a text as a figure, a table, or a file to load again"
EXAMPLE = "captum-norm maps 'It is not a great film, but a warm one.' --call 2 --figure weight_beside_norm.png"
DESCRIPTION = """\
Computes the maps of every attention call of the model on a text, weight and norm, and says what they hold.

--figure draws them: all calls as a grid, one call with --call, the heads of one with --heads each, a single head with
--heads N, or every layer and head on one page with --heads all. --save writes a file that AttentionMaps.load reads;
--csv writes a tidy table with a row for each number. captum-norm view makes a page to look at and touch."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("text", metavar="TEXT", type=plain_text, help="the text; - reads it from standard input")
    parser.add_argument("--quantities", nargs="+", metavar="NAME", help="weights, head_norms ... (default: both)")
    parser.add_argument("--call", type=int, metavar="N", help="one attention call, from 0 (default: all)")
    parser.add_argument("--heads", metavar="N", help="one head, each (of one call) or all (of every call)")
    parser.add_argument("--log", action="store_true", help="colours by order of magnitude")
    parser.add_argument(
        "--scale-without", nargs="+", metavar="TOKEN", type=plain_text, default=(),
        help="tokens that colours do not count: [CLS] [SEP]",
    )
    parser.add_argument("--width", type=float, metavar="INCHES", help="of the figure (default: as it needs)")
    parser.add_argument("--figure", metavar="FILE", help="save the figure (.png, .pdf, .svg)")
    parser.add_argument("--save", metavar="FILE", help="save the maps (.safetensors)")
    parser.add_argument("--csv", metavar="FILE", help="save a tidy table; - prints it alone")
    add_model_arguments(parser, default="the embedded sentiment model")


def run(asked: argparse.Namespace) -> int:
    """Check, load, compute, draw and save; the exit code."""
    check_outputs(asked.figure, asked.save, asked.csv)
    check_figure(asked.figure)
    heads = _heads(asked.heads)
    if asked.width is not None and not asked.width > 0:
        raise ValueError(f"--width {asked.width} should be more than 0 inches.")
    text = from_stdin().strip() if asked.text == "-" else asked.text
    if not text.strip():
        raise ValueError("the text is empty: there is nothing to look at.")
    quantities = _quantities(asked.quantities, heads)
    from captum_norm.cli import loading
    from captum_norm.maps import attention_maps

    with loading.quiet():
        loaded = loading.load(asked)
        encoding = loaded.encode(text)
        loading.check_length(loaded, encoding["input_ids"])
        maps = attention_maps(loaded.model, loaded.forward_inputs(encoding), quantities)
    say("\n".join(map(draw.wrap, repr(maps).split("\n"))), asked.csv)
    if asked.save:
        maps.save(asked.save)
    if asked.csv:
        write_text(asked.csv, maps.to_pandas().to_csv(index=False))
    if asked.figure:
        write_figure(asked.figure, _figure(asked, maps, heads))
    return 0


def _figure(asked: argparse.Namespace, maps: Any, heads: Any) -> Any:
    from captum_norm.visualization import plot

    figure = plot(
        maps, asked.call, heads=heads, quantities=asked.quantities, log=asked.log, scale_without=asked.scale_without
    )
    return figure if asked.width is None else figure.fit(width=asked.width)


def _heads(asked: str | None) -> int | str | None:
    if asked is None or asked in ("each", "all"):
        return asked
    if asked.isdecimal():
        return int(asked)
    raise ValueError(f"--heads {asked} should be the number of a head, each or all.")


def _quantities(names: list[str] | None, heads: int | str | None) -> tuple[str, ...]:
    from captum_norm.measures import MEASURES

    for name in names or ():
        if name not in MEASURES:
            raise ValueError(f"--quantities {name}: there are {', '.join(MEASURES)}.{did_you_mean(name, MEASURES)}")
    return tuple(names or ("weights", "summed_norms" if heads is None else "head_norms"))
