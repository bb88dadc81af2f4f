"""What type checkers see: mypy reads this file and never runs it, in the checkout and beside the installed package."""

from collections.abc import Mapping
from typing import Any, assert_type

import torch

from captum_norm import (
    AttentionMaps,
    AttentionNorm,
    AttentionRelevance,
    AttentionRollout,
    DecompX,
    Explanation,
    attention_maps,
    explain,
)


def scores_are_as_their_inputs(model: torch.nn.Module, ids: torch.Tensor, encoding: Mapping[str, Any]) -> None:
    for method in (AttentionNorm(model), AttentionRollout(model), AttentionRelevance(model)):
        assert_type(method.attribute(ids), torch.Tensor)
        assert_type(method.attribute(encoding, position=0), torch.Tensor)
        assert_type(method.attribute((ids, ids), target=1), tuple[torch.Tensor, ...])
    AttentionNorm(model).attribute(ids, positon=0)  # type: ignore[call-overload]  # a misspelt option is seen
    AttentionNorm(model).attribute("a text")  # type: ignore[call-overload]


def a_delta_comes_beside_the_scores(model: torch.nn.Module, ids: torch.Tensor) -> None:
    method = DecompX(model)
    assert_type(method.attribute(ids, target=1), torch.Tensor)
    assert_type(method.attribute(ids, target=1, return_convergence_delta=True), tuple[torch.Tensor, torch.Tensor])


def results_have_types(model: torch.nn.Module, encoding: Mapping[str, Any]) -> None:
    assert_type(attention_maps(model, encoding), AttentionMaps)
    assert_type(explain(AttentionNorm(model), encoding), Explanation)
    assert_type(explain(AttentionNorm(model), encoding).shares(), torch.Tensor)
