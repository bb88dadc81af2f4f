"""``captum-norm context``: which document, sentence or paragraph an answer rests on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from captum_norm.attr import CLASSES
from captum_norm.cli import table as draw
from captum_norm.cli.arguments import (
    add_model_arguments,
    add_output_arguments,
    check_figure,
    check_outputs,
    from_stdin,
    plain_text,
    positive,
    say,
    write_figure,
    write_json,
    write_text,
)
from captum_norm.cli.progress import Steps
from captum_norm.suggestions import did_you_mean
from captum_norm.text_files import read_text

if TYPE_CHECKING:
    from torch import Tensor

PLACE = "{documents}"
METHODS = [name for name, row in CLASSES.items() if row.explains]
DEFAULT = "AttentionNorm"
SUMMARY = "which document, sentence or paragraph an answer rests on"
EXAMPLE = "captum-norm context --model gpt2 --prompt question.txt --documents a.txt b.txt --answer ' Paris'"
DESCRIPTION = f"""\
Lets a causal language model answer a prompt, or takes the answer given, and says how much of it rests on each source:
each document, or with --split each sentence or paragraph of all.

Documents are files, put where the prompt says {PLACE}, or else before it, a blank line between two. What of the prompt
is no document is one more source. A document goes by its file's name, or by its path where two have one name. Scores
are summed over the answer's tokens; a share is that of the sum of sizes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("--prompt", metavar="FILE", required=True, help="the question or instruction; - for stdin")
    parser.add_argument("--documents", metavar="FILE", nargs="+", default=(), help="what it is answered from")
    parser.add_argument(
        "--answer", metavar="TEXT", type=plain_text, help="the answer (default: the model writes one)"
    )
    parser.add_argument("--split", choices=("sentences", "paragraphs"), help="sources are these, of all of the text")
    parser.add_argument("--method", default=DEFAULT, metavar="NAME", help=f"{', '.join(METHODS)} (default: {DEFAULT})")
    parser.add_argument("--max-new-tokens", type=positive, default=25, metavar="N", help="of its own answer (25)")
    add_model_arguments(parser, default="none: name a causal language model")
    add_output_arguments(parser, figure="answer tokens by sources")
    parser.add_argument("--html", metavar="FILE", help="save the answer beside its sources as a page")


def run(asked: argparse.Namespace) -> int:
    """Check, load, attribute, print and save; the exit code."""
    check_outputs(asked.json, asked.html, asked.figure)
    check_figure(asked.figure)
    method = {name.lower(): name for name in METHODS}.get(asked.method.lower())
    if method is None:
        guess = did_you_mean(asked.method, METHODS)
        raise ValueError(f"--method {asked.method}: there is no such method.{guess} There are: {', '.join(METHODS)}.")
    if asked.model is None:
        raise ValueError("--model: name a causal language model, a hub id or a folder; none is embedded.")
    documents = [_read("--documents", path) for path in asked.documents]
    text, spans = prompt_with_documents(_read("--prompt", asked.prompt), documents)
    from captum_norm import attr
    from captum_norm.cli import loading

    with loading.quiet():
        loaded = loading.load(asked)
        if loaded.task != "next token" or getattr(loaded.model.config, "is_encoder_decoder", False):
            raise ValueError(f"{loaded.name} is no causal language model, so it writes no answer from a context.")
        wrapped = attr.LLMAttentionAttribution(getattr(attr, method)(loaded.model), loaded.tokenizer)
        written: dict[str, Any] = {"max_new_tokens": asked.max_new_tokens, "do_sample": False}
        sources: Any = asked.split or ([*spans, ...] if spans else "paragraphs")
        gen_args = written if asked.answer is None else None
        steps = _Writing(asked.max_new_tokens, method)
        with steps:
            if gen_args is None:
                steps.end()
            else:
                gen_args["streamer"] = steps
            result = wrapped.attribute(text, target=asked.answer, gen_args=gen_args, sources=sources)
        names = _names(asked, result.input_tokens, len(spans))
        say(_as_text(loaded.name, method, names, result), asked.json)
        if asked.json:
            write_json(asked.json, _as_dict(loaded.name, method, names, result))
        title = f"What the answer of {loaded.name} rests on, by {method}"
        if asked.html:
            from captum_norm.viewer import answer_page

            texts = list(result.input_tokens)
            scores = result.token_attr.tolist()
            write_text(asked.html, answer_page(title, result.output_tokens, names, texts, scores))
        if asked.figure:
            from captum_norm.visualization import written_tokens

            drawn = SimpleNamespace(
                token_attr=result.token_attr, input_tokens=names, output_tokens=result.output_tokens,
                output_probs=getattr(result, "output_probs", None),
            )  # fmt: skip
            write_figure(asked.figure, written_tokens(drawn, title=title))
    return 0


