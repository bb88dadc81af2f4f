"""Which map answers for an input: what the explained sequence reads from it, or its own self-attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_norm.attr._aggregate import Aggregate
from captum_norm.attr._maps import Route, SequenceName, route_of
from captum_norm.attr._sequences import Sequences
from captum_norm.capture import AttentionRecord


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


def refuse_read_beside_others(title: str, route: Route, records: Sequence[AttentionRecord]) -> None:
    """Refuse an input that is scored by its own self-attention though a call of another sequence reads what that wrote.

    Such a call reads it beside other inputs, put together with them: its keys are known as the others' positions.

    Args:
        title: the method's name and the input's.
        route: of the map that answers.
        records: the calls that the answer rests on.

    Raises:
        ValueError: where there is one, naming it.
    """
    own, others = 0, list[AttentionRecord]()
    for record in records:
        if route_of(record) == route:
            own |= record.bit
        elif record.keys is not None and record.keys.source != route[1] and not record.mixers:  # which are told of
            others.append(record)
    reading = [record.call.name for record in others if record.ancestors & own]
    if route[0] == route[1] and reading:
        raise ValueError(_put_together(title, reading[0]))


def refuse_among_others(title: str, route: Route, records: Sequence[AttentionRecord]) -> None:
    """Refuse an input whose rows are among the keys of a call, and count as no positions there.

    So it is where two inputs are put beside each other, as a text's rows and a picture's: keys are those of one.

    Args:
        title: the method's name and the input's.
        route: of the map that answers.
        records: the calls that the answer rests on.

    Raises:
        ValueError: where there is one, naming it.
    """
    reading = [record.call.name for record in records if route[1] in record.beside]
    if reading:
        raise ValueError(_put_together(title, reading[0]))


def _put_together(title: str, call: str) -> str:
    return (
        f"{title} is put together with other inputs before attention call {call!r} reads it, whose keys are known as "
        "the others' positions. Explain it by itself, with the others in additional_forward_args; kind='self' scores "
        "it within its own sequence; DecompX follows all inputs to the output."
    )
