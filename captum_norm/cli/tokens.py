"""``captum-norm tokens``: what special tokens, punctuation and the rest receive, by weight and by norm."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
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
    from torch import Tensor

    from captum_norm.cli.loading import Loaded
    from captum_norm.token_shares import TokenShares

MAX_TOKENS = 128
SUMMARY = "what special tokens, punctuation and the rest receive, by weight and by norm"
EXAMPLE = "captum-norm tokens --text wiki.valid.raw --max-sequences 200 --figure shares.png"
DESCRIPTION = """\
The first finding of Kobayashi et al. (2020) on any model and text: per layer, the share of attention that each special
token, punctuation and all other tokens receive, by weight, by the norm per head and by the norm of the sum over heads.
Shares are taken per query and averaged over queries, heads and sequences; below them stand the paper's own sums, not
divided by the row, the mean length of f(x) per class, and Spearman's correlation of weight and length.

The text file is UTF-8 with one paragraph per line, and every paragraph is one sequence, cut at --max-tokens. Blank
lines and headings (= Title =) are skipped, and WikiText's marks @-@ @,@ @.@ are undone. [UNK] and [MASK] stand for a
word and count as other tokens."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("--text", metavar="FILE", required=True, help="a text, one paragraph per line; - for stdin")
    limit = f"per sequence (default: {MAX_TOKENS}, or what the model takes)"
    parser.add_argument("--max-tokens", type=positive, metavar="N", help=limit)
    parser.add_argument("--max-sequences", type=positive, metavar="N", help="take the first N (default: all)")
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="sequences at a time (default: 8)")
    add_model_arguments(parser, default="the embedded MiniLM-L6 encoder")
    add_output_arguments(parser, figure="layer × class shares")


def run(asked: argparse.Namespace) -> int:
    """Check, load, count, print and save; the exit code."""
    check_outputs(asked.json, asked.figure)
    check_figure(asked.figure)
    from captum_norm.token_shares import paragraphs_of, read_paragraphs

    if asked.text == "-":
        asked.text = "standard input"
        found = paragraphs_of(from_stdin(), asked.text)
    else:
        found = read_paragraphs(asked.text)
    paragraphs = found[: asked.max_sequences]
    from captum_norm.cli import loading

    with loading.quiet():
        loaded = loading.load(asked, head=False)
        limit = loading.longest(loaded)
        if limit is not None and asked.max_tokens is not None and asked.max_tokens > limit:
            raise ValueError(f"--max-tokens {asked.max_tokens}: {loaded.name} takes {limit} tokens at most.")
        max_tokens = asked.max_tokens or min(MAX_TOKENS, limit or MAX_TOKENS)
        shares = _count(loaded, paragraphs, max_tokens, asked.batch_size)
        say(_as_text(f"{loaded.name} on {asked.text}", shares, max_tokens), asked.json)
        if asked.json:
            write_json(asked.json, {"model": loaded.name, "text": asked.text, **shares.as_dict()})
        if asked.figure:
            from captum_norm.visualization import class_shares

            title = f"Who receives the attention of {loaded.name}"
            write_figure(asked.figure, class_shares(shares.shares, shares.classes, title=title))
    return 0


def _count(loaded: Loaded, paragraphs: Sequence[str], max_tokens: int, batch_size: int) -> TokenShares:
    from tqdm import tqdm  # type: ignore[import-untyped]

    from captum_norm.token_classes import token_classes
    from captum_norm.token_shares import ShareCounter

    # These stand for a word of the text, unlike those that the tokenizer puts around it.
    words = {loaded.tokenizer.unk_token, loaded.tokenizer.mask_token}
    counter, known = ShareCounter(loaded.text_model()), dict[int, str]()
    with tqdm(total=len(paragraphs), unit="seq", disable=None, leave=False) as progress:
        for encoding in _batches(loaded, paragraphs, max_tokens, batch_size):
            ids = encoding["input_ids"].tolist()
            new = list({one for row in ids for one in row} - known.keys())
            found = token_classes(new, loaded.tokenizer)
            known |= {one: "other" if name in words else name for one, name in zip(new, found, strict=True)}
            counter.add(encoding, [[known[one] for one in row] for row in ids])
            progress.update(len(ids))
    return counter.result()


