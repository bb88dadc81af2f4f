"""The paragraphs of a text, which are the sequences that are counted."""

from __future__ import annotations

import os
import re
from pathlib import Path

from captum_norm.text_files import lines_of, read_text


def read_paragraphs(path: str | os.PathLike[str]) -> list[str]:
    """The paragraphs of a text file, one per line, without blank lines and headings (``= Title =``).

    The marks by which WikiText keeps hyphens and separators apart (``@-@``, ``@,@``, ``@.@``) are undone.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not UTF-8 text, or holds no paragraph.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        ...     _ = file.write(" = Title = \\n\\n A well @-@ known line . \\n")
        ...     file.flush()
        ...     read_paragraphs(file.name)
        ['A well-known line .']
    """
    if not Path(path).is_file():
        found = "a folder" if Path(path).is_dir() else "no such file"
        raise FileNotFoundError(f"{os.fspath(path)}: {found}. Name a text file.")
    return paragraphs_of(read_text(path), os.fspath(path))


def paragraphs_of(text: str, name: str = "the text") -> list[str]:
    """The paragraphs of a text, as `read_paragraphs` finds them in a file; ``name`` is what errors call it.

    Raises:
        ValueError: if it holds no paragraph.
    """
    lines = [line.strip() for line in lines_of(text)]
    bodies = [line for line in lines if line and not _HEADING.fullmatch(line)]
    if not bodies:
        raise ValueError(f"{name} holds no paragraph: only blank lines and headings (= Title =).")
    return [re.sub(r" @([-,.])@ ", r"\1", body) for body in bodies]


_HEADING = re.compile(r"(=+\s).*(\s=+)")
