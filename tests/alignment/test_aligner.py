"""Words in, links out, on every family of encoder-decoders; merged, shifted and counted as in the paper."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from captum_norm import attention_maps
from captum_norm.alignment import (
    METHODS,
    Choice,
    CrossAttentionAligner,
    GoldLinks,
    Pieces,
    SymmetricAligner,
    symmetrise,
)
from captum_norm.alignment.pieces import TokenizerPieces
from captum_norm.alignment.synthetic import known_pairs, trained, untrained
from captum_norm.alignment.teacher import Pair, Teacher
from tests.alignment.families import FAMILIES, Slow, byte_level, family, sentence_piece, tokenizer, word_piece

GERMAN = "der kleine hund schläft unter dem tisch .".split()
ENGLISH = "the little dog sleeps under the table .".split()
PAIRS = [(GERMAN, ENGLISH), (["kühe", "!"], ["a", "naïve", "b"]), (["tisch"], ["table", "."])]


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
    teacher = Teacher(model, Fixed(source_words, target_words))
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
        with pytest.raises(ValueError, match="is never read by the decoder"):
            batch_of((0, None), (0, 1), sources=1, targets=2)


class TestPieces:
    @pytest.mark.parametrize("cut", [byte_level, sentence_piece, word_piece])
    @pytest.mark.parametrize("words", [GERMAN, ["kühe", "日本", "!"], ["naïve"]])
    def test_every_piece_knows_its_word(self, cut, words):
        made = tokenizer(cut(), "<s> $A </s>")
        found = TokenizerPieces(made).source(words)
        assert (found.words[0], found.words[-1]) == (None, None)
        plain = [word for word in found.words if word is not None]
        assert plain == sorted(plain)
        assert set(plain) == set(range(len(words)))
        assert list(found.ids) == made(" ".join(words))["input_ids"]
        assert found.special == ("<s>", "</s>")
        if cut is not word_piece:  # whose decoder was left out
            for number, word in enumerate(words):
                ids = [i for i, w in zip(found.ids, found.words, strict=True) if w == number]
                assert made.decode(ids).strip() == word

    def test_languages_go_where_the_tokenizer_puts_them_and_are_no_words(self):
        pieces = TokenizerPieces(tokenizer(sentence_piece(), "de_DE $A </s>", "en_XX $A </s>"))
        assert pieces.source(GERMAN).special == ("de_DE", "</s>")
        assert pieces.target(ENGLISH).special == ("en_XX", "</s>")

    def test_a_prefix_is_read_and_is_no_word(self):
        made = tokenizer(sentence_piece())
        plain, found = TokenizerPieces(made).source(GERMAN), TokenizerPieces(made, "der tisch:").source(GERMAN)
        assert list(found.ids) == made("der tisch: " + " ".join(GERMAN))["input_ids"]
        before = len(found.ids) - len(plain.ids)
        assert found.words == (None,) * before + plain.words
        assert len(found.special) == before + 1

    def test_a_tokenizer_without_offsets_is_asked_word_by_word(self):
        fast, slow = TokenizerPieces(tokenizer(sentence_piece(), "de_DE $A </s>")), TokenizerPieces(Slow())
        assert slow.source(GERMAN).words == fast.source(GERMAN).words
        assert slow.target(ENGLISH).special == ("en_XX", "</s>")

    def test_a_tokenizer_without_offsets_that_joins_words_is_refused(self):
        class Joining(Slow):
            def __call__(self, text="", text_target="", add_special_tokens=True):
                return super().__call__(text.replace(" ", ""), text_target, add_special_tokens)

        with pytest.raises(ValueError, match="cuts 'der kleine' into other pieces than its words one by one"):
            TokenizerPieces(Joining()).source(["der", "kleine"])

    def test_a_piece_over_two_words_is_refused(self):
        whole = Tokenizer(models.WordLevel({"a b": 0, "?": 1}, unk_token="?"))
        whole.pre_tokenizer = pre_tokenizers.Split("|", "removed")
        with pytest.raises(ValueError, match="covers more than one word, in 'a b'"):
            TokenizerPieces(PreTrainedTokenizerFast(tokenizer_object=whole, unk_token="?")).source(["a", "b"])

    def test_what_is_no_tokenizer_is_refused(self):
        with pytest.raises(TypeError, match="dict is neither a tokenizer"):
            CrossAttentionAligner(family("marian")[0], {})


@pytest.mark.parametrize("name", FAMILIES)
class TestFamilies:
    def test_links_are_where_the_models_own_weights_are_largest(self, name):
        """Against the weights that transformers gives out, merged by hand."""
        model, pieces = family(name)
        model.set_attn_implementation("eager")
        source = pieces(" ".join(GERMAN), return_tensors="pt")
        labels = pieces(text_target=" ".join(ENGLISH), return_tensors="pt")["input_ids"]
        with torch.no_grad():
            weights = model(**source, labels=labels, output_attentions=True).cross_attentions[1].mean(1)[0]
        teacher = Teacher(model, pieces)
        [pair] = teacher.encode([GERMAN], [ENGLISH])
        for setting, shift in (("awo", 0), ("awi", 1)):
            aligner = CrossAttentionAligner(model, pieces, "weights", layer=1, setting=setting)
            found = aligner.align(GERMAN, ENGLISH, scores=True)
            assert torch.allclose(found.scores, by_hand(pair, weights, shift), atol=1e-5)
            best = found.scores.argmax(-1).tolist()
            assert list(found.links) == sorted((s, t) for t, s in enumerate(best) if s < len(GERMAN))

    @pytest.mark.parametrize("method", METHODS)
    def test_every_method_gives_every_word_at_most_one_link(self, name, method):
        model, pieces = family(name)
        aligner = CrossAttentionAligner(model, pieces, method, layer=-1, setting="awo")
        links = aligner.align([s for s, _ in PAIRS], [t for _, t in PAIRS])
        for (source, target), one in zip(PAIRS, links, strict=True):
            assert len({t for _, t in one}) == len(one)
            assert all(0 <= s < len(source) and 0 <= t < len(target) for s, t in one)

    @pytest.mark.parametrize("method", METHODS)
    def test_company_in_a_batch_changes_nothing(self, name, method):
        model, pieces = family(name)
        aligner = CrossAttentionAligner(model, pieces, method, layer="mean", setting="awi")
        together = aligner.align([s for s, _ in PAIRS], [t for _, t in PAIRS], scores=True)
        for (source, target), found in zip(PAIRS, together, strict=True):
            alone = aligner.align(source, target, scores=True)
            assert torch.allclose(found.scores, alone.scores, atol=1e-4)
            assert found.candidates == alone.candidates


def by_hand(pair: Pair, weights: torch.Tensor, shift: int) -> torch.Tensor:
    """(target word, candidate), piece by piece."""
    specials = [k for k, word in enumerate(pair.source_pieces.words) if word is None]
    result = torch.zeros(len(pair.target), len(pair.source) + len(specials))
    for t in range(len(pair.target)):
        rows = [r + shift for r, word in enumerate(pair.target_pieces.words) if word == t]
        for k, word in enumerate(pair.source_pieces.words):
            column = len(pair.source) + specials.index(k) if word is None else word
            result[t, column] += sum(weights[r, k] for r in rows) / len(rows)
    return result


class TestTheAligner:
    def test_norms_are_those_of_attention_maps(self):
        model, pieces = family("marian")
        teacher = Teacher(model, pieces)
        [pair] = teacher.encode([GERMAN], [ENGLISH])
        [batch] = teacher.batches([pair], 1)
        maps = attention_maps(model.base_model, batch.inputs, ("summed_norms", "head_norms"))
        cross = [i for i, call in enumerate(maps.calls) if call.kind == "cross"]
        whole = CrossAttentionAligner(model, pieces, layer=1, setting="awo").align(GERMAN, ENGLISH, scores=True)
        head = CrossAttentionAligner(model, pieces, layer=1, head=1, setting="awo").align(GERMAN, ENGLISH, scores=True)
        assert torch.allclose(whole.scores, by_hand(pair, maps.summed_norms[cross[1]][0], 0), atol=1e-5)
        assert torch.allclose(head.scores, by_hand(pair, maps.head_norms[cross[1]][0, 1], 0), atol=1e-5)

    def test_one_pair_gives_its_links_and_many_give_a_list_in_their_order(self):
        model, pieces = family("t5")
        aligner = CrossAttentionAligner(model, pieces, layer=0, setting="awo", batch_size=2)
        many = aligner.align([s for s, _ in PAIRS], [t for _, t in PAIRS])
        assert many == [aligner.align(source, target) for source, target in PAIRS]

    def test_the_model_is_left_as_it_was(self):
        model, pieces = family("bart")
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        CrossAttentionAligner(model, pieces, layer=0, setting="awo").align(GERMAN, ENGLISH)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

    def test_layers_and_heads_are_counted_from_either_end(self):
        model, pieces = family("marian")
        for first, last in ((0, -2), (1, -1)):
            one, other = (
                CrossAttentionAligner(model, pieces, layer=n, head=n, setting="awo").align(GERMAN, ENGLISH, scores=True)
                for n in (first, last)
            )
            assert torch.equal(one.scores, other.scores)

    def test_fit_finds_the_place_where_the_links_came_from(self):
        model, pieces = family("marian", seed=3)
        hidden = CrossAttentionAligner(model, pieces, layer=1, head=0, setting="awi")
        links = hidden.align([s for s, _ in PAIRS], [t for _, t in PAIRS])
        gold = [GoldLinks(one) for one in links]
        aligner = CrossAttentionAligner(model, pieces, head="best").fit(PAIRS, gold)
        assert aligner.choice == Choice("awi", 1, 0)
        evaluation = aligner.evaluate(PAIRS, gold)
        assert evaluation.chosen is not None
        assert evaluation.chosen.score.error_rate == 0
        assert evaluation.best(heads=True) == evaluation.chosen

    def test_fit_chooses_only_what_was_left_open(self):
        model, pieces = family("marian")
        gold = [GoldLinks({(0, 0)})] * 3
        fitted = CrossAttentionAligner(model, pieces, layer=1).fit(PAIRS, gold)
        assert fitted.choice is not None
        assert (fitted.choice.layer, fitted.choice.head) == (1, None)
        fitted = CrossAttentionAligner(model, pieces, setting="awi").fit(PAIRS, gold)
        assert fitted.choice is not None
        assert fitted.choice.setting == "awi"
        assert fitted.choice.layer in (0, 1)

    def test_an_evaluation_has_every_place_and_a_diagonal(self):
        model, pieces = family("bart")
        found = CrossAttentionAligner(model, pieces, layer=-1, setting="awo").evaluate(PAIRS, [GoldLinks({(0, 0)})] * 3)
        assert len(found.rows) == 2 * (2 * (1 + 2) + 1)
        assert (found.layers(), found.heads(0), found.pairs) == (2, 2, 3)
        assert found.chosen == found.row("awo", 1)
        rates = [found.row("awi", layer).score.error_rate for layer in range(2)]
        assert found.layer_mean("awi") == pytest.approx(sum(rates) / 2)
        assert found.diagonal.recall == 1
        assert all(0 <= row.special_share + row.punctuation_share <= 1 + 1e-6 for row in found.rows)
        assert found.as_dict()["chosen"]["choice"]["layer"] == 1
        with pytest.raises(KeyError, match="AWO, layer 7"):
            found.row("awo", 7)

    def test_shares_of_special_tokens_and_punctuation_are_those_of_the_scores(self):
        model, pieces = family("bart")
        aligner = CrossAttentionAligner(model, pieces, "weights", layer=0, setting="awo")
        found = aligner.align([s for s, _ in PAIRS], [t for _, t in PAIRS], scores=True)
        row = aligner.evaluate(PAIRS, [GoldLinks({(0, 0)})] * 3).chosen
        assert row is not None
        special = torch.cat([one.scores[:, len(one.source) :].sum(-1) for one in found])
        marks = [[word in (".", "!") for word in one.source] for one in found]
        columns = [
            one.scores[:, : len(one.source)][:, torch.tensor(m)].sum(-1) for one, m in zip(found, marks, strict=True)
        ]
        assert row.special_share == pytest.approx(float(special.mean()), abs=1e-6)
        assert row.punctuation_share == pytest.approx(float(torch.cat(columns).mean()), abs=1e-6)

    def test_evaluation_counts_the_links_that_align_gives(self):
        model, pieces = family("nllb")
        aligner = CrossAttentionAligner(model, pieces, layer=0, setting="awi", batch_size=2)
        everywhere = aligner.links_everywhere(PAIRS)
        assert everywhere[Choice("awi", 0)] == aligner.align([s for s, _ in PAIRS], [t for _, t in PAIRS])


class TestTwoDirections:
    def test_links_of_both_models_are_joined_word_by_word(self):
        there = CrossAttentionAligner(*family("marian", seed=1), layer=1, setting="awo")
        back = CrossAttentionAligner(*family("t5", seed=2), layer=0, setting="awi")
        sources, targets = [s for s, _ in PAIRS], [t for _, t in PAIRS]
        for how in ("intersection", "union", "grow-diag-final"):
            both = SymmetricAligner(there, back, how)
            turned = [[(s, t) for t, s in one] for one in back.align(targets, sources)]
            expected = [symmetrise(a, b, how) for a, b in zip(there.align(sources, targets), turned, strict=True)]
            assert both.align(sources, targets) == expected
            assert both.align(*PAIRS[0]) == expected[0]
            score = both.evaluate(PAIRS, [GoldLinks(one) for one in expected[:1]] + [GoldLinks({(0, 0)})] * 2)
            assert score.links == sum(map(len, expected))

    def test_another_way_to_join_is_refused_at_once(self):
        with pytest.raises(ValueError, match="how should be intersection, union or grow-diag-final"):
            SymmetricAligner(None, None, "both")


class TestRefusals:
    @pytest.fixture
    def aligner(self):
        return CrossAttentionAligner(*family("marian"), layer=0, setting="awo")

    def test_a_decoder_without_encoder(self):
        model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=20))
        with pytest.raises(ValueError, match="GPT2LMHeadModel is no encoder-decoder"):
            CrossAttentionAligner(model, Slow())

    @pytest.mark.parametrize(
        ("source", "target", "error", "message"),
        [
            ("ein haus", ["a"], TypeError, "source, sentence 1 should be a list of words, got a string"),
            (["ein haus"], ["a"], ValueError, "source, sentence 1: word 0 is 'ein haus', but a word holds"),
            ([], ["a"], ValueError, "0 source sentences, but 1 target"),
            ([["ein"], []], [["a"], ["b"]], ValueError, "source, sentence 2 is empty"),
            ([["ein"]], [["a"], ["b"]], ValueError, "1 source sentences, but 2 target sentences"),
            ([["ein", ""]], [["a"]], ValueError, "word 1 is ''"),
        ],
    )
    def test_sentences_that_are_none(self, aligner, source, target, error, message):
        with pytest.raises(error, match=message):
            aligner.align(source, target)

    def test_sentences_too_long_for_the_model(self):
        with pytest.raises(ValueError, match=r"too long|position"):
            CrossAttentionAligner(*family("bart"), layer=0, setting="awo").align(["hund"] * 100, ["dog"])

    @pytest.mark.parametrize(
        ("how", "message"),
        [
            ({"method": "norms"}, "method should be one of norm, weights"),
            ({"layer": "last"}, 'layer should be an integer, "best" or "mean", got \'last\''),
            ({"layer": True}, "layer should be an integer"),
            ({"head": 0.5}, "head should be an integer"),
            ({"setting": "AWI"}, 'setting should be "awi", "awo" or "best"'),
            ({"method": "alti", "head": 0}, "ALTI has no form for a single head"),
            ({"layer": "mean", "head": 0}, "head belongs to one layer"),
            ({"batch_size": 0}, "batch_size should be at least 1"),
        ],
    )
    def test_choices_that_do_not_exist(self, how, message):
        with pytest.raises(ValueError, match=message):
            CrossAttentionAligner(*family("marian"), **how)

    def test_a_layer_or_head_beyond_the_models(self):
        with pytest.raises(ValueError, match="layer=2, but there are 2 cross-attention layers"):
            CrossAttentionAligner(*family("marian"), layer=2, setting="awo").align(["hund"], ["dog"])
        with pytest.raises(ValueError, match="head=5, but there are 2 heads"):
            CrossAttentionAligner(*family("marian"), layer=1, head=5, setting="awo").align(["hund"], ["dog"])
        with pytest.raises(ValueError, match="no layer 9"):
            CrossAttentionAligner(*family("marian"), layer=9).fit(PAIRS, [GoldLinks({(0, 0)})] * 3)

    def test_links_before_the_place_is_chosen(self):
        with pytest.raises(ValueError, match=r"still to be found: call fit\(pairs, gold\)"):
            CrossAttentionAligner(*family("marian")).align(["hund"], ["dog"])

    def test_gold_links_beyond_the_sentences(self, aligner):
        with pytest.raises(ValueError, match=r"pair 1 \(line 1\) has 1 source and 1 target words"):
            aligner.evaluate([(["hund"], ["dog"])], [GoldLinks({(1, 1)})])
        with pytest.raises(ValueError, match="there are no pairs"):
            aligner.evaluate([], [])

    def test_a_model_without_cross_attention(self):
        class Deaf(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.body = torch.nn.TransformerEncoderLayer(8, 2, 8, batch_first=True, dropout=0.0)
                self.table = torch.nn.Embedding(80, 8)

            def forward(self, source, target):
                return self.body(self.table(source)) if target.any() else source

        _, pieces = untrained(0)
        with pytest.raises(ValueError, match="Deaf ran, but no cross-attention was seen"):
            CrossAttentionAligner(Deaf().eval(), pieces, layer=0, setting="awo").align(["det0"], ["DET0"])


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
