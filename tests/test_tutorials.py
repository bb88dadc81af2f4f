"""The notebooks are kept as they ran: executed in order, without warnings, and nothing of the machine they ran on."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "tutorials").glob("*.ipynb"))
every = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)


def code_cells(notebook):
    return [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_there_are_notebooks():
    assert NOTEBOOKS


@every
def test_all_cells_ran_once_and_in_order(notebook):
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))


@every
def test_nothing_was_warned_of_and_nothing_failed(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    assert outputs
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]


@every
def test_outputs_know_nothing_of_the_machine(notebook):
    for cell in code_cells(notebook):
        for output in cell["outputs"]:
            data = {kind: text for kind, text in output.get("data", {}).items() if not kind.startswith("image/")}
            assert not re.search(
                r"(?<![\w.<])/(home|Users|root|tmp|usr|opt|work|mnt)\b|[A-Z]:\\", json.dumps([data, output.get("text")])
            )


@every
def test_any_kernel_for_python_runs_it(notebook):
    assert json.loads(notebook.read_text(encoding="utf-8"))["metadata"]["kernelspec"]["name"] == "python3"


@every
def test_figures_say_in_words_what_they_show(notebook):
    for cell in code_cells(notebook):
        if any("image/png" in output.get("data", {}) for output in cell["outputs"]):
            assert cell["metadata"]["mystnb"]["image"]["alt"]


@every
def test_links_to_the_documentation_lead_to_pages(notebook):
    for path in re.findall(r"\]\((\.\./[^)#]+)", notebook.read_text(encoding="utf-8")):
        assert (notebook.parent / path).is_file()


def test_from_captum_to_norms_takes_ten_lines():
    """Up to the first check: imports, model, maps and figures."""
    [notebook] = [path for path in NOTEBOOKS if path.stem == "from_captum_to_norms"]
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    [end] = [i for i, cell in enumerate(cells) if cell["id"] == "check-heading"]
    lines = "".join("".join(c["source"]) + "\n" for c in cells[:end] if c["cell_type"] == "code").split("\n")
    assert sum(bool(line.strip()) for line in lines) == 10
