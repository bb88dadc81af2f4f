"""``python -m captum_norm`` and the command ``captum-norm``: nothing is imported before Ctrl-C would be clean."""

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_AGAIN = 0.05  # seconds


def main() -> int:
    """Run the command of ``sys.argv``; its exit code, 130 where it was interrupted, be it while torch was loaded."""
    try:
        with _no_interrupt_lost():
            from captum_norm.cli import main as command

            return command()
    except KeyboardInterrupt:
        print("captum-norm: interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is left is to end


@contextmanager
def _no_interrupt_lost() -> Iterator[None]:
    """Ctrl-C that meets a destructor, or a callback of the import system, comes again when it is through.

    Python prints what is raised there, and goes on: about one Ctrl-C in twenty while torch is loaded.
    """
    before = sys.unraisablehook

    def again(lost: "sys.UnraisableHookArgs") -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            before(lost)
            return
        timer = threading.Timer(_AGAIN, _thread.interrupt_main)
        timer.daemon = True
        timer.start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


if __name__ == "__main__":
    sys.exit(main())
