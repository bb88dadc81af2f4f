"""Results as tables: one class, and every spelling of it (text, Markdown, LaTeX, CSV, HTML, pandas).

``layout`` lines columns up on a terminal, ``paper`` sets them in LaTeX; ``spelling`` has `Table`, and `Tabular` for
results that are shown as one.
"""

from captum_norm.tables.paper import LINE, tabulars, tex
from captum_norm.tables.spelling import Table, Tabular

__all__ = ["LINE", "Table", "Tabular", "tabulars", "tex"]
