"""Alignments and their evaluation are tables, in every spelling."""

import torch

from captum_norm.alignment.aligner import AlignedPair
from captum_norm.alignment.evaluation import AlignmentEvaluation, Choice, EvaluationRow
from captum_norm.alignment.scoring import AlignmentScore


def test_a_pair_has_a_row_for_each_target_word():
    pair = AlignedPair(
        ("das", "haus"), ("the", "house", "!"), ((0, 0), (1, 1)),
        torch.tensor([[3.0, 1, 0], [0, 4, 0], [1, 1, 2]]), ("das", "haus", "</s>"),
    )  # fmt: skip
    assert pair.as_table().rows == (("the", "das", 0.75), ("house", "haus", 1.0), ("!", None, 0.5))


def test_an_evaluation_has_a_row_for_each_place():
    score = AlignmentScore(0.25, 0.75, 0.5, 0.2, 0.3, 4)
    row = EvaluationRow(Choice("awo", 1), score, 0.1, 0.2)
    evaluation = AlignmentEvaluation("norm", 3, (row,), row, score)
    assert "| awo | 1 | all | 0.250 |" in evaluation.to_markdown()
    assert "chosen: AWO, layer 1, AER 0.250" in evaluation.to_text()
