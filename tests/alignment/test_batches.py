"""From pairs to batches, and from scores of pieces to scores of words and links: worked by hand."""

import pytest
import torch

from captum_norm.alignment import (
    Pieces,
)
from captum_norm.alignment.batches import PairEncoder
from captum_norm.alignment.synthetic import untrained


class Fixed:
    """Pieces as they are written down, whatever the words."""

    start = 1

    def __init__(self, source, target):
        self._source, self._target = source, target

    def source(self, words):
        return Pieces(tuple(range(len(self._source))), self._source)

    def target(self, words):
        return Pieces(tuple(range(len(self._target))), self._target)


def batch_of(source_words, target_words, sources=3, targets=2):
    """One pair: which word each source piece belongs to, and each target piece."""
    model, _ = untrained(0)
    teacher = PairEncoder(model, Fixed(source_words, target_words))
    words = ["s"] * sources, ["t"] * targets
    [batch] = teacher.batches(teacher.encode([words[0]], [words[1]]), 8)
    return batch


class TestTheProcedure:
    # two source words of one and two pieces, then </s>; two target words of two and one pieces, then </s>
    SOURCE, TARGET = (0, 1, 1, None), (0, 0, 1, None)

    def batch(self):
        return batch_of(self.SOURCE, self.TARGET, sources=2, targets=2)

    def test_a_source_words_pieces_are_added_and_a_target_words_rows_averaged(self):
        scores = torch.tensor([[[0.4, 0.1, 0.3, 0.2], [0.2, 0.4, 0.2, 0.2], [0.1, 0.1, 0.1, 0.7], [9.0, 0, 0, 0]]])
        of_words = self.batch().to_words(scores, "awo")
        assert torch.allclose(of_words, torch.tensor([[[0.3, 0.5, 0.2], [0.1, 0.2, 0.7]]]))

    def test_the_end_of_the_sentence_is_a_candidate_and_where_it_wins_there_is_no_link(self):
        of_words = torch.tensor([[[0.3, 0.5, 0.2], [0.1, 0.2, 0.7]]])
        assert self.batch().links(of_words) == [[(1, 0)]]

    def test_two_small_pieces_beat_a_larger_one(self):
        scores = torch.tensor([[[0.5, 0.3, 0.3, 0.0]] * 4])
        assert self.batch().links(self.batch().to_words(scores, "awo")) == [[(1, 0), (1, 1)]]

    def test_alignment_with_input_reads_the_row_after(self):
        scores = torch.eye(4)[None]
        of_words = self.batch().to_words(scores, "awi")
        # the pieces of word 0 are read at rows 1 and 2, that of word 1 at row 3; row 0 reads the start
        assert torch.allclose(of_words, torch.tensor([[[0, 1, 0], [0, 0, 1.0]]]))

    def test_heads_are_merged_like_layers(self):
        scores = torch.rand(1, 3, 4, 4)
        whole = self.batch().to_words(scores, "awo")
        for head in range(3):
            assert torch.allclose(whole[:, head], self.batch().to_words(scores[:, head], "awo"))

    def test_every_special_token_is_a_candidate_of_its_own(self):
        batch = batch_of((None, 0, None), (0, None), sources=1, targets=1)
        of_words = batch.to_words(torch.tensor([[[0.3, 0.4, 0.3], [0, 0, 1]]]), "awo")
        assert torch.allclose(of_words, torch.tensor([[[0.4, 0.3, 0.3]]]))
        assert batch.links(of_words) == [[(0, 0)]]  # together they would have won

    def test_a_target_word_without_pieces_gets_no_link(self):
        batch = batch_of((0, None), (0, None), sources=1, targets=2)
        assert batch.links(batch.to_words(torch.tensor([[[1.0, 0], [1.0, 0]]]), "awo")) == [[(0, 0)]]

    def test_a_target_word_to_which_nothing_contributes_gets_no_link(self):
        of_words = torch.tensor([[[0.0, 0, 0], [0.1, 0.2, 0]]])
        assert self.batch().links(of_words) == [[(1, 1)]]

    def test_a_last_piece_that_is_never_read_is_refused(self):
        with pytest.raises(ValueError, match="the decoder never reads the last piece"):
            batch_of((0, None), (0, 1), sources=1, targets=2)
