"""Which one-line changes of the package would the tests let pass?

    python -m tests.mutations                                       # every row of changes.py
    python -m tests.mutations --part capture functional/norms.py    # those in some folders or files
    python -m tests.mutations --jobs 2

The working tree is copied and never changed.  Exit status 1 if a change survives unexplained or is explained and
killed, 2 if the run says nothing: a change that does not fit the source, tests that fail without it.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.mutations.change import Change, RunError, in_parts
from tests.mutations.changes import CHANGES
from tests.mutations.run import LIMIT_S, outcomes

ROOT = Path(__file__).resolve().parents[2]


def main(root: Path = ROOT, changes: Sequence[Change] = CHANGES) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--part", nargs="+", default=[], help="folders or files of captum_norm (all)")
    parser.add_argument("--jobs", type=int, default=1, help="how many changes to try at once (1)")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for the tests of one change (600)")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    wrong, words = [], Counter[str]()
    try:
        for outcome in outcomes(root, in_parts(changes, arguments.part), arguments.jobs, arguments.limit):
            print(f"{outcome.word:<8} {outcome.seconds:6.1f} s  {outcome.change}  [{outcome.by}]", flush=True)
            words[outcome.word] += 1
            wrong += [] if outcome.is_right else [outcome]
    except RunError as error:
        print(error, file=sys.stderr)
        return 2
    print(", ".join(f"{count} {word}" for word, count in words.most_common()))
    for outcome in wrong:
        print(f"{outcome.word}: {outcome.change}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
