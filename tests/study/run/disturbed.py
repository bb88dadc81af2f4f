"""A study that is killed again and again: ``python -m tests.study.run.disturbed FOLDER KILLS``.

Half of the way through, a method, a metric and examples are added to it.

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

from captum_norm.study import Study, Variant
from captum_norm.study.run.store import begun_in
from tests.study import tiny

EXAMPLES, MORE = 8, 12
METHODS = ["AttentionNorm", "FeatureAblation", Variant("GradientShap", arguments={"n_samples": 3})]
METRICS = ["comprehensiveness", "aopc_sufficiency", "infidelity", "auprc"]


def study(grown: bool) -> Study:
    """The study as it begins, and as it ends."""
    return tiny.study([*METHODS, "Saliency"] if grown else METHODS, [*METRICS, "sufficiency"] if grown else METRICS)


def start(store: Path, grown: bool, size: int = 1) -> list[int]:
    """Children that run the study together; their process ids."""
    return [_child(store, grown, rank, size, port) for port in [_free_port()] for rank in range(size)]


def _child(store: Path, grown: bool, rank: int, size: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    code = 1
    try:
        study(grown).run(tiny.examples(MORE if grown else EXAMPLES), store, progress=False)
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
    assert ended(start(folder / "undisturbed.db", grown=False))
    assert ended(start(folder / "undisturbed.db", grown=True))
    whole = time.perf_counter() - began
    chance, killed, grown, longest = random.Random(kills), 0, False, 2 * whole / kills
    while killed < kills or not grown:
        size = 2 if killed % 5 == 4 else 1
        begun = begun_in(folder / "disturbed.db") != ({}, [])
        grown = begun and killed >= kills // 2
        children = start(folder / "disturbed.db", grown, size)
        time.sleep(chance.uniform(0, size * longest))
        for child in children:
            os.kill(child, signal.SIGKILL)
        killed += not ended(children) and begun
        longest *= 1 if begun else 1.2  # on a busy machine a life may be too short to begin anything
    assert ended(start(folder / "disturbed.db", grown=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
