"""What every test may rely on: one seed, one thread, no network, and the data that may lie beside the repository."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a test that asks for a hub name fails at once

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Small tensors: threads cost more than they give, and one thread makes sums reproducible.
torch.set_num_threads(1)

# No deadlines (a busy machine is no bug) and the same examples in every run.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a ``wide`` test every n-th case runs with the quick tests; the others are slow."""
    seen = Counter[str]()
    for item in items:
        wide = item.get_closest_marker("wide")
        if wide is not None:
            test = item.nodeid.partition("[")[0]
            if seen[test] % wide.args[0]:
                item.add_marker(pytest.mark.slow)
            seen[test] += 1


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with reference figures (oracles/) and public texts (data/) beside the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no folder with reference figures and data beside the repository")
    return folder


@pytest.fixture(scope="session")
def oracles(shared: Path) -> Path:
    """What the papers' own code computed on a tiny BERT, as .npz files."""
    return _part(shared, "oracles")


@pytest.fixture(scope="session")
def data(shared: Path) -> Path:
    """Small public data sets, one folder each."""
    return _part(shared, "data")


def _part(shared: Path, name: str) -> Path:
    if not (shared / name).is_dir():
        pytest.skip(f"no {name} in the folder beside the repository")
    return shared / name
