"""Texts of statements: what is said to decide is all that decides, a model learns it, and studies rank statements."""

from dataclasses import replace
from random import Random

import pytest
import torch

from captum_norm.study import Example, Study
from captum_norm.study.data import as_examples
from captum_norm.study.metrics import METRICS
from captum_norm.study.planted import contexts, learnt
from captum_norm.study.planted.contexts import TASKS, VALUES, VOCABULARY, context_tokenizer, lesson
from captum_norm.study.planted.learnt import Pupil
from captum_norm.study.recovery import as_table, collected, measured, over_models, span_trace_of_answer

WORDS = list(VOCABULARY)


@pytest.mark.parametrize("task", TASKS)
def test_the_answer_is_in_the_evidence_and_nothing_else_says_it(task):
    for seed in range(30):
        context = TASKS[task](Random(seed))
        question = context.questions[0]
        told = [context.statements[number] for number in question.evidence]
        assert any(question.written[-1] in statement for statement in told)
        example = context.example("0", masked=task == "facts")
        assert WORDS[example.label] == question.written[-1]
        pieces = [example.text[start:end] for start, end in example.sources]
        assert pieces == [" ".join(statement) for statement in context.statements]
        assert {example.text[start:end] for start, end in example.evidence} == {" ".join(of) for of in told}


def test_evidence_of_a_chain_leads_from_the_name_to_the_value_statement_by_statement():
    for task in ("chain", "written"):
        for seed in range(20):
            context = TASKS[task](Random(seed))
            said = dict(statement[:2] for statement in context.statements)
            for question in context.questions:
                name, used = question.words[-1], set()
                while name not in VALUES:
                    used |= {n for n, of in enumerate(context.statements) if of[0] == name}
                    name = said[name]
                assert (used, name) == (set(question.evidence), question.written[-1])


def test_lessons_hold_texts_without_an_instruction_and_tests_do_not():
    learnt_from = [text for seed in range(4) for text in lesson("injected", Random(seed), 20)]
    assert 20 < sum(any("obey" in of for of in text.statements) for text in learnt_from) < 60
    assert all(any("obey" in of for of in TASKS["injected"](Random(seed)).statements) for seed in range(40))


@pytest.fixture
def tiny_pupil(monkeypatch):
    """One that learns to find a needle in a second."""
    pupil = Pupil(("needle",), learnt._decoder(1), 90, batch=16, needed=0.6)
    other = Pupil(("written",), learnt._decoder(1), 1, batch=2, needed=0.6)
    monkeypatch.setattr(learnt, "PUPILS", {"tiny": pupil, "other": other})
    monkeypatch.setattr(learnt, "_FRESH", 50)
    monkeypatch.setitem(contexts.TASKS, "needle", lambda random: contexts._needle(random, 4))
    return pupil


def test_a_model_that_was_trained_is_kept_and_its_texts_are_answered_rightly(tiny_pupil, tmp_path, monkeypatch):
    state = torch.get_rng_state()
    truth = learnt.learnt("needle", 0, 12, tmp_path)
    assert torch.equal(state, torch.get_rng_state())
    assert 0.6 <= truth.accuracy <= 1
    encoding = truth.tokenizer([of.text for of in truth.examples], return_tensors="pt", padding=True)
    last = encoding["attention_mask"].sum(1) - 1
    with torch.no_grad():
        written = truth.model(**encoding).logits[torch.arange(12), last].argmax(-1)
    assert written.tolist() == [of.label for of in truth.examples]
    with pytest.raises(RuntimeError, match=r"written \(seed 0\) is right about \d"):
        learnt.learnt("written", 0, 1)
    monkeypatch.setattr(learnt, "_train", lambda *_: pytest.fail("it is kept"))
    again = learnt.learnt("needle", 0, 12, tmp_path)
    assert again.examples == truth.examples
    with pytest.raises(ValueError, match=r"there are needle, keys, .*, not 'haystack'"):
        learnt.learnt("haystack")


def test_the_table_has_a_row_for_each_method_and_an_interval_over_models(tiny_pupil, tmp_path, monkeypatch):
    methods = {"AttentionNorm": "AttentionNorm", "none": lambda forward, inputs, target: -inputs["input_ids"]}
    monkeypatch.setattr("captum_norm.study.recovery.methods_of", lambda task: methods)
    runs = {"needle": [measured("needle", seed, tmp_path, 10, progress=False) for seed in (0, 1)]}
    found = collected(runs)
    cell = found["needle"]["recovery@1"]["AttentionNorm"]
    assert cell == over_models(cell["models"])
    assert found["needle"]["recovery@1"]["oracle"]["models"] == [1.0, 1.0]
    assert found["needle"]["recovery@1"]["random"]["mean"] == pytest.approx(0.25)
    assert cell["mean"] > 0.7  # what is copied is found
    rows = as_table(found, "lds").rows
    assert [row[0] for row in rows] == ["AttentionNorm", "none", "oracle", "random"]
    assert measured("needle", 0, tmp_path, 10, progress=False) == runs["needle"][0]  # from the store


def test_hops_are_asked_of_the_answers_own_row():
    model = learnt._decoder(1)().eval()
    ids = torch.tensor([[2, 9, 10, 11, 12, 13]])
    scores = span_trace_of_answer(1)(type("Forward", (), {"model": model})(), {"input_ids": ids}, torch.tensor([14]))
    assert scores.shape == ids.shape
    assert scores[0, -2:].tolist() == [0.0, 0.0]  # what was worked out is no source
    assert (scores[0, :4] > 0).any()


def test_sources_are_read_from_data_and_studied_as_a_whole(tmp_path):
    record = {"text": "anna red . boris blue . boris", "label": VOCABULARY["blue"], "sources": [[0, 10], [11, 23]]}
    [example] = as_examples([record | {"evidence": [[11, 23]]}])
    assert example.sources == ((0, 10), (11, 23))
    with pytest.raises(ValueError, match=r"sources should be spans \[start, end\], got 1"):
        as_examples([record | {"sources": [1, 0]}])
    with pytest.raises(ValueError, match=r"source \[5, 12\] is empty, overlaps another"):
        Example(record["text"], sources=((0, 10), (5, 12)))
    model = learnt._decoder(1)().eval()
    metrics = [replace(METRICS["recovery"], k=1), METRICS["comprehensiveness"]]
    study = Study(model, context_tokenizer(), {"first": first_words}, metrics, level="source", target="label")
    results = study.run([example], tmp_path / "s.db", progress=False)
    assert {name: float(of[0]) for name, of in results.values("recovery").items()} == {
        "first": 0.0, "oracle": 1.0, "random": 0.5,
    }  # fmt: skip
    with pytest.raises(ValueError, match="no sources"):
        METRICS["recovery"].__class__(level="source").units(_unsourced())


def first_words(forward, inputs, target):
    return -torch.arange(inputs["input_ids"].shape[1], dtype=torch.float64).expand(inputs["input_ids"].shape)


def _unsourced():
    from captum_norm.study.metrics.scored_texts import Scored

    ones = torch.ones(1, 3)
    return Scored({"input_ids": ones.long()}, ones, torch.tensor([0]), ones.bool())
