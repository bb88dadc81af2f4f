"""What a function costs beside another: ratios of processor time, and memory above the other's."""

from __future__ import annotations

import ctypes
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Collection
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch


def _status(name: str) -> float:
    """A line of /proc/self/status in MiB; 0 where there is none."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name)), 0.0)


def freed_memory_is_given_back() -> None:
    """The peak of this process is what it holds at once, and not what its allocator keeps; to be called first."""
    if Path("/proc/self/clear_refs").exists():
        ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD


def measured(function: Callable[[], Any], device: str = "cpu") -> tuple[float, float]:
    """Seconds, and the peak of memory above the start in MiB."""
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, start = torch.cuda.memory_allocated(), time.perf_counter()
        function()
        torch.cuda.synchronize()
        return time.perf_counter() - start, (torch.cuda.max_memory_allocated() - before) / 2**20
    if Path("/proc/self/clear_refs").exists():
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    resident, start = _status("VmRSS"), time.process_time()
    function()
    return time.process_time() - start, _status("VmHWM") - resident


def ratios(
    asked: dict[str, Callable[[], Any]], repeats: int, device: str = "cpu", once: Collection[str] = ()
) -> dict[str, float]:
    """Median ratio to the first of each other; those of ``once`` run in the first round alone."""
    for function in itertools.islice(asked.values(), 2):  # modules and compiled loops are loaded by whoever is first
        function()
    taken: dict[str, list[float]] = {name: [] for name in asked}
    for turn, (name, function) in itertools.product(range(repeats), asked.items()):
        if turn == 0 or name not in once:
            taken[name].append(measured(function, device)[0])
    first, *rest = asked
    return {
        name: statistics.median(time / own for time, own in zip(taken[name], taken[first], strict=False))
        for name in rest
    }


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives, in a process of its own, forked where that is sound: with nothing computed here yet."""
    with get_context("spawn" if torch.cuda.is_available() else "fork").Pool(1) as pool:
        return pool.apply(function, arguments)
