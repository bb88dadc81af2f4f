"""The order of the sentences: fixed by seed and epoch, in batches of bounded size."""

import random

from hypothesis import given
from hypothesis import strategies as st

from captum_norm.models.training.translation_batches import epoch_batches, joined


class TestTheOrder:
    def test_an_epoch_is_the_same_each_time_and_another_is_another(self, rows):
        def of(epoch, seed=0):
            return epoch_batches(rows, (0.5, 2, 3), (0.5, 0.5), 40, epoch, seed)

        assert of(1) == of(1) != of(2)
        assert of(1) != of(1, seed=1)

    def test_the_first_epoch_has_short_sentences_alone(self, rows):
        batches = epoch_batches(rows, (0.5, 2, 3), (0, 1), 40, 0, 0)
        seen = [row for batch in batches for part in batch for row in part]
        assert all(row in rows[0] and len(row[1]) <= 12 for row in seen)

    @given(size=st.integers(20, 200), epoch=st.integers(0, 3))
    def test_no_part_is_larger_than_allowed_but_for_a_single_row(self, rows, size, epoch):
        for batch in epoch_batches(rows, (1, 1, 1), (0.5, 0.5), size, epoch, 0):
            assert len(batch) == 2
            for part in batch:
                widest = 1 + max(max(map(len, row)) for row in part)
                assert len(part) == 1 or widest * len(part) <= size

    def test_joined_rows_keep_sentences_beside_their_translations(self, rows):
        long = joined(rows[0], (0, 0, 1), random.Random(0))
        assert len(long) == 3
        assert sorted(i for row in long for i in row[0]) == sorted(i for row in rows[0] for i in row[0])
        source, target = long[0]
        first = next(row for row in rows[0] if source[: len(row[0])] == row[0])
        assert target[: len(first[1])] == first[1]
