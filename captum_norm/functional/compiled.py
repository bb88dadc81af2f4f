"""Loops that torch has no fast operation for, compiled by the platform's own compiler where there is one.

A file of C beside this one is compiled when it is first asked for, and kept in the user's cache folder
(``$XDG_CACHE_HOME/captum-norm``, else ``~/.cache/captum-norm``) under a name that holds a digest of source, compiler
and machine.  A library is code: what lies there is loaded only if the folder and the file belong to this user and
nobody else may write to them, so that whoever could have put it there could run code as this user anyway.  Otherwise
the library is compiled into a temporary folder of this process alone, as it is where the cache cannot be written to.

Without a compiler, where it fails, or with ``CAPTUM_NORM_COMPILED=0`` in the environment there is no library, and
callers do the same with torch.  ``$CC`` names another compiler than ``cc``, ``gcc`` or ``clang``.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from torch import Tensor

# The first with which the compiler succeeds; -march=native is no flag of every compiler, nor is -fopenmp-simd.
_PLAIN = ["-O3", "-fopenmp-simd", "-fno-math-errno"]
_FLAGS = (["-march=native", *_PLAIN], _PLAIN, ["-O3"])
_SECONDS = 60


@cache
def library(name: str) -> ctypes.CDLL | None:
    """The compiled functions of a file of C in this folder; None where there are none.

    Args:
        name: of the file, without ".c".
    """
    compiler = _compiler()
    if compiler is None:
        return None
    source = Path(__file__).with_name(f"{name}.c")
    try:
        title = f"{name}-{_digest(source, compiler)}.so"
        return _from_cache(source, compiler, title) or _for_this_process(source, compiler, title)
    except OSError:
        return None


def call(name: str, function: str, *arguments: Tensor | tuple[int, ...] | float | None) -> None:
    """A compiled function of a file that `library` has.

    Args:
        name, function: of the file and in it.
        arguments: tensors, as where they lie, and integers in a row likewise; None for no tensor; numbers.

    Raises:
        MemoryError: if memory is short.
    """
    if getattr(library(name), function)(*map(_as_c, arguments)):
        raise MemoryError(f"{function}: memory is short.")


def _as_c(argument: Tensor | tuple[int, ...] | float | None) -> object:
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    if isinstance(argument, float):
        return ctypes.c_double(argument)
    if isinstance(argument, tuple):
        return (ctypes.c_int64 * len(argument))(*argument)
    return ctypes.c_void_p(None if argument is None else argument.data_ptr())


def _compiler() -> list[str] | None:
    """The command; None where there is none, or none is wanted."""
    if os.name != "posix" or os.environ.get("CAPTUM_NORM_COMPILED", "1") == "0":
        return None
    given = shlex.split(os.environ.get("CC", ""))
    for command in [given] if given else [["cc"], ["gcc"], ["clang"]]:
        found = shutil.which(command[0])
        if found is not None:
            return [found, *command[1:]]
    return None


def _digest(source: Path, compiler: list[str]) -> str:
    """Of all that the compiled file depends on; -march=native depends on the very processor."""
    program = os.stat(compiler[0])
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else [platform.node()]
    named = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    processor = sorted(named) or lines
    asked, made_by = [source.read_text(), *_FLAGS], [compiler, program.st_size, program.st_mtime_ns]
    made_of = [asked, made_by, platform.machine(), processor]
    return hashlib.sha256(repr(made_of).encode()).hexdigest()[:32]


def _from_cache(source: Path, compiler: list[str], title: str) -> ctypes.CDLL | None:
    """The library from the cache folder, made there if need be; None where nothing can be kept safely."""
    try:
        kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "captum-norm"
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours(kept, stat.S_ISDIR):
            return None
        if not (kept / title).exists():
            with tempfile.TemporaryDirectory(dir=kept) as folder:  # there whole or not at all, whoever else makes it
                os.replace(_compiled(source, compiler, Path(folder) / title), kept / title)
        return ctypes.CDLL(str(kept / title)) if _is_ours(kept / title, stat.S_ISREG) else None
    except (OSError, RuntimeError):  # no home, nothing to be written, or a file that is damaged
        return None


def _for_this_process(source: Path, compiler: list[str], title: str) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        return ctypes.CDLL(str(_compiled(source, compiler, Path(folder) / title)))


def _is_ours(path: Path, is_kind: object) -> bool:
    """Whether it is what it should be, no link, of this user, and nobody else may write to it."""
    known = path.lstat()
    kind = callable(is_kind) and is_kind(known.st_mode)
    return kind and known.st_uid == os.geteuid() and not known.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _compiled(source: Path, compiler: list[str], target: Path) -> Path:
    """The target, written.

    Raises:
        OSError: if the compiler fails.
    """
    for flags in _FLAGS:
        command = [*compiler, *flags, "-fPIC", "-shared", "-o", str(target), str(source), "-lm"]
        try:
            subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=_SECONDS)
        except subprocess.SubprocessError:
            continue
        target.chmod(0o700)
        return target
    raise OSError(f"{source} was not compiled")
