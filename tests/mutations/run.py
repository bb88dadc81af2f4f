"""Every change tried, in several copies at once."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory

from tests.mutations.change import Change
from tests.mutations.trial import Copy, Outcome

# Beyond this a change is taken to have made something endless.
LIMIT_S = 600.0

# What takes most of the seconds of a short run.
IMPORTS = (
    "pytest", "hypothesis", "torch", "captum.attr", "transformers.models.bert.modeling_bert", "matplotlib.figure",
)  # fmt: skip


def outcomes(
    root: Path, changes: Sequence[Change], jobs: int = 1, limit: float = LIMIT_S, imports: Sequence[str] = IMPORTS
) -> Iterator[Outcome]:
    """What became of each change, in their order.

    Args:
        root: the repository, which is read only.
        changes: what to try.
        jobs: how many at once, each in a copy of its own.
        limit: seconds for the tests of one change.
        imports: modules that the tests need and that no change touches.

    Raises:
        RunError: if a piece is not found exactly once, if the tests fail without any change, or run no test with it.
    """
    for change in changes:
        change.applied((root / "captum_norm" / change.file).read_text(encoding="utf-8"))
    with TemporaryDirectory(prefix="captum-norm-mutations.") as folder, ExitStack() as stack:
        copies: SimpleQueue[Copy] = SimpleQueue()
        for job in range(jobs):
            copies.put(stack.enter_context(closing(Copy(root, Path(folder) / str(job), imports))))

        def tried(change: Change) -> Outcome:
            copy = copies.get()
            try:
                return copy.tried(change, limit)
            finally:
                copies.put(copy)

        first = copies.get()
        first.check(sorted({test for change in changes for test in change.test_ids}))
        copies.put(first)
        yield from stack.enter_context(ThreadPoolExecutor(jobs)).map(tried, changes)
