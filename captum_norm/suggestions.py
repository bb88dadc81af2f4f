"""What was probably meant by a name that does not exist."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question to put behind an error, with the space before it; ``""`` where nothing is near.

    Example:
        >>> did_you_mean("attentionorm", ["AttentionNorm", "Saliency"])
        ' Did you mean AttentionNorm?'
        >>> did_you_mean("gradients", ["AttentionNorm"])
        ''
    """
    by_lower = {one.lower(): one for one in known}
    near = get_close_matches(name.lower(), by_lower, n=1)
    return f" Did you mean {by_lower[near[0]]}?" if near else ""
