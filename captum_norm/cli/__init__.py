"""The command ``captum-norm``: parse, load, call, print or save.  What it prints, the library computes.

Exit codes: 0 done, 1 ``certify`` found a call that cannot be read exactly, 2 a mistake in what was asked (one line on
stderr says what and how to mend it), 130 interrupted.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from captum_norm.cli import align, certify, compare, context, heads, maps, report, study, tokens, view
from captum_norm.suggestions import did_you_mean

COMMANDS = {
    "compare": compare,
    "view": view,
    "maps": maps,
    "tokens": tokens,
    "heads": heads,
    "context": context,
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
    try:
        return _run(_parsed(arguments))
    except KeyboardInterrupt:
        print("captum-norm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (head, less) has seen enough
        sys.stderr.close()
        return 0


def _run(asked: argparse.Namespace) -> int:
    try:
        return COMMANDS[asked.command].run(asked)
    except BrokenPipeError:
        raise
    except Exception as error:
        if not _is_answer(error):
            raise
        print(f"captum-norm {asked.command}: {_one_line(error)}", file=sys.stderr)
        return 2


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, all of them known."""
    parser, commands = _parsers()
    asked, unknown = parser.parse_known_args(arguments)
    if unknown:
        commands[asked.command].refuse(unknown[0])
    return asked


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, and what was probably meant."""

    _given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; the arguments are kept for what `error` has to say."""
        self._given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Exit with one line."""
        misspelt = next((given for given in self._given if self._is_misspelt(given)), None)
        if "required" in message and misspelt is not None:  # it is missing because its name is misspelt
            self.refuse(misspelt)
        chosen = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        guess = did_you_mean(chosen[1], re.findall(r"[\w.-]+", chosen[2])) if chosen else ""
        self.exit(2, f"{self.prog}: {message}.{guess} See {self.prog} --help.\n")

    def refuse(self, argument: str) -> NoReturn:
        """Exit over an argument that this command does not know."""
        name = argument.partition("=")[0]
        guess = did_you_mean(name, self._option_string_actions) if name.startswith("-") else ""
        what = "there is no option" if name.startswith("-") else "unexpected argument"
        quote = "" if name.startswith("-") else " (put a text of several words in quotes)"
        self.exit(2, f"{self.prog}: {what} {name}{quote}.{guess} See {self.prog} --help.\n")

    def _is_misspelt(self, argument: str) -> bool:
        name = argument.partition("=")[0]
        return name.startswith("--") and not any(known.startswith(name) for known in self._option_string_actions)


class _Paragraphs(argparse.HelpFormatter):
    """Help in paragraphs, wrapped to the screen; indented lines stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = text.rstrip().split("\n\n")
        return "\n\n".join(block if block.startswith("  ") else textwrap.fill(block, width) for block in blocks)


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    """The parser of the command line, and that of each command."""
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
    return parser, commands.choices


def _is_answer(error: Exception) -> bool:
    """Whether an error is an answer to the user (bad input, by type) rather than a bug, which keeps its traceback."""
    if isinstance(error, ValueError | OSError | ImportError):
        return True  # before anything is imported: an answer comes at once
    from captum_norm.capture import InexactCaptureError

    return isinstance(error, InexactCaptureError)


def _one_line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror and not error.filename else str(error)
    return " ".join(text.split()) or type(error).__name__


def _version() -> str:
    from captum_norm import __version__

    return __version__
