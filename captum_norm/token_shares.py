"""Which tokens does attention go to: by weight, by the norm of each head's contribution, by the norm of their sum?

Finding 1 of Kobayashi et al. (2020), https://arxiv.org/abs/2004.10102: special tokens receive a large share of the
attention weight, but f(x) is short for them, so that little arrives.  For a measure m (α, ‖αf(x)‖ per head, or
‖Σ_h αf(x)‖) and a class c of tokens,

    share of c for query i = Σ_{j in c} m_ij / Σ_j m_ij,

averaged over the queries of a sequence, then over heads and sequences, then over layers.  Beside it stands the paper's
own procedure, Σ_{j in c} m_ij, not divided by the row.  Sums are added up in float64 while the model runs: nothing is
kept of a sequence, and the result does not depend on how sequences are batched.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_norm import measures
from captum_norm.capture import AttentionCall, AttentionRecord, blocks_in_float32, run_recorded
from captum_norm.functional.gram import KeyFactors, key_factors
from captum_norm.functional.norms import all_zero
from captum_norm.operations.precision import at_least_float32
from captum_norm.ranks import spearman
from captum_norm.tables import LINE, Table, Tabular
from captum_norm.token_classes import class_columns, means_of_columns, shares_of_sums

_CHOSEN = ("all", "not special")  # the tokens that a correlation is taken over
NO_TOKEN = "no token"
"""The class of keys that are no input token: memory, sinks."""

MEASURES = {name: f"{row.title} {row.unit}" for name, row in measures.MEASURES.items() if row.counted}
"""The measures shares are taken of, with what to call them."""


@dataclass(frozen=True)
class TokenShares(Tabular):
    """What each class of tokens receives, per attention call: a table with a row for each call, class and measure.

    Attributes:
        classes: special tokens by name, then ``"punctuation"`` and ``"other"``.
        special: which of them are special tokens, (class,).
        calls: which attention calls.
        token_share: the share of each class among the tokens, (class,): what attention blind to classes would give it.
        shares: by measure, (call, class), row-normalised; a row adds up to 1.
        sums: by measure, (call, class), the paper's procedure, not divided by the row; norms in the units of the
            residual stream.
        f_norms: mean ‖f(x)‖ per class, (call, class), in the units of the residual stream; NaN where f depends on the
            query (element-wise gates).
        correlation: by ``"all"`` tokens and ``"not special"``, (call,): Spearman's ρ of the mean weight that a token
            receives and its ‖f(x)‖, taken within each sequence and head, and averaged; NaN where it is not defined.
        worst_error: the largest certificate error of any call.
        tolerance: what was allowed.
        sequences: how many.
        tokens: how many, padding excluded.
    """

    classes: tuple[str, ...]
    special: tuple[bool, ...]
    calls: tuple[AttentionCall, ...]
    token_share: Tensor
    shares: dict[str, Tensor]
    sums: dict[str, Tensor]
    f_norms: Tensor
    correlation: dict[str, Tensor]
    worst_error: float
    tolerance: float
    sequences: int
    tokens: int

    def special_share(self, measure: str) -> float:
        """The share of all special tokens together by ``measure``, mean over calls.

        Raises:
            KeyError: for a measure that is none of ``MEASURES``.
        """
        return float(self.shares[measure][:, list(self.special)].sum(dim=-1).mean())

    def as_table(self) -> Table:
        """A row for each call, class and measure: share, the paper's sum, and the mean length of f(x)."""
        rows = tuple(
            (
                call, self.calls[call].name, name, measure, float(table[call, column]),
                float(self.sums[measure][call, column]), float(self.f_norms[call, column]),
            )
            for measure, table in self.shares.items()
            for call in range(len(self.calls))
            for column, name in enumerate(self.classes)
        )  # fmt: skip
        columns = ("call", "name", "class", "measure", "share", "sum", "f_norm")
        return Table(columns, rows, f"{self.sequences} sequences, {self.tokens} tokens", keys=4)

    def to_latex(self, width: float = LINE) -> str:
        """For a paper: calls by number, with their names in comments above; folded as any table."""
        return self.as_table().told("name", of="call").to_latex(width)

    def as_dict(self) -> dict[str, Any]:
        """Everything as numbers and lists, for JSON; NaN becomes None."""
        return {
            "classes": list(self.classes),
            "special": list(self.special),
            "layers": [call.name for call in self.calls],
            "token_share": _listed(self.token_share),
            "shares": {measure: _listed(table) for measure, table in self.shares.items()},
            "sums": {measure: _listed(table) for measure, table in self.sums.items()},
            "special_share": {measure: self.special_share(measure) for measure in self.shares},
            "f_norms": _listed(self.f_norms),
            "spearman_of_weight_and_f_norm": {which: _listed(rho) for which, rho in self.correlation.items()},
            "certificate": {"error": self.worst_error, "tolerance": self.tolerance},
            "sequences": self.sequences,
            "tokens": self.tokens,
        }


