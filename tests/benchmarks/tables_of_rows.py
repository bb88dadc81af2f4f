"""What was measured, as Markdown: ratio, memory above the forward's, and error, beside the goals there are."""

from __future__ import annotations

from typing import Any

# The ratio to the forward that is aimed at, by method and length, for one example in float32.
GOALS: dict[str, dict[int, float]] = {
    "AttentionNorm": {512: 1.15, 2048: 1.1, 8192: 1.1, 16384: 1.1},
    "AttentionWeights": {2048: 1.05, 8192: 1.05, 16384: 1.05},
    "AttentionBlockNorm": {2048: 1.12, 8192: 1.1},
    "AttentionRollout": {4096: 1.4, 16384: 1.7},
    "AttentionNorm, rollout": {2048: 1.5, 4096: 1.7, 16384: 2.0},
    "GlobEnc": {2048: 1.5},
    "ALTI": {512: 2.0, 2048: 2.3, 4096: 2.5},
    "LLMAttentionAttribution, norms, 64 targets": {2048: 1.2},
    "AttentionWeights, mean of rows": {2048: 1.3},
    "AttentionNorm, mean of rows": {2048: 1.5},
    "token shares, all three": {2048: 1.5},
    "token shares, weights": {2048: 1.3},
    "token shares, head_norms": {2048: 1.4},
    "token shares, summed_norms": {2048: 1.5},
    "BERT-base, all rows, summed norms": {128: 1.2, 512: 1.2},
    "generate, norms, 32 tokens": {1024: 1.5},
    "DecompX": {128: 2.0, 512: 2.0, 2048: 2.1},
}
SDPA_GOALS = {"BERT-base, all rows, summed norms": 1.25}
OF_SDPA = ("AttentionNorm", "AttentionWeights", "AttentionBlockNorm")
"""Of which rows are aimed at under SDPA alone: an eager model has made all of its weights before."""
MEMORY_GOALS = {"AttentionNorm": {512: 30, 2048: 60, 8192: 120, 16384: 200}}


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
    method, plain = row["method"], row["dtype"] == "float32" and row["batch"] == 1
    sdpa = row["attention"] == "sdpa"
    goal = GOALS.get(method, {}).get(row["length"]) if plain else None
    goal = SDPA_GOALS.get(method, goal) if goal is not None and sdpa else goal
    goal = None if method in OF_SDPA and not sdpa else goal
    at_most = MEMORY_GOALS.get(method, {}).get(row["length"]) if plain and sdpa else None
    error = "" if row["error"] is None else f"; {row['error']:.0e}"
    memory = "" if row["extra MiB"] is None else f"; {_beside(row['extra MiB'], at_most, 0)} MiB"
    return _beside(row["ratio"], goal, 2) + memory + error


def _beside(number: float, goal: float | None, digits: int) -> str:
    """A number with its goal, bold where it is missed."""
    told = f"{number:.{digits}f}"
    if goal is None:
        return told
    return f"{told if float(told) <= goal else f'**{told}**'} (goal {goal:g})"
