"""Which map answers for an input: what the explained sequence reads from it, or its own self-attention."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_norm.attr._aggregate import Aggregate
from captum_norm.attr._maps import Route, SequenceName
from captum_norm.attr._sequences import Sequences


def route_for(
    title: str, index: int, like: Tensor, aggregate: Aggregate, sequences: Sequences, last: SequenceName | None
) -> Route | None:
    """The route of the map that answers for an input; None where no map does.

    Args:
        title: the method's name and the input's, for errors.
        index, like: the input.
        aggregate: the maps of a pass.
        sequences: what is known of the sequences they lead from and to.
        last: the sequence that is explained.

    Raises:
        ValueError: if several sequences read the input, or an encoder and a decoder read it alike.
    """
    sequence = _sequence(index, like, aggregate)
    routes = [route for route in aggregate.routes() if route[1] == sequence]
    own = (sequence, sequence)
    is_explained = sequence == last and own in routes  # though another one, that it reads, may read it, too
    crossing = [] if is_explained else [route for route in routes if route[0] != sequence]
    if aggregate.needs != "rows":  # of what reads it by way of another, the last one
        crossing = [route for route in crossing if route[0] == last] or crossing
    if len(crossing) > 1:
        raise ValueError(f"{title} is read by several sequences, {crossing}: choose kind= or call=.")
    if not crossing and own not in routes:
        return None
    if sequence in sequences.doubled and not (crossing and aggregate.needs == "rows"):
        raise ValueError(
            f"{title} is read by an encoder and by a decoder, whose self-attention calls cannot be told apart. Give "
            "the decoder an input of its own: inputs=(source, prefix)."
        )
    return crossing[0] if crossing else own


def _sequence(index: int, like: Tensor, aggregate: Aggregate) -> SequenceName:
    """The sequence that an input's positions are: its own, or the one that was embedded from within."""
    routes = aggregate.routes()
    if any(index in route for route in routes):
        return index
    # A gate or vectors made inside forward_func: tokens were embedded that are no input by themselves, but as many and
    # in the same order.  One such sequence is the input; of two, neither can be told to be.
    named = {route[1] for route in routes if isinstance(route[1], str) and _covers(aggregate, route, like)}
    return named.pop() if len(named) == 1 else index


def _covers(aggregate: Aggregate, route: Route, like: Tensor) -> bool:
    """Whether the keys of a route are as many as an input's positions, and in their order."""
    positions = aggregate.keys(route).index
    in_order = torch.arange(len(positions))
    return like.ndim > 1 and like.shape[1] == len(positions) and bool((positions.cpu() == in_order).all())
