"""Runs pytest again and again, each time in a fork of one process that has imported torch and its like already.

Most of a short run of tests is imports.  This is started as a script, with the modules to import as arguments.  Each
line on stdin is JSON: the arguments of pytest, the file for what it prints, the seconds it may take.  The answer is a
line on stdout: the exit status, or "none" where there was no end.
"""

import importlib
import json
import os
import signal
import sys
import time


def run(arguments: list[str], printed: str, limit: float) -> int | None:
    """Exit status of pytest in a child process, in this one's folder; None where it did not end in time."""
    child = os.fork()
    if child == 0:
        _run_and_exit(arguments, printed)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)  # with the programs that the tests started
    os.waitpid(child, 0)
    return None


def _run_and_exit(arguments: list[str], printed: str) -> None:
    status = 3  # pytest's own for an internal error
    try:
        os.setsid()
        output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.path[0] = os.getcwd()

        import pytest

        status = int(pytest.main(arguments))
        sys.stdout.flush()
    finally:
        os._exit(status)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    for line in sys.stdin:
        status = run(*json.loads(line))
        print("none" if status is None else status, flush=True)
