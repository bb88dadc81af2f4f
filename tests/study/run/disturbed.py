"""A study that is killed again and again: ``python -m tests.study.run.disturbed FOLDER KILLS``.

Its processes are children of this one, so that torch is loaded once and not at every start.  Most of its lives are one
process, every fifth is two; the last one is left to end by itself.
"""

import os
import random
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import accelerate  # noqa: F401  (loaded before the first fork, as is all that a study needs)
import torch

from tests.study import tiny

EXAMPLES = 12


def start(store: Path, size: int = 1) -> list[int]:
    """Children that run the study together; their process ids."""
    return [_child(store, rank, size, port) for port in [_free_port()] for rank in range(size)]


def _child(store: Path, rank: int, size: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    code = 1
    try:
        tiny.study().run(tiny.examples(EXAMPLES), store, progress=False)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def ended(children: list[int]) -> bool:
    """Waits for children; whether they all ended by themselves, well."""
    statuses = [os.waitpid(child, 0)[1] for child in children]
    return not any(statuses)


def main(folder: Path, kills: int) -> None:
    torch.set_num_threads(1)
    began = time.perf_counter()
    assert ended(start(folder / "undisturbed.db"))
    whole = time.perf_counter() - began
    chance, killed = random.Random(kills), 0
    while killed < kills:
        size = 2 if killed % 5 == 4 else 1
        children = start(folder / "disturbed.db", size)
        time.sleep(chance.uniform(0, 2 * size * whole / kills))
        for child in children:
            os.kill(child, signal.SIGKILL)
        killed += not ended(children)
    assert ended(start(folder / "disturbed.db"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
