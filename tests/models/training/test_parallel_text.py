"""What a translation model may learn from: the collections as they are read, without the tests' sentences."""

import zipfile

import pytest

from captum_norm.models.training.parallel_text import (
    Pair,
    hold_out,
    letters,
    read_tatoeba,
    read_tokenised,
    usable,
    without,
)

from .small import SENTENCES


class TestWhatIsLearntFrom:
    def test_pieces_and_escapes_are_undone(self, tmp_path):
        (tmp_path / "de").write_text("Mil@@ len@@ ium @-@ Bug &quot;\nzwei\n", encoding="utf-8")
        (tmp_path / "en").write_text("a\nb\n", encoding="utf-8")
        assert read_tokenised(tmp_path / "de", tmp_path / "en")[0].german == ("millenium-bug", '"')

    def test_files_of_other_lengths_are_refused(self, tmp_path):
        (tmp_path / "de").write_text("eins\nzwei\n")
        (tmp_path / "en").write_text("one\n")
        with pytest.raises(ValueError, match=r"de has 3 lines, .*en has 2"):
            read_tokenised(tmp_path / "de", tmp_path / "en")

    def test_an_archive_of_something_else_is_refused(self, tmp_path):
        (tmp_path / "no.zip").write_text("text")
        with pytest.raises(ValueError, match=r"is not the archive with deu\.txt"):
            read_tatoeba(tmp_path / "no.zip")
        with zipfile.ZipFile(tmp_path / "untabbed.zip", "w") as archive:
            archive.writestr("deu.txt", "Hi.\tHallo!\nHi there.\n")
        with pytest.raises(ValueError, match=r"line 2 of deu\.txt has no tab"):
            read_tatoeba(tmp_path / "untabbed.zip")

    def test_a_sentence_kept_out_is_kept_out_on_either_side_however_it_is_written(self):
        pairs = [Pair(("das", "stimmt", "nicht", "!"), ("no", ".")), Pair(("ja",), ("that", "'s", "it")), SENTENCES[0]]
        assert without(pairs, ["Das stimmt nicht.", ("THAT'S", "it")]) == [SENTENCES[0]]

    def test_pairs_of_unlike_lengths_are_not_used(self):
        assert usable([Pair(("a",), ("b",) * 6), Pair((), ("b",)), SENTENCES[0], Pair(("a",) * 61, ("b",) * 61)]) == [
            SENTENCES[0]
        ]

    def test_what_is_held_out_shares_no_sentence_with_what_is_learnt(self):
        twins = [*SENTENCES, Pair(SENTENCES[0].german, ("another", "one"))]
        learnt, held = hold_out(twins, 3)
        assert len(held) == 3
        sides = {letters(side) for pair in held for side in pair}
        assert not any(letters(side) in sides for pair in learnt for side in pair)
        assert hold_out(list(reversed(twins)), 3)[1] == held
        with pytest.raises(ValueError, match="9 pairs cannot be held out of 9"):
            hold_out(twins, 9)
