"""Tables of these pages that the package's own tables are the source of: a row there is a row here.

``{measures} attention`` and ``{measures} block`` show the rows of ``captum_norm.measures.MEASURES`` that need the call
alone and the block around it, ``{link-methods}`` those of ``captum_norm.alignment.METHODS``.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from captum_norm.alignment import METHODS
from captum_norm.measures import MEASURES, Measure

LETTERS = {"batch": "B", "head": "H", "query": "Q", "key": "K"}


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def measures(of_block: bool) -> str:
    """The measures of attention alone, or of the block around it."""
    headers = ["name in `attention_maps`", "formula", "shape", "says", "offered by", "source"]
    rows = [
        [f"`{row.name}`", f"${row.formula}$", shape(row), row.says, offered(row), "[{}]({})".format(*row.paper)]
        for row in MEASURES.values()
        if row.of_block == of_block
    ]
    return table(headers, rows)


def shape(measure: Measure) -> str:
    """"(B,Q,K)"."""
    return f"({','.join(LETTERS[axis] for axis in measure.axes.split())})"


def offered(measure: Measure) -> str:
    """The classes and the method of the aligner that give this measure."""
    classes = [f"{{class}}`~captum_norm.{name}`" for name in measure.classes]
    return ", ".join([*classes, *([f'`align`: `"{measure.aligner}"`'] if measure.aligner else [])]) or "–"


def link_methods() -> str:
    """What the aligner can read cross-attention by."""
    formulas = {row.aligner: f"${row.formula}$" for row in MEASURES.values()}
    rows = [[f'`"{name}"`', formulas.get(name, "–"), method.says] for name, method in METHODS.items()]
    return table(["method", "formula", "says"], rows)


class MeasuresTable(SphinxDirective):
    """``{measures} attention`` or ``{measures} block``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(measures({"attention": False, "block": True}[self.arguments[0]]))


class LinkMethodsTable(SphinxDirective):
    """``{link-methods}``."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(link_methods())


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("measures", MeasuresTable)
    app.add_directive("link-methods", LinkMethodsTable)
    return {"parallel_read_safe": True}
