"""What a study promises of methods, texts and special tokens, whatever the methods are."""


import math
from dataclasses import replace

import accelerate
import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

from captum_norm.methods import METHODS
from captum_norm.study import METRICS, Study, Variant
from captum_norm.study.metrics.removal import REMOVALS
from captum_norm.study.run.store import Store
from tests.study import tiny

ONE = ["comprehensiveness"]


def test_every_method_of_the_table_takes_part(tmp_path):
    cheap = {
        "IntegratedGradients": {"n_steps": 3},
        "GradientShap": {"n_samples": 2},
        "ShapleyValueSampling": {"n_samples": 1},
        "KernelShap": {"n_samples": 6},
        "Lime": {"n_samples": 6},
    }
    names = [name for name, method in METHODS.items() if not method.decoders]
    methods = [Variant(name, name=name, arguments=cheap.get(name, {})) for name in names]
    results = tiny.run(tmp_path, methods, data=tiny.examples(3))
    assert results.methods == (*names, "oracle", "random")
    assert not results.failures()
    assert all(scores is not None for name in names for scores in results.scores(name))


def test_a_method_that_raises_on_one_example_fails_there_alone(tmp_path):
    def picky(forward, inputs, target):
        if (inputs["input_ids"] == tiny.PIECES.index("dull")).any():
            raise RuntimeError("no dull films, please")
        return patient(forward, inputs, target)

    def patient(forward, inputs, target):
        return inputs["input_ids"].double().sin()

    results = tiny.run(tmp_path, {"picky": picky, "patient": patient})
    dull = [number for number, (text, _) in enumerate(tiny.TEXTS) if "dull" in text.lower()]
    assert [(f.method, f.metric, int(f.key)) for f in results.failures()] == [("picky", None, d) for d in dull]
    assert results.failures()[0].error == "RuntimeError: no dull films, please"
    assert np.isnan(results.values("comprehensiveness")["picky"]).nonzero()[0].tolist() == dull
    values = results.values("comprehensiveness")
    known = ~np.isnan(values["picky"])
    assert values["picky"][known] == pytest.approx(values["patient"][known], abs=1e-6)
    table = results.table()
    assert table.cells["picky"]["comprehensiveness"].n == len(tiny.TEXTS) - len(dull)
    assert f"Failed: picky on {len(dull)} examples." in table.to_text()
    assert results.finished == 4 * len(tiny.TEXTS)


def test_what_is_explained_is_the_prediction_or_the_label(tmp_path):
    for target, store in (("predicted", "p.db"), ("label", "l.db")):
        tiny.run(tmp_path, target=target, name=store)
    predicted, labelled = (_targets(tmp_path / name) for name in ("p.db", "l.db"))
    assert [row[1] for row in labelled] == [number % 2 for number in range(len(tiny.TEXTS))]
    assert [row[1] for row in predicted] == [row[2] for row in predicted]
    assert all(row[3] >= 0.5 for row in predicted)


def _targets(path):
    with Store(path, readonly=True) as store:
        return store.rows("SELECT example, target, predicted, probability FROM targets ORDER BY example")


@pytest.mark.parametrize("which", [0, 1], ids=["decoder", "encoder-decoder"])
def test_a_language_model_is_asked_for_its_next_token(tmp_path, which):
    model, tokenizer = tiny.language_models()[which]
    texts = ["a warm film", "the plot is thin and dull", "that film never feels forced"]
    found = []
    for size in (1, 3):
        study = Study(model, tokenizer, ["AttentionNorm", "AttentionRollout", "Saliency"], ONE, batch_size=size)
        results = study.run(texts, tmp_path / f"{size}.db", progress=False)
        assert not results.failures()
        found.append(results)
    for method in found[0].methods:
        one, other = (np.concatenate(results.scores(method)) for results in found)
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    assert any(target > 1 for _, target, *_ in _targets(tmp_path / "1.db"))


def test_the_label_of_a_language_model_is_a_token(tmp_path):
    model, tokenizer = tiny.language_models()[0]
    study = Study(model, tokenizer, ["Saliency"], ONE, target="label")
    study.run([{"text": "a warm", "label": 7}], tmp_path / "s.db", progress=False)
    assert _targets(tmp_path / "s.db")[0][1] == 7
    with pytest.raises(ValueError, match="has 0 to"):
        study.run([{"text": "a warm", "label": len(tiny.PIECES)}], tmp_path / "t.db", progress=False)


@pytest.mark.parametrize("label", [2, -1, "great"])
def test_a_label_outside_the_model_is_refused_before_it_runs(tmp_path, label):
    with pytest.raises(ValueError, match=r"data, example 0: the label .* 0 to 1 or bad, good"):
        tiny.run(tmp_path, target="label", data=[{"text": "Fine.", "label": label}])
    with pytest.raises(ValueError, match="data, example 0 has no label"):
        tiny.run(tmp_path, target="label", data=["Fine."])
    tiny.run(tmp_path, target="label", data=[{"text": "Fine.", "label": "Good"}, {"text": "Bad.", "label": "0"}])
    assert not any(tmp_path.glob("*.part*"))


