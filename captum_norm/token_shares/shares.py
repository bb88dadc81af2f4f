"""What classes of tokens receive, as a table: for each attention call, class and measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from captum_norm.capture import AttentionCall
from captum_norm.tables import LINE, Table, Tabular


@dataclass(frozen=True)
class TokenShares(Tabular):
    """What each class of tokens receives, per attention call: a table with a row for each call, class and measure.

    Attributes:
        classes: special tokens by name, then ``"punctuation"`` and ``"other"``.
        special: which of them are special tokens, (class,).
        calls: which attention calls.
        token_share: the share of each class among the tokens, (class,): what attention blind to classes would give it.
        shares: by measure, (call, class), row-normalised; a row adds up to 1.
        sums: by measure, (call, class), the paper's procedure, not divided by the row; norms in the units of the
            residual stream.
        f_norms: mean ‖f(x)‖ per class, (call, class), in the units of the residual stream; NaN where f depends on the
            query (element-wise gates), and where nothing but weights was counted.
        correlation: by ``"all"`` tokens and ``"not special"``, (call,): Spearman's ρ of the mean weight that a token
            receives and its ‖f(x)‖, taken within each sequence and head, and averaged; NaN where it is not defined or
            there are no ``f_norms``.
        worst_error: the largest certificate error of any call.
        tolerance: what was allowed.
        sequences: how many.
        tokens: how many, padding excluded.
    """

    classes: tuple[str, ...]
    special: tuple[bool, ...]
    calls: tuple[AttentionCall, ...]
    token_share: Tensor
    shares: dict[str, Tensor]
    sums: dict[str, Tensor]
    f_norms: Tensor
    correlation: dict[str, Tensor]
    worst_error: float
    tolerance: float
    sequences: int
    tokens: int

    def special_share(self, measure: str) -> float:
        """The share of all special tokens together by ``measure``, mean over calls.

        Raises:
            KeyError: for a measure that is none of ``MEASURES``.
        """
        return float(self.shares[measure][:, list(self.special)].sum(dim=-1).mean())

    def as_table(self) -> Table:
        """A row for each call, class and measure: share, the paper's sum, and the mean length of f(x)."""
        rows = tuple(
            (
                call, self.calls[call].name, name, measure, float(table[call, column]),
                float(self.sums[measure][call, column]), float(self.f_norms[call, column]),
            )
            for measure, table in self.shares.items()
            for call in range(len(self.calls))
            for column, name in enumerate(self.classes)
        )  # fmt: skip
        columns = ("call", "name", "class", "measure", "share", "sum", "f_norm")
        return Table(columns, rows, f"{self.sequences} sequences, {self.tokens} tokens", keys=4)

    def to_latex(self, width: float = LINE) -> str:
        """For a paper: calls by number, with their names in comments above; folded as any table."""
        return self.as_table().told("name", of="call").to_latex(width)

    def as_dict(self) -> dict[str, Any]:
        """Everything as numbers and lists, for JSON; NaN becomes None."""
        return {
            "classes": list(self.classes),
            "special": list(self.special),
            "layers": [call.name for call in self.calls],
            "token_share": _listed(self.token_share),
            "shares": {measure: _listed(table) for measure, table in self.shares.items()},
            "sums": {measure: _listed(table) for measure, table in self.sums.items()},
            "special_share": {measure: self.special_share(measure) for measure in self.shares},
            "f_norms": _listed(self.f_norms),
            "spearman_of_weight_and_f_norm": {which: _listed(rho) for which, rho in self.correlation.items()},
            "certificate": {"error": self.worst_error, "tolerance": self.tolerance},
            "sequences": self.sequences,
            "tokens": self.tokens,
        }


def _listed(table: Tensor) -> Any:
    """Nested lists; NaN, which JSON does not have, as None."""
    if table.ndim:
        return [_listed(row) for row in table]
    return None if bool(table.isnan()) else float(table)
