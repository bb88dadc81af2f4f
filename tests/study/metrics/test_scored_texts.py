"""Scores that do not fit their texts are refused."""

from dataclasses import replace

import pytest
import torch

from tests.study.metrics.bag import random_scored


def test_scores_must_fit_and_be_numbers():
    scored = random_scored()
    with pytest.raises(ValueError, match="the score of token 2 of example 1 is nan"):
        replace(
            scored, scores=scored.scores.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(torch.nan).double())
        )
    with pytest.raises(ValueError, match="the score of token 2 of example 1 is inf"):
        replace(
            scored, scores=scored.scores.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(torch.inf).double())
        )
    with pytest.raises(ValueError, match=r"scores should be \(batch, token\), got shape \(11,\)"):
        replace(scored, scores=scored.scores[0])
    with pytest.raises(ValueError, match=r"evidence should be bool of the scores' shape \(3, 11\), got .* \(3, 10\)"):
        replace(scored, evidence=scored.evidence[:, :-1])
    with pytest.raises(ValueError, match="removable should be bool"):
        replace(scored, removable=scored.removable.long())
    with pytest.raises(ValueError, match="example 2 has no token that may be removed"):
        replace(scored, removable=scored.removable & torch.tensor([[True], [True], [False]]))
    with pytest.raises(ValueError, match=r"target should be one class per example, \(3,\) long"):
        replace(scored, target=scored.target[:2])
    with pytest.raises(ValueError, match=r"input_ids is .* but scores hold 3 examples"):
        replace(scored, inputs={"input_ids": scored.inputs["input_ids"][:2]})
