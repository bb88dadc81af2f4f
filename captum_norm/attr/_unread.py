"""What to say where an answer rests on something that was not read."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from captum_norm.attr._maps import Route
from captum_norm.capture import (
    AttentionCall,
    AttentionRecord,
    HowRead,
    InexactCaptureError,
    Mixer,
    Opaque,
    Softmax,
    no_constants,
)


def refuse_lost(title: str, lost: Sequence[Softmax]) -> None:
    """Refuse if a softmax over positions is on the way to the output whose weights were not seen to meet values.

    Raises:
        InexactCaptureError: if there is one, naming it.
    """
    if lost:
        others = f", and of {len(lost) - 1} more," if len(lost) > 1 else ""
        raise InexactCaptureError(
            f"{title}: the weights of {lost[0]}{others} {lost[0].looks}, and were not seen to meet values on the "
            "way to the output: an attention call may be missing. Products of weights with values by matmul, einsum or "
            "scaled_dot_product_attention are read; DecompX holds any weights fixed; the calls that were read are in "
            "attention_maps(..., layers=[0, ...]), and Layer classes give them one by one."
        )


def different_queries(title: str, counts: Sequence[int]) -> str:
    """What to say where calls of one sequence have different queries, so that a row of one is no row of another."""
    found = ", ".join(map(str, dict.fromkeys(counts)))
    return (
        f"{title}: attention calls of one sequence have different queries ({found} of them), so a row of one is no row "
        "of another. Without position=, the row that the output was read from is followed, where it is one of each; "
        "attention_maps and Layer classes have all rows of a call."
    )


# Of so many positions an error names each.
_NAMED = 8


def asks_nothing(title: str, call: AttentionCall, position: int, queries: Sequence[int]) -> str:
    """What to say of a position that is no query, where some positions of an input alone are queries.

    Args:
        title: the method's name.
        call: whose queries they are.
        position: the position, as it was given.
        queries: the positions that are queries, in their order.
    """
    some = str([*queries[:_NAMED]]) + (f" and {len(queries) - _NAMED} more" if len(queries) > _NAMED else "")
    from_the_end = ", and how many positions the input has is not known" if position < 0 else ""
    return (
        f"{title}: position {position} asks nothing in attention call {call.name!r} ({call.kind}, call {call.call}): "
        f"its queries are positions {some} of the input{from_the_end}. Give one of these, position=\"all\" for a "
        "row of each in this order, or target=(row, class) without position= for what a row of the output was read "
        "from."
    )


def refuse_opaque(title: str, parts: Sequence[Opaque], again: Sequence[Opaque]) -> None:
    """Refuse if a part that cannot be looked into is on the way to the output.

    Args:
        title: the method's name.
        parts: what looks like one.
        again: what looks like one when the model runs on other inputs: a constant is the same there.

    Raises:
        InexactCaptureError: for a part that is no constant.
    """
    for part in no_constants(parts, again):
        raise InexactCaptureError(
            f"{title}: the output rests on a part that cannot be looked into: {part}. What attends there, or mixes "
            "positions, is not known (TorchScript, a kernel of another library, a compiled graph, numpy, a custom "
            "autograd Function). Run that part as plain torch operations; attention_maps(..., layers=[0, ...]) has "
            "the calls that were read."
        )


def refuse_unknown_keys(title: str, unknown: Sequence[tuple[AttentionCall, str]]) -> None:
    """Refuse if there are calls that may belong to the answer, with the reason why their keys are not known.

    Raises:
        ValueError: if there is one, naming the first.
    """
    if unknown:
        (call, why), *_ = unknown
        others = f" (and {len(unknown) - 1} more calls)" if len(unknown) > 1 else ""
        raise ValueError(
            f"{title} cannot be scored, because the keys of attention call {call.name!r} "
            f"({call.kind}){others} are not known to be input positions: {why or 'no reason was given'}. Its map "
            'itself is exact: use a Layer class or attention_maps, or leave the call out with kind="self" or "cross". '
            "DecompX follows positions by what is linear, within windows, too."
        )


def real_too_late(title: str) -> str:
    """What to say where a call hides tokens that are real, and was measured before that was known."""
    return (
        f"{title}: an attention call hides tokens that are no padding: another call looks at them, or the output is "
        "read from their rows, which was known only when the model had run. AttentionNorm and AttentionRollout run it "
        "again; attention_maps has all rows of each call."
    )


def refuse_no_chain(title: str, reason: str) -> None:
    """Refuse to compose calls that do not follow one another, for a reason; "" where they do.

    Raises:
        ValueError: where there is a reason.
    """
    if reason:
        raise ValueError(
            f"{title} cannot be scored: attention calls are composed along the model, but "
            f"{reason}. Each call by itself is exact: AttentionNorm(model, aggregate=<number>), "
            "AttentionWeights likewise, or a Layer class. DecompX follows all that is linear."
        )


def refuse_mixers(title: str, mixers: Sequence[Mixer]) -> None:
    """Refuse to compose calls between which something else mixes positions.

    Raises:
        ValueError: if there is a mixer, naming the first.
    """
    if mixers:
        others = f" and {len(mixers) - 1} more" if len(mixers) > 1 else ""
        raise ValueError(
            f"{title} cannot be scored: attention calls are composed along the model, and "
            f"beside them positions are mixed by {mixers[0]}{others}. Each call by itself "
            "is exact: AttentionNorm(model, aggregate=<number>), AttentionWeights likewise, or a Layer class. DecompX "
            "takes in what is linear. attribute(..., mixers_as_identity=True) composes the calls as if nothing stood "
            "between them, and lists what did in the report."
        )


def refuse_within(title: str, last: AttentionRecord | None) -> None:
    """Refuse to compose the calls of a sequence that what is explained reads within another one alone.

    Args:
        title: the method and the input.
        last: the last call of such a sequence; None for any other.

    Raises:
        ValueError: if there is one.
    """
    if last is not None:
        raise ValueError(
            f"{title} cannot be scored: what is explained does not read it by itself, but "
            f"within another sequence, that takes in what {last.call.name!r} (call {last.call.call}) left (a picture "
            "among words). Calls are composed along one sequence: give the other inputs alone, and this one in "
            "additional_forward_args, or take a Layer class."
        )


def nothing_seen(title: str) -> str:
    """What to say where no attention call was seen at all."""
    return (
        f"{title}: no softmax attention was seen while forward_func ran. Either the model has none, or it ran out of "
        "sight: in a fused kernel (load it with attn_implementation='sdpa' or 'eager'), in replicas in other threads "
        "(pass the module inside DataParallel), or before attribute() was called."
    )


def not_read(title: str, like: Tensor, asked: str, calls: Sequence[AttentionCall], routes: Sequence[Route]) -> str:
    """What to say of an input that no call reads.

    Args:
        title: the method and the input.
        like: the input.
        asked: which calls were asked for, in words.
        calls: those that were seen.
        routes: the sequences that the maps lead from and to.
    """
    seen = sorted({f"{call.kind} attention in {call.name!r}" for call in calls})
    over = ", ".join(f"{queries!r} over {keys!r}" for queries, keys in routes) or "none"
    return (
        f"{title}, {like.dtype} {tuple(like.shape)}, is read by no attention call{asked}. "
        f"Seen: {'; '.join(seen[:4])}{' ...' if len(seen) > 4 else ''}; sequences attended to, by input number "
        f"or name: {over}. Masks and types belong into additional_forward_args; an encoder-decoder takes its "
        f"decoder_input_ids by name (HFForward, or a function that names them).{of_frames(like)}"
    )


def of_frames(like: Tensor) -> str:
    """What to say of an input in numbers that no attention call reads by its positions."""
    if not like.is_floating_point():
        return ""
    return (
        " If convolutions that overlap read it (sound, pixels), none of their frames is a position of it: explain "
        "a function of the frames, such as encoder_outputs=(states,) or what the convolutions gave out."
    )


def no_such_row(title: str, position: int) -> str:
    """What to say where an output has rows for some positions, and not for that which is explained by default."""
    row = f"position {position}" if position >= 0 else "a row that is no position of the input (a class token)"
    return (
        f"{title}: {row} is explained by default, but the output has rows for other positions alone. Say "
        "whose representation is to be explained: position=<row>, one for each example, \"mean\" over the real tokens, "
        'or "all".'
    )


def rows_of_others(title: str, index: int) -> str:
    """What to say where the output was read from rows of other sequences than this input, or from others of each."""
    return (
        f"{title}: which rows of inputs[{index}] the output was read from is not known: it was read from another "
        "sequence, or from several of which not all rows are known to be the same (two texts through one encoder, a "
        'text beside a picture). Say whose representation is to be explained: position=<row>, "mean" over the real '
        'tokens, or "all"; where that is another row of each input, explain them one by one, with the others in '
        "additional_forward_args."
    )


def unseen_rows(title: str, behind: Sequence[Mixer], read: HowRead = "unseen") -> str:
    """What to say where it is not known which rows the output was read from.

    Args:
        title: the method's name.
        behind: what mixed them, if it was that.
        read: how it was read otherwise.
    """
    if behind:
        how = f"positions are mixed behind the last attention call by {behind[0]}"
    elif read == "other examples":
        how = (
            "the output of an example was read from another one (examples were turned round, or that of the best is "
            "given out for all)"
        )
    elif read == "out of order":
        how = (
            "it has a row for every position, which do not lie in their order (they were rolled, or turned round): its "
            "first or last row is not the first or last token's"
        )
    else:
        how = (
            "the output was read from several of them in a way that was not followed (a maximum, attention pooling, "
            "windows), or from one of several that are no input (class tokens)"
        )
    return (
        f"{title}: which rows the output was read from is not known, for {how}. Say whose representation is "
        'to be explained: position=<row>, one for each example, "mean" over the real tokens, or "all".'
    )
