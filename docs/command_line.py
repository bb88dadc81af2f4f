"""``{command-line}``: every command of ``captum-norm`` with its options, made from the parsers themselves."""

import argparse
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from captum_norm.cli import _parsers


def reference() -> str:
    """A section for each command, in Markdown."""
    _, commands = _parsers()
    return "\n\n".join(section(name, parser) for name, parser in commands.items())


def section(name: str, parser: Any) -> str:
    """What a command does, an example, and its options as a list."""
    example = str(parser.epilog).split("\n\n", 1)[1].strip()
    options = [option(action) for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    lines = [f"## `captum-norm {name}`", escaped(parser.description), f"```bash\n{example}\n```", *options]
    return "\n\n".join(lines)


def option(action: Any) -> str:
    """One option: its names, what it takes, what it does."""
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else "")
    value = " ".join(value) if isinstance(value, tuple) else value
    if not action.option_strings:
        names = value or action.dest
    else:
        names = ", ".join(action.option_strings) + ("" if action.nargs == 0 else f" {value or action.dest.upper()}")
    return f"`{names}`\n: {escaped(action.help or '')}"


def escaped(text: str) -> str:
    """Help as Markdown shows it: characters of its own taken for themselves."""
    return "".join(f"\\{character}" if character in "*_<>[]{}-" else character for character in text.replace("%%", "%"))


class CommandLine(SphinxDirective):
    """``{command-line}``."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(reference(), allow_section_headings=True)


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True}
