"""The task with known links: what it is, and that a trained model is aligned almost without error."""

import pytest

from captum_norm.alignment import (
    CrossAttentionAligner,
)
from captum_norm.alignment.synthetic import known_pairs, trained, untrained


class TestTheTaskWithKnownLinks:
    def test_it_is_a_reordering_in_which_every_target_word_has_one_source_word(self):
        for pair in known_pairs(50, seed=1):
            assert sorted(t for _, t in pair.gold.sure) == list(range(len(pair.target)))
            assert all(pair.source[s].upper() == pair.target[t] for s, t in pair.gold.sure)
            unlinked = set(range(len(pair.source))) - {s for s, _ in pair.gold.sure}
            assert all(pair.source[s].startswith("particle") for s in unlinked)
        assert known_pairs(5, seed=2) == known_pairs(5, seed=2) != known_pairs(5, seed=3)

    def test_a_word_that_the_grammar_does_not_have_is_refused(self):
        model, pieces = untrained(0)
        with pytest.raises(ValueError, match="'hund' is no word of the grammar"):
            CrossAttentionAligner(model, pieces, layer=0, setting="awo").align(["hund"], ["DET0"])

    @pytest.mark.slow
    def test_a_trained_model_is_aligned_almost_without_error_by_norm(self):
        """Known links, an nn.Transformer that has learnt the task: what is left is the method's own error."""
        model, pieces = trained(seed=0, steps=450)
        test = known_pairs(100, seed=77)
        pairs, gold = [(pair.source, pair.target) for pair in test], [pair.gold for pair in test]
        dev = known_pairs(50, seed=78)
        aligner = CrossAttentionAligner(model, pieces, head="best", batch_size=64)
        aligner.fit([(pair.source, pair.target) for pair in dev], [pair.gold for pair in dev])
        found = aligner.evaluate(pairs, gold)
        assert found.chosen is not None
        assert found.chosen.score.error_rate < 0.02
        assert found.diagonal.error_rate > 0.6
