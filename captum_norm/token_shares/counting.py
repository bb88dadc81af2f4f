"""What classes of tokens receive, added up batch by batch while a model runs; nothing is kept of a sequence."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_norm import measures
from captum_norm.capture import AttentionCall, AttentionRecord, Certificate, run_recorded
from captum_norm.ranks import spearman
from captum_norm.suggestions import did_you_mean
from captum_norm.token_classes import class_columns
from captum_norm.token_shares.received import received
from captum_norm.token_shares.shares import TokenShares

_CHOSEN = ("all", "not special")  # the tokens that a correlation is taken over
NO_TOKEN = "no token"
"""The class of keys that are no input token: memory, sinks."""

MEASURES = {name: f"{row.title} {row.unit}" for name, row in measures.MEASURES.items() if row.counted}
"""The measures shares are taken of, with what to call them."""


class ShareCounter:
    """Adds up what classes of tokens receive, batch by batch; ``result()`` gives the means so far.

    Args:
        model: runs once per batch, without gradient, in the mode it is in.
        measures: which of ``MEASURES``; one alone costs less than all three.

    Raises:
        ValueError: for a measure that is none of them, or for none at all.

    Example:
        >>> encoder = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
        >>> counter = ShareCounter(encoder)
        >>> counter.add(torch.randn(1, 3, 8), [["[CLS]", "other", "other"]])
        >>> found = counter.result()
        >>> found.classes, tuple(found.shares["head_norms"].shape)
        (('[CLS]', 'other'), (1, 2))
    """

    def __init__(self, model: Callable[..., Any], measures: Sequence[str] = tuple(MEASURES)) -> None:
        for name in measures:
            if name not in MEASURES:
                known = ", ".join(MEASURES)
                raise ValueError(f"ShareCounter: no measure {name!r}; it takes {known}.{did_you_mean(name, MEASURES)}")
        if not measures:
            raise ValueError(f"ShareCounter: no measures were named; it takes {', '.join(MEASURES)}.")
        self.model, self.measures = model, tuple(name for name in MEASURES if name in measures)
        self._calls: list[_CallSums] = []
        self._counts: Counter[str] = Counter()
        self._worst, self._tolerance, self._sequences = 0.0, 0.0, 0

    def add(self, inputs: Mapping[str, Any] | Tensor, classes: Sequence[Sequence[str]]) -> None:
        """Run the model on a batch and add what its attention calls did.

        Args:
            inputs: what the model takes; padding is told by the ``attention_mask`` among them.
            classes: for each example the class of each token (`token_classes` gives it), padding included.

        Raises:
            ValueError: where the keys of a call are not known to be input tokens, an example has no real token, as an
                empty text has none, classes are not one for each token, or the number of calls differs from batch to
                batch; and as `attention_maps`. Nothing of the batch is added then, and counting can go on.
        """
        mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
        real = torch.ones(len(classes), len(classes[0])) if mask is None else mask
        lengths = [len(row) for row in classes]
        if real.ndim != 2 or lengths != [real.shape[1]] * len(real):
            told_by = "the classes of example 0" if mask is None else "attention_mask"
            raise ValueError(
                f"ShareCounter: by {told_by} the inputs are (batch, token) = {tuple(real.shape)}, but there are "
                f"classes of {lengths} tokens, one number per example. Give a class for each token, padding included."
            )
        _check_real("attention_mask", real)
        columns, certificates = _ClassColumns(classes), list[Certificate]()
        calls: list[_CallSums] = []

        def take(record: AttentionRecord) -> None:
            calls.append(_CallSums(record.call, self.measures))
            calls[-1].add(record, columns)
            certificates.append(record.certificate)

        run_recorded(self.model, inputs, take)
        if self._calls and len(calls) != len(self._calls):
            raise ValueError(
                f"ShareCounter: {len(calls)} attention calls read this batch, but {len(self._calls)} those before it, "
                "so which calls are the same is not known. Count them by counters of their own."
            )
        # Nothing may fail from here on: a batch is added as a whole or not at all.
        if self._calls:
            for call, more in zip(self._calls, calls, strict=True):
                call.take_in(more)
        else:
            self._calls = calls
        self._worst = max(self._worst, *(certificate.error for certificate in certificates))
        self._tolerance = certificates[-1].tolerance
        self._sequences += len(classes)
        for row, kept in zip(classes, real.tolist(), strict=True):
            self._counts.update(name for name, is_real in zip(row, kept, strict=True) if is_real)

    def result(self) -> TokenShares:
        """The means over all sequences added so far.

        Raises:
            ValueError: if nothing was added.
        """
        if not self._calls:
            raise ValueError("ShareCounter: no sequence was added, so there are no shares. Call add(inputs, classes).")
        met = {name for call in self._calls for name in call.shares[self.measures[0]]} & {*self._counts, NO_TOKEN}
        plain = ("punctuation", "other", NO_TOKEN)
        classes = (*sorted(met - set(plain), key=list(self._counts).index), *(name for name in plain if name in met))
        counts = torch.tensor([self._counts[name] for name in classes], dtype=torch.float64)
        return TokenShares(
            classes=classes,
            special=tuple(name not in plain for name in classes),
            calls=tuple(call.call for call in self._calls),
            token_share=counts / counts.sum(),
            shares={m: _table([call.mean(call.shares[m], classes) for call in self._calls]) for m in self.measures},
            sums={m: _table([call.mean(call.sums[m], classes) for call in self._calls]) for m in self.measures},
            f_norms=_table([[call.f_norms[name].mean() for name in classes] for call in self._calls]),
            correlation={w: _table([call.correlation[w].mean() for call in self._calls]) for w in _CHOSEN},
            worst_error=self._worst,
            tolerance=self._tolerance,
            sequences=self._sequences,
            tokens=int(counts.sum()),
        )


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


@dataclass
class _Mean:
    """A mean that grows."""

    total: float = 0.0
    count: int = 0

    def add(self, numbers: Tensor) -> None:
        self.total += float(numbers.double().sum())
        self.count += numbers.numel()

    def take_in(self, other: _Mean) -> None:
        self.total += other.total
        self.count += other.count

    def mean(self) -> float:
        return self.total / self.count if self.count else torch.nan


class _CallSums:
    """The sums of one attention call over sequences, by class."""

    def __init__(self, call: AttentionCall, names: Sequence[str]) -> None:
        self.call, self._names = call, names
        self.sequences = 0
        self.shares: dict[str, dict[str, float]] = {name: defaultdict(float) for name in names}
        self.sums: dict[str, dict[str, float]] = {name: defaultdict(float) for name in names}
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
        _check_real(f"the mask of attention call {record.call.name!r}", queries)
        keys = _all_real(record.key_mask, batch, key, record.device)
        names, one_hot = columns.of(record.keys.index, record.device)
        one_hot = one_hot & keys[..., None]
        found = received(record, self._names, one_hot, queries)
        counts = queries.sum(-1).cpu()[:, None]
        for measure, both in found.by_class.items():
            for sums, means in zip((self.sums, self.shares), (both / counts).sum(1).tolist(), strict=True):
                for name, mean in zip(names, means, strict=True):
                    # A class that does not occur in an example receives nothing there: the count is of all examples.
                    sums[measure][name] += mean
        self.sequences += batch
        if found.f_norms is not None:
            self._add_f_norms(found.by_key.cpu(), found.f_norms.cpu(), names, one_hot.cpu())

    def _add_f_norms(self, by_weight: Tensor, f_norms: Tensor, names: Sequence[str], one_hot: Tensor) -> None:
        counts = one_hot.sum(1)
        means = (f_norms.double().mean(1)[:, None] @ one_hot.double())[:, 0] / counts
        for column, name in enumerate(names):
            self.f_norms[name].add(means[counts[:, column] > 0, column])
        plain = [column for column, name in enumerate(names) if name in ("punctuation", "other")]
        chosen = torch.stack([one_hot.any(-1), one_hot[..., plain].any(-1)])
        for which, rho in zip(_CHOSEN, spearman(by_weight, f_norms, chosen[:, :, None]), strict=True):
            self.correlation[which].add(rho[rho.isfinite()])

    def take_in(self, other: _CallSums) -> None:
        """Add what the same call did on other sequences."""
        self.sequences += other.sequences
        for own, others in ((self.shares, other.shares), (self.sums, other.sums)):
            for measure, of_classes in others.items():
                for name, mean in of_classes.items():
                    own[measure][name] += mean
        for means, more in ((self.f_norms, other.f_norms), (self.correlation, other.correlation)):
            for name, mean_of in more.items():
                means[name].take_in(mean_of)

    def mean(self, sums: dict[str, float], classes: Sequence[str]) -> list[float]:
        """By class: means over all sequences; 0 where a class met none."""
        return [sums[name] / self.sequences for name in classes]


def _table(numbers: Sequence[Any]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def _check_real(mask_name: str, real: Tensor) -> None:
    """Every example of a mask (batch, token) has a real token; else there are no queries to take its shares over."""
    empty = (~(real != 0).any(-1)).nonzero()
    if len(empty):
        raise ValueError(
            f"ShareCounter: example {int(empty[0, 0])} has no real token by {mask_name}, so it has no shares, and "
            "means over sequences would be undefined. Leave empty texts out of the batch."
        )


def _all_real(mask: Tensor | None, batch: int, length: int, device: torch.device) -> Tensor:
    return torch.ones(batch, length, dtype=torch.bool, device=device) if mask is None else mask
