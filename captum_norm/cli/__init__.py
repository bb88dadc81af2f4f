"""The command ``captum-norm``: parse, load, call, print or save.  What it prints, the library computes.

Exit codes: 0 done, 1 ``certify`` found a call that cannot be read exactly, 2 a mistake in what was asked (one line on
stderr says what and how to mend it), 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from typing import NoReturn

from captum_norm.cli import align, certify, compare, report, study, tokens, view

COMMANDS = {
    "compare": compare,
    "view": view,
    "tokens": tokens,
    "certify": certify,
    "study": study,
    "report": report,
    "align": align,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: the command line without the program's name; None takes ``sys.argv``.

    Raises:
        SystemExit: from argparse, for ``--help`` (0) and arguments that do not parse (2).
    """
    asked = _parser().parse_args(arguments)
    try:
        return COMMANDS[asked.command].run(asked)
    except KeyboardInterrupt:
        print("captum-norm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (head, less) has seen enough
        sys.stderr.close()
        return 0
    except Exception as error:
        if not _is_answer(error):
            raise
        print(f"captum-norm {asked.command}: {_one_line(error)}", file=sys.stderr)
        return 2


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}. See {self.prog} --help.\n")


class _Paragraphs(argparse.HelpFormatter):
    """Help in paragraphs, wrapped to the screen; indented lines stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = text.rstrip().split("\n\n")
        return "\n\n".join(block if block.startswith("  ") else textwrap.fill(block, width) for block in blocks)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="captum-norm",
        description="How much does each token contribute? Attention by the norm of what it really adds "
        "(Kobayashi et al. 2020), beside other methods, on any transformer.",
        epilog=f"example:\n\n  {compare.EXAMPLE}",
        formatter_class=_Paragraphs,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.SUMMARY,
            description=command.DESCRIPTION,
            epilog=f"example:\n\n  {command.EXAMPLE}",
            formatter_class=_Paragraphs,
        )
        command.add_arguments(sub)
    return parser


def _is_answer(error: Exception) -> bool:
    """Whether an error is an answer to the user (bad input, by type) rather than a bug, which keeps its traceback."""
    from captum_norm.capture import InexactCaptureError

    return isinstance(error, ValueError | OSError | ImportError | InexactCaptureError)


def _one_line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror and not error.filename else str(error)
    return " ".join(text.split()) or type(error).__name__


def _version() -> str:
    from captum_norm import __version__

    return __version__
