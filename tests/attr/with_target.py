"""Methods that cannot do without a target, explaining class 1 where a test of the common contract names none.

Each is called as the method it stands for, so that errors and names are the method's own.
"""

from __future__ import annotations

import functools
from typing import Any

from captum_norm import attr


def _of_class_one(attribute: Any) -> Any:
    """The method's ``attribute``, explaining class 1, at the last position where the output has a row for each."""

    @functools.wraps(attribute)
    def explained(self: Any, inputs: Any, target: Any = None, *args: Any, **kwargs: Any) -> Any:
        if target is not None:
            return attribute(self, inputs, target, *args, **kwargs)
        try:
            return attribute(self, inputs, 1, *args, **kwargs)
        except ValueError as error:
            if "explains one number per example" not in str(error):
                raise
            return attribute(self, inputs, (-1, 1), *args, **kwargs)

    return explained


class ALTILogit(attr.ALTILogit):
    """Of class 1."""

    attribute = _of_class_one(attr.ALTILogit.attribute)


class AttentionRelevance(attr.AttentionRelevance):
    """Of class 1."""

    attribute = _of_class_one(attr.AttentionRelevance.attribute)


class DecompX(attr.DecompX):
    """Of class 1."""

    attribute = _of_class_one(attr.DecompX.attribute)
