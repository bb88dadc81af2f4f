"""What does a text file say, and where do its lines end?

Files are UTF-8.  A byte order mark, which Excel and Notepad put in front, is no character of the text.  Lines end at
line feeds and carriage returns alone: a sentence, or a string in JSON, may hold the other characters that Unicode
counts as line breaks (U+2028, U+0085, form feeds), at which ``str.splitlines`` would cut it.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

ENCODING = "utf-8-sig"
"""UTF-8 with or without a byte order mark, for files that are read bit by bit."""


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not UTF-8, with the number of the line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(f"{folder}/film.txt").write_text("A warm film.", encoding="utf-8-sig")
        ...     read_text(f"{folder}/film.txt")
        'A warm film.'
    """
    try:
        return Path(path).read_text(encoding=ENCODING)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{os.fspath(path)}, line {line} is not UTF-8 text. Convert the file: iconv -f latin1 -t utf-8."
        ) from error


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a UTF-8 file, as `lines_of` cuts them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not UTF-8, with the number of the line.
    """
    return lines_of(read_text(path))


def check_characters(where: str, *texts: str | None) -> None:
    """Refuse half a character (a lone surrogate): no tokenizer reads it, and no file in UTF-8 holds it.

    Python has one for each byte of an argument that is not UTF-8, and where JSON has half of an escape.

    Args:
        where: what the texts are, to begin the error with.
        *texts: None for one that is not there.

    Raises:
        ValueError: naming its place.

    Example:
        >>> check_characters("the text", "a \\ud800 film")
        Traceback (most recent call last):
        ...
        ValueError: the text: character 2 is '\\ud800', half a character, as of bytes that are not UTF-8. Write it in
        UTF-8, or leave it out.
    """
    for text in texts:
        place = next((i for i, one in enumerate(text or "") if "\ud800" <= one <= "\udfff"), None)
        if text is not None and place is not None:
            raise ValueError(
                f"{where}: character {place} is {text[place]!r}, half a character, as of bytes that are not UTF-8. "
                "Write it in UTF-8, or leave it out."
            )


def lines_of(text: str) -> list[str]:
    """The lines of a text, without a last one that is empty only because the text ends with a line break.

    Example:
        >>> lines_of("A warm\\u2028film.\\r\\n\\nDull.\\n")
        ['A warm\\u2028film.', '', 'Dull.']
    """
    return [line.removesuffix("\n") for line in io.StringIO(text, newline=None)]
