"""``captum-norm heads``: which heads are sinks, and which are idle, over a text."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from captum_norm.cli import table as draw
from captum_norm.cli.arguments import (
    add_model_arguments,
    add_output_arguments,
    check_outputs,
    from_stdin,
    positive,
    say,
    write_json,
)

if TYPE_CHECKING:
    from captum_norm.cli.loading import Loaded
    from captum_norm.head_activity import HeadActivity

MAX_TOKENS = 128
SUMMARY = "which heads are sinks, and which are idle, over a text"
EXAMPLE = "captum-norm heads --model gpt2 --text wiki.valid.raw --max-sequences 100 --json heads.json"
DESCRIPTION = """\
Per layer and head, over a text: the share that the first token and the special tokens receive, by weight and by norm,
how long f(x) of the first token is beside that of the others, and how much the head gives out beside its layer's mean.
A head with most of its weight on the first token and little of its norm there has a sink; one far below 1 is idle.

The text file is UTF-8 with one paragraph per line, and every paragraph is one sequence, cut at --max-tokens."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("--text", metavar="FILE", required=True, help="a text, one paragraph per line; - for stdin")
    limit = f"per sequence (default: {MAX_TOKENS}, or what the model takes)"
    parser.add_argument("--max-tokens", type=positive, metavar="N", help=limit)
    parser.add_argument("--max-sequences", type=positive, metavar="N", help="take the first N (default: all)")
    add_model_arguments(parser, default="the embedded MiniLM-L6 encoder")
    add_output_arguments(parser)


def run(asked: argparse.Namespace) -> int:
    """Check, load, count, print and save; the exit code."""
    check_outputs(asked.json)
    from captum_norm.token_shares import paragraphs_of, read_paragraphs

    if asked.text == "-":
        asked.text = "standard input"
        found = paragraphs_of(from_stdin(), asked.text)
    else:
        found = read_paragraphs(asked.text)
    from captum_norm.cli import loading

    with loading.quiet():
        loaded = loading.load(asked, head=False)
        limit = loading.longest(loaded)
        if limit is not None and asked.max_tokens is not None and asked.max_tokens > limit:
            raise ValueError(f"--max-tokens {asked.max_tokens}: {loaded.name} takes {limit} tokens at most.")
        max_tokens = asked.max_tokens or min(MAX_TOKENS, limit or MAX_TOKENS)
        activity = _counted(loaded, found[: asked.max_sequences], max_tokens)
        say(_as_text(f"{loaded.name} on {asked.text}", activity), asked.json)
        if asked.json:
            write_json(asked.json, {"model": loaded.name, "text": asked.text, **activity.as_dict()})
    return 0


def _counted(loaded: Loaded, paragraphs: Sequence[str], max_tokens: int) -> HeadActivity:
    from tqdm import tqdm  # type: ignore[import-untyped]

    from captum_norm.head_activity import HeadCounter
    from captum_norm.token_classes import token_classes

    counter, seen = HeadCounter(loaded.text_model()), 0
    # These stand for a word of the text, unlike those that the tokenizer puts around it.
    words = {"other", "punctuation", loaded.tokenizer.unk_token, loaded.tokenizer.mask_token}
    for paragraph in tqdm(paragraphs, unit="seq", disable=None, leave=False):
        encoding = loaded.encode(paragraph, truncation=True, max_length=max_tokens)
        if encoding["input_ids"].shape[1] < 2:
            continue
        seen += 1
        classes = token_classes(encoding["input_ids"][0], loaded.tokenizer)
        counter.add(encoding, [name not in words for name in classes])
    if not seen:
        raise ValueError("the tokenizer makes no sequence of two tokens or more of this text.")
    return counter.result()


def _as_text(title: str, found: HeadActivity) -> str:
    headers = ["layer", "head", "weight", "norm", "weight", "norm", "‖f‖", "activity"]
    groups = [("", 2), ("first token, %", 2), ("special, %", 2), ("first", 1), ("", 1)]
    rows = []
    for number, call in enumerate(found.calls):
        for head in range(call.heads):
            of = {name: float(means[number][head]) for name, means in found.means.items()}
            shares = [of[name] for name in ("first_weight", "first_norm", "special_weight", "special_norm")]
            rows.append(
                [
                    str(number) if head == 0 else "", str(head),
                    *(f"{100 * share:.1f}" for share in shares),
                    f"{of['first_length']:.2f}", f"{of['activity']:.2f}",
                ]
            )  # fmt: skip
        rows.append([])
    widest = max(float(margin.nan_to_num(0).max()) for margin in found.margins["first_norm"])
    parts = [
        draw.wrap(f"{title}: {found.sequences:,} sequences, {found.tokens:,} tokens"),
        draw.table(headers, rows[:-1], groups=groups, width=draw.screen_width()),
        draw.wrap(
            f"shares of the first token by norm are known to ±{100 * widest:.1f} (95 %) at worst; margins of all are "
            f"in --json. {len(found.calls)} attention calls per sequence, each checked: worst error "
            f"{found.worst_error:.1e} (allowed {found.tolerance:.0e})"
        ),
    ]
    return "\n\n".join(parts)
