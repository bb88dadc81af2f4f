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


def freed_memory_is_kept() -> None:
    """The allocator gives no memory back and asks for none twice, as torch's own does on a GPU; to be called first.

    With glibc's own settings, by how tensors happen to lie, tens of thousands of pages are asked for anew in one run
    and none in the next, of the model as of others: up to a tenth of the time.
    """
    if Path("/proc/self/clear_refs").exists():
        library = ctypes.CDLL(None)
        library.mallopt(-4, 0)  # M_MMAP_MAX
        library.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def seconds(function: Callable[[], Any], device: str = "cpu") -> float:
    """Of the processor, or on a GPU until it is idle."""
    gc.collect()
    if device == "cpu":
        start = time.process_time()
        function()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def peak(function: Callable[[], Any], device: str = "cpu") -> float:
    """The most memory that it holds above the start, in MiB."""
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if Path("/proc/self/clear_refs").exists():
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    resident = _status("VmRSS")
    function()
    return _status("VmHWM") - resident


def ratios(
    asked: dict[str, Callable[[], Any]], repeats: int, device: str = "cpu", once: Collection[str] = ()
) -> dict[str, float]:
    """Median ratio to the first of each other; those of ``once`` run in the first round alone."""
    for function in itertools.islice(asked.values(), 2):  # modules and compiled loops are loaded by whoever is first
        function()
    taken: dict[str, list[float]] = {name: [] for name in asked}
    for turn, (name, function) in itertools.product(range(repeats), asked.items()):
        if turn == 0 or name not in once:
            taken[name].append(seconds(function, device))
    first, *rest = asked
    return {
        name: statistics.median(time / own for time, own in zip(taken[name], taken[first], strict=False))
        for name in rest
    }


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives, in a process of its own, forked where that is sound: with nothing computed here yet."""
    with get_context("spawn" if torch.cuda.is_available() else "fork").Pool(1) as pool:
        return pool.apply(function, arguments)
