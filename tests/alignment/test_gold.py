"""On the gold alignments of Vilar et al.: what is counted, and that nothing was learnt from them."""

import pytest

from captum_norm.alignment import alignment_score, diagonal, read_links, read_sentences
from captum_norm.alignment.embedded import EMBEDDED_CHOICES, embedded_aligner
from captum_norm.alignment.examples import examples
from captum_norm.alignment.links import check_links
from captum_norm.models import translation_card, translation_words
from captum_norm.models.training.parallel_text import letters, read_tatoeba, read_tokenised
from captum_norm.models.training.translation import read_collections
from captum_norm.models.translation import TRANSLATION_WEIGHTS

DEV = 100
SHIPPED = pytest.mark.skipif(not TRANSLATION_WEIGHTS.exists(), reason="no translation model is shipped")


@pytest.fixture(scope="module")
def gold(data):
    folder = data / "gold_vilar_deen"
    pairs = read_sentences(folder / "test.de", folder / "test.en")
    return pairs, read_links(folder / "alignment.talp", "talp", first=1, sentences=508)


def test_the_gold_links_are_those_published(gold):
    pairs, links = gold
    check_links(pairs, links)
    assert sum(len(one.sure) for one in links) == 9613
    assert sum(len(one.possible) for one in links) == 10534


def test_the_diagonal_has_the_known_error_rate(gold):
    pairs, links = gold
    score = alignment_score([diagonal(len(source), len(target)) for source, target in pairs], links)
    assert score.error_rate == pytest.approx(0.742, abs=0.003)


@pytest.mark.slow
def test_no_gold_sentence_is_learnt_from_however_it_is_written(gold, data):
    """Compared here word by word and letter by letter, not by the function that keeps them out."""
    files = [data / "gold_vilar_deen" / f"test.{language}" for language in ("de", "en")]
    collections = read_collections(
        data / "tatoeba" / "deu-eng.zip", data / "wmt_deen_10k", data / "europarl_deen_3k", files
    )
    learnt = {" ".join(side) for pairs in collections for pair in pairs for side in pair}
    squeezed = {"".join(filter(str.isalnum, sentence)) for sentence in learnt}
    assert [len(pairs) > count for pairs, count in zip(collections, (160_000, 9_900, 3_000), strict=True)] == [True] * 3
    for side in (side for pair in gold[0] for side in pair):
        sentence = " ".join(side)
        assert sentence not in learnt
        assert " ".join(translation_words(sentence)) not in learnt
        assert "".join(filter(str.isalnum, sentence)) not in squeezed


@pytest.mark.slow
def test_some_would_have_been(gold, data):
    """The sieve holds something back: the test above is not idle."""
    everything = read_tatoeba(data / "tatoeba" / "deu-eng.zip")
    folder = data / "europarl_deen_3k"
    everything += read_tokenised(folder / "toy.bpe.de", folder / "toy.bpe.en")
    ours = {letters(side) for pair in gold[0] for side in pair}
    assert sum(letters(pair.german) in ours or letters(pair.english) in ours for pair in everything) > 10


@pytest.mark.slow
def test_our_own_sentences_are_none_of_theirs(data):
    ours = {letters(side) for pair in examples()[0] for side in pair}
    theirs = read_tatoeba(data / "tatoeba" / "deu-eng.zip")
    assert not ours & {letters(side) for pair in theirs for side in pair}


@SHIPPED
@pytest.mark.slow
@pytest.mark.parametrize("method", ["norm", "weights"])
def test_the_embedded_model_aligns_as_its_card_says(gold, method):
    pairs, links = gold
    aligner = embedded_aligner(method)
    aligner.fit(pairs[:DEV], links[:DEV])
    assert aligner.choice == EMBEDDED_CHOICES[method]
    found = aligner.evaluate(pairs[DEV:], links[DEV:], resamples=0).chosen
    assert found is not None
    assert 100 * found.score.error_rate == pytest.approx(translation_card()["alignment"][method], abs=0.2)
