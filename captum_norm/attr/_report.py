"""What a call of ``attribute`` read, and what its answer rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from captum_norm.capture import AttentionCall, Certificate, Mixer, Softmax


@dataclass(frozen=True)
class AttributionReport:
    """What a call of ``attribute`` read, how exactly, and what its answer rests on.

    Attributes:
        certificates: each attention call that was read (its ``modules`` left out) with its certificate, in call order;
            empty for methods that do not read calls.
        left_out: per input, the share of the row's total that went to keys that are no input (a class token, memory,
            sinks) and is in no score: (batch,), or (batch, row) for several rows; dimensionless.  Empty for layer
            classes, whose maps hold every key.
        mixers: what mixed positions beside attention on the way to the calls that count, by operation and module.
            Composing methods refuse it, unless they are asked to take it for the identity.
        unused: the attention calls that the output does not rest on, which have no part in the scores.
        softmaxes: every softmax that ran, what it looks along, and what became of it.
        real: per input, which tokens attention was allowed to look at, (batch, position) bool; None where all are real.
        row: which row was explained where ``position`` was left out: ``"read"``: the one that the output was computed
            from, seen in the data flow; ``"convention"``: the last real token if causal, else the first; ``""``: it was
            given.
    """

    certificates: tuple[tuple[AttentionCall, Certificate], ...] = ()
    left_out: tuple[Tensor, ...] = ()
    mixers: tuple[Mixer, ...] = ()
    unused: tuple[AttentionCall, ...] = ()
    softmaxes: tuple[Softmax, ...] = ()
    real: tuple[Tensor | None, ...] = ()
    row: Literal["read", "convention", ""] = ""
