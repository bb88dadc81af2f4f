"""Writing a file so that it is there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write to a temporary neighbour of ``path``; it takes the name ``path`` only if the block ends well.

    Whatever raises inside, what stood at ``path`` before stands there still, and nothing is left beside it.

    Args:
        path: the file to write.  Its suffix is kept, so that writers who go by it (matplotlib) see the right one.

    Raises:
        FileNotFoundError: if the folder does not exist.
        IsADirectoryError: if ``path`` is a folder.
        PermissionError: if the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(f"{folder}/scores.json") as unfinished:
        ...         _ = unfinished.write_text("[1.0]")
        ...     os.listdir(folder)
        ['scores.json']
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder, not a file: name a file inside it.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target} cannot be written: the folder {target.parent} does not exist.")
    descriptor, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
    os.close(descriptor)
    # mkstemp makes files for the owner's eyes only; the finished file gets what the user's umask gives any other.
    umask = os.umask(0)
    os.umask(umask)
    unfinished = Path(name)
    try:
        yield unfinished
        unfinished.chmod(0o666 & ~umask)
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)
