"""What does a piece of work take?  Wall-clock seconds, and the most memory above what was in use before."""

from __future__ import annotations

import re
import time
from pathlib import Path
from types import TracebackType

import torch


class Meter:
    """Measures the block that it is entered for.

    On a GPU the memory is what torch allocated there.  On Linux without one it is the process's resident set, whose
    peak the kernel forgets when asked (see ``clear_refs`` in proc(5)); elsewhere it is not known.

    Args:
        device: where the work is done.

    Attributes:
        seconds: how long it took.
        peak_bytes: the most memory above what was in use at the start; None where it cannot be known.

    Example:
        >>> with Meter(torch.device("cpu")) as meter:
        ...     _ = torch.ones(1000)
        >>> meter.seconds >= 0
        True
    """

    seconds = 0.0
    peak_bytes: int | None = None

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: int | None = None
        self._start = 0.0

    def __enter__(self) -> Meter:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        else:
            self._before = _resident("VmRSS") if _forget_peak() else None
        self._start = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds = time.perf_counter() - self._start
        if self._before is not None:
            on_gpu = self._device.type == "cuda"
            peak = torch.cuda.max_memory_allocated(self._device) if on_gpu else _resident("VmHWM")
            self.peak_bytes = max(0, peak - self._before)


def _forget_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident(name: str) -> int:
    line = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(line[1]) * 1024 if line else 0
