"""Attention flow is the maximum flow of each pair, as the slowest augmenting paths find it."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from captum_norm.functional import flow, maxflow
from captum_norm.functional.even_flow import even_flow
from captum_norm.functional.maxflow import max_flows
from tests.functional.definition import slow_max_flow

EXACT = {"rtol": 1e-11, "atol": 1e-11}


def draw(lengths: list[int], batch: int, sharpness: float, sparse: bool) -> list[Tensor]:
    """Random maps, first layer first, from lengths of the layers, first inputs first."""
    maps = []
    for key, query in pairwise(lengths):
        a = (sharpness * torch.randn(batch, query, key, dtype=torch.float64)).softmax(-1)
        maps.append(a * (torch.rand_like(a) < 0.5) if sparse else a)
    return maps


def by_definition(maps: list[Tensor]) -> Tensor:
    """All flows, (batch, query, key), pair by pair."""
    batch, query, _ = maps[-1].shape
    return torch.tensor(
        [
            [
                [slow_max_flow([a[b].tolist() for a in maps], i, j) for j in range(maps[0].shape[2])]
                for i in range(query)
            ]
            for b in range(batch)
        ],
        dtype=torch.float64,
    )


@given(
    lengths=st.lists(st.integers(1, 5), min_size=2, max_size=6),
    sharpness=st.sampled_from([0.0, 1.0, 5.0]),
    sparse=st.booleans(),
)
def test_flows_are_those_of_augmenting_paths_at_any_number_of_layers(lengths, sharpness, sparse):
    maps = draw(lengths, 2, sharpness, sparse)
    expected = by_definition(maps)
    torch.testing.assert_close(flow(maps, normalize=False), expected, **EXACT)
    totals = expected.sum(-1, keepdim=True)
    torch.testing.assert_close(flow(maps), expected / totals.masked_fill(totals == 0, 1), **EXACT)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_larger_networks_of_any_scale_are_exact_too(scale):
    maps = draw([12] * 6, 1, 4.0, sparse=True)
    found = flow([scale * a for a in maps], normalize=False)
    torch.testing.assert_close(found / scale, by_definition(maps), **EXACT)


def test_networks_that_only_look_back_are_exact_too():
    maps = [a.tril() for a in draw([12] * 6, 1, 3.0, sparse=False)]
    torch.testing.assert_close(flow(maps, normalize=False), by_definition(maps), **EXACT)


def test_the_even_flow_is_the_answer_where_ends_alone_limit_and_pushing_finds_the_same(monkeypatch):
    maps = draw([24] * 9, 1, 0.3, sparse=False)
    pushed: list[int] = []
    solve = maxflow._Problems.solve
    monkeypatch.setattr(maxflow._Problems, "solve", lambda self, limit: pushed.append(len(limit)) or solve(self, limit))
    even = flow(maps, residual=True, normalize=False)
    assert not pushed
    monkeypatch.setattr("captum_norm.functional.even_flow._TURNS", 1)
    torch.testing.assert_close(flow(maps, residual=True, normalize=False), even, **EXACT)
    assert sum(pushed) > 500


def test_an_even_flow_meets_the_smaller_end_and_exceeds_neither():
    layers = [a[0] for a in draw([7, 6, 5], 1, 1.0, sparse=False)]
    supply, demand = torch.rand(9, 5, dtype=torch.float64), torch.rand(9, 7, dtype=torch.float64)
    found = even_flow(layers, supply, demand)
    assert (found.sent <= found.supply * (1 + 1e-7)).all()
    assert (found.got <= found.demand * (1 + 1e-7)).all()
    for n, layer in enumerate(layers):
        above, below = found.used[n]
        passed = above[:, :, None] * layer * below[:, None]
        torch.testing.assert_close(passed.sum((1, 2)), found.got.sum(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.got.sum(1), found.limit(), rtol=1e-7, atol=0)


def test_ends_that_no_flow_has_in_common_are_answered_too():
    """Nearly all demand is where next to no supply gets to: factors of an even flow grow beyond all bounds."""
    layers = [torch.eye(2), torch.tensor([[1.0, 1e-14], [0.0, 1.0]], dtype=torch.float64)]
    found = max_flows(layers, torch.tensor([[1.0, 0.0]]), torch.tensor([[1e-14, 1.0]], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([2e-14], dtype=torch.float64), rtol=1e-12, atol=0)


def test_each_flow_is_told_once():
    told: list[int] = []
    flow(draw([6] * 4, 2, 3.0, sparse=True), position=[1, 2], on_found=told.append)
    assert sum(told) == 2 * 6


def test_a_residual_mixes_each_map_with_the_identity():
    maps = draw([4] * 4, 2, 2.0, sparse=False)
    mixed = [(a + torch.eye(4)) / 2 for a in maps]
    torch.testing.assert_close(flow(maps, residual=True, normalize=False), by_definition(mixed), **EXACT)


def test_by_hand_a_narrow_edge_below_a_wide_one_is_what_counts():
    first = torch.tensor([[[0.1, 0.9], [0.3, 0.7]]])
    second = torch.tensor([[[0.5, 0.5], [0.0, 1.0]]])
    torch.testing.assert_close(flow([first, second], normalize=False), torch.tensor([[[0.4, 1.0], [0.3, 0.7]]]))
    torch.testing.assert_close(flow([first]), first)


def test_a_first_choice_that_leads_nowhere_is_taken_back():
    """The source fills node 0 first, whose way on is narrow; all of it must still reach the sink."""
    layers = [torch.tensor([[0.2, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 1.0]])]
    found = max_flows(layers, supply=torch.ones(1, 1), demand=torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(found, torch.ones(1, dtype=torch.float64))


def test_flow_is_at_most_what_leaves_the_output_and_what_reaches_the_input():
    maps = draw([20] * 8, 1, 3.0, sparse=False)
    found = flow(maps, residual=True, position=3, normalize=False)[0]
    reach = ((maps[0] + torch.eye(20)) / 2)[0].sum(0)
    assert (found <= reach.clamp(max=1) + 1e-12).all()


def test_rows_are_those_of_all_flows_whichever_are_asked_for():
    maps = draw([4, 5, 3, 3], 2, 2.0, sparse=False)
    every = flow(maps)
    torch.testing.assert_close(flow(maps, position=-1), every[:, -1])
    torch.testing.assert_close(flow(maps, position=[2, 0]), torch.stack([every[0, 2], every[1, 0]]))
    weights = torch.rand(2, 3, dtype=torch.float64)
    torch.testing.assert_close(flow(maps, position=weights), torch.einsum("bq,bqk->bk", weights, every))


def test_problems_solved_a_few_at_a_time_give_the_same(monkeypatch):
    maps = draw([6] * 5, 1, 2.0, sparse=True)
    together = flow(maps)
    monkeypatch.setattr("captum_norm.functional.maxflow._STATE", 300)
    torch.testing.assert_close(flow(maps), together, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_half_precision_goes_in_but_not_on(dtype):
    maps = [a.to(dtype) for a in draw([4] * 4, 1, 2.0, sparse=False)]
    found = flow(maps, normalize=False)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, by_definition([a.double() for a in maps]).float())


def test_what_no_path_reaches_is_zero_and_so_is_a_row_without_any_path():
    first, second = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), torch.tensor([[[0.5, 0.5], [0.0, 0.0]]])
    assert flow([first, second]).tolist() == [[[1.0, 0.0], [0.0, 0.0]]]


def test_bad_maps_are_refused_by_name():
    with pytest.raises(ValueError, match="flow: maps is empty"):
        flow([])
    with pytest.raises(ValueError, match=r"flow: maps\[1\] holds 1 negative numbers, the least -0.5"):
        flow([torch.ones(1, 1, 1), torch.full((1, 1, 1), -0.5)])
    with pytest.raises(ValueError, match=r"flow: maps\[0\] is not finite"):
        flow([torch.full((1, 2, 2), torch.inf)])
    with pytest.raises(ValueError, match=r"flow: maps\[0\] is not finite"):
        flow([torch.full((1, 2, 2), torch.nan)])
    with pytest.raises(ValueError, match=r"flow: the queries of maps\[0\] should be the keys of maps\[1\]"):
        flow([torch.ones(1, 2, 2), torch.ones(1, 2, 3)])
    with pytest.raises(ValueError, match=r"flow: residual=True needs square maps"):
        flow([torch.ones(1, 2, 3)], residual=True)
    with pytest.raises(ValueError, match="flow: position 2 is out of range"):
        flow([torch.ones(1, 2, 2)], position=2)
