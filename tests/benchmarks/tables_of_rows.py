"""What was measured, as Markdown: ratio, memory above the forward's, and error."""

from __future__ import annotations

from typing import Any


def tables(found: list[dict[str, Any]]) -> str:
    """Markdown, a table for each number format and batch: a row for each method, a column for each length."""
    parts = []
    for dtype, batch in dict.fromkeys((row["dtype"], row["batch"]) for row in found):
        own = [row for row in found if (row["dtype"], row["batch"]) == (dtype, batch)]
        columns = list(dict.fromkeys((row["length"], row["attention"]) for row in own))
        lines = [f"| {dtype}, batch of {batch} | " + " | ".join(f"{length}, {how}" for length, how in columns) + " |"]
        lines.append("|---" * (1 + len(columns)) + "|")
        for name in dict.fromkeys(row["method"] for row in own):
            cells = {(row["length"], row["attention"]): _cell(row) for row in own if row["method"] == name}
            lines.append(f"| {name} | " + " | ".join(cells.get(column, "") for column in columns) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cell(row: dict[str, Any]) -> str:
    error = "" if row["error"] is None else f"; {row['error']:.0e}"
    memory = "" if row["extra MiB"] is None else f"; {row['extra MiB']:.0f} MiB"
    return f"{row['ratio']:.2f}{memory}{error}"
