"""What is held fixed as a whole: gates, scales, routing."""

from __future__ import annotations

from typing import Any

import torch

from captum_norm.linear.frozen import rule
from captum_norm.linear.rules.operands import same
from captum_norm.linear.run import FrozenRun
from captum_norm.operations.kinds import OperationKind
from captum_norm.operations.operation import Operation


@rule(OperationKind.SOFTMAX, OperationKind.FUNCTION, "fill")
def _constant(run: FrozenRun, op: Operation) -> Any:
    """Held fixed as a whole."""
    with torch.no_grad():
        value = op.again(same)
    return run.becomes_constant(op, value) if op.writes else value
