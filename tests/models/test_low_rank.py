"""A low-rank update: what is written into the weights, and what is refused."""

import pytest
import torch
from torch.nn.utils.parametrize import register_parametrization

from captum_norm.models.low_rank import merge
from captum_norm.models.training.low_rank_update import LowRankUpdate


class TestLowRankUpdates:
    WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}  # noqa: RUF012

    def test_an_update_is_added_and_a_replacement_replaces(self):
        changed = merge(
            self.WEIGHTS,
            {"a.up": torch.tensor([[1.0], [2.0]]), "a.down": torch.tensor([[0.0, 1.0, 0.0]]), "b": torch.zeros(2)},
        )
        assert changed["a"].tolist() == [[0, 2, 2], [3, 6, 5]]
        assert changed["b"].tolist() == [0, 0]
        assert self.WEIGHTS["a"].tolist() == [[0, 1, 2], [3, 4, 5]]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"c": torch.ones(2)}, "name 'c', which is no weight"),
            ({"a.up": torch.ones(2, 1)}, r"a\.down is missing"),
            ({"a.down": torch.ones(1, 3)}, r"a\.up is missing"),
            ({"a.up": torch.ones(3, 1), "a.down": torch.ones(1, 3)}, r"\(2, 3\)"),
            ({"a.up": torch.ones(2, 1), "a.down": torch.ones(2, 3)}, r"\(rank, in\)"),
            ({"b": torch.ones(3)}, r"b is \(2,\), its change is \(3,\)"),
        ],
    )
    def test_changes_that_do_not_fit_are_refused(self, changes, message):
        with pytest.raises(ValueError, match=message):
            merge(self.WEIGHTS, changes)

    def test_what_is_trained_is_what_is_merged(self):
        linear = torch.nn.Linear(5, 4)
        plain = dict(linear.state_dict())
        update = LowRankUpdate(linear.weight, 2)
        register_parametrization(linear, "weight", update)
        assert torch.equal(linear.weight, plain["weight"])
        with torch.no_grad():
            update.up.normal_()
        merged = merge(plain, {"weight.up": update.up.detach(), "weight.down": update.down.detach()})
        assert torch.equal(linear.weight, merged["weight"])