def _batches(loaded: Loaded, paragraphs: Sequence[str], max_tokens: int, batch_size: int) -> Iterator[Any]:
    """Encoded batches; sequences of like length stand together, since padding is time lost."""
    tokenizer = loaded.tokenizer
    ids = tokenizer(list(paragraphs), truncation=True, max_length=max_tokens)["input_ids"]
    order = sorted((i for i in range(len(ids)) if ids[i]), key=lambda i: len(ids[i]))
    if not order:
        raise ValueError("the tokenizer makes no token of this text.")
    if tokenizer.pad_token is None:
        batch_size = 1  # nothing to pad with (GPT-2)
    for start in range(0, len(order), batch_size):
        texts = [paragraphs[i] for i in order[start : start + batch_size]]
        yield loaded.encode(texts, truncation=True, max_length=max_tokens, padding=batch_size > 1)


def _as_text(title: str, shares: TokenShares, max_tokens: int) -> str:
    count = f"{shares.sequences:,} sequences of at most {max_tokens} tokens, {shares.tokens:,} tokens"
    parts = [
        draw.wrap(f"{title}: {count}"),
        "share of attention received, %\n" + _by_measure(shares, shares.shares, 100, 1),
        "sum of attention received, not divided by the row\n" + _by_measure(shares, shares.sums, 1, 2),
        _f_norms(shares),
        _in_short(shares),
        draw.wrap(
            f"{len(shares.calls)} attention calls per sequence, each checked: worst error {shares.worst_error:.1e} "
            f"(allowed {shares.tolerance:.0e})"
        ),
    ]
    return "\n\n".join(part for part in parts if part)


def _by_measure(shares: TokenShares, tables: dict[str, Tensor], factor: float, digits: int) -> str:
    """Layer × class, the measures side by side where the screen is wide enough, else below each other."""
    blocks = [list(tables)]
    wide = _block(shares, tables, blocks[0], factor, digits)
    width = draw.screen_width()
    if max(map(draw.width_of, wide.split("\n"))) <= width:
        return wide
    return "\n\n".join(_block(shares, tables, [measure], factor, digits, width) for measure in tables)


def _block(
    shares: TokenShares, tables: dict[str, Tensor], measures: Sequence[str], factor: float, digits: int,
    width: int | None = None,
) -> str:  # fmt: skip
    from captum_norm.token_shares import MEASURES

    def cells(row: int | None) -> list[str]:
        of = [tables[measure].mean(dim=0) if row is None else tables[measure][row] for measure in measures]
        return [f"{factor * number:.{digits}f}" for part in of for number in part.tolist()]

    names = [_short(name) for name in shares.classes]
    rows = [[str(i), *cells(i)] for i in range(len(shares.calls))]
    groups = [("", 1), *((MEASURES[measure], len(names)) for measure in measures)]
    blind = [f"{100 * part:.1f}" for part in shares.token_share.tolist()] * len(measures)
    tokens = [["tokens", *blind]] if factor == 100 else []
    rows = [*rows, [], ["mean", *cells(None)], *tokens]
    return draw.table(["layer", *names * len(measures)], rows, groups=groups, width=width)


def _f_norms(shares: TokenShares) -> str:
    if bool(shares.f_norms.isnan().all()):
        return draw.wrap("f(x) has no length of its own here: an element-wise gate makes it depend on the query.")
    rows = [
        [str(i), *(f"{n:.2f}" for n in norms.tolist()), *(_rho(r[i]) for r in shares.correlation.values())]
        for i, norms in enumerate(shares.f_norms)
    ]
    mean = ["mean", *(f"{n:.2f}" for n in shares.f_norms.mean(dim=0).tolist())]
    mean += [_rho(r.nanmean()) for r in shares.correlation.values()]
    headers = ["layer", *map(_short, shares.classes), "all", "not special"]
    groups = [("", 1), ("mean ‖f(x)‖", len(shares.classes)), ("Spearman of α and ‖f(x)‖", 2)]
    return draw.table(headers, [*rows, [], mean], groups=groups, width=draw.screen_width())


def _in_short(shares: TokenShares) -> str:
    if not any(shares.special):
        return draw.wrap("this tokenizer puts no special tokens around a text.")
    weight, per_head, summed = (shares.special_share(m) for m in ("weights", "head_norms", "summed_norms"))
    special = ", ".join(name for name, is_special in zip(shares.classes, shares.special, strict=True) if is_special)
    return draw.wrap(
        f"special tokens ({special}): {weight:.1%} of the weight, {per_head:.1%} of the norm per head "
        f"({per_head / weight:.2f} of it), {summed:.1%} of the norm of the sum ({summed / weight:.2f} of it)"
    )


def _short(name: str) -> str:
    return {"punctuation": "punct."}.get(name, draw.cut(draw.shown(name), 8))


def _rho(rho: Tensor) -> str:
    return "·" if bool(rho.isnan()) else f"{float(rho):+.2f}"
