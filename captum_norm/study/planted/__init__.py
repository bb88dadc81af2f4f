"""Models whose evidence is known, so that a study can say which method finds what is really used.

    truth = planted("zero_value_head", seed=0)        # truth.model, truth.tokenizer, truth.examples

Three are written by hand, two are trained when they are asked for; all take seconds on a CPU.
"""

from collections.abc import Callable

from captum_norm.study.planted.hand_built import copy_head, sink_head, zero_value_head
from captum_norm.study.planted.trained import trained_decoder, trained_encoder
from captum_norm.study.planted.truth import Planted

PLANTED: dict[str, Callable[..., Planted]] = {
    "copy_head": copy_head,
    "zero_value_head": zero_value_head,
    "sink_head": sink_head,
    "trained_encoder": trained_encoder,
    "trained_decoder": trained_decoder,
}
"""How each is made, by name: ``PLANTED[name](seed=0, count=100)``."""


def planted(name: str, seed: int = 0, count: int = 100) -> Planted:
    """A model whose evidence is known, by name.

    Args:
        name: one of `PLANTED`.
        seed: of weights and texts.
        count: how many texts.

    Raises:
        ValueError: for another name.

    Example:
        >>> len(planted("copy_head", count=10).examples)
        10
    """
    if name not in PLANTED:
        raise ValueError(f"planted: there are {', '.join(PLANTED)}, not {name!r}.")
    return PLANTED[name](seed=seed, count=count)


__all__ = [
    "PLANTED",
    "Planted",
    "copy_head",
    "planted",
    "sink_head",
    "trained_decoder",
    "trained_encoder",
    "zero_value_head",
]