def test_special_tokens_are_masked_kept_or_reported(tmp_path):
    metrics = ["comprehensiveness"]
    choices = ("mask", "keep", "report")
    masked, kept, told = (tiny.run(tmp_path, special=s, name=f"{s}.db", metrics=metrics) for s in choices)
    a, b, c = (r.values("comprehensiveness")["AttentionNorm"] for r in (masked, kept, told))
    assert np.array_equal(a, c)
    assert not np.array_equal(a, b)
    shares = [s[[0, -1]].sum() / s.sum() for s in told.scores("AttentionNorm")]
    assert told.special_shares()["AttentionNorm"] == pytest.approx(np.mean(shares))
    assert "special tokens" in told.table().to_text()
    assert masked.special_shares() == {}


def test_variants_of_one_method_tell_how_far_the_ranking_holds(tmp_path):
    rollout = Variant("AttentionNorm", options={"aggregate": "rollout"})
    kept = Variant("AttentionNorm", special="keep")
    alone = Variant("IntegratedGradients", name="path", arguments={"n_steps": 2})  # a choice, but no variant
    results = tiny.run(tmp_path, ["AttentionNorm", alone, rollout, kept])
    assert results.methods[2:4] == ("AttentionNorm(aggregate=rollout)", "AttentionNorm(special=keep)")
    assert list(results.universes("comprehensiveness")) == [
        "comprehensiveness",
        "comprehensiveness, aggregate=rollout",
        "comprehensiveness, special=keep",
    ]
    moves = {move.variant: move for move in results.moves("comprehensiveness")}
    assert set(moves) == {"AttentionNorm(aggregate=rollout)", "AttentionNorm(special=keep)"}
    assert results.order_changes("comprehensiveness").methods == ("AttentionNorm", "IntegratedGradients", "random")
    plain = tiny.run(tmp_path, ["AttentionNorm", alone], name="plain.db")
    assert not plain.moves("comprehensiveness")
    assert math.isnan(plain.order_changes("comprehensiveness").largest)


