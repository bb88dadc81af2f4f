"""The shape of the code: imports point one way, each part knows only what it may, and a bare import is light.

The imports are parsed, not run, so that a rule also holds for code that only some users reach.

    python -m tests.test_architecture | dot -Tsvg -o imports.svg    # draws them
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import captum_norm

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "captum_norm"

# From the bottom up.  A part may import the layers below its own, and leaves; leaves import leaves only.
LAYERS = (
    {"functional", "operations"},
    {"capture"},
    {"intervention", "linear", "measures", "proof"},
    {"viewer"},
    {"attr", "maps"},
    {"head_activity", "methods", "token_shares"},
    {"comparison"},
    {"exports", "visualization"},
    {"alignment", "study"},
    {"cli"},
)
LEAVES = set(
    "class_names explanation files forward models numerals optional_packages pictures ranks suggestions tables "
    "text_files token_classes tokens words".split()
)
HEIGHT = {part: height for height, layer in enumerate(LAYERS) for part in layer}


class Import(NamedTuple):
    """One imported name: ``from captum.attr import Saliency`` in attr/x.py gives ("attr.x", "captum.attr.Saliency")."""

    importer: str
    imported: str


def dotted(path: Path) -> str:
    """captum_norm/attr/base.py -> "captum_norm.attr.base"; a package's __init__ has the package's name."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> list[Import]:
    """Every import in a file, those inside functions and for type checkers included, written as absolute names."""
    importer, found = dotted(path), []
    package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            found += [".".join([*above, *filter(None, [node.module]), alias.name]) for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            found += [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
    return [Import(importer, name) for name in found]


FILES = sorted(PACKAGE.rglob("*.py"))
IMPORTS = [found for path in FILES for found in imports_of(path)]
MODULES = {dotted(path) for path in FILES}


def part_of(module: str) -> str | None:
    """The part of the package that a module belongs to; None for the package itself and for other packages."""
    names = module.split(".")
    return names[1] if names[0] == "captum_norm" and len(names) > 1 and names[1] in HEIGHT.keys() | LEAVES else None


def may_import(part: str, other: str) -> bool:
    if part == other:
        return True
    if part in LEAVES or other in LEAVES:
        return other in LEAVES
    return HEIGHT[other] < HEIGHT[part]


def edges_of_parts() -> list[tuple[str, str]]:
    """Which part imports which other, each pair once."""
    pairs = {(part_of(found.importer), part_of(found.imported)) for found in IMPORTS}
    return sorted((part, other) for part, other in pairs if part and other and part != other)


def drawn() -> str:
    """The parts in their layers, leaves at the bottom, with an arrow to each that a part imports; for Graphviz."""
    floors = [f"  {{ rank=same; {'; '.join(sorted(floor))} }}" for floor in (LEAVES, *LAYERS)]
    arrows = [f"  {part} -> {other}" for part, other in edges_of_parts()]
    return "\n".join(["digraph captum_norm {", *floors, *arrows, "}"])


def from_package(name: str) -> list[Import]:
    """The imports of ``name`` or anything in it."""
    return [found for found in IMPORTS if found.imported == name or found.imported.startswith(f"{name}.")]


def test_every_part_of_the_package_has_its_place():
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES} - {"__init__", "__main__"}
    assert parts <= HEIGHT.keys() | LEAVES, "give the new part a layer, or call it a leaf"


def test_imports_point_one_way():
    wrong = []
    for importer, imported in IMPORTS:
        part, other = part_of(importer), part_of(imported)
        if part and other and not may_import(part, other):
            wrong.append(f"{importer} imports {imported}")
    assert not wrong
    assert "  attr -> capture\n" in drawn()


def test_no_module_imports_itself_through_others():
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for importer, imported in IMPORTS:
        target = imported if imported in MODULES else imported.rpartition(".")[0]
        # the package's own __init__ resolves its names on first use, so it is no step in a cycle
        if target in MODULES - {importer, "captum_norm"} and importer != "captum_norm":
            graph[importer].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports run in a circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("part", ["functional", "operations"])
def test_formulas_and_operations_know_torch_and_nothing_else(part):
    allowed = {"torch", *sys.stdlib_module_names}
    assert not [
        f"{importer} imports {imported}"
        for importer, imported in IMPORTS
        if part_of(importer) == part
        and imported.split(".")[0] not in allowed
        and not imported.startswith(f"captum_norm.{part}.")
    ]


@pytest.mark.parametrize("part", ["capture", "intervention", "linear"])
def test_nobody_imports_the_interior_of(part):
    inside = f"captum_norm.{part}."
    modules = {module for module in MODULES if module.startswith(inside)}
    assert not [
        f"{importer} imports {imported}"
        for importer, imported in IMPORTS
        if part_of(importer) != part and (imported in modules or imported.rpartition(".")[0] in modules)
    ]


def test_no_two_classes_have_one_name():
    found = [
        (node.name, dotted(path))
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    names = Counter(name for name, _ in found)
    assert [one for one in found if names[one[0]] > 1] == []


def test_captums_private_names_are_in_one_file():
    private = [found for found in from_package("captum") if re.search(r"\._(?!_)", found.imported)]
    assert {importer for importer, _ in private} <= {"captum_norm.attr._captum"}


def test_what_trained_the_shipped_models_is_needed_by_nothing_that_is_installed():
    training = "captum_norm.models.training"
    assert {importer.rpartition(".")[0] for importer, _ in from_package(training)} <= {training}
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert setuptools["packages"]["find"]["exclude"] == [f"{training}*"]


def test_torchvision_is_never_imported_nor_asked_for():
    assert not from_package("torchvision")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    assert not [line for lines in [project["dependencies"], *extras] for line in lines if "torchvision" in line]


def test_nothing_is_pickled():
    """torch.load reads pickles unless told otherwise; safetensors and JSON are what is stored here."""
    assert not [found for name in ("pickle", "cloudpickle", "joblib", "shelve") for found in from_package(name)]
    assert not [dotted(path) for path in FILES if re.search(r"\btorch\.(load|save)\(", path.read_text())]


def test_no_star_imports_but_the_classes_of_attr_for_type_checkers():
    stars = [found for found in IMPORTS if found.imported.endswith(".*")]
    assert stars == [Import("captum_norm", "captum_norm.attr.*")]


def test_a_bare_import_is_light_and_silent():
    code = """
import sys
import captum_norm
heavy = {"captum", "matplotlib", "transformers", "torchvision", "scipy"} & sys.modules.keys()
assert not heavy, f"loaded by a bare import: {heavy}"
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_public_names_are_those_documented():
    documented = re.search(r"<!-- public names -->(.*?)<!-- end -->", (ROOT / "docs/api.md").read_text(), re.DOTALL)
    assert documented, "docs/api.md lists the public names between <!-- public names --> and <!-- end -->"
    names = re.findall(r"^   (\w+)$", documented[1], re.MULTILINE)
    assert sorted(names) == sorted(captum_norm.__all__)


@pytest.mark.parametrize("name", captum_norm.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name):
    assert (getattr(captum_norm, name).__doc__ or "").strip()
    assert name in dir(captum_norm)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"AttentionNrom'\. Did you mean AttentionNorm\?"):
        _ = captum_norm.AttentionNrom


def test_only_public_names_are_listed():
    assert dir(captum_norm) == sorted([*captum_norm.__all__, "__version__"])


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert citation is not None
    assert captum_norm.__version__ == project["version"] == citation[1]


if __name__ == "__main__":
    print(drawn())
