"""What does a model's output rest on, and was all of it read?"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from captum_norm.capture import (
    Answer,
    AttentionRecord,
    InexactCaptureError,
    LookedAt,
    Mixer,
    Opaque,
    Positions,
    Recorded,
    Softmax,
    no_constants,
    run_recorded,
)
from captum_norm.forward.inputs import ModelInputs, named_inputs, other_input, position_sources
from captum_norm.forward.outputs import output_tensor
from captum_norm.maps.calls import CheckedCall, call_of


@dataclass(frozen=True)
class Certified:
    """What a model's output rests on, and how far that was read.

    Attributes:
        calls: each attention call.
        softmaxes: each softmax, and what became of it.
        lost: the softmaxes over positions on the way to the output that are no call and no refusal.
        opaque: the parts on the way to it that could not be looked into.
        mixers: what mixes positions beside attention, by operation and module.
        rows: which rows the output was read from, in words.
        real: for each input by name, how many of its tokens are real, by what attention looked at, and how many it has.
    """

    calls: tuple[CheckedCall, ...]
    softmaxes: tuple[Softmax, ...]
    lost: tuple[Softmax, ...]
    opaque: tuple[Opaque, ...]
    mixers: tuple[Mixer, ...]
    rows: str
    real: dict[str, tuple[int, int]]

    @property
    def is_whole(self) -> bool:
        """Whether all that is on the way to the output was read."""
        return not (self.lost or self.opaque or any(call.refusal and call.reaches for call in self.calls))


def certified(model: Callable[..., Any], inputs: ModelInputs) -> Certified:
    """What a model's output rests on: its attention calls, what else mixes positions, rows, real tokens.

    Args, Raises: as `attention_layers`.

    Example:
        >>> import torch
        >>> encoder = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
        >>> found = certified(encoder, torch.randn(1, 3, 8))
        >>> found.is_whole, found.mixers, found.rows, [softmax.fate for softmax in found.softmaxes]
        (True, (), 'each position has a row of its own', ['call'])
    """
    reader = _Certifier(position_sources(named_inputs(model, inputs)))
    run_recorded(model, inputs, reader.keep, reader.refuse, on_output=reader.conclude)
    opaque = opaque_parts(model, inputs, reader.answer)
    return reader.certified(opaque)


def opaque_parts(model: Callable[..., Any], inputs: ModelInputs, answer: Answer) -> tuple[Opaque, ...]:
    """The parts on the way to a model's output that cannot be looked into; it runs again to tell them from constants.

    Args:
        model, inputs: as `attention_layers`.
        answer: what the output rests on.
    """
    if not answer.opaque:
        return ()
    again: list[Opaque] = []
    with contextlib.suppress(ValueError, RuntimeError, IndexError, TypeError):
        run_recorded(
            model, _others(model, inputs), lambda record: None, lambda error: None,
            on_output=lambda recorded, output: again.extend(recorded.flow.opaque.parts),
        )  # fmt: skip
    return no_constants(answer.opaque, again)


def _others(model: Callable[..., Any], inputs: ModelInputs) -> ModelInputs:
    """Other inputs of the same shapes, masks and types as they are."""
    given = named_inputs(model, inputs)
    sources = position_sources(given)
    others = {name: other_input(value) if name in sources else value for name, value in given.items()}
    if isinstance(inputs, Mapping):
        return others
    return tuple(others.values()) if isinstance(inputs, tuple) else next(iter(others.values()))


class _Certifier:
    """Takes in the records of one run, then its output.

    Args:
        sources: the inputs whose entries are positions, by name.
    """

    def __init__(self, sources: Mapping[str, Tensor]) -> None:
        self._names, self._shapes = list(sources), [tuple(source.shape) for source in sources.values()]
        self._checked: list[tuple[CheckedCall, int]] = []
        self._real: dict[int, Tensor] = {}
        self._looked_at: dict[int, tuple[LookedAt, Positions]] = {}
        self.answer = Answer()

    def keep(self, record: AttentionRecord) -> None:
        """Take in a call that was read."""
        known = record.keys is not None
        call = CheckedCall(record.call, record.certificate, "", known, record.unknown_keys, record.mixers)
        self._checked.append((call, record.bit))
        for positions, mask in ((record.queries, record.query_mask), (record.keys, record.key_mask)):
            if mask is None or positions is None or not isinstance(positions.source, int):
                continue
            inputs = positions.index >= 0
            mask = mask[:, inputs.to(mask.device)].cpu()
            if record.looked_at is not None and positions is record.keys:
                axis = Positions(positions.source, positions.index[inputs])
                self._looked_at[positions.source] = record.looked_at, axis
            before = self._real.get(positions.source)
            self._real[positions.source] = mask | before if before is not None and before.shape == mask.shape else mask

    def refuse(self, error: InexactCaptureError) -> None:
        """Take in a call that was not."""
        self._checked.append((CheckedCall(call_of(error), None, str(error)), error.bit))

    def conclude(self, recorded: Recorded, output: Any) -> None:
        """Take in the output."""
        self.answer = recorded.answer(output_tensor(output), lambda tensor: tensor)

    def certified(self, opaque: tuple[Opaque, ...]) -> Certified:
        """What was found."""
        answer = self.answer
        calls = [
            replace(call, reaches=not (answer.reach and bit) or bool(answer.reach & bit))
            for call, bit in self._checked
        ]
        mixers = dict.fromkeys(mixer for call in calls if call.reaches for mixer in call.mixers)
        mixers |= dict.fromkeys(answer.mixers)
        for source, (looked_at, axis) in self._looked_at.items():
            if self._real[source].shape[1] == len(axis.index):
                self._real[source] = looked_at.spread(self._real[source], axis)
        real = {
            name: (int(self._real[n].sum()) if n in self._real else math.prod(shape[:2]), math.prod(shape[:2]))
            for n, (name, shape) in enumerate(zip(self._names, self._shapes, strict=True))
            if len(shape) < 4 and (n not in self._real or self._real[n].shape == shape[:2])
        }
        return Certified(
            tuple(calls), answer.softmaxes, answer.lost, opaque, tuple(mixers), _in_words(answer), real
        )


def _in_words(answer: Answer) -> str:
    """Which rows an output was read from."""
    if answer.how == "rows" and answer.rows is not None:
        rows = {tuple(row) for row in answer.rows.positions.tolist()}
        if len(rows) == 1 and all(len(row) == 1 for row in rows):
            return f"it is read from row {rows.pop()[0]}"
        counts = {len(row) for row in rows}
        return "it is read from one row of each example" if counts == {1} else "it is a mean of rows"
    return {
        "every position": "each position has a row of its own",
        "out of order": "each position has a row of its own, in another order",
        "other examples": "that of an example is read from another one",
        "unseen": "it is read from several rows in a way that was not followed",
    }.get(answer.how, "no attention call is known to reach it")
