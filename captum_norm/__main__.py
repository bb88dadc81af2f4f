"""``python -m captum_norm`` and the command ``captum-norm``: nothing is imported before Ctrl-C would be clean."""

import signal
import sys


def main() -> int:
    """Run the command of ``sys.argv``; its exit code, 130 where it was interrupted, be it while torch was loaded."""
    try:
        from captum_norm.cli import main as command

        return command()
    except KeyboardInterrupt:
        print("captum-norm: interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is left is to end


if __name__ == "__main__":
    sys.exit(main())