class _Writing(Steps):
    """The steps of an answer: each token that ``generate`` writes, which it tells, and the method behind them."""

    def __init__(self, tokens: int, method: str) -> None:
        super().__init__(tokens + 1)
        self._method, self._last = method, tokens + 1

    def put(self, ids: Tensor) -> None:
        """The prompt was read, or a token was written."""
        self.begin("writing the answer")

    def end(self) -> None:
        """All is written, perhaps before the longest there may be."""
        self._begun = self._last - 1
        self.begin(self._method)


def prompt_with_documents(prompt: str, documents: list[str]) -> tuple[str, list[tuple[int, int]]]:
    """The text that the model reads, and where each document stands in it.

    Raises:
        ValueError: if the prompt has a place for documents and there are none, or several places.

    Example:
        >>> prompt_with_documents("Q?", ["A."])
        ('A.\\n\\nQ?', [(0, 2)])
    """
    before, place, after = prompt.partition(PLACE)
    if place and not documents:
        raise ValueError(f"--prompt has a place for {PLACE}, but there are no --documents.")
    if PLACE in after:
        raise ValueError(f"--prompt has {prompt.count(PLACE)} places for {PLACE}: leave one, where they are to stand.")
    if not place:
        before, after = "", f"\n\n{prompt}" if documents else prompt
    text, spans = before, []
    for number, document in enumerate(documents):
        text += "\n\n" * bool(number)
        spans.append((len(text), len(text) + len(document)))
        text += document
    return text + after, spans


def _read(option: str, path: str) -> str:
    if path == "-":
        text = from_stdin()
    else:
        try:
            text = read_text(path)
        except OSError as error:
            raise ValueError(f"{option} {path}: {error.strerror}.") from error
    text = text.strip()
    if not text:
        raise ValueError(f"{option} {path} is empty.")
    return text


def _names(asked: argparse.Namespace, features: list[str], documents: int) -> list[str]:
    """What each source is called: a document's file, else how its text begins."""
    if asked.split or not documents:
        return [" ".join(feature.split()) for feature in features]
    return [*_file_names(asked.documents), "the rest of the prompt"]


def _file_names(paths: Sequence[str]) -> list[str]:
    """The names of files; of files of one name their paths, and of a file given again which document it is."""
    names = [Path(path).name for path in paths]
    told = [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]
    return [
        name if told.count(name) == 1 else f"{name} (document {number})" for number, name in enumerate(told, start=1)
    ]


def _shares(scores: Tensor) -> list[float]:
    return (scores / scores.abs().sum().clamp_min(1e-30)).tolist()


def _as_text(model: str, method: str, names: list[str], result: Any) -> str:
    width = draw.screen_width()
    shares = _shares(result.seq_attr)
    order = sorted(range(len(names)), key=lambda source: -abs(shares[source]))


    def cut(text: str, room: int) -> str:
        return draw.cut(draw.shown(text), room)

    rows = [
        [cut(names[n], width - 30), f"{100 * shares[n]:.1f}", f"{float(result.seq_attr[n]):.3g}"] for n in order
    ]
    best = [names[int(row.abs().argmax())] for row in result.token_attr]
    tokens = [[cut(t, 20), cut(b, width - 30)] for t, b in zip(result.output_tokens, best, strict=True)]
    answer = draw.shown(" ".join(result.output_tokens))
    return "\n\n".join(
        [
            draw.wrap(f"{model}, by {method}. Answer: {answer}"),
            draw.table(["source", "share, %", "score"], rows, width=width),
            draw.table(["token", "rests most on"], tokens, width=width),
        ]
    )


def _as_dict(model: str, method: str, names: list[str], result: Any) -> dict[str, Any]:
    shares = _shares(result.seq_attr)
    return {
        "model": model,
        "method": method,
        "answer": result.output_tokens,
        "sources": [
            {"name": name, "score": float(score), "share": share, "by_token": row.tolist()}
            for name, score, share, row in zip(names, result.seq_attr, shares, result.token_attr.T, strict=True)
        ],
    }
