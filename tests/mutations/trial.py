"""A copy of the repository in which one change after the other is made, tested and taken back."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.mutations.change import Change, RunError

# What pytest's exit status says: all passed, or some failed.  Any other is neither.
_PASSED, _FAILED = 0, 1


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
    """The repository in another folder, beside the same ``shared`` folder as the original."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = folder / "repository"
        # no compiled files: Python trusts them by size and second, and a change may alter neither
        shutil.copytree(root, self.root, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "_build"))
        if (root.parent / "shared").exists():
            (folder / "shared").symlink_to((root.parent / "shared").resolve())

    def check(self, tests: list[str]) -> None:
        """Raises ``RunError`` unless the tests pass while nothing is changed: only then does a failure say anything."""
        status, text = self._pytest(tests, None)
        if status != _PASSED:
            raise RunError(f"The tests must pass before anything is changed. They ended with\n{text[-3000:]}")

    def tried(self, change: Change, limit: float) -> Outcome:
        """Makes the change, runs its tests to the first that fails, and takes the change back."""
        file, start = self.root / "captum_norm" / change.file, time.perf_counter()
        before = file.read_text(encoding="utf-8")
        file.write_text(change.applied(before), encoding="utf-8")
        try:
            status, text = self._pytest(["-x", *change.test_ids], limit)
        finally:
            file.write_text(before, encoding="utf-8")
        if status not in (_PASSED, _FAILED, None):
            raise RunError(f"{change}\nThe tests neither passed nor failed. They ended with\n{text[-3000:]}")
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)
        by = f"no end within {limit:.0f} s" if status is None else failed[1] if failed else ""
        return Outcome(change, status != _PASSED, by, time.perf_counter() - start)

    def _pytest(self, arguments: list[str], limit: float | None) -> tuple[int | None, str]:
        """Exit status, None if there was no end to it, and what was printed."""
        command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider", *arguments]
        environment = os.environ | {"PYTHONPATH": str(self.root), "PYTHONDONTWRITEBYTECODE": "1"}
        process = subprocess.Popen(
            command, cwd=self.root, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            printed, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the programs that the tests started
            process.communicate()
            return None, ""
        return process.returncode, printed
