"""The film snippets to learn from: none is near a sentence of a test."""

import zipfile
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captum_norm.models import load_sentiment, sentiment_card
from captum_norm.models.training.polarity import (
    Snippet,
    binary,
    letters,
    near,
    read_polarity,
    read_trees,
    runs,
    split_snippets,
)
from captum_norm.models.training.sentiment import accuracy, encode

# Sentences whose words have nothing in common: no two share a run of eight letters.
DISTINCT = [f"{chr(97 + i) * 9} {chr(97 + j) * 9} film" for i in range(12) for j in range(12) if i < j]


class TestTheSplit:
    def test_respelling_hides_nothing(self):
        snippets = [
            "audrey tautou is amélie ( again ) , and the colour of her city is gold .",
            "it's a fine film for a rainy day , if not for two .",
            "you can't look away .",
            "a snippet of two sentences . the second one is quite another thing .",
            "yes . it works .",
            "something else entirely , about a boat",
        ]
        kept_out = [
            "Audrey Tautou is Amelie -LRB- again -RRB- , and the color of her city is gold .",
            "It 's a fine film for a rainy day , if not for two .",
            "You ca n't look away .",
            "The second one is quite another thing .",
            "Yes .",
        ]
        assert near(snippets, kept_out) == {0, 1, 2, 3, 4}
        assert letters(snippets[0])[:20] == letters(kept_out[0])[:20] == "audreytautouisamelie"

    def test_like_words_in_other_order_are_another_text(self):
        assert near(["the film is long and the book is short"], ["the book was long , and so is this film"]) == set()

    @given(st.permutations(DISTINCT), st.integers(0, 20), st.integers(1, 30))
    def test_nothing_is_shared_and_the_order_of_the_file_does_not_matter(self, texts, kept_out, held_out):
        barred, twins = DISTINCT[:kept_out], [f"{text} too" for text in texts[:9]]
        snippets = [Snippet(text, 0) for text in [*texts, *twins, *texts[:5]]]
        split = split_snippets(snippets, [text.upper() for text in barred], held_out)
        training, test = ([snippet.text for snippet in part] for part in (split.training, split.held_out))
        assert len(set(training)) == len(training)
        assert len(set(test)) == len(test) == held_out
        assert not near([*training, *test], barred)
        assert not near(training, test)
        assert len(training) + len(test) + len(split.removed) == len(snippets)
        assert split_snippets(snippets[::-1], barred, held_out).held_out == split.held_out

    def test_too_few_snippets_are_refused(self):
        with pytest.raises(ValueError, match="held_out is 3, but only 2 of 3 remain"):
            split_snippets([Snippet(text, 0) for text in ("a", "b", "c")], ["c"], 3)

    @given(st.text(alphabet="abc é.!'", max_size=40))
    def test_a_text_is_near_itself_however_it_is_spaced(self, text):
        if letters(text):
            assert near([text.upper()], [text]) == {0}
        assert "".join(letters(text)) == letters(" ".join(text))
        assert all(0 < len(run) <= 8 for run in runs(text))

    def test_trees_are_read_as_plain_sentences(self, tmp_path):
        path = tmp_path / "dev.txt"
        path.write_text(
            "(3 (2 It) (4 (4 (2 's) (3 (1 n't) (2 -LRB-))) (2 1\\/2)))\n(0 (2 Bad) (2 .))\n(2 (2 Hm) (2 .))\n"
        )
        assert read_trees(path) == [("It'sn't ( 1/2", 3), ("Bad .", 0), ("Hm .", 2)]
        assert binary(read_trees(path)) == [("It'sn't ( 1/2", 1), ("Bad .", 0)]

    @pytest.mark.parametrize("line", ["no tree", "(7 (2 It))", "(2 It"])
    def test_a_line_that_is_no_tree_is_named(self, tmp_path, line):
        (tmp_path / "dev.txt").write_text(f"(3 (2 Fine))\n{line}\n")
        with pytest.raises(ValueError, match=r"dev.txt, line 2: no tree"):
            read_trees(tmp_path / "dev.txt")

    def test_a_file_that_is_not_the_data_is_named(self, tmp_path):
        (tmp_path / "data.zip").write_text("no zip")
        with pytest.raises(ValueError, match=r"data\.zip is not the sentence polarity data"):
            read_polarity(tmp_path / "data.zip")
        with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
            archive.writestr("a", "b")
        with pytest.raises(ValueError, match=r"other\.zip is not the sentence polarity data"):
            read_polarity(tmp_path / "other.zip")


@pytest.fixture(scope="module")
def polarity(data):
    return data / "mr_polarity" / "sentence_polarity.zip"


@pytest.fixture(scope="module")
def treebank(data):
    """The treebank's sentences that must stay out of training: dev and test."""
    return {part: read_trees(data / "sst_trees" / f"{part}.txt") for part in ("dev", "test")}


@pytest.fixture(scope="module")
def split(polarity, treebank):
    return split_snippets(read_polarity(polarity), [text for trees in treebank.values() for text, _ in trees], 1000)


@pytest.mark.slow
class TestTheRealData:
    def test_every_sentence_of_the_treebanks_dev_and_test_parts_has_its_snippet_removed(self, split, treebank):
        sentences = [text for trees in treebank.values() for text, _ in trees]
        assert len(sentences) == 1101 + 2210
        assert near(sentences, [snippet.text for snippet in split.removed]) == set(range(len(sentences)))

    def test_no_sentence_of_the_treebanks_dev_and_test_parts_is_learnt(self, split, treebank):
        # Another way than the split's own: runs of three words, most of which a snippet would share with its sentence.
        where = defaultdict(list)
        for number, snippet in enumerate((*split.training, *split.held_out)):
            for triple in _triples(snippet.text):
                where[triple].append(number)
        for text in (text for trees in treebank.values() for text, _ in trees):
            own = _triples(text)
            shared = Counter(number for triple in own for number in where.get(triple, ()))
            assert len(own) < 5 or max(shared.values(), default=0) < 0.75 * len(own), text

    def test_the_split_is_the_one_that_the_description_counts(self, split):
        data = sentiment_card()["data"]
        assert len(split.training) == data["training"]
        assert len(split.held_out) == data["held_out"]
        assert len(split.removed) == data["removed"]
        assert not {letters(snippet.text) for snippet in split.training} & {letters(s.text) for s in split.held_out}
        assert 0.45 < sum(snippet.label for snippet in split.held_out) / len(split.held_out) < 0.55

    def test_the_stated_accuracy_is_reached_on_held_out_snippets(self, split):
        model, tokenizer = load_sentiment()
        reached = accuracy(model, encode(tokenizer, split.held_out))
        assert reached == pytest.approx(sentiment_card()["accuracy"]["held_out"], abs=0.003)


def _triples(text: str) -> set[tuple[str, ...]]:
    words = "".join(character if character.isalnum() else " " for character in text.lower()).split()
    return set(zip(words, words[1:], words[2:], strict=False))
