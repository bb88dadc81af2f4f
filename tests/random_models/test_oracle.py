"""Can the machine be believed?  Models check the oracle, and faults made on purpose check the machine."""

import json
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import captum_norm
from tests.random_models.__main__ import main
from tests.random_models.check import CHECKS, Case, broken, distance
from tests.random_models.config import (
    KINDS,
    MIXERS,
    OWN_ROWS,
    READOUTS,
    WHOLE_MODULES,
    WRITTEN_ELSEWHERE,
    Config,
    consistent,
    drawn,
    seeds_of,
)
from tests.random_models.erasure import without_values
from tests.random_models.model import make_model
from tests.random_models.named_cases import named_cases, shrunk
from tests.random_models.oracle import Oracle
from tests.random_models.table import Outcome, Table
from tests.random_models.truth import Truth

SEEDS = [*range(5000, 5032), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(5032, 5192))]
ORDINARY = replace(drawn(0), norm_form="layer norm", layers=2, heads=2, key_heads=2, change="none")


@cache
def exact(config: Config) -> Case:
    return Case(replace(config, dtype="float64"))


def real_rows(output: Tensor, truth: Truth) -> Tensor:
    has_rows = output.ndim == 3 and output.shape[1] == truth.real.shape[1]
    return output[truth.real] if has_rows else output


@pytest.mark.parametrize("seed", SEEDS)
def test_two_forms_give_one_function(seed):
    assert Case(drawn(seed)).truth


@pytest.mark.parametrize("seed", SEEDS)
def test_erasing_a_keys_values_below_torch_does_what_the_oracle_says(seed):
    case = exact(drawn(seed))
    if case.config.padding and case.config.attention in WHOLE_MODULES:
        return  # here padding sees other keys than in the oracle, and has other values
    if case.config.attention.endswith(("in numpy", "the rest mean")):
        return  # no operation of torch, or a mean of the values beside the products
    if case.config.room:
        return  # values have spare slots behind them
    if case.config.change == "norm before the projection":
        return  # the deviation of what is left is another one
    truth = case.truth
    number = seed % len(truth.calls)
    key = int(truth.real[0].nonzero()[-1]) if truth.calls[number].values.shape[2] == truth.real.shape[1] else 0
    expected = Oracle(case.config, case.parameters, case.inputs, erased=(number, key)).run()

    def run() -> Tensor:
        return case.model(*case.tensors, *case.told)

    found, operands = without_values(run, truth.calls[number].values, key)
    assert operands
    assert distance(real_rows(found, truth), real_rows(expected.output, truth)) < 1e-7
    moved = distance(real_rows(found, truth), real_rows(truth.output, truth))
    assert number in truth.used or moved < 1e-7


@pytest.mark.parametrize("seed", SEEDS)
def test_gradients_say_the_same_of_what_feeds_what(seed):
    case = exact(drawn(seed))
    oracle = Oracle(case.config, case.parameters, case.inputs, probed=True)
    truth = oracle.run()
    for number, call in enumerate(truth.calls):
        reached = {n for n, probe in enumerate(oracle.probes[:number]) if moves(call.values, probe)}
        assert reached == call.parents
        for n in reached:
            other = truth.calls[n]
            added = set(call.mixers) - set(other.mixers)
            if call.key_index is None or other.query_index is None or "norm over positions" in added:
                continue  # behind a LayerNorm this one mixes nothing: the variance is that of every position
            assert keeps_positions(call.values, oracle.probes[n], call.key_index, other.query_index) == (not added)
    used = {n for n, probe in enumerate(oracle.probes) if moves(truth.output[truth.output == truth.output], probe)}
    if case.config.readout != "max pooling" and truth.output.ndim == 2:
        assert closure(used, truth) >= truth.used - {0}  # a softmax's queries may be all that is left of a call
        assert closure(used, truth) <= truth.used


def closure(calls: set[int], truth: Truth) -> set[int]:
    found = set(calls)
    for number in sorted(range(len(truth.calls)), reverse=True):
        if number in found:
            found |= truth.calls[number].parents
    return found


def moves(values: Tensor, probe: Tensor) -> bool:
    return values.requires_grad and bool((gradient(values, probe).abs() > 1e-12).any())


def gradient(values: Tensor, probe: Tensor) -> Tensor:
    direction = torch.randn(values.shape, generator=torch.Generator().manual_seed(0), dtype=values.dtype)
    [found] = torch.autograd.grad((values * direction).sum(), probe, retain_graph=True, allow_unused=True)
    return torch.zeros_like(probe) if found is None else found


