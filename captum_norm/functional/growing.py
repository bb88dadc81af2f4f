"""What keys need, kept while their number grows: a cache that takes in a key with each token that a model writes.

What was prepared for a key does not change, so a step prepares the new keys alone, some at a time.  Keys may leave at
the front (a window that slides), and rows of the batch may change places (beams).

Axes: b batch, h head, k key, p pair of heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from captum_norm.functional.gram import LARGEST_FACTORS, KeyParts, Parts
from captum_norm.functional.normalization import Norms

Prepare = Callable[[Tensor, Tensor, Norms], Iterable[KeyParts]]

# Fewer new keys than this are not worth preparing: by their vectors they cost less.
_SOME = 16


class GrowingFactors:
    """What the keys of one attention call need, in all steps of a generation; used within ``gram.growing``."""

    def __init__(self) -> None:
        self._kept: dict[object, _Grown] = {}

    def go_on(self, parents: Tensor, gone: int) -> None:
        """The keys of the next step: of these rows of the batch, without so many in front."""
        for grown in self._kept.values():
            grown.go_on(parents, gone)

    def known(self, prepare: Prepare, values: Tensor, W_O: Tensor, after: Norms = ()) -> int:
        """For how many of the keys, from the first on, it is there; prepares what is worth preparing."""
        weights = (W_O, *[norm.weight for norm in after if norm.weight is not None])
        made_of = tuple((weight.data_ptr(), weight.shape, weight.stride(), _version(weight)) for weight in weights)
        what = (prepare, *[(norm.centred, norm.weight is None) for norm in after])
        grown = self._kept.setdefault(what, _Grown(made_of, weights))
        (head, _, _), (batch, _, key, _) = W_O.shape, values.shape
        if grown.made_of != made_of or head * (head + 1) * batch * key > LARGEST_FACTORS:
            return 0
        if key - grown.keys >= (_SOME if grown.keys else 1):
            for b, k, parts in prepare(values[:, :, grown.keys :], W_O, after):
                grown.take_in(b, k, parts, batch, key)
            grown.keys = key
        return grown.keys

    def of(self, prepare: Prepare, values: Tensor, W_O: Tensor, after: Norms) -> Iterable[KeyParts]:
        """What ``prepare`` gives, for all keys."""
        known = self.known(prepare, values, W_O, after)
        if known:
            what = (prepare, *[(norm.centred, norm.weight is None) for norm in after])
            yield slice(None), slice(0, known), self._kept[what].parts()
        if known < values.shape[2]:
            for b, k, parts in prepare(values[:, :, known:], W_O, after):
                yield b, slice(k.start + known, k.stop + known), parts


@dataclass(eq=False)
class _Grown:
    """Products and factors of all pairs of heads, (pair, batch, room), and lengths, (head, batch, room)."""

    made_of: object
    weights: tuple[Tensor, ...]
    keys: int = 0
    start: int = 0
    products: Tensor = field(default_factory=lambda: torch.empty(0, 0, 0))
    factor: Tensor = field(default_factory=lambda: torch.empty(0, 0, 0))
    lengths: Tensor = field(default_factory=lambda: torch.empty(0, 0, 0))

    def go_on(self, parents: Tensor, gone: int) -> None:
        gone = min(gone, self.keys)
        self.start, self.keys = self.start + gone, self.keys - gone
        if torch.equal(parents, torch.arange(len(parents))) or not self.products.numel():
            return
        for name in ("products", "factor", "lengths"):
            tensor = getattr(self, name)
            setattr(self, name, tensor.index_select(1, parents.to(tensor.device)))

    def take_in(self, b: slice, k: slice, parts: Parts, batch: int, key: int) -> None:
        products, factor, lengths = parts
        self._make_room(len(lengths), batch, key, lengths.device)
        first = self.start + self.keys
        k = slice(first + k.start, first + k.start + lengths.shape[-1])
        self.products[:, b, k], self.factor[:, b, k], self.lengths[:, b, k] = products, factor, lengths

    def _make_room(self, head: int, batch: int, key: int, device: torch.device) -> None:
        if self.start + key <= self.products.shape[-1]:
            return
        pairs, here = head * (head + 1) // 2, slice(self.start, self.start + self.keys)
        single = torch.float32
        sizes = {"products": (pairs, torch.float64), "factor": (pairs, single), "lengths": (head, single)}
        for name, (rows, dtype) in sizes.items():
            wider = torch.empty(rows, batch, key + key // 4 + _SOME, dtype=dtype, device=device)
            old = getattr(self, name)
            if old.numel():
                wider[..., : self.keys] = old[..., here]
            setattr(self, name, wider)
        self.start = 0

    def parts(self) -> Parts:
        here = slice(self.start, self.start + self.keys)
        return self.products[..., here], self.factor[..., here], self.lengths[..., here]


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
