"""``captum-norm view``: where does each token look, and what does it take?  A page to look at and touch."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from captum_norm.cli.arguments import add_model_arguments, check_outputs, from_stdin, plain_text, write_text
from captum_norm.files import is_stream

if TYPE_CHECKING:
    from captum_norm.cli.loading import Loaded

QUANTITIES = ("weights", "head_norms", "summed_norms")
SUMMARY = "attention maps of a text as one HTML file: weight, norm and difference, every layer and head"
EXAMPLE = "captum-norm view 'A delightful, warm film that never feels forced.' -o maps.html"
DESCRIPTION = """\
Writes one HTML file that shows every attention call of the model on a text: all layers and heads at a glance, one map
large, by weight, by norm and the difference, and for each token where it looks, what it takes and who takes from it.
The file holds everything in it and loads nothing; it works by mouse, touch and keyboard, in light and dark.

An encoder-decoder first writes its own output, a language model goes on from the text by as many tokens as --generate
says; the page marks which tokens were the prompt."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument(
        "text", metavar="TEXT", type=plain_text, help="the text to look at; - reads it from standard input"
    )
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="the page; - is standard output")
    parser.add_argument(
        "--layers", metavar="N", type=int, nargs="+", help="only these attention calls, from 0 (default: all)"
    )
    parser.add_argument(
        "--generate", metavar="N", type=int, help="tokens for the model to write (default: 0; encoder-decoders: 64)"
    )
    parser.add_argument("--title", help="what stands above the page (default: the model and its class)")
    add_model_arguments(parser, default="the embedded sentiment model")


def run(asked: argparse.Namespace) -> int:
    """Check, load, run, write; the exit code."""
    check_outputs(asked.output)
    if asked.generate is not None and asked.generate < 0:
        raise ValueError(f"--generate {asked.generate} should be 0 or more.")
    text = from_stdin() if asked.text == "-" else asked.text
    if not text.strip():
        raise ValueError("the text is empty: there is nothing to look at.")
    from captum_norm.cli import loading

    with loading.quiet():
        page = view_page(loading.load(asked), text.strip(), asked.layers, asked.generate, asked.title)
    write_text(asked.output, page)
    if asked.output != "-" and not is_stream(asked.output):
        print(f"{asked.output}: {len(page.encode()) / 1000:.0f} kB", file=sys.stderr)
    return 0


def view_page(
    loaded: Loaded, text: str, layers: list[int] | None = None, generate: int | None = None, title: str | None = None
) -> str:
    """The page of a text.

    Args:
        loaded: the model and its tokenizer.
        text: what it reads.
        layers: which attention calls; None: all.
        generate: how many tokens it writes; None: none, or up to 64 by an encoder-decoder.
        title: what stands above.

    Raises:
        ValueError: for a text that the model cannot take, and tokens asked of a model that writes none.
    """
    from captum_norm.cli.loading import check_length
    from captum_norm.maps import attention_maps
    from captum_norm.viewer import to_html

    encoding = loaded.encode(text)
    if not encoding["input_ids"].numel():
        raise ValueError("the tokenizer makes no token of this text: there is nothing to look at.")
    check_length(loaded, encoding["input_ids"])
    inputs, prompt = _with_output(loaded, encoding, generate)
    maps = attention_maps(loaded.model, inputs, QUANTITIES, layers=layers)
    tokens = {
        name: [loaded.tokenizer.convert_ids_to_tokens(row) for row in inputs[name].tolist()]
        for name in ("input_ids", "decoder_input_ids")
        if name in inputs
    }
    title = title or f"{loaded.name} ({type(loaded.model).__name__})"
    return to_html(maps, title=title, tokens=tokens, prompt=prompt, tokenizer=loaded.tokenizer)


def _with_output(loaded: Loaded, encoding: Any, generate: int | None) -> tuple[Any, int | None]:
    """What the model takes, with what it writes, and how many positions of the decoder's input were given to it."""
    from captum_norm.cli.loading import longest

    splits = bool(getattr(loaded.model.config, "is_encoder_decoder", False))
    count = generate if generate is not None else 64 if splits else 0
    if not count:
        return loaded.forward_inputs(encoding), None
    if loaded.task != "next token":
        raise ValueError(f"--generate {count}: {loaded.name} writes no tokens. Leave it out.")
    limit, prompt = longest(loaded), 0 if splits else encoding["input_ids"].shape[1]
    if limit is not None and prompt + count > limit:
        raise ValueError(f"--generate {count}: {loaded.name} has room for {limit - prompt} more tokens at most.")
    written = loaded.model.generate(**encoding, max_new_tokens=count, do_sample=False, num_beams=1)
    if splits:
        return {**encoding, "decoder_input_ids": written}, 1
    import torch

    mask = torch.ones_like(written)
    return {**encoding, "input_ids": written, "attention_mask": mask}, encoding["input_ids"].shape[1]