def keeps_positions(values: Tensor, probe: Tensor, keys: Tensor, queries: Tensor) -> bool:
    """Whether each key's values depend on the row of the same position alone."""
    for k, position in enumerate(keys.tolist()):
        rows = gradient(values[:, :, k], probe).abs().amax((0, 2))
        if bool((rows[queries != position] > 1e-10 * rows.max()).any()):
            return False
    return True


@pytest.mark.parametrize("readout", [r for r in READOUTS if r != "max pooling"])
@pytest.mark.parametrize("padding", ["", "left"])
def test_gradients_say_the_same_of_the_rows_that_are_read(readout, padding):
    form = "attention_mask" if padding else ""
    config = replace(ORDINARY, batch=3, length=7, readout=readout, padding=padding, padding_form=form, mixer="")
    case = exact(consistent(config))
    truth = Oracle(case.config, case.parameters, case.inputs, probed=True).run()
    output = truth.output[:, truth.target[0]] if truth.output.ndim == 3 else truth.output
    output = output[:, truth.target] if readout in OWN_ROWS else output
    rows = gradient(output, truth.last.value).abs().amax(-1) > 0
    assert truth.rows is not None
    assert torch.equal(rows, truth.rows > 0)
    torch.testing.assert_close(truth.rows.sum(1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_accounts_of_the_oracle_add_up(seed):
    case = exact(drawn(seed))
    truth, last = case.truth, case.truth.last
    rows = truth.real if last.value.shape[:2] == truth.real.shape else torch.ones(last.value.shape[:2]).bool()
    if last.parts is not None:
        torch.testing.assert_close(last.parts.sum(0)[rows], last.value[rows])
    no_input = case.config.stack == "latents" or case.config.prefix or case.config.branch == "class attention"
    if last.reach is not None and not no_input:
        torch.testing.assert_close(last.reach.sum(-1)[rows], torch.ones(int(rows.sum()), dtype=torch.float64))


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_mixer_is_known_to_mix(mixer):
    config = replace(ORDINARY, mixer=mixer, mixer_place="between", readout="first", length=6)
    case = exact(consistent(config))
    second = case.truth.calls[1]
    computes = WRITTEN_ELSEWHERE.get(mixer, mixer)
    if computes in ("roll", "flip"):
        assert second.key_index is not None
        assert second.key_index.tolist() != list(range(6))
    else:
        assert second.mixers == (computes,)
        assert case.truth.reach is None


def test_a_seed_is_a_model():
    assert drawn(77) == drawn(77)
    one, other = Case(drawn(77)), Case(drawn(77))
    assert torch.equal(one.output, other.output)
    assert drawn(77) != drawn(93)
    assert Config(**drawn(77).to_json()) == drawn(77)
    assert [drawn(seed).kind for seed in range(16)] == list(KINDS)
    assert seeds_of("dtypes", 0, 3) == [14, 30, 46]


def test_the_model_in_half_precision_has_the_same_parameters():
    case = Case(replace(ORDINARY, dtype="bfloat16"))
    whole = make_model(replace(ORDINARY, dtype="float64"), case.parameters)
    pairs = zip(case.model.parameters(), whole.parameters(), strict=True)
    assert all(a.dtype is torch.bfloat16 and torch.equal(a.double(), b) for a, b in pairs)


# ------------------------------------------------------------------------------- faults that were made on purpose


@pytest.fixture(scope="module")
def case() -> Case:
    found = Case(ORDINARY)
    assert all(finding.status == "right" for finding in found.findings())
    return found


@pytest.mark.parametrize(
    ("name", "break_it"),
    [
        ("weights", lambda found: [weights.roll(1, -1) for weights in found]),
        ("summed_norms", lambda found: [1.1 * norms for norms in found]),
        ("keys", lambda found: [replace(keys, index=keys.index.flip(0)) for keys in found]),
        ("calls", lambda found: [replace(call, kind="causal") for call in found]),
        ("calls", lambda found: found[:-1]),
    ],
    ids=["weights rolled", "norms scaled", "keys reversed", "another kind", "a call missing"],
)
def test_wrong_maps_are_seen(case, name, break_it):
    def break_maps(maps):
        found = {name: getattr(maps, name) for name in ("calls", "weights", "summed_norms", "keys")}
        return SimpleNamespace(**{**found, name: break_it(found[name])})

    assert broken(case, "attention_maps", break_maps).status == "silent"


def _with_a_smaller_residual(record):
    return replace(record, block=replace(record.block, residual=0.9 * record.block.residual))


@pytest.mark.parametrize(
    ("method", "break_it"),
    [
        ("AttentionNorm", lambda record: replace(record, W_O=1.05 * record.W_O)),
        ("AttentionNorm", lambda record: replace(record, W_O=record.W_O.flip(0))),
        ("AttentionNorm", lambda record: replace(record, values=record.values.roll(1, 2))),
        ("AttentionWeights", lambda record: replace(record, weights=record.weights.roll(1, 3))),
        ("AttentionRollout", lambda record: replace(record, weights=record.weights.mT)),
        ("AttentionBlockNorm", lambda record: replace(record, values=0.9 * record.values)),
        ("AttentionBlockNorm", _with_a_smaller_residual),
        ("ALTI", lambda record: replace(record, values=0.9 * record.values)),
        ("ALTI", _with_a_smaller_residual),
    ],
)
def test_a_method_that_reads_a_wrong_record_is_seen(case, method, break_it, monkeypatch):
    kind = getattr(captum_norm, method)
    measure = kind.measure
    monkeypatch.setattr(kind, "measure", lambda self, record: measure(self, break_it(record)))
    [finding] = case.findings((method,))
    assert (finding.status, finding.check) == ("silent", method)


def test_shares_of_other_tokens_are_seen(case):
    assert broken(case, "DecompX", lambda scores: tuple(s.roll(1, 1) for s in scores)).status == "silent"


def test_rounding_that_the_output_hides_is_seen_in_the_states():
    case = Case(next(one.config for one in named_cases() if one.name == "rounding_that_the_output_hides"))
    assert case.tolerance == 1e-3 < case.tolerance_of_states < 0.1
    assert broken(case, "attention_maps", lambda maps: maps).status == "right"
    assert broken(case, "AttentionNorm", lambda scores: tuple(s.roll(1, 1) for s in scores)).status == "silent"


def test_an_answer_where_there_is_none_is_seen():
    mixed = Case(replace(ORDINARY, mixer="gru", mixer_place="between", readout="first"))
    assert mixed.judged("ALTI", (torch.ones(1, 5),)).status == "silent"


def test_errors_of_ours_are_refusals_and_others_are_crashes(case, monkeypatch):
    def fails(self, record):
        return record.weights @ record.weights[..., :1]

    monkeypatch.setattr(captum_norm.AttentionNorm, "measure", fails)
    monkeypatch.setattr(captum_norm.AttentionWeights, "measure", lambda self, record: int("no number"))
    assert [f.status for f in case.findings(("AttentionNorm", "AttentionWeights"))] == ["crash", "crash"]
    unread = Case(replace(ORDINARY, attention="multiply and sum", readout="first"))
    assert {f.status for f in unread.findings(("attention_maps", "AttentionNorm"))} == {"refused"}


def test_a_fault_shrinks_to_what_it_needs(monkeypatch):
    measure = captum_norm.AttentionNorm.measure

    def measured(self, record):  # wrong where there are three heads
        return measure(self, record) * (1 + (record.weights.shape[1] == 3))

    monkeypatch.setattr(captum_norm.AttentionNorm, "measure", measured)
    plain = shrunk(replace(ORDINARY, heads=3, key_heads=3, layers=3, length=7), "AttentionNorm")
    assert (plain.heads, plain.layers, plain.length) == (3, 2, 5)


@pytest.fixture
def doubled(monkeypatch):
    """A fault that no answer may pass with: AttentionNorm's maps are twice what they should be."""
    measure = captum_norm.AttentionNorm.measure

    def arm() -> None:
        monkeypatch.setattr(captum_norm.AttentionNorm, "measure", lambda self, record: 2 * measure(self, record))

    return arm


def test_outcomes_are_counted(doubled):
    doubled()
    table = Table([Outcome.of(seed) for seed in (0, 16, 10)])
    assert sum(map(table.count, ("right", "silent", "refused", "crash"))) == 3 * len(CHECKS)
    assert table.count("silent", "encoder") == 2
    assert table.first("silent", "encoder")[0] == 0
    assert "encoder" in table.text()
    assert "cumsum" in table.details()
    assert table.to_json()["models"] == 3


def test_the_command_says_by_its_exit_status_whether_anything_is_silent(tmp_path, capsys, doubled):
    found = tmp_path / "found.json"
    asked = ["--models", "1", "--kind", "encoder", "--seed", "16"]
    assert main([*asked, "--json", str(found)]) == 0
    assert json.loads(found.read_text())["answers"] == {"right": len(CHECKS), "refused": 0, "silent": 0, "crash": 0}
    assert f"ordinary models: {len(CHECKS)} of {len(CHECKS)} answers right" in capsys.readouterr().out
    doubled()
    assert main([*asked, "--details"]) == 1
    assert "| AttentionNorm |" in capsys.readouterr().out
    assert main(["--seed", "16", "--show"]) == 1
