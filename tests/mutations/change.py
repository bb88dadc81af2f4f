"""A change of one line of the package, and the tests that should notice it."""

from collections.abc import Sequence
from dataclasses import dataclass


class RunError(Exception):
    """The run says nothing: a change does not fit the source, or its tests do not run."""


@dataclass(frozen=True)
class Change:
    """What is changed, and who should notice.

    Attributes:
        file: in the package, such as "functional/norms.py".
        find: a piece of the source around one line.  It is found by its text, exactly once, so that a row survives
            what moves around it.
        replace: what stands there instead, different in one line.
        tests: paths or ids of tests in ``tests/``, with spaces between them; by default the file's mirror, such as
            "functional/test_norms.py".  Slow ones do not run.
        unnoticed: why no test can notice, of a change that makes no difference to any caller.
    """

    file: str
    find: str
    replace: str
    tests: str = ""
    unnoticed: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.find.strip()}  ->  {self.replace.strip()}"

    @property
    def test_ids(self) -> list[str]:
        """The tests as pytest takes them in the root of the repository."""
        folder, _, name = self.file.rpartition("/")
        mirror = f"{folder}/test_{name.removeprefix('_')}".removeprefix("/")
        return [f"tests/{test}" for test in (self.tests or mirror).split()]

    def is_in(self, part: str) -> bool:
        """Whether the file is this one or lies in this folder: "capture", "capture/blocks", "functional/norms.py"."""
        return f"{self.file}/".startswith(f"{part.rstrip('/')}/")

    def applied(self, source: str) -> str:
        """The source with this change in it.

        Raises:
            RunError: unless the piece is found exactly once.
        """
        times = source.count(self.find)
        if times != 1:
            raise RunError(f"{self.file}: {self.find!r} must be found once and is found {times} times.")
        return source.replace(self.find, self.replace)


def changes_of(file: str, *pieces: tuple[str, str] | tuple[str, str, str], tests: str = "") -> list[Change]:
    """The changes of one file that the same tests should notice: (find, replace), or with why none can."""
    return [Change(file, piece[0], piece[1], tests, *piece[2:]) for piece in pieces]


def in_parts(changes: Sequence[Change], parts: Sequence[str]) -> list[Change]:
    """The changes in some folders or files of the package; without any named, all.

    Raises:
        RunError: for a part without a change.
    """
    for part in parts:
        if not any(change.is_in(part) for change in changes):
            raise RunError(f"there is no change in {part!r}.")
    return [change for change in changes if not parts or any(change.is_in(part) for part in parts)]
