"""Sphinx: MyST pages, notebooks executed by myst-nb, the API reference from docstrings.  Needs no network."""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml

import captum_norm

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # for tables

project = "captum-norm"
author = "The captum-norm developers"
copyright = "2026, the captum-norm developers"
version = release = captum_norm.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "command_line",
    "tables",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints", "jupyter_execute"]
add_module_names = False
smartquotes_action = "qe"  # no dashes: --pair is an option
nitpicky = False  # torch's and captum's own names cannot be looked up without a network

# Notebooks live in tutorials/ at the top of the repository, but Sphinx reads only what lies below this folder.  They
# are copied, with their times (a second build executes only those that changed) and with their links to these pages.
copies = HERE / "tutorials"
shutil.rmtree(copies, ignore_errors=True)
copies.mkdir()
for notebook in sorted((HERE.parent / "tutorials").glob("*.ipynb")):
    text = notebook.read_text(encoding="utf-8").replace("](../docs/", "](../")
    (copies / notebook.name).write_text(text, encoding="utf-8")
    shutil.copystat(notebook, copies / notebook.name)

import method_pages  # noqa: E402

method_pages.write(HERE / "methods", (HERE / "methods.md").read_text(encoding="utf-8"))

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 900
nb_execution_show_tb = True
nb_output_stderr = "remove"  # progress bars
nb_merge_streams = True

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autosummary_ignore_module_all = False
autoclass_content = "class"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 96
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
templates_path = ["_templates"]

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_math_renderer = "mathml"
html_title = "captum-norm"
html_static_path = ["_static"]
html_css_files = ["captum-norm.css"]
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#a8431f",
        "color-brand-content": "#a8431f",
        "color-brand-visited": "#7d4a3a",
        "color-api-name": "#2b4c7e",
        "color-api-pre-name": "#6b7a90",
        "font-stack": "'Source Sans 3', 'Helvetica Neue', Helvetica, Arial, sans-serif",
        "font-stack--monospace": "'JetBrains Mono', 'DejaVu Sans Mono', Menlo, Consolas, monospace",
    },
    "dark_css_variables": {
        "color-brand-primary": "#f0a07c",
        "color-brand-content": "#f0a07c",
        "color-brand-visited": "#d0a090",
        "color-api-name": "#9dbce8",
        "color-api-pre-name": "#8d99ab",
    },
}


def keep_bars(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Norms and absolute values in docstrings are meant as written: ``|x|`` is no reStructuredText substitution."""
    for number, line in enumerate(lines):
        outside_literals = re.split(r"(``.*?``|`.*?`)", line)
        outside_literals[::2] = [text.replace("|", r"\|") for text in outside_literals[::2]]
        if not line.lstrip().startswith((">>>", "...", "|", "+")):
            lines[number] = "".join(outside_literals)


def write_math(self: Any, node: Any, mode: str) -> None:
    """Formulas as MathML, which browsers draw by themselves: pages need no script from elsewhere."""
    maths = str(latex2mathml.tex2mathml(node.astext(), as_block=mode == "block"))
    if "\\left" not in node.astext():  # bars that TeX would not stretch: browsers stretch them over any subscript
        maths = re.sub(r'<mo( class="math\w+")?>([‖|∣])</mo>', r'<mo\1 stretchy="false">\2</mo>', maths)
    self.body.append(maths if mode == "inline" else f'<div class="math">{maths}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", keep_bars)
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(lambda self, node: write_math(self, node, "inline"), None),
        block_renderers=(lambda self, node: write_math(self, node, "block"), None),
    )
