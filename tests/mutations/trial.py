"""A copy of the repository in which one change after the other is made, tested and taken back."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutations.change import Change, RunError

# What pytest's exit status says: all passed, or some failed.  Any other is neither.
_PASSED, _FAILED = 0, 1
_WARM = Path(__file__).with_name("warm.py")


@dataclass(frozen=True)
class Outcome:
    """What became of one change: whether its tests noticed, the first that did, and the seconds it took."""

    change: Change
    killed: bool
    by: str
    seconds: float

    @property
    def word(self) -> str:
        if self.change.unnoticed:
            return "explained but killed" if self.killed else "explained"
        return "killed" if self.killed else "SURVIVED"

    @property
    def is_right(self) -> bool:
        """A change is killed, or it survives for the reason given; a reason that is no longer true is wrong."""
        return self.killed != bool(self.change.unnoticed)


class Copy:
    """The repository in another folder, beside the same ``shared`` folder as the original.

    Args:
        root: the repository.
        folder: where the copy goes.
        imports: modules that the tests need and that no change touches; they are imported once.
    """

    def __init__(self, root: Path, folder: Path, imports: Sequence[str]) -> None:
        self.root, self._printed = folder / "repository", folder / "printed"
        # no compiled files: Python trusts them by size and second, and a change may alter neither
        shutil.copytree(root, self.root, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "_build"))
        if (root.parent / "shared").exists():
            (folder / "shared").symlink_to((root.parent / "shared").resolve())
        self._pytests = subprocess.Popen(
            [sys.executable, _WARM, *imports],
            cwd=self.root,
            env=os.environ | {"PYTHONPATH": str(self.root), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """End the process that runs the tests."""
        self._pytests.communicate()

    def check(self, tests: list[str]) -> None:
        """Raises ``RunError`` unless the tests pass while nothing is changed: only then does a failure say anything."""
        status, printed = self._pytest(tests, limit=24 * 3600)
        if status != _PASSED:
            raise RunError(f"The tests must pass before anything is changed. They ended with\n{printed[-3000:]}")

    def tried(self, change: Change, limit: float) -> Outcome:
        """Makes the change, runs its tests to the first that fails, and takes the change back."""
        file, start = self.root / "captum_norm" / change.file, time.perf_counter()
        before = file.read_text(encoding="utf-8")
        file.write_text(change.applied(before), encoding="utf-8")
        try:
            status, printed = self._pytest(["-x", *change.test_ids], limit)
        finally:
            file.write_text(before, encoding="utf-8")
        if status not in (_PASSED, _FAILED, None):
            raise RunError(f"{change}\nThe tests neither passed nor failed. They ended with\n{printed[-3000:]}")
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", printed, re.MULTILINE)
        by = f"no end within {limit:.0f} s" if status is None else failed[1] if failed else ""
        return Outcome(change, status != _PASSED, by, time.perf_counter() - start)

    def _pytest(self, arguments: list[str], limit: float) -> tuple[int | None, str]:
        """Exit status, None if there was no end to it, and what was printed."""
        # what is imported already cannot be rewritten, and need not be; of wide tests all cases run
        quiet = ("-m", "not slow or wide", "-q", "-rfE", "-p", "no:cacheprovider")
        quiet += ("-W", "ignore::pytest.PytestAssertRewriteWarning")
        assert self._pytests.stdin is not None
        assert self._pytests.stdout is not None
        print(json.dumps([[*quiet, *arguments], str(self._printed), limit]), file=self._pytests.stdin, flush=True)
        answer = self._pytests.stdout.readline().strip()
        if not answer:
            raise RunError("The process that runs the tests has ended.")
        return None if answer == "none" else int(answer), self._printed.read_text(encoding="utf-8", errors="replace")