def test_metrics_that_run_a_method_again_pass_over_those_that_cannot_be(tmp_path):
    results = tiny.run(tmp_path, ["Saliency"], ["sensitivity", "randomised_weights"], data=tiny.examples(3))
    for metric in results.metrics:
        assert np.isfinite(results.values(metric)["Saliency"]).all()
    assert np.isnan(results.values("sensitivity")["random"]).all()  # there is no method to run again
    assert np.isfinite(results.values("randomised_weights")["random"]).all()  # but an expectation
    assert not results.failures()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"special": "drop"}, "special should be one of 'mask', 'keep', 'report', got 'drop'"),
        ({"target": "gold"}, "target should be 'predicted', 'label' or 'contrast'"),
        ({"batch_size": 0}, "batch_size should be at least 1"),
        ({"removal": "burn"}, "removal should be one of"),
        (
            {"metrics": ["accuracy"]},
            r"unknown metric 'accuracy'\. Did you mean auprc\? There are: aopc_comprehensiveness",
        ),
        ({"metrics": ["auprc", "auprc"]}, "listed twice"),
        ({"methods": ["AttentionNrom"]}, "unknown method 'AttentionNrom'"),
        ({"methods": ["random"]}, "at least one method"),
        ({"methods": ["Saliency", "saliency"]}, "two methods are called 'Saliency'"),
    ],
)
def test_a_choice_that_is_not_known_is_refused(tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        tiny.run(tmp_path, **options)


def test_a_model_whose_layers_lie_on_disk_gives_the_same(tmp_path):
    methods = ["AttentionNorm", "GlobEnc", "Saliency", "FeatureAblation"]
    whole, spread = tiny.study(methods, ONE), tiny.study(methods, ONE)
    places = dict.fromkeys(("bert.encoder.layer.1", "bert.pooler", "classifier"), "disk")
    places |= dict.fromkeys(("bert.embeddings", "bert.encoder.layer.0"), "cpu")
    accelerate.dispatch_model(
        spread.forward.model, places, main_device="cpu", offload_dir=tmp_path / "layers", force_hooks=True
    )
    one, other = (s.run(tiny.examples(3), tmp_path / f"{i}.db", progress=False) for i, s in enumerate((whole, spread)))
    assert not other.failures()
    assert other.config["model"]["blake2b"] == one.config["model"]["blake2b"]
    assert other.config["model"]["device"] == ["cpu", "meta"]
    for method in methods:
        for a, b in zip(one.scores(method), other.scores(method), strict=True):
            assert np.array_equal(a, b)


def test_a_model_in_training_is_refused():
    with pytest.raises(ValueError, match="training mode"):
        Study(tiny.classifier().train(), tiny.tokenizer())


def test_metrics_of_one_name_are_told_apart(tmp_path):
    from dataclasses import replace

    usual = METRICS["comprehensiveness"]
    results = tiny.run(tmp_path, metrics=[usual, replace(usual, removal="mask")])
    assert results.metrics[0] == "comprehensiveness"
    assert "removal=mask" in results.metrics[1]


PAIRS = [
    {"text": "A warm film.", "text_pair": "The film is dull!", "label": 0, "evidence_pair": [[12, 16]]},
    {"text": "Dull.", "text_pair": "The cast shines.", "label": 1, "evidence": [[0, 4]]},
]


def test_pairs_of_texts_go_through_every_metric_and_removal(tmp_path):
    metrics = [metric for metric in METRICS.values() if metric.name != "leave_one_out_correlation"]
    metrics += [replace(METRICS["leave_one_out_correlation"], removal=removal) for removal in REMOVALS]
    results = tiny.run(tmp_path, ("AttentionNorm", "Saliency"), metrics, PAIRS, batch_size=2)
    assert not results.failures()
    assert results.tokens()[1] == ("[CLS]", "dull", ".", "[SEP]", "the", "cast", "shine", "##s", ".", "[SEP]")
    oracle = [scores.nonzero()[0].tolist() for scores in results.scores("oracle")]
    assert [[results.tokens()[row][place] for place in places] for row, places in enumerate(oracle)] == [
        ["dull"],
        ["dull"],
    ]
    assert results.explained[1].texts == ("Dull.", "The cast shines.")
    alone = tiny.run(tmp_path, ("Saliency",), ONE, [("Dull.", "The cast shines.")], "alone.db")
    assert alone.scores("Saliency")[0] == pytest.approx(results.scores("Saliency")[1], rel=1e-4)


def test_a_second_text_is_another_example(tmp_path):
    data = [("A warm film.", "Dull."), ("A warm film.", "Warm.")]
    random = tiny.run(tmp_path, ("Saliency",), ONE, data).scores("random")
    assert random[0][1] != random[1][1]


def test_the_same_study_by_words(tmp_path):
    tokens, words = (tiny.run(tmp_path, metrics=["comprehensiveness"], level=level, name=f"{level}.db")
                     for level in ("token", "word"))
    assert "Words are removed by: delete." in words.table(resamples=99).to_text()
    assert not words.failures()
    assert words.values("comprehensiveness")["AttentionNorm"] != pytest.approx(
        tokens.values("comprehensiveness")["AttentionNorm"]
    )


def _bert(kind, **config):
    base = tiny.classifier().config.to_dict() | config
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return kind(BertConfig(**{name: of for name, of in base.items() if name != "architectures"})).eval()


@pytest.mark.parametrize(
    ("task", "kind", "config", "position"),
    [
        ("labels", BertForSequenceClassification, {"problem_type": "multi_label_classification"}, None),
        ("regression", BertForSequenceClassification, {"num_labels": 1, "problem_type": "regression"}, None),
        ("tags", BertForTokenClassification, {"num_labels": 3}, 1),
    ],
    ids=str,
)
def test_a_study_of_another_task_explains_its_answer(tmp_path, task, kind, config, position):
    """Labels by themselves, a value, the tag of one token; methods that look at no class say the same of all."""
    model = _bert(kind, **{"id2label": {n: f"l{n}" for n in range(config.get("num_labels", 2))}, **config})
    removal = None if position is None else "mask"  # deleting would move the token that is asked about
    metrics = ["comprehensiveness", "sufficiency", "leave_one_out_change_correlation", "deletion_area"]
    study = Study(
        model, tiny.tokenizer(), ["AttentionNorm", "InputXGradient"], metrics, position=position, removal=removal
    )
    results = study.run(["A warm film.", "The plot is thin and dull."], tmp_path / "s.db", progress=False)
    assert not results.failures()
    outputs = [
        model(**{name: torch.tensor([of]) for name, of in tiny.tokenizer()(of.texts[0]).items()}).logits[0].detach()
        for of in results.explained
    ]
    rows = [output if position is None else output[position] for output in outputs]
    read = {"labels": torch.sigmoid, "regression": torch.as_tensor, "tags": lambda row: row.softmax(-1)}[task]
    expected = [float(read(row)[of.target]) for row, of in zip(rows, results.explained, strict=True)]
    assert [of.probability for of in results.explained] == pytest.approx(expected, abs=1e-5)
    assert np.isfinite(results.values("comprehensiveness")["InputXGradient"]).all()
