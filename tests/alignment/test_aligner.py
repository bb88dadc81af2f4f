"""Words in, links out, on every family of encoder-decoders; merged, shifted and counted as in the paper."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from captum_norm import attention_maps
from captum_norm.alignment import (
    METHODS,
    Choice,
    CrossAttentionAligner,
    GoldLinks,
)
from captum_norm.alignment.batches import PairEncoder, SentencePair
from captum_norm.alignment.synthetic import untrained
from tests.alignment.families import FAMILIES, Slow, family

from .sentences import ENGLISH, GERMAN, PAIRS


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
        teacher = PairEncoder(model, pieces)
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

    @pytest.mark.wide(4)
    @pytest.mark.parametrize("method", METHODS)
    def test_company_in_a_batch_changes_nothing(self, name, method):
        model, pieces = family(name)
        aligner = CrossAttentionAligner(model, pieces, method, layer="mean", setting="awi")
        together = aligner.align([s for s, _ in PAIRS], [t for _, t in PAIRS], scores=True)
        for (source, target), found in zip(PAIRS, together, strict=True):
            alone = aligner.align(source, target, scores=True)
            assert torch.allclose(found.scores, alone.scores, atol=1e-4)
            assert found.candidates == alone.candidates


def by_hand(pair: SentencePair, weights: torch.Tensor, shift: int) -> torch.Tensor:
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
        teacher = PairEncoder(model, pieces)
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

    @pytest.mark.parametrize(
        ("place", "same"),
        [
            ({"layer": -1}, {"layer": 1}),
            ({"layer": 0, "head": -1}, {"layer": 0, "head": 1}),
            ({"layer": -2, "head": "best"}, {"layer": 0, "head": "best"}),
            ({"layer": "best", "head": -2}, {"layer": "best", "head": 0}),
            ({"layer": "best", "head": -1, "setting": "awo"}, {"layer": "best", "head": 1, "setting": "awo"}),
        ],
    )
    def test_fit_counts_layers_and_heads_from_either_end(self, place, same):
        model, pieces = family("marian", seed=3)
        gold = [GoldLinks({(0, 0)})] * 3
        fitted, other = (CrossAttentionAligner(model, pieces, **of).fit(PAIRS, gold).choice for of in (place, same))
        assert fitted == other
        assert fitted is not None
        assert same["layer"] in ("best", fitted.layer)
        assert same.get("head") in ("best", fitted.head)

    def test_fit_over_the_mean_of_the_layers_leaves_the_setting_open(self):
        choice = CrossAttentionAligner(*family("marian"), layer="mean").fit(PAIRS, [GoldLinks({(0, 0)})] * 3).choice
        assert choice is not None
        assert (choice.layer, choice.head) == ("mean", None)

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
            (["ein haus"], ["a"], ValueError, "source, sentence 1: word 0 is 'ein haus', but a word has"),
            ([], ["a"], ValueError, "0 source sentences, but 1 target"),
            ([["ein"], []], [["a"], ["b"]], ValueError, "source, sentence 2 is empty"),
            ([["ein"]], [["a"], ["b"]], ValueError, "1 source sentences, but 2 target sentences"),
            ([["ein", ""]], [["a"]], ValueError, "word 1 is ''"),
            ([["ein", "ha\ud800"]], [["a"]], ValueError, "source, sentence 1, word 1: character 2 is .* half"),
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

    @pytest.mark.parametrize(
        ("place", "says"),
        [
            ({"layer": 9}, "layer=9, but there are 2 cross-attention layers"),
            ({"layer": -3}, "layer=-3, but there are 2 cross-attention layers"),
            ({"layer": 1, "head": 2}, "head=2, but there are 2 heads in that layer"),
            ({"layer": 0, "head": -3}, "head=-3, but there are 2 heads in that layer"),
        ],
    )
    def test_a_place_beyond_the_models_is_neither_evaluated_nor_fitted(self, place, says):
        gold = [GoldLinks({(0, 0)})] * 3
        with pytest.raises(ValueError, match=says):
            CrossAttentionAligner(*family("marian"), setting="awo", **place).evaluate(PAIRS, gold)
        with pytest.raises(ValueError, match=says):
            CrossAttentionAligner(*family("marian"), **place).fit(PAIRS, gold)

    def test_a_head_that_no_layer_has(self):
        with pytest.raises(ValueError, match="head=2, but no layer has more than 2"):
            CrossAttentionAligner(*family("marian"), head=2).fit(PAIRS, [GoldLinks({(0, 0)})] * 3)

    def test_sentences_that_cannot_be_counted(self, aligner):
        gold = [GoldLinks({(0, 0)})] * 3
        with pytest.raises(TypeError, match="source should be a list, got generator"):
            aligner.align((source for source, _ in PAIRS), [target for _, target in PAIRS])
        with pytest.raises(TypeError, match="source should be a list, got set"):
            aligner.align({"hund"}, ["dog"])
        with pytest.raises(TypeError, match="target should be a list, got generator"):
            aligner.align([source for source, _ in PAIRS], (target for _, target in PAIRS))
        for pairs, links, name in ((iter(PAIRS), gold, "pairs"), (PAIRS, iter(gold), "gold")):
            with pytest.raises(TypeError, match=f"{name} should be a list, got list_iterator"):
                aligner.evaluate(pairs, links)
        with pytest.raises(TypeError, match="pairs should be a list, got list_iterator"):
            aligner.links_everywhere(iter(PAIRS))

    def test_links_before_the_place_is_chosen(self):
        with pytest.raises(ValueError, match=r"is still 'best'.*call fit\(pairs, gold\)"):
            CrossAttentionAligner(*family("marian")).align(["hund"], ["dog"])

    def test_gold_links_beyond_the_sentences(self, aligner):
        with pytest.raises(ValueError, match=r"pair 1 \(line 1\) has 1 source and 1 target words"):
            aligner.evaluate([(["hund"], ["dog"])], [GoldLinks({(1, 1)})])
        for link in ((-1, 0), (0, -1)):
            with pytest.raises(ValueError, match=r"a gold link joins source word [01] and target word [01], counted"):
                aligner.evaluate([(["hund"], ["dog"])], [GoldLinks({link})])
        with pytest.raises(ValueError, match="pairs is empty"):
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
        with pytest.raises(ValueError, match="Deaf ran without any cross-attention"):
            CrossAttentionAligner(Deaf().eval(), pieces, layer=0, setting="awo").align(["det0"], ["DET0"])


def test_pairs_are_counted_while_they_are_aligned_where_that_is_asked_for(capsys):
    model, pieces = untrained(seed=0)
    for show in (False, True):
        aligner = CrossAttentionAligner(model, pieces, layer=0, setting="awo", batch_size=1, show_progress=show)
        aligner.align([["det0"], ["noun3"]], [["DET0"], ["NOUN3"]])
        assert ("0/2" in capsys.readouterr().err) == show
