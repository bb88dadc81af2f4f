"""``captum-norm heads``: which heads are sinks, and which are idle, over a text."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captum_norm.cli import table as draw
from captum_norm.cli.arguments import (
    add_model_arguments,
    add_output_arguments,
    check_figure,
    check_outputs,
    from_stdin,
    positive,
    say,
    write_figure,
    write_json,
)

if TYPE_CHECKING:
    from captum_norm.cli.loading import Loaded
    from captum_norm.head_activity import HeadActivity, HeadCounts
    from captum_norm.study.run.processes import Processes

MAX_TOKENS = 128
PART = 64
"""Sequences that are counted and kept together."""
SUMMARY = "which heads are sinks, and which are idle, over a text"
EXAMPLE = "captum-norm heads --model gpt2 --text wiki.valid.raw --max-sequences 100 --json heads.json"
DESCRIPTION = """\
Per layer and head, over a text: the share that the first token and the special tokens receive, by weight and by norm,
how long f(x) of the first token is beside that of the others, and how much the head gives out beside its layer's mean.
A head with most of its weight on the first token and little of its norm there has a sink; one far below 1 is idle.

The text file is UTF-8 with one paragraph per line, and every paragraph is one sequence, cut at --max-tokens. With
--store a count that was stopped goes on where it was; under accelerate launch its processes share the work."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("--text", metavar="FILE", required=True, help="a text, one paragraph per line; - for stdin")
    limit = f"per sequence (default: {MAX_TOKENS}, or what the model takes)"
    parser.add_argument("--max-tokens", type=positive, metavar="N", help=limit)
    parser.add_argument("--max-sequences", type=positive, metavar="N", help="take the first N (default: all)")
    parser.add_argument("--store", metavar="FILE", help="where counts are kept, and taken up again")
    add_model_arguments(parser, default="the embedded MiniLM-L6 encoder")
    add_output_arguments(parser, figure="a map of layers and heads")


def run(asked: argparse.Namespace) -> int:
    """Check, load, count, print and save; the exit code."""
    check_outputs(asked.json, asked.figure)
    check_figure(asked.figure)
    if "LOCAL_RANK" in os.environ and asked.device == "cuda":
        asked.device = f"cuda:{os.environ['LOCAL_RANK']}"  # one process per device
    from captum_norm.token_shares import paragraphs_of, read_paragraphs

    if asked.text == "-":
        asked.text = "standard input"
        found = paragraphs_of(from_stdin(), asked.text)
    else:
        found = read_paragraphs(asked.text)
    from captum_norm.cli import loading
    from captum_norm.study.run.processes import processes_of

    with loading.quiet():
        loaded = loading.load(asked, head=False)
        limit = loading.longest(loaded)
        if limit is not None and asked.max_tokens is not None and asked.max_tokens > limit:
            raise ValueError(f"--max-tokens {asked.max_tokens}: {loaded.name} takes {limit} tokens at most.")
        max_tokens = asked.max_tokens or min(MAX_TOKENS, limit or MAX_TOKENS)
        processes = processes_of(loaded.model)
        counts = _counted(loaded, found[: asked.max_sequences], max_tokens, asked.store, processes)
        if counts is not None:
            if not counts.sequences:
                raise ValueError("the tokenizer makes no sequence of two tokens or more of this text.")
            _give_out(asked, loaded.name, counts.result())
    return 0


def _give_out(asked: argparse.Namespace, name: str, activity: HeadActivity) -> None:
    say(_as_text(f"{name} on {asked.text}", activity), asked.json)
    if asked.json:
        write_json(asked.json, {"model": name, "text": asked.text, **activity.as_dict()})
    if asked.figure:
        from captum_norm.visualization.heads import head_grid

        means = {name: activity.means[name] for name in ("first_weight", "first_norm", "activity")}
        write_figure(asked.figure, head_grid(means, title=f"{name}: {activity.sequences:,} sequences"))


