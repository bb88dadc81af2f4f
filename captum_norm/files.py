"""Writing a file so that it is there whole or not at all, and so that what is no regular file stays what it is."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write to a temporary file, which takes the place of ``path`` only if the block ends well.

    Whatever raises inside, what stood at ``path`` before stands there still, and nothing is left beside it.  A link
    stays a link: the file that it leads to is replaced.  A pipe or a device is not replaced: it receives the bytes of
    the finished file.  A file keeps its permissions.

    Args:
        path: the file to write.  Its suffix is kept, so that writers who go by it (matplotlib) see the right one.

    Raises:
        TypeError: for what names no file.
        FileNotFoundError: if the folder does not exist.
        IsADirectoryError: if ``path`` is a folder.
        PermissionError: if the folder cannot be written to, or the file is protected from writing.
        OSError: if ``path`` is a link that leads round in a circle.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(f"{folder}/scores.json") as unfinished:
        ...         _ = unfinished.write_text("[1.0]")
        ...     os.listdir(folder)
        ['scores.json']
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"a file to write should be named by a text or a Path, got {path!r}.")
    if is_stream(path):
        with _written_into(path) as unfinished:
            yield unfinished
        return
    target = _checked(path)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
    os.close(descriptor)
    unfinished = Path(name)
    try:
        yield unfinished
        unfinished.chmod(_mode(target))
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str]) -> None:
    """As far as can be told before there is anything to write, `replacing` will succeed.

    Raises:
        OSError: as `replacing`.
    """
    if is_stream(path):
        if not os.access(path, os.W_OK):
            raise PermissionError(f"{path} cannot be written: it is protected from writing.")
        return
    target = _checked(path)
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise PermissionError(f"{path} cannot be written: {error.strerror} in {target.parent}.") from error


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is a pipe, a device or an open file of the process, which takes bytes and is never replaced.

    Example:
        >>> is_stream("scores.json")
        False
    """
    if os.path.abspath(path).startswith(("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/")):
        return os.path.exists(path)
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


@contextmanager
def _written_into(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file elsewhere, whose bytes go into ``path`` at the end."""
    with tempfile.TemporaryDirectory() as folder:
        unfinished = Path(folder) / (Path(path).name or "stream")
        unfinished.touch()
        yield unfinished
        # Opened to append, since standard output may be a file that holds something already.
        with unfinished.open("rb") as whole, os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND), "wb") as stream:
            shutil.copyfileobj(whole, stream)


def _checked(path: str | os.PathLike[str]) -> Path:
    """The file to replace: where ``path`` leads to."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(f"{path} cannot be written: it is a link that leads round in a circle.")
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file inside it.")
    if not target.parent.is_dir():
        folder = target.parent if os.path.islink(path) else Path(path).parent
        raise FileNotFoundError(f"{path} cannot be written: the folder {folder} does not exist. Make it first.")
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(f"{path} cannot be written: it is protected from writing. Name another file.")
    return target


def _mode(target: Path) -> int:
    """The permissions of the file that is replaced; for a new one what the user's umask gives any file."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask
