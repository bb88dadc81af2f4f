"""One bad text spoils nothing but itself, and a device that has given up ends the study."""

from typing import ClassVar

import pytest
import torch

from captum_norm import HFForward
from captum_norm.study.batches import Padding, TextBatch, padded, tokenize
from captum_norm.study.metrics import Metric
from captum_norm.study.run import runner
from captum_norm.study.run.runner import Runner
from captum_norm.study.scorers.scorer import Scorer
from tests.study import tiny


class DeviceLostError(RuntimeError):
    """Stands in for what torch raises when a device answers nothing any more."""


class Fragile(Scorer):
    """Scores of 1, but raises on batches of some sizes."""

    name, special = "fragile", "mask"

    def __init__(self, errors: dict[int, type[Exception]]) -> None:
        self.errors = errors

    def score(self, batch: TextBatch) -> torch.Tensor:
        if len(batch) in self.errors:
            raise self.errors[len(batch)]("no")
        return batch.real.double()

    def describe(self) -> dict[str, str]:
        return {"name": self.name}


class FragileMetric(Metric):
    """1 for every text, but raises on batches of some sizes."""

    name, formula, source = "fragile", "1", "none"
    errors: ClassVar[dict[int, type[Exception]]] = {}

    def measure(self, forward, scored, attribute):
        if len(scored) in self.errors:
            raise self.errors[len(scored)]("no")
        return torch.ones(len(scored))


def run(scorer: Scorer, metric_errors: dict[int, type[Exception]]):
    metric = FragileMetric()
    object.__setattr__(metric, "errors", metric_errors)
    model, pad = tiny.classifier(), Padding()
    texts = tokenize(tiny.examples(3), tiny.tokenizer(), model)
    batch = padded(0, tuple(texts), pad, torch.zeros(3, dtype=torch.long))
    return Runner(HFForward(model), [scorer], [metric], pad, None).run(0, batch)


@pytest.fixture(autouse=True)
def _lost_devices_are_fatal(monkeypatch):
    monkeypatch.setattr(runner, "FATAL", (DeviceLostError,))


@pytest.mark.parametrize("sizes", [(3,), (1,)], ids=["whole", "one by one"])
@pytest.mark.parametrize("what", ["scoring", "measuring"])
def test_a_lost_device_ends_the_run_and_is_no_failure_of_a_text(what, sizes):
    """Also where it is lost only when the texts are taken one by one, after their batch raised something else."""
    errors = {3: ValueError} | dict.fromkeys(sizes, DeviceLostError)
    with pytest.raises(DeviceLostError):
        run(Fragile(errors if what == "scoring" else {}), errors if what == "measuring" else {})


def test_what_raises_in_a_batch_only_is_no_failure():
    finished = run(Fragile({3: ValueError}), {3: ValueError})
    assert not finished.errors
    assert not finished.metric_errors
    assert finished.values == {(0, example): 1.0 for example in range(3)}
    assert sorted(finished.scores) == [0, 1, 2]


def test_what_raises_by_itself_is_recorded_with_the_reason():
    assert run(Fragile({3: ValueError, 1: ValueError}), {}).errors == dict.fromkeys(range(3), "ValueError: no")
    finished = run(Fragile({}), {3: ValueError, 1: ValueError})
    assert finished.metric_errors == {(0, example): "ValueError: no" for example in range(3)}
    assert sorted(finished.scores) == [0, 1, 2]