class ShareCounter:
    """Adds up what classes of tokens receive, batch by batch; ``result()`` gives the means so far.

    Args:
        model: runs once per batch, without gradient, in the mode it is in.

    Example:
        >>> encoder = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
        >>> counter = ShareCounter(encoder)
        >>> counter.add(torch.randn(1, 3, 8), [["[CLS]", "other", "other"]])
        >>> found = counter.result()
        >>> found.classes, tuple(found.shares["head_norms"].shape)
        (('[CLS]', 'other'), (1, 2))
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model
        self._calls: list[_CallSums] = []
        self._counts: Counter[str] = Counter()
        self._worst, self._tolerance, self._sequences = 0.0, 0.0, 0

    def add(self, inputs: Mapping[str, Any] | Tensor, classes: Sequence[Sequence[str]]) -> None:
        """Run the model on a batch and add what its attention calls did.

        Args:
            inputs: what the model takes; padding is told by the ``attention_mask`` among them.
            classes: for each example the class of each token (`token_classes` gives it), padding included.

        Raises:
            ValueError: where the keys of a call are not known to be input tokens, or the number of calls differs from
                batch to batch; and as `attention_maps`.
        """
        place, columns = 0, _ClassColumns(classes)

        def take(record: AttentionRecord) -> None:
            nonlocal place
            if place == len(self._calls):
                self._calls.append(_CallSums(record.call))
            self._calls[place].add(record, columns)
            self._worst = max(self._worst, record.certificate.error)
            self._tolerance = record.certificate.tolerance
            place += 1

        run_recorded(self.model, inputs, take)
        self._sequences += len(classes)
        mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
        real = torch.ones(len(classes), len(classes[0])) if mask is None else mask
        for row, kept in zip(classes, real.tolist(), strict=True):
            self._counts.update(name for name, is_real in zip(row, kept, strict=True) if is_real)

    def result(self) -> TokenShares:
        """The means over all sequences added so far.

        Raises:
            ValueError: if nothing was added.
        """
        if not self._calls:
            raise ValueError("ShareCounter: no sequence was added, so there are no shares. Call add(inputs, classes).")
        met = {name for call in self._calls for name in call.shares["weights"]} & {*self._counts, NO_TOKEN}
        plain = ("punctuation", "other", NO_TOKEN)
        classes = (*sorted(met - set(plain), key=list(self._counts).index), *(name for name in plain if name in met))
        counts = torch.tensor([self._counts[name] for name in classes], dtype=torch.float64)
        return TokenShares(
            classes=classes,
            special=tuple(name not in plain for name in classes),
            calls=tuple(call.call for call in self._calls),
            token_share=counts / counts.sum(),
            shares={m: torch.stack([call.mean(call.shares[m], classes) for call in self._calls]) for m in MEASURES},
            sums={m: torch.stack([call.mean(call.sums[m], classes) for call in self._calls]) for m in MEASURES},
            f_norms=torch.stack([torch.stack([call.f_norms[name].mean() for name in classes]) for call in self._calls]),
            correlation={w: torch.stack([call.correlation[w].mean() for call in self._calls]) for w in _CHOSEN},
            worst_error=self._worst,
            tolerance=self._tolerance,
            sequences=self._sequences,
            tokens=int(counts.sum()),
        )


@dataclass
class _Mean:
    """A mean that grows."""

    total: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    count: int = 0

    def add(self, numbers: Tensor) -> None:
        self.total = self.total + numbers.cpu().double().sum()
        self.count += numbers.numel()

    def mean(self) -> Tensor:
        return self.total / self.count if self.count else torch.full((), torch.nan, dtype=torch.float64)


class _ClassColumns:
    """The classes of a batch's tokens as columns, made once for calls with the same keys."""

    def __init__(self, classes: Sequence[Sequence[str]]) -> None:
        self._classes = classes
        self._known: dict[tuple[int, ...], tuple[list[str], Tensor]] = {}

    def of(self, index: Tensor, device: torch.device) -> tuple[list[str], Tensor]:
        """The names of the classes, and which keys (at these positions) are of each, (batch, key, class) bool."""
        keys = tuple(index.tolist())
        if keys not in self._known:
            of_keys = [[NO_TOKEN if at < 0 else tokens[at] for at in keys] for tokens in self._classes]
            like = torch.empty(0, device=device)
            self._known[keys] = class_columns("ShareCounter", of_keys, len(self._classes), len(keys), like)
        names, one_hot = self._known[keys]
        return names, one_hot.to(device)


