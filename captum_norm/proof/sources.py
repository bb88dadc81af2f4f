"""Where does a running model write the values of a key?  Told by what they are, for calls that read them in pieces.

Windows, blocks and global tokens read one key's values in many products.  Zeros where the values are written are zeros
in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from captum_norm.capture import AttentionRecord
from captum_norm.proof.watching import Survey


@dataclass(frozen=True, eq=False)
class ValuesWritten:
    """Rows that one operation writes: the values of a key.

    Attributes:
        event: the operation.
        rows: (batch,), which rows of what it writes, (row, column).
        columns: in which columns.
    """

    event: int
    rows: Tensor
    columns: slice

    def erased(self, out: Tensor) -> Tensor:
        """What the operation writes, with zeros there."""
        changed = out.clone()
        changed.view(-1, out.shape[-1])[self.rows, self.columns] = 0
        return changed


def written(survey: Survey, record: AttentionRecord, key: int, before: int) -> ValuesWritten | None:
    """Where the values of a key are written last before an event, in every example; None where that is not told."""
    vectors = record.values[:, :, key].detach().flatten(1)  # (batch, column)
    width = vectors.shape[-1]
    found: ValuesWritten | None = None
    for event, out in (use for uses in survey.uses.values() for use in uses):
        if event >= before or out.shape[-1] % width or (found is not None and event < found.event):
            continue
        rows = out.reshape(-1, out.shape[-1])
        for start in range(0, out.shape[-1], width):
            same = (rows[None, :, start : start + width] == vectors[:, None]).all(-1)  # (batch, row)
            if bool((same.sum(-1) == 1).all()):
                found = ValuesWritten(event, same.int().argmax(-1), slice(start, start + width))
    return found
