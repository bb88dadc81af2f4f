"""A study whose results all tests of reports read."""


import pytest

from captum_norm.study import Variant
from tests.study import tiny


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    methods = ["AttentionNorm", "Saliency", Variant("AttentionNorm", options={"aggregate": "rollout"})]
    metrics = ["comprehensiveness", "sufficiency", "auprc"]
    store = tmp_path_factory.mktemp("study") / "s.db"
    return tiny.study(methods, metrics, special="report").run(tiny.examples(), store, progress=False)
