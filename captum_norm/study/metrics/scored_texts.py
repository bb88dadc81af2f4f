"""What a metric measures: a padded batch of examples, and the score that one method gave to every token.

Axes: b batch, s sequence (the tokens as the model takes them, padding included).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scored:
    """A padded batch, the scores of its tokens, and what is known of it.

    Scores are read as "how much does this token speak for ``target``": the largest first, signs and all.  What stands
    at tokens that are not ``removable`` is never looked at.

    Args:
        inputs: what the model takes, ``input_ids`` (b, s), ``attention_mask`` and so on, as a tokenizer pads it.
        scores: (b, s), in the method's own unit; kept in float64.
        target: (b,) long, the class that was explained.
        removable: (b, s) bool, True where a token may be removed: real and not special.
        evidence: (b, s) bool, True at the tokens that are known to matter; None where it is not known.
        mask_id: the id of the tokenizer's [MASK] token, ``tokenizer.mask_token_id``; None where it has none.
        words: (b, s) long, the number of each token's word; None where words are not known.
        rows: (b,) long, whose row of the model's output is explained; None for the one that the forward takes.
        places: (b, s) bool, where the answer may stand, for models that answer with a place in the text; else None.
        sources: (b, s) long, the number of each token's source (a passage of a context), -1 for none; None where none
            are known.
        foil: (b,) long, the class that the target is set against: metrics then ask of these two alone; None where all
            classes are asked of.
        drawn: whether scores are random draws, of which a word gets one and not the sum of its tokens'.
        memo: results that do not depend on the scores, kept for the next metric or method on the same batch:
            ``dataclasses.replace(scored, scores=others)`` shares it.

    Attributes:
        copies: what the model said of perturbed copies, shared by the metrics of the same scores.
        units: (b, s) long, where the token stands that is ranked and removed for each token: itself, or by words
            (`by_word`) or sources (`by_source`) the first of them.
        fingerprint: of inputs, target, removable tokens and units, which is all that ``memo`` depends on.

    Raises:
        ValueError: where shapes disagree, an example has no removable token, or a removable token's score is NaN or
            infinite.

    Example:
        >>> ids = torch.tensor([[2, 7, 8, 3]])
        >>> scored = Scored({"input_ids": ids}, torch.tensor([[0.0, 0.9, 0.1, 0.0]]), torch.tensor([1]),
        ...                 torch.tensor([[False, True, True, False]]))
        >>> scored.scores.dtype
        torch.float64
    """

    inputs: Mapping[str, Tensor]
    scores: Tensor
    target: Tensor
    removable: Tensor
    evidence: Tensor | None = None
    mask_id: int | None = None
    memo: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    words: Tensor | None = None
    rows: Tensor | None = None
    places: Tensor | None = None
    drawn: bool = False
    copies: dict[Any, dict[bytes, Tensor]] = field(default_factory=dict, repr=False, compare=False)
    units: Tensor | None = field(default=None, repr=False)
    sources: Tensor | None = field(default=None, repr=False)
    foil: Tensor | None = None
    fingerprint: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        scores = self.scores.detach().double().cpu()
        object.__setattr__(self, "scores", scores)
        object.__setattr__(self, "target", self.target.detach().cpu())
        if scores.ndim != 2:
            raise ValueError(f"Scored: scores should be (batch, token), got shape {tuple(scores.shape)}.")
        for name in ("removable", "evidence"):
            mask = getattr(self, name)
            if mask is not None:
                object.__setattr__(self, name, _checked_mask(name, mask, scores))
        if self.target.shape != scores.shape[:1] or self.target.is_floating_point():
            raise ValueError(
                f"Scored: target should be one class per example, ({len(scores)},) long, got {self.target.dtype} of "
                f"shape {tuple(self.target.shape)}."
            )
        for name, tensor in self.inputs.items():
            if tensor.ndim == 0 or len(tensor) != len(scores):
                raise ValueError(f"Scored: {name} is {tuple(tensor.shape)}, but scores hold {len(scores)} examples.")
        self._check_scores()
        more = [of for of in (self.units, self.rows, self.places, self.foil) if of is not None]
        object.__setattr__(
            self, "fingerprint", digest_of_tensors(*self.inputs.values(), self.target, self.removable, *more)
        )

    def _check_scores(self) -> None:
        empty = (~self.removable.any(1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"Scored: example {empty[0]} has no token that may be removed: all are special or padding. "
                "Leave empty texts out."
            )
        wrong = (self.removable & ~torch.isfinite(self.scores)).nonzero().tolist()
        if wrong:
            example, token = wrong[0]
            raise ValueError(
                f"Scored: the score of token {token} of example {example} is {self.scores[example, token]}; "
                "a token without a finite score has no rank."
            )

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def asked(self) -> Tensor:
        """(b,) long, the place of the target among the answers: itself, or with a foil the first of the two."""
        return self.target if self.foil is None else torch.zeros_like(self.target)

    def by_word(self) -> Scored:
        """The same with words for units: ranked by the sum of their tokens' scores, removed and evidence as a whole.

        A word stands at the place of its first removable token; the others are not removable by themselves.

        Raises:
            ValueError: where words are not known.
        """
        if self.words is None:
            raise ValueError("by words: the words of these texts are not known. Give Scored(words=...).")
        return self._by(self.words)

    def by_source(self) -> Scored:
        """The same with sources for units, as `by_word`; what lies in no source is not removable.

        Raises:
            ValueError: where an example has no sources.
        """
        inside = self.removable if self.sources is None else self.removable & (self.sources.cpu() >= 0)
        lacking = range(len(self)) if self.sources is None else (~inside.any(1)).nonzero().flatten().tolist()
        if self.sources is None or lacking:
            raise ValueError(
                f"by sources: example {lacking[0]} has no sources. Give Example(sources=...), a field 'sources' of the "
                "data, or Scored(sources=...)."
            )
        return replace(self, removable=inside)._by(self.sources)

    def _by(self, units_of: Tensor) -> Scored:
        """Units that are told by their numbers."""
        numbers = units_of.cpu()
        places = torch.arange(numbers.shape[1]).expand_as(numbers)
        alike = (numbers[:, :, None] == numbers[:, None, :]) & self.removable[:, None, :]
        first = torch.where(alike, places[:, None, :], numbers.shape[1]).amin(-1)
        units = torch.where(self.removable, first, places)
        whole = replace(self, removable=self.removable & (units == places), units=units)
        evidence = None if self.evidence is None else whole.summed((self.evidence & self.removable).double()) > 0
        scores = self.scores if self.drawn else whole.summed(torch.where(self.removable, self.scores, 0.0))
        return replace(whole, scores=scores, evidence=evidence)

    def summed(self, scores: Tensor) -> Tensor:
        """Scores of tokens, (r, s) with each example repeated in place, added up at the token of their unit."""
        if self.units is None:
            return scores
        units = self.units.repeat_interleave(len(scores) // len(self), dim=0).to(scores.device)
        return torch.zeros_like(scores).scatter_add(1, units, scores)

    def part(self, rows: Tensor) -> Scored:
        """Some of the examples."""
        inputs = {name: value[rows.to(value.device)] for name, value in self.inputs.items()}
        names = ("scores", "target", "removable", "evidence", "words", "units", "rows", "places", "sources", "foil")
        masks = {name: getattr(self, name) for name in names}
        of_rows: dict[str, Any] = {name: None if mask is None else mask[rows] for name, mask in masks.items()}
        return replace(self, inputs=inputs, memo={}, copies={}, **of_rows)

    def whole_units(self, marks: Tensor, examples: Tensor) -> Tensor:
        """What is marked at a unit's token, marked at all its tokens: (r, s), rows of ``examples``."""
        return marks if self.units is None else marks.gather(1, self.units[examples].to(marks.device))


def digest_of_tensors(*tensors: Tensor) -> str:
    """A fingerprint of dtypes, shapes and content."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _checked_mask(name: str, mask: Tensor, scores: Tensor) -> Tensor:
    if mask.shape != scores.shape or mask.dtype is not torch.bool:
        raise ValueError(
            f"Scored: {name} should be bool of the scores' shape {tuple(scores.shape)}, got {mask.dtype} of "
            f"{tuple(mask.shape)}."
        )
    return mask.detach().cpu()
