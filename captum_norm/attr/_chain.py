"""Do the attention calls that are composed follow one another, and does nothing else lead past any of them?"""

from __future__ import annotations

from collections.abc import Sequence

from captum_norm.attr._maps import SequenceName, route_of
from captum_norm.capture import Answer, AttentionRecord, Fed


def not_a_chain(records: Sequence[AttentionRecord], read: Answer, apart: Sequence[AttentionRecord] = ()) -> str:
    """Why the calls of a sequence do not follow one another, in words for an error; "" where they do.

    Args:
        records: the calls that what is explained rests on, in the order in which they ran.
        read: what is explained.
        apart: calls that it rests on, too, and that have nothing of the inputs in them.
    """
    first: dict[SequenceName, AttentionRecord] = {}
    last: dict[SequenceName, AttentionRecord] = {}
    calls: list[tuple[SequenceName, AttentionRecord]] = []
    taken_in: dict[SequenceName, set[SequenceName]] = {}
    beside = at_once(records)
    for record in records:
        route = route_of(record)
        if route is None or not record.bit:
            continue
        queries, keys = route
        others = [other for sequence, other in calls if sequence != keys and keys in taken_in[sequence]]
        reason = _held_by_others(record, others)
        if reason:
            return reason
        calls.append((queries, record))
        taken_in.setdefault(queries, set()).update({keys}, taken_in.get(keys, ()))
        before = last.get(queries)
        if before is not None and not record.ancestors & before.bit:
            return f"{_title(before)} and {_title(record)} run side by side: neither is made of the other"
        of_keys = None if record.bit in beside else last.get(keys)
        reason = _leads_past(record, before, of_keys, crosses=queries != keys)
        reason = reason or (_something_else(record) if keys in last else "")
        if reason:
            return reason
        first.setdefault(queries, record)
        last[queries] = record
    return _read_past(first, last, read, apart)


def at_once(records: Sequence[AttentionRecord]) -> frozenset[int]:
    """The bits of the calls whose keys are those of before the last call of their sequence.

    Two sequences attend to each other at once, each to what the other was before (LXMERT's words and boxes).
    """
    calls: dict[SequenceName, list[AttentionRecord]] = {}
    found = set[int]()
    for record in records:
        route = route_of(record)
        if route is None or not record.bit or record.fed is None:
            continue
        queries, keys = route
        *_, before, last = (None, None, *calls.get(keys, []))
        meets = last is not None and route_of(last) == (keys, queries) and not record.ancestors & last.bit
        if meets and (before is None or before.fed is None or before.fed.is_all_of(record.fed.values)):
            found.add(record.bit)
        calls.setdefault(queries, []).append(record)
    return frozenset(found)


def within_another(records: Sequence[AttentionRecord], read: Answer) -> dict[SequenceName, AttentionRecord]:
    """The sequences that reach what is explained within another one alone (a picture among words), with their last
    call."""
    last: dict[SequenceName, AttentionRecord] = {}
    crossed: set[SequenceName] = set()
    for record in records:
        route = route_of(record)
        if route is not None and record.fed is not None:
            last[route[0]] = record
            crossed |= {route[1]} if route[1] != route[0] else set()
    return {
        sequence: record
        for sequence, record in last.items()
        if read.marks and sequence not in crossed and not read.marks & (Fed() if record.fed is None else record.fed).own
    }


def _leads_past(
    record: AttentionRecord, before: AttentionRecord | None, of_keys: AttentionRecord | None, crosses: bool
) -> str:
    """What leads past the call before this one, of the same queries, or past the last one of its keys."""
    fed = record.fed
    if fed is None:
        return ""
    if of_keys is not None and of_keys.fed is not None and not of_keys.fed.is_all_of(fed.values):
        return _past(_title(record), of_keys, fed.where)
    if crosses and before is not None and before.fed is not None:
        own = fed.weights & ~fed.values
        if own and not before.fed.is_all_of(own):
            return _past(_title(record), before, "")
    return ""


def _something_else(record: AttentionRecord) -> str:
    """What stands in rows of a call's keys instead of what the call before left there, and is no padding.

    Rows that are no input and are no query either, such as the memory of each layer, take no one's place.
    """
    keys, queries, mask = record.keys, record.queries, record.key_mask
    if record.fed is None or keys is None:
        return ""
    numbers = (keys.index if keys.rows is None else keys.rows).tolist()
    for replaced in record.fed.replaced:
        are_queries = queries is not None and len(queries.index) == replaced.length
        for example, row in sorted(replaced.rows, key=str):
            columns = [column for column, number in enumerate(numbers) if number == row]
            real = mask is None or not columns or bool(mask[slice(None) if example is None else example, columns].any())
            if real and (columns if row >= 0 else are_queries):
                which = f"position {row}" if row >= 0 else "a row that is no input (a class token, a prompt)"
                which += "" if example is None else f" of example {example}"
                return (
                    f"in {which} the keys of {_title(record)} hold nothing of what was there before: something else "
                    f"was put in its place by {replaced.where}"
                )
    return ""


def _held_by_others(record: AttentionRecord, others: Sequence[AttentionRecord]) -> str:
    """Why a call's keys are more than positions of their sequence: they hold what others have taken in of it, too.

    Latents that attend to the input and to themselves, say, or tokens that attend to a summary of themselves: the map
    has no column for the latter.
    """
    for other in others:
        if record.fed is not None and other.fed is not None and other.fed.own & record.fed.values:
            return (
                f"the keys of {_title(record)} are positions and, beside them, what {_title(other)} took in of these "
                "(latents, a summary)"
            )
    return ""


def _read_past(
    first: dict[SequenceName, AttentionRecord], last: dict[SequenceName, AttentionRecord], read: Answer,
    apart: Sequence[AttentionRecord],
) -> str:  # fmt: skip
    """What leads past the last calls to what is explained."""
    marks, ends = read.marks, {sequence: record.fed for sequence, record in last.items()}
    if not marks:
        return ""
    for sequence, record in last.items():
        begins = first[sequence].fed
        if record.fed is None or begins is None:
            continue
        others = read.starts.of_other_inputs(begins.values | begins.weights)
        beside = [fed for other, fed in ends.items() if other != sequence] + [one.fed for one in apart]
        for fed in beside:
            others |= 0 if fed is None else fed.own
        own = marks & ~others
        if own and not record.fed.is_all_of(own):
            return _past("what is explained", record, read.where)
    return ""


def _past(what: str, before: AttentionRecord, where: str) -> str:
    at = f" at {where}" if where else ""
    return (
        f"{what} is made of more than what {_title(before)} left: something leads past that call{at} (a skip over "
        "blocks, a sum of several layers, a branch)"
    )


def _title(record: AttentionRecord) -> str:
    return f"{record.call.name!r} (call {record.call.call})"