class _CallSums:
    """The sums of one attention call over sequences, by class."""

    def __init__(self, call: AttentionCall) -> None:
        self.call = call
        self.sequences = 0
        self.shares: dict[str, dict[str, _Mean]] = {measure: defaultdict(_Mean) for measure in MEASURES}
        self.sums: dict[str, dict[str, _Mean]] = {measure: defaultdict(_Mean) for measure in MEASURES}
        self.f_norms: dict[str, _Mean] = defaultdict(_Mean)
        self.correlation: dict[str, _Mean] = defaultdict(_Mean)

    def add(self, record: AttentionRecord, columns: _ClassColumns) -> None:
        if record.keys is None:
            raise ValueError(
                f"{record.call.name}: its keys are not known to be input tokens ({record.unknown_keys}), so no class "
                "of tokens can be given its share."
            )
        batch, _, query, key = record.shape
        queries = _all_real(record.query_mask, batch, query, record.device)
        keys = _all_real(record.key_mask, batch, key, record.device)
        names, one_hot = columns.of(record.keys.index, record.device)
        one_hot, kept = one_hot & keys[..., None], KeyFactors()
        received = self._add_blocks(record, names, one_hot, queries, kept)
        self.sequences += batch
        with key_factors(kept):
            f_norms = measures.compute_measures(record, ("transformed_norms",))["transformed_norms"]
        if isinstance(f_norms, Tensor):
            self._add_f_norms(received, f_norms, names, one_hot)

    def _add_blocks(
        self, record: AttentionRecord, names: Sequence[str], one_hot: Tensor, queries: Tensor, kept: KeyFactors
    ) -> Tensor:
        """Add what each class receives; what each key receives by weight from all queries, (batch, head, key)."""
        totals: dict[str, Tensor] = {}
        batch, head, _, key = record.shape
        received = torch.zeros(batch, head, key, dtype=at_least_float32(record.values.dtype), device=one_hot.device)
        for rows, block in blocks_in_float32(record):
            real = queries[:, rows]
            if not real.any():
                continue
            with key_factors(kept):
                found = measures.compute_measures(block, tuple(MEASURES))
            # Where no weight goes to keys behind the block, none of these measures is anything there.
            seen = rows.stop if all_zero(block.weights[..., rows.stop :]) else key
            for measure, scores in found.items():
                if isinstance(scores, str):
                    raise ValueError(f"{record.call.name} has no {measure}: {scores}.")
                scores = scores[..., :seen]
                scores = scores.abs() if bool(scores.amin() < 0) else scores
                both = _of_block(scores, one_hot[:, :seen], real, rows.start)
                totals[measure] = totals.get(measure, torch.zeros((), dtype=torch.float64)) + both
            weights = block.weights[..., :seen]
            weights = weights if real.all() else weights.masked_fill(~real[:, None, :, None], 0)
            received[..., :seen] += weights.sum(2)
        counts = queries.sum(-1).cpu()
        for measure, both in totals.items():
            for sums, means in zip((self.sums, self.shares), both / counts[:, None], strict=True):
                for name, mean in zip(names, means.unbind(-1), strict=True):
                    # A class that does not occur in an example receives nothing there: the count is of all examples.
                    sums[measure][name].add(mean)
        return received

    def _add_f_norms(self, received: Tensor, f_norms: Tensor, names: Sequence[str], one_hot: Tensor) -> None:
        keys = one_hot.any(-1, keepdim=True)
        for name, means in means_of_columns(f_norms.masked_fill(~keys.mT, 0), names, one_hot).items():
            self.f_norms[name].add(means.mean(dim=-1))
        plain = [column for column, name in enumerate(names) if name in ("punctuation", "other")]
        received, f_norms, one_hot = received.cpu(), f_norms.cpu(), one_hot.cpu()
        for which, chosen in (("all", one_hot), ("not special", one_hot[..., plain])):
            rho = spearman(received, f_norms, chosen.any(-1)[:, None])
            self.correlation[which].add(rho[rho.isfinite()])

    def mean(self, sums: dict[str, _Mean], classes: Sequence[str]) -> Tensor:
        """(class,): means over all sequences; 0 where a class met none."""
        return torch.stack([sums[name].total / self.sequences for name in classes])


