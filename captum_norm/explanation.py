"""Scores of a text with what they mean: tokens, words, method, row, target and how exactly the model was read.

``attribute`` gives Captum's answer, a tensor.  ``explain`` asks the same method about a tokenizer's encoding and keeps
beside the tensor what the encoding, the model and the method's report say of it, so that the result shows itself at the
prompt, in a notebook, as a table and as rows for pandas.

Axes: b batch, s token.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_norm.class_names import ClassNames
from captum_norm.forward import HFForward
from captum_norm.forward.keywords import title
from captum_norm.optional_packages import required
from captum_norm.tables import Table, Tabular
from captum_norm.words import Words, added_ids, word_scores, words_of

Text = Any  # a text, a pair of texts, or a list of these, one for each example

_ORANGE, _BLUE = "220,108,42", "58,132,191"  # the figures' colours of norms and of what speaks against
_SHOWN = 4  # texts of a batch that are shown by themselves


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(Tabular):
    """What a method says of the tokens of a batch.

    Attributes:
        scores: (batch, token), as ``attribute`` gave them.
        tokens: of each example, padding among them.
        real: (batch, token) bool, True where a token is no padding.
        special: (batch, token) bool, True at special tokens and padding.
        words: of each example, special tokens among them; empty where the text was not given.
        method: its class.
        model: the model's class.
        signed: whether scores tell for from against.
        target: the class or token id that is explained, by its name where the model has one; ``""`` where the scores do
            not depend on a target.
        row: whose representation is explained, in words; ``""`` for methods that explain an output.
        calls: how many attention calls were read and checked.
        error, tolerance: the largest error among their certificates, or that of the sum where shares add up to an
            output, and what is allowed there; None where the method checks neither.
        left_out: (batch,), the share of the row that went to keys that are no token; None where nothing was asked.
    """

    scores: Tensor
    tokens: tuple[tuple[str, ...], ...]
    real: Tensor
    special: Tensor
    words: tuple[Words, ...]
    method: str
    model: str
    signed: bool = False
    target: str = ""
    row: str = ""
    calls: int = 0
    error: float | None = None
    tolerance: float | None = None
    left_out: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def shares(self, example: int = 0) -> Tensor:
        """(token,): each score as a part of the sum of their sizes; signs are kept."""
        scores = self.scores[self._known(example)].double()
        return scores / scores.abs().sum().clamp_min(torch.finfo(torch.float64).tiny)

    def word_scores(self, example: int = 0) -> Tensor:
        """(word,): the scores of the pieces of each word of ``words[example]``, added up.

        Raises:
            ValueError: where the text was not given to ``explain``.
        """
        if not self.words:
            raise ValueError("Explanation.word_scores: words need the text: explain(method, encoding, text=text).")
        example = self._known(example)
        return word_scores(self.scores[example].double().cpu(), self.words[example])

    def pieces(self, example: int) -> tuple[Sequence[str], Tensor]:
        """Words and their scores, (word,), or tokens where words are not known; padding left out.

        Raises:
            ValueError: for an example that is not there, as ``shares`` and ``word_scores`` do.
        """
        example = self._known(example)
        if self.words:
            return self.words[example].strings, self.word_scores(example)
        real = self.real[example].cpu()
        labels = [token for token, keep in zip(self.tokens[example], real.tolist(), strict=True) if keep]
        return labels, self.scores[example].double().cpu()[real]

    def _known(self, example: int) -> int:
        """The number of an example, which may be counted from the end."""
        if isinstance(example, bool) or not isinstance(example, int) or not -len(self) <= example < len(self):
            raise ValueError(f"Explanation: example {example!r} is not there: it holds {len(self)}, from 0 on.")
        return example

    def as_table(self) -> Table:
        """A row for each word, or for each token where the text is not known: score, and share of all sizes."""
        rows = []
        for example in range(len(self)):
            labels, scores = self.pieces(example)
            total = max(float(scores.abs().sum()), 1e-300)
            first = (example,) if len(self) > 1 else ()
            rows += [
                (*first, label, score, score / total) for label, score in zip(labels, scores.tolist(), strict=True)
            ]
        columns = (*(["example"] if len(self) > 1 else []), "word" if self.words else "token", "score", "share")
        return Table(columns, tuple(rows), self._headline(), tuple(self._notes()), keys=len(columns) - 2)

    def to_pandas(self) -> Any:
        """A tidy ``pandas.DataFrame``, one row per token that is no padding.

        Returns:
            The columns ``example``, ``position``, ``token``, ``special``, ``word`` (its number; NA without the text),
            ``word_text``, ``score``, ``share``, ``method`` and ``target``.

        Raises:
            ImportError: if pandas is not installed.
        """
        pandas = required("pandas", "Explanation.to_pandas")
        rows = [
            {
                "example": example, "position": place, "token": token, "special": bool(self.special[example, place]),
                **self._word(example, place), "score": float(self.scores[example, place]),
                "share": float(share), "method": self.method, "target": self.target,
            }
            for example, tokens in enumerate(self.tokens)
            for place, (token, share) in enumerate(zip(tokens, self.shares(example).tolist(), strict=True))
            if self.real[example, place]
        ]  # fmt: skip
        return pandas.DataFrame(rows).astype({"word": "Int64"})

    def __repr__(self) -> str:
        lines = [self._headline()]
        for example in range(min(len(self), _SHOWN)):
            labels, scores = self.pieces(example)
            found = ", ".join(f"{label} {score:.3g}" for label, score in zip(labels, scores.tolist(), strict=True))
            lines.append(textwrap.shorten(found, 118, placeholder=" …"))
        if len(self) > _SHOWN:
            lines.append(f"… {len(self) - _SHOWN} more")
        return "\n  ".join([*lines, *self._notes()])

    def _repr_html_(self) -> str:
        texts = "".join(f"<p style='line-height:2'>{self._coloured(i)}</p>" for i in range(min(len(self), _SHOWN)))
        more = f"<p>… {len(self) - _SHOWN} more</p>" if len(self) > _SHOWN else ""
        colours = "orange speaks for it, blue against" if self.signed else "the deeper the orange, the more"
        notes = "<br>".join(map(html.escape, [f"{colours}; each text has a scale of its own", *self._notes()]))
        head = f"<p><b>{html.escape(self._headline())}</b></p>"
        return f"{head}{texts}{more}<p style='opacity:.7'><small>{notes}</small></p>"

    def _coloured(self, example: int) -> str:
        labels, scores = self.pieces(example)
        largest = max(float(scores.abs().max()), 1e-300)
        return " ".join(
            f'<span style="padding:.2em .35em;border-radius:.25em;background:rgba({_BLUE if score < 0 else _ORANGE},'
            f'{0.85 * abs(score) / largest:.3f})" title="{score:.4g}">{html.escape(label)}</span>'
            for label, score in zip(labels, scores.tolist(), strict=True)
        )

    def _word(self, example: int, place: int) -> dict[str, Any]:
        number = self.words[example].index[place] if self.words else None
        return {"word": number, "word_text": None if number is None else self.words[example].strings[number]}

    def _headline(self) -> str:
        return f"{self.method} of {self.model}" + (f", explained: {self.target}" if self.target else "")

    def _notes(self) -> list[str]:
        found = [f"row: {self.row}"] if self.row else []
        if self.error is not None:
            calls = f"{self.calls} attention calls read, each checked: worst error"
            what = calls if self.calls else "the sum is off by"
            found.append(f"{what} {self.error:.1e} (allowed {self.tolerance:.0e})")
        if self.left_out is not None and bool((self.left_out > 0).any()):
            found.append(f"left out, as their keys are no token: {float(self.left_out.max()):.1%} of a row at most")
        return found


def explain(
    method: Any,
    encoding: Mapping[str, Any],
    *,
    text: Text = None,
    tokenizer: Any = None,
    target: Any = None,
    **arguments: Any,
) -> Explanation:
    """Ask a method about a tokenizer's encoding, and keep what the scores mean.

    Masks and token types go to the model by their names, whatever the method was built on.

    Args:
        method: one of this package's input methods, on a model or ``HFForward``; or one of Captum's, on
            ``HFForward(model, mode="gate")``.
        encoding: ``tokenizer(text, return_tensors="pt", padding=True)``.
        text: the text, a pair of texts as a tuple, or a list of these, one for each example: then scores are also given
            by word.  The tokenizer has to be a fast one.
        tokenizer: names tokens where the encoding cannot.
        target: the class or token id to explain, as for ``attribute``; one for all.
        **arguments: for ``attribute``: ``position``, ``kind``, ``n_steps`` ...

    Raises:
        TypeError: for a method built on something that takes no encoding, and for an encoding of another kind.
        ValueError: for scores that are not one number per token (``position="all"``, ``mode="embeds"``), and a text
            that the encoding was not made of.

    Example:
        >>> from captum_norm import AttentionNorm
        >>> from captum_norm.models import load_sentiment
        >>> model, tokenizer = load_sentiment()
        >>> text = "A warm film."
        >>> explain(AttentionNorm(model), tokenizer(text, return_tensors="pt"), text=text)
        AttentionNorm of BertForSequenceClassification
          [CLS] 1.26, A 0.573, warm 1.4, film. 1.51, [SEP] 0.645
          row: the one that the output was read from
          6 attention calls read, each checked: worst error ... (allowed 1e-05)
    """
    asked, forward = _on_forward(method)
    given = forward.inputs(encoding)
    if text is not None:
        _check_unchanged(encoding)
    if given["inputs"].is_floating_point():
        given["inputs"].requires_grad_()  # Captum would do so, and warn of it
    scores = asked.attribute(**given, target=target, **arguments)
    if asked is not method:
        method.report = asked.report
    if scores.ndim != 2:
        raise ValueError(
            f"explain shows one score for each token, (batch, token), but {_named(method)} gave {tuple(scores.shape)}. "
            'Ask attribute itself for several rows; build Captum\'s methods on HFForward(model, mode="gate").'
        )
    count = len(scores)
    tokens, real, special = _described(encoding, tokenizer, scores.shape)
    report = getattr(method, "report", None)
    checks = [certificate for _, certificate in getattr(report, "certificates", ())]
    error, tolerance = _worst(checks, report)
    left_out = getattr(report, "left_out", ())
    of_position = getattr(method, "explains", "target") == "position"
    return Explanation(
        scores.detach(), tokens, real, special, _words(encoding, text, count), _named(method), title(forward.model),
        signed=bool(getattr(method, "signed", True) or (scores < 0).any()),
        target="" if of_position or target is None else _target_name(forward.model, target),
        row=_row(report, arguments.get("position")) if of_position else "",
        calls=len(checks),
        error=error,
        tolerance=tolerance,
        left_out=left_out[0] if isinstance(left_out, tuple) and left_out else None,
    )  # fmt: skip


def _on_forward(method: Any) -> tuple[Any, HFForward]:
    """The method on a forward that takes an encoding."""
    forward = getattr(method, "forward_func", None)
    if isinstance(forward, HFForward):
        return method, forward
    if isinstance(forward, nn.Module) and hasattr(method, "report"):
        method = copy(method)
        method.forward_func = HFForward(forward)
        return method, method.forward_func
    if isinstance(method, nn.Module):
        raise TypeError(f"explain takes a method, say AttentionNorm(model), not the model itself ({_named(method)}).")
    what = type(forward).__name__ if hasattr(method, "forward_func") else "no model"
    raise TypeError(
        f"explain: {_named(method)} is built on {what}, which takes no encoding. Build it on a Hugging Face model, or "
        'Captum\'s own methods on HFForward(model, mode="gate").'
    )


def _worst(checks: Sequence[Any], report: Any) -> tuple[float | None, float | None]:
    """The largest error and what is allowed there: of the calls, or of a sum that the method checks as a whole."""
    if checks:
        worst = max(checks, key=float)
        return float(worst), float(worst.tolerance)
    return (report.error, report.tolerance) if hasattr(report, "tolerance") else (None, None)


def _named(method: Any) -> str:
    return type(method).__name__


def _described(
    encoding: Any, tokenizer: Any, shape: Sequence[int]
) -> tuple[tuple[tuple[str, ...], ...], Tensor, Tensor]:
    """The tokens, which of them are real, and which are special: of the ids and the mask that were scored, which need
    not be those that the tokenizer made."""
    kept = getattr(encoding, "encodings", None) or ()
    mask = encoding.get("attention_mask") if isinstance(encoding, Mapping) else None
    if kept and _changed_ids(encoding) is None:
        tokens = tuple(tuple(one.tokens) for one in kept)
        real = torch.tensor([one.attention_mask for one in kept], dtype=torch.bool)
        special = torch.tensor([one.special_tokens_mask for one in kept], dtype=torch.bool)
        if tuple(real.shape) == tuple(shape):
            if mask is not None and tuple(torch.as_tensor(mask).shape) == tuple(shape):
                real = torch.as_tensor(mask).bool().cpu()
            return tokens, real, special | ~real
    ids = encoding["input_ids"] if "input_ids" in encoding else torch.arange(shape[1]).expand(*shape)
    rows = torch.as_tensor(ids).tolist()
    real = torch.ones(*shape, dtype=torch.bool) if mask is None else torch.as_tensor(mask).bool().cpu()
    pieces = [piece for one in kept for piece in zip(one.ids, one.tokens, one.special_tokens_mask, strict=True)]
    known = {token: name for token, name, _ in pieces}
    marks = added_ids(tokenizer) | {token for token, _, marked in pieces if marked}
    special = torch.tensor([[one in marks for one in row] for row in rows]) | ~real
    named = getattr(tokenizer, "convert_ids_to_tokens", lambda row: [known.get(token, token) for token in row])
    return tuple(tuple(map(str, named(row))) for row in rows), real, special


def _changed_ids(encoding: Any) -> int | None:
    """The first example whose ids are not those that the tokenizer made of its text; None where all are."""
    kept = getattr(encoding, "encodings", None)
    if not kept or "input_ids" not in encoding:
        return None
    ids = torch.as_tensor(encoding["input_ids"])
    rows, made = (ids if ids.ndim > 1 else ids[None]).tolist(), [one.ids for one in kept]
    differing = [i for i, (row, of_text) in enumerate(zip(rows, made, strict=False)) if row != of_text]
    return next(iter(differing), None if len(rows) == len(made) else min(len(rows), len(made)))


def _check_unchanged(encoding: Any) -> None:
    """Refuse words of ids or a mask that are not those that the tokenizer made of the text.

    A mask may hide tokens of the text, which stay words of it; it may show no padding, which is no word.
    """
    changed, what = _changed_ids(encoding), "ids"
    kept, mask = getattr(encoding, "encodings", None), encoding.get("attention_mask")
    if changed is None and kept and mask is not None and torch.as_tensor(mask).ndim == 2:
        made = torch.tensor([one.attention_mask for one in kept], dtype=torch.bool)
        shown = torch.as_tensor(mask).bool().cpu()
        if shown.shape == made.shape and bool((shown & ~made).any()):
            changed, what = int((shown & ~made).any(-1).nonzero()[0]), "marks of the attention mask"
    if changed is not None:
        raise ValueError(
            f"explain: the {what} of example {changed} in the encoding are not what the tokenizer made of the text, so "
            "the words of its tokens are not known. Leave text= out for scores of the tokens, or encode the text anew."
        )


def _words(encoding: Any, text: Text, count: int) -> tuple[Words, ...]:
    """The words of each example; none where the text is not known."""
    if text is None:
        return ()
    texts = list(text) if isinstance(text, list) and not (count == 1 and len(text) != 1) else [text]
    if len(texts) != count:
        raise ValueError(f"explain: {len(texts)} texts for an encoding of {count}: give one for each example.")
    return tuple(words_of(encoding, one, index, special="keep") for index, one in enumerate(texts))


def _target_name(model: Any, target: Any) -> str:
    names = ClassNames.of(model).names
    single = target.item() if isinstance(target, Tensor) and target.numel() == 1 else target
    return str(names.get(single, single)) if isinstance(single, int) else str(single)


def _row(report: Any, position: Any) -> str:
    known = {
        "read": "the one that the output was read from",
        "convention": "the last token if the model looks back only, else the first",
    }
    given = "" if position is None else f"position {position}" if not isinstance(position, str) else position
    return known.get(getattr(report, "row", ""), given)