def _counted(
    loaded: Loaded, paragraphs: Sequence[str], max_tokens: int, store: str | None, processes: Processes
) -> HeadCounts | None:
    """The counts of all parts; None in all processes but the first, which adds them up."""
    from captum_norm.head_activity import HeadStore
    from captum_norm.study.run.processes import parts_of

    if processes.size > 1 and store is None:
        raise ValueError("--store: name a file, in which the processes bring their counts together.")
    config = _config(loaded, paragraphs, max_tokens)
    with ExitStack() as open_stores:
        whole = None
        if processes.first:
            whole = open_stores.enter_context(HeadStore(store or ":memory:", config))
            for part in parts_of(Path(store)) if store else ():
                whole.take_in(part)
        processes.wait()
        if processes.size > 1:
            path = Path(str(store))
            with HeadStore(path, config) as seen:
                done = seen.finished()
            processes.wait()
            with HeadStore(processes.own_store(path), config) as own:
                _work(loaded, paragraphs, max_tokens, own, done, processes)
        else:
            assert whole is not None
            _work(loaded, paragraphs, max_tokens, whole, whole.finished(), processes)
        processes.wait()
        if whole is None:
            return None
        for part in parts_of(Path(store)) if store else ():
            whole.take_in(part)
        return whole.total()


def _work(
    loaded: Loaded, paragraphs: Sequence[str], max_tokens: int, store: Any, done: set[int], processes: Processes
) -> None:
    """This process's share of what is left, part by part."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    from captum_norm.head_activity import HeadCounter
    from captum_norm.token_classes import token_classes

    # These stand for a word of the text, unlike those that the tokenizer puts around it.
    words = {"other", "punctuation", loaded.tokenizer.unk_token, loaded.tokenizer.mask_token}
    left = [part for part in range(-(-len(paragraphs) // PART)) if part not in done][processes.rank :: processes.size]
    disable = None if processes.first else True
    with tqdm(total=sum(len(_of_part(paragraphs, n)) for n in left), unit="seq", disable=disable, leave=False) as bar:
        for part in left:
            counter = HeadCounter(loaded.text_model())
            for paragraph in _of_part(paragraphs, part):
                encoding = loaded.encode(paragraph, truncation=True, max_length=max_tokens)
                if encoding["input_ids"].shape[1] > 1:
                    classes = token_classes(encoding["input_ids"][0], loaded.tokenizer)
                    counter.add(encoding, [name not in words for name in classes])
                bar.update()
            store.add(part, counter.counts)


def _of_part(paragraphs: Sequence[str], part: int) -> Sequence[str]:
    return paragraphs[part * PART : (part + 1) * PART]


def _config(loaded: Loaded, paragraphs: Sequence[str], max_tokens: int) -> dict[str, Any]:
    """What decides the counts."""
    from captum_norm.study.run.fingerprints import model_record, versions

    text = hashlib.blake2b("\n".join(paragraphs).encode(), digest_size=16).hexdigest()
    return {
        "model": model_record(loaded.text_model()),
        "text": text,
        "max_tokens": max_tokens,
        "part": PART,
        "versions": versions(),
    }


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
    fewest = int(min(float(counted.min()) for counted in found.counted["first_length"]))
    fewer = f"‖f‖ is over the sequences in which it is defined, {fewest:,} or more. " * (fewest < found.sequences)
    parts = [
        draw.wrap(f"{title}: {found.sequences:,} sequences, {found.tokens:,} tokens"),
        draw.table(headers, rows[:-1], groups=groups, width=draw.screen_width()),
        draw.wrap(
            f"shares of the first token by norm are known to ±{100 * widest:.1f} (95 %) at worst; margins of all are "
            f"in --json. {fewer}{len(found.calls)} attention calls per sequence, each checked: worst error "
            f"{found.worst_error:.1e} (allowed {found.tolerance:.0e})"
        ),
    ]
    return "\n\n".join(parts)