def _of_block(scores: Tensor, one_hot: Tensor, queries: Tensor, first: int) -> Tensor:
    """What classes receive of a block of queries: sums and shares, added up over queries, (2, batch, class)."""
    if scores.ndim == 4:
        queries = queries[:, None]
    # With classes in front: torch's product with a few columns behind takes four times as long on a CPU.
    sums = (one_hot.to(scores.dtype).mT @ scores.flatten(1, -2).mT).mT
    sums = sums.reshape(*scores.shape[:-1], -1).masked_fill_(~queries[..., None], 0)
    both = torch.stack([sums, shares_of_sums(sums, queries, first)]).sum(-2).cpu().double()
    return both if both.ndim == 3 else both.mean(2)


def read_paragraphs(path: str | os.PathLike[str]) -> list[str]:
    """The paragraphs of a text file, one per line, without blank lines and headings (``= Title =``).

    The marks by which WikiText keeps hyphens and separators apart (``@-@``, ``@,@``, ``@.@``) are undone.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not UTF-8 text, or holds no paragraph.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        ...     _ = file.write(" = Title = \\n\\n A well @-@ known line . \\n")
        ...     file.flush()
        ...     read_paragraphs(file.name)
        ['A well-known line .']
    """
    if not Path(path).is_file():
        found = "a folder" if Path(path).is_dir() else "no such file"
        raise FileNotFoundError(f"{os.fspath(path)}: {found}. Name a text file.")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(path)} is not UTF-8 text ({error.reason}, byte {error.start}).") from error
    return paragraphs_of(text, os.fspath(path))


def paragraphs_of(text: str, name: str = "the text") -> list[str]:
    """The paragraphs of a text, as `read_paragraphs` finds them in a file; ``name`` is what errors call it.

    Raises:
        ValueError: if it holds no paragraph.
    """
    lines = [line.strip() for line in text.splitlines()]
    bodies = [line for line in lines if line and not _HEADING.fullmatch(line)]
    if not bodies:
        raise ValueError(f"{name} holds no paragraph: only blank lines and headings (= Title =).")
    return [re.sub(r" @([-,.])@ ", r"\1", body) for body in bodies]


_HEADING = re.compile(r"(=+\s).*(\s=+)")


def _all_real(mask: Tensor | None, batch: int, length: int, device: torch.device) -> Tensor:
    return torch.ones(batch, length, dtype=torch.bool, device=device) if mask is None else mask


def _listed(table: Tensor) -> Any:
    """Nested lists; NaN, which JSON does not have, as None."""
    if table.ndim:
        return [_listed(row) for row in table]
    return None if bool(table.isnan()) else float(table)
