"""Every method of the table can be run on a text, and its random numbers are its own."""

import random
from importlib import import_module

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

import captum_norm
from captum_norm.measures import MEASURES
from captum_norm.methods import METHODS, Attributor, known_methods, run_method
from captum_norm.models import load_sentiment
from tests.cli.models import TEXT, bert_config, bert_tokenizer


@pytest.fixture(scope="module")
def sentiment():
    return load_sentiment()


def encoded(tokenizer, *texts):
    return tokenizer(list(texts), return_tensors="pt", padding=True)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_called_what_its_class_is_called(name):
    assert isinstance(getattr(import_module(METHODS[name].source), name), type)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.mode == "ids"])
def test_a_row_says_of_our_methods_what_their_classes_say(name):
    made = getattr(captum_norm, name)
    assert (METHODS[name].explains, METHODS[name].signed) == (made.explains, made.signed)


def test_every_class_that_scores_inputs_by_a_measure_can_be_compared():
    classes = {name for measure in MEASURES.values() for name in measure.classes}
    assert classes <= set(captum_norm.__all__)
    assert {name for name in classes if not name.startswith("Layer")} <= METHODS.keys()


def test_names_are_known_in_any_case_and_once():
    assert known_methods(["attentionnorm", "SALIENCY", "AttentionNorm"]) == ("AttentionNorm", "Saliency")
    with pytest.raises(ValueError, match=r"unknown method 'Norm'\. There are: AttentionNorm, "):
        known_methods(["Norm"])


class RandomScores:
    """An attribution that draws from torch and numpy, adds the target, and may fail."""

    fails = False

    def __init__(self, forward_func):
        self.forward_func = forward_func

    def attribute(self, inputs, target, **arguments):
        if self.fails:
            np.random.rand()
            torch.rand(1)
            raise RuntimeError("no scores")
        return torch.rand(inputs.shape) + torch.from_numpy(np.random.rand(*inputs.shape)) + target


@pytest.fixture
def drawing(monkeypatch, sentiment):
    """GradientShap, which draws from torch and numpy, with its class replaced."""
    monkeypatch.setattr("captum.attr.GradientShap", RandomScores)
    return Attributor("GradientShap", sentiment[0]), encoded(sentiment[1], "A warm film.")


def states():
    return torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()


def same(before, after):
    return torch.equal(before[0], after[0]) and np.array_equal(before[1], after[1]) and before[2] == after[2]


def test_a_seed_says_which_random_numbers_are_drawn(drawing):
    method, encoding = drawing
    first = method(encoding, 1, seed=3)
    assert torch.equal(method(encoding, 1, seed=3), first)
    assert not torch.equal(method(encoding, 1, seed=4), first)


@pytest.mark.parametrize("fails", [False, True], ids=["done", "failed"])
def test_the_callers_random_numbers_are_left_as_they_were(drawing, monkeypatch, fails):
    monkeypatch.setattr(RandomScores, "fails", fails)
    method, encoding = drawing
    torch.rand(3), np.random.rand(3)
    before = states()
    if fails:
        with pytest.raises(RuntimeError, match="no scores"):
            method(encoding, 1)
    else:
        method(encoding, 1)
    assert same(before, states())


def test_a_method_without_random_numbers_touches_no_generator(sentiment, monkeypatch):
    monkeypatch.setattr("torch.manual_seed", lambda seed: pytest.fail("a seed was set"))
    model, tokenizer = sentiment
    before = states()
    Attributor("Saliency", model)(encoded(tokenizer, "A warm film."), 1)
    assert same(before, states())


def test_methods_that_take_one_text_at_a_time_give_a_batch_what_they_give_each(drawing, sentiment):
    method, _ = drawing
    texts = ["A warm film.", "A cold film."]
    together = method(encoded(sentiment[1], *texts), torch.tensor([1, 0]))
    alone = [method(encoded(sentiment[1], text), target) for text, target in zip(texts, (1, 0), strict=True)]
    assert torch.equal(together, torch.cat(alone))


def test_an_output_is_explained_only_where_it_is_named(sentiment):
    model, tokenizer = sentiment
    with pytest.raises(ValueError, match="Saliency explains one output of the model, so it needs a target"):
        Attributor("Saliency", model)(encoded(tokenizer, "A warm film."))


def test_only_a_wrapping_method_is_told_what_it_wraps(sentiment):
    model, _ = sentiment
    with pytest.raises(ValueError, match="Saliency wraps no other method, so over='InputXGradient' says nothing"):
        Attributor("Saliency", model, over="InputXGradient")
    with pytest.raises(ValueError, match="AttentionNorm reads ids or wraps another"):
        Attributor("NoiseTunnel", model, over="AttentionNorm")
    with pytest.raises(ValueError, match="Saliency cannot be made with"):
        Attributor("Saliency", model, options={"colour": "red"})


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return BertForSequenceClassification(bert_config()).eval()


def test_every_method_of_the_table_runs_and_scores_every_token(classifier):
    encoding = bert_tokenizer()(TEXT, return_tensors="pt")
    for name, method in METHODS.items():
        if method.decoders:
            continue
        scores = run_method(name, classifier, encoding, target=1).scores
        assert scores.shape == encoding["input_ids"].shape
        assert method.signed or bool((scores >= 0).all())


def test_methods_that_draw_random_numbers_say_the_same_twice(classifier):
    encoding = bert_tokenizer()(TEXT, return_tensors="pt")
    first = run_method("ShapleyValueSampling", classifier, encoding, target=1).scores
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert torch.equal(run_method("ShapleyValueSampling", classifier, encoding, target=1).scores, first)
    assert torch.equal(torch.get_rng_state(), state)


def test_slow_methods_say_how_far_they_are_where_that_is_asked_for(capsys, classifier):
    for name, says in (("ShapleyValueSampling", True), ("InputXGradient", False)):
        for show in (False, True):
            Attributor(name, classifier, show_progress=show)(bert_tokenizer()(TEXT, return_tensors="pt"), 1)
            assert bool(capsys.readouterr().err) == (show and says)
