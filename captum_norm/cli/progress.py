"""What is being done, and how much longer it takes: one line on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType


class Steps:
    """A line on standard error that says which step runs and how much time is left; nothing where nobody watches.

    It is written when a step begins, from the third second on, so that quick work stays silent.

    Args:
        count: how many steps there are.

    Example:
        >>> with Steps(2) as steps:
        ...     steps.begin("AttentionNorm")
    """

    _SILENT = 3.0  # seconds

    def __init__(self, count: int) -> None:
        self._count, self._begun = count, 0
        self._start = time.monotonic()
        self._width = 0

    def begin(self, name: str) -> None:
        """A step begins."""
        spent, done = time.monotonic() - self._start, self._begun
        self._begun += 1
        if not sys.stderr.isatty() or (spent < self._SILENT and not self._is_slow(name)):
            return
        left = f", about {_span(spent / done * (self._count - done))} left" if done else ""
        self._write(f"{self._begun} of {self._count}: {name}{left}")

    def __enter__(self) -> Steps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._width:
            self._write("")

    @staticmethod
    def _is_slow(name: str) -> bool:
        return name in ("AttentionFlow", "ValueZeroing", "ShapleyValueSampling", "KernelShap", "Lime")

    def _write(self, text: str) -> None:
        sys.stderr.write(f"\r{text.ljust(self._width)}\r" if not text else f"\r{text.ljust(self._width)}")
        sys.stderr.flush()
        self._width = len(text)


def _span(seconds: float) -> str:
    """A time that one remembers.

    Example:
        >>> _span(4.2), _span(190)
        ('4 s', '3 min')
    """
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
