"""How does a small file change a large model?  Its matrices W (out, in) become W + U D: U (out, rank), D (rank, in).

Source: Hu et al. (2021), "LoRA", https://arxiv.org/abs/2106.09685, section 4.1 (their B is our U, their A our D; their
scaling alpha / r is part of U).  ``merge`` writes the sum into the weights, so the model stays an ordinary one
without adapter modules.

The changes are a flat mapping of tensors: ``NAME.up`` and ``NAME.down`` are added to the weight NAME, and a plain
``NAME`` replaces it.
"""

from collections.abc import Mapping

from torch import Tensor

UP, DOWN = ".up", ".down"


def merge(weights: Mapping[str, Tensor], changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's weights with the changes written into copies of them.

    Args:
        weights: the model's weights by name, as of ``state_dict()``.
        changes: ``NAME.up`` (out, rank) with ``NAME.down`` (rank, in), or ``NAME`` alone, shaped as the weight NAME.
            They may be in half precision: the sum is taken in the weight's own dtype.

    Returns:
        All weights by name, in their own dtype.

    Raises:
        ValueError: if a change names no weight, one factor is alone, or shapes do not fit.

    Example:
        >>> import torch
        >>> weights = {"dense.weight": torch.eye(2), "dense.bias": torch.zeros(2)}
        >>> changes = {"dense.weight.up": torch.tensor([[1.0], [0.0]]), "dense.weight.down": torch.tensor([[0.0, 3.0]])}
        >>> merge(weights, changes)["dense.weight"]
        tensor([[1., 3.],
                [0., 1.]])
    """
    merged = dict(weights)
    for name in sorted({key.removesuffix(UP).removesuffix(DOWN) for key in changes}):
        if name not in weights:
            raise ValueError(f"merge: the changes name {name!r}, which is no weight of this model.")
        change = _change(name, changes, weights[name])
        if change.shape != weights[name].shape:
            raise ValueError(f"merge: {name} is {tuple(weights[name].shape)}, its change is {tuple(change.shape)}.")
        merged[name] = change
    return merged


def _change(name: str, changes: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    """The new value of one weight."""
    if name in changes:
        return changes[name].to(weight.dtype)
    missing = [name + end for end in (UP, DOWN) if name + end not in changes]
    if missing:
        raise ValueError(f"merge: {missing[0]} is missing: a low-rank update needs both {name + UP} and {name + DOWN}.")
    up, down = changes[name + UP].to(weight.dtype), changes[name + DOWN].to(weight.dtype)
    if (up.shape[0], down.shape[1]) != weight.shape or up.shape[1] != down.shape[0]:
        raise ValueError(
            f"merge: {name} is (out, in) = {tuple(weight.shape)}, but {UP} is (out, rank) = {tuple(up.shape)} and "
            f"{DOWN} is (rank, in) = {tuple(down.shape)}."
        )
    return weight + up @ down
