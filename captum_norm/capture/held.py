"""Tensors of the model's own that a record gives out: values, which groups of heads may share, W_O and b_O.

They are views of what the model goes on with, a cache or a parameter, and are given out for as long as nobody has
written to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from captum_norm.capture.weights import version_of


@dataclass(frozen=True, eq=False)
class Held:
    """A tensor as it was when it was read.

    Attributes:
        given: the model's own.
        version: how often it had been written to then.
    """

    given: Tensor
    version: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "version", version_of(self.given))

    @property
    def unchanged(self) -> bool:
        """Whether nobody has written to it since, as far as torch counts (not in inference mode)."""
        return self.version == version_of(self.given)

    @property
    def is_right(self) -> bool:
        """Whether ``whole`` is what it was."""
        return self.unchanged

    @property
    def whole(self) -> Tensor:
        """As a record has it."""
        return self.given


@dataclass(frozen=True, eq=False)
class HeadValues(Held):
    """The values of heads, (..., head, key, head_dim), which groups of them may share.

    Attributes:
        given: (..., group, key, head_dim).
        shared_by: how many heads in a row share the values of a group.
    """

    shared_by: int = 1

    @property
    def shape(self) -> torch.Size:
        """(..., head, key, head_dim)."""
        shape = self.given.shape
        return shape if self.shared_by == 1 else torch.Size((*shape[:-3], shape[-3] * self.shared_by, *shape[-2:]))

    @property
    def is_right(self) -> bool:
        """Whether ``whole`` is what it was: a copy stays."""
        return "_copied" in self.__dict__ or self.unchanged

    @property
    def whole(self) -> Tensor:
        """The values of each head, (..., head, key, head_dim): a copy, made once, where heads share them."""
        return self.given if self.shared_by == 1 else self._copied

    @cached_property
    def _copied(self) -> Tensor:
        return repeated(self.given, self.shared_by)

    def along(self, read: Tensor) -> Tensor:
        """V_h r_h, (batch, head, key), each head's values along a direction of its own.

        Args:
            read: (head, head_dim).
        """
        of_groups = read.view(-1, self.shared_by, read.shape[-1])  # (group, head of it, head_dim)
        return (of_groups @ self.given.to(read.dtype).mT).flatten(1, 2)

    def copied(self) -> HeadValues:
        """A copy, which the model does not overwrite."""
        return HeadValues(self.given.clone(), self.shared_by)

    def lasting(self) -> HeadValues:
        """A copy if the model may write to them again: where it has done so, as to a cache, or torch does not count."""
        return self.copied() if self.version or self.given.is_inference() else self


def repeated(tensor: Tensor, repeats: int) -> Tensor:
    """Each of the third axis from the end, several times in a row; numbers that are the same along it are no copy."""
    wide = tensor.unsqueeze(-3).expand(*tensor.shape[:-2], repeats, *tensor.shape[-2:])
    return wide.flatten(-4, -3)
