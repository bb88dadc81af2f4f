"""Every change tried, in several copies at once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory

from tests.mutations.change import Change
from tests.mutations.trial import Copy, Outcome

# Beyond this a change is taken to have made something endless.
LIMIT_S = 600.0


def outcomes(root: Path, changes: list[Change], jobs: int = 1, limit: float = LIMIT_S) -> Iterator[Outcome]:
    """What became of each change, in their order.

    Args:
        root: the repository, which is read only.
        changes: what to try.
        jobs: how many at once, each in a copy of its own.
        limit: seconds for the tests of one change.

    Raises:
        RunError: if a piece is not found exactly once, if the tests fail without any change, or run no test with it.
    """
    for change in changes:
        change.applied((root / "captum_norm" / change.file).read_text(encoding="utf-8"))
    with TemporaryDirectory(prefix="captum-norm-mutations.") as folder, ThreadPoolExecutor(jobs) as pool:
        copies: SimpleQueue[Copy] = SimpleQueue()
        for job in range(jobs):
            copies.put(Copy(root, Path(folder) / str(job)))

        def tried(change: Change) -> Outcome:
            copy = copies.get()
            try:
                return copy.tried(change, limit)
            finally:
                copies.put(copy)

        first = copies.get()
        first.check(sorted({test for change in changes for test in change.test_ids}))
        copies.put(first)
        yield from pool.map(tried, changes)
