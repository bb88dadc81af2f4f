"""Results as tables: one class, and every spelling of it (text, Markdown, LaTeX, CSV, HTML, pandas).

``layout`` lines columns up on a terminal; ``spelling`` has `Table`, and `Tabular` for results that are shown as one.
"""

from captum_norm.tables.spelling import Table, Tabular, tex

__all__ = ["Table", "Tabular", "tex"]
