"""``AttentionMaps``: the measures of a model's attention calls, each a list over calls, in memory or in a file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, SupportsIndex, overload

import torch
from torch import Tensor

from captum_norm.capture import AttentionCall, Certificate, Positions
from captum_norm.maps.saving import read_fields, write_fields
from captum_norm.maps.text import described
from captum_norm.maps.tidy import tidy_table
from captum_norm.measures import MEASURES

Tokens = tuple[tuple[str | int, ...], ...]


@dataclass(frozen=True, eq=False, repr=False)
class AttentionMaps:
    """Measures of a model's attention calls, each a list over calls: ``maps.summed_norms[i]`` is (batch, query, key).

    A measure is an attribute under its name.  One that a call cannot have is absent there, and asking for it raises
    with the reason; one that was not asked for is no attribute.

    Attributes:
        calls: which attention calls, in the order they ran.  ``maps.calls[i].module`` is the module as long as the
            model lives; maps keep no model alive, and a pickle of them holds none.
        certificate: the check each has passed; ``float(maps.certificate[i])`` is the error.
        keys: where each key lies in the model's input, or None where that is not known.  ``source`` is the name of the
            input.
        queries: the same for the rows.
        key_masks: (batch, key) bool, True at real tokens; None where all are.
        query_masks: (batch, query) bool, the same for the rows.
        input_tokens: by input name, the tokens of each example: strings where the inputs came from a tokenizer, else
            ids.
        versions: what computed this: package → version, and the model's class.
        head_indices: which heads the per-head quantities hold; None: all.
        positions: which rows of the query axis are held; None: all.
        results: by measure, what each call has of it: the tensor, or the reason why there is none.
    """

    calls: tuple[AttentionCall, ...]
    certificate: tuple[Certificate, ...]
    keys: tuple[Positions | None, ...]
    queries: tuple[Positions | None, ...]
    key_masks: tuple[Tensor | None, ...]
    query_masks: tuple[Tensor | None, ...]
    input_tokens: dict[str, Tokens] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    head_indices: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    results: dict[str, list[Tensor | str]] = field(default_factory=dict)

    @property
    def quantities(self) -> tuple[str, ...]:
        """The names of the measures held."""
        return tuple(self.results)

    @property
    def tokens(self) -> Tokens | None:
        """The tokens of each example of the model's first input that has any; see ``input_tokens`` for the others."""
        return next(iter(self.input_tokens.values()), None)

    def __len__(self) -> int:
        return len(self.calls)

    def __repr__(self) -> str:
        """What is held, in a few lines: the model, the calls, the shape of each measure, the first tokens.

        Example:
            >>> from captum_norm import attention_maps
            >>> encoder = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
            >>> attention_maps(encoder, torch.randn(1, 3, 8))
            AttentionMaps of TransformerEncoderLayer: 1 attention call
              call: 0 'self_attn' (self)
              weights: (batch 1, head 2, query 3, key 3)
              summed_norms: (batch 1, query 3, key 3)
        """
        return described(self)

    def __getattr__(self, name: str) -> list[Tensor]:
        results = self.__dict__.get("results", {})
        if name in results:
            return _OverCalls(name, results[name], self.calls)
        if name in MEASURES:
            raise AttributeError(
                f"AttentionMaps: {name} was not computed, only {', '.join(results)}. "
                f"Ask for it: attention_maps(model, inputs, quantities=({name!r},))."
            )
        raise AttributeError(
            f"AttentionMaps has no attribute {name!r}; the quantities it can hold: {', '.join(MEASURES)}."
        )

    def to(self, device: torch.device | str) -> AttentionMaps:
        """The same maps with all tensors on ``device``.

        Raises:
            ValueError: for a device that torch does not know.
        """
        try:
            torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f'AttentionMaps.to: {device!r} is no device; "cpu" and "cuda:0" are.') from error

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        def place(where: Positions | None) -> Positions | None:
            return None if where is None else replace(where, index=where.index.to(device), rows=move(where.rows))

        return replace(
            self,
            keys=tuple(map(place, self.keys)),
            queries=tuple(map(place, self.queries)),
            key_masks=tuple(map(move, self.key_masks)),
            query_masks=tuple(map(move, self.query_masks)),
            results={
                name: [r if isinstance(r, str) else r.to(device) for r in results]
                for name, results in self.results.items()
            },
        )

    def key_tokens(self, i: int, example: int = 0) -> list[str]:
        """A label for each key of call ``i``: its token, else its position.

        Args:
            i: which call.
            example: which example of the batch.

        Returns:
            One string per key; keys that are no input read ``"·"``.

        Raises:
            IndexError: for a call or example that is not there.
        """
        self._check(i, example)
        return self._labels(self.keys[i], self._axis_size(i, "key"), example)

    def query_tokens(self, i: int, example: int = 0) -> list[str]:
        """A label for each row of call ``i``, as `key_tokens`."""
        self._check(i, example)
        return self._labels(self.queries[i], self._axis_size(i, "query"), example)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything but the modules to one safetensors file, whole or not at all.

        Example:
            >>> import tempfile
            >>> from captum_norm import attention_maps
            >>> encoder = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
            >>> maps = attention_maps(encoder, torch.randn(1, 3, 8))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     maps.save(f"{folder}/maps.safetensors")
            ...     again = AttentionMaps.load(f"{folder}/maps.safetensors")
            >>> torch.equal(again.weights[0], maps.weights[0]), again.calls[0].kind
            (True, 'self')
        """
        write_fields(path, {f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AttentionMaps:
        """Read what ``save`` wrote, onto the CPU.  Nothing in the file is executed.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged, cut off, or holds something else.
        """
        return cls(**read_fields(path))

    def to_pandas(self, quantities: Sequence[str] | str | None = None) -> Any:
        """A tidy table: one row per number.

        Args:
            quantities: which of the measures held; None: all.

        Returns:
            A ``pandas.DataFrame`` with the columns ``quantity``, ``call`` (an index into ``maps.calls``), its ``name``
            and ``kind``, ``example``, ``head``, ``query``, ``key``, ``query_token``, ``key_token`` and ``value``.  What
            a measure has no axis for is NA.  Padding is left out, and so are calls that cannot have the measure.

        Raises:
            ImportError: if pandas is not installed; ``pip install "captum-norm[study]"`` brings it.
            AttributeError: for a measure that is not held.

        Example:
            >>> from captum_norm import attention_maps
            >>> encoder = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
            >>> table = attention_maps(encoder, torch.randn(1, 3, 8)).to_pandas("weights")
            >>> len(table), [float(total) for total in table.groupby(["head", "query"])["value"].sum().round(3)]
            (18, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
        """
        return tidy_table(self, quantities)

    def to_html(self, path: str | os.PathLike[str] | None = None, **how: Any) -> str:
        """These maps as one HTML file to look at and touch; see :func:`captum_norm.viewer.to_html`.

        Args:
            path: a file to write it to as well.
            how: ``title``, ``tokens``, ``prompt``, ``images``, ``examples``, ``tokenizer``.
        """
        from captum_norm.viewer import to_html

        return to_html(self, path, **how)

    def _repr_html_(self) -> str:
        from captum_norm.viewer import in_notebook

        return in_notebook(self)

    def _check(self, i: int, example: int) -> None:
        if not -len(self) <= i < len(self):
            raise IndexError(f"AttentionMaps: there is no call {i}, only 0 to {len(self) - 1}.")
        for name, tokens in self.input_tokens.items():
            if not -len(tokens) <= example < len(tokens):
                raise IndexError(f"AttentionMaps: {name} has no example {example}, only 0 to {len(tokens) - 1}.")

    def _axis_size(self, i: int, axis: str) -> int:
        for name, results in self.results.items():
            axes = MEASURES[name].axes.split()
            if axis in axes and isinstance(result := results[i], Tensor):
                return result.shape[axes.index(axis)]
        raise ValueError(f"AttentionMaps: none of {', '.join(self.quantities)} has the axis {axis}.")

    def _labels(self, where: Positions | None, size: int, example: int) -> list[str]:
        if where is None:
            return [str(position) for position in range(size)]
        tokens = self.input_tokens.get(str(where.source))
        known = {} if tokens is None else dict(enumerate(map(str, tokens[example])))
        labels = ["·" if p < 0 else known.get(p, str(p)) for p in where.index.tolist()]
        return labels + ["residual"] * (size - len(labels))  # cross-attention with its block


class _OverCalls(list[Tensor]):
    """A list over calls in which a measure may be absent; taking it where it is absent raises with the reason."""

    def __init__(self, name: str, results: Sequence[Tensor | str], calls: Sequence[AttentionCall]) -> None:
        super().__init__(results)  # type: ignore[arg-type]  # a reason (str) stands where the measure is absent
        self._name, self._calls = name, calls

    @overload
    def __getitem__(self, i: SupportsIndex) -> Tensor: ...
    @overload
    def __getitem__(self, i: slice) -> list[Tensor]: ...
    def __getitem__(self, i: SupportsIndex | slice) -> Tensor | list[Tensor]:
        if not isinstance(i, slice) and not -len(self) <= int(i) < len(self):
            raise IndexError(f"AttentionMaps: {self._name} has no call {i}, only 0 to {len(self) - 1}.")
        result: Any = super().__getitem__(i)
        if isinstance(i, slice):
            return _OverCalls(self._name, result, self._calls[i])
        if isinstance(result, str):
            raise ValueError(f"{self._calls[int(i)].name} has no {self._name}: {result}.")
        return result

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))
