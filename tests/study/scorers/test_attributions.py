"""Methods of every kind take part, with the scores that they give by hand."""

import json
import math

import pytest
from captum.attr import InputXGradient, IntegratedGradients, LayerIntegratedGradients

from captum_norm import AttentionNorm, HFForward
from captum_norm.study import StoredScores, Study
from tests.study import tiny

ONE = ["comprehensiveness"]


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
def test_scores_are_those_of_the_method_called_by_hand(tmp_path):
    results = tiny.run(tmp_path, ["AttentionNorm", "InputXGradient"], batch_size=1)
    tokenizer, model = tiny.tokenizer(), tiny.classifier()
    encoding = tokenizer(tiny.TEXTS[0][0], return_tensors="pt")
    target = int(model(**encoding).logits.argmax())
    ids, gate = HFForward(model), HFForward(model, mode="gate")
    ours = AttentionNorm(ids).attribute(**ids.inputs(encoding))
    theirs = InputXGradient(gate).attribute(**gate.inputs(encoding), target=target)
    assert results.scores("AttentionNorm")[0] == pytest.approx(ours[0].tolist())
    assert results.scores("InputXGradient")[0] == pytest.approx(theirs[0].tolist())


def test_objects_functions_and_stored_scores_take_part_under_their_names(tmp_path):
    model = tiny.classifier()
    gate, embeds = HFForward(model, mode="gate"), HFForward(model, mode="embeds")

    def length(forward, inputs, target):
        return inputs["input_ids"].double()

    texts = ["A warm film.", "Dull."]
    (tmp_path / "theirs.jsonl").write_text(
        json.dumps({"id": "0", "scores": [0.1, 0.2, 0.6]}) + "\n" + json.dumps({"id": "1", "scores": [0, 1, 2, 3]})
    )
    methods = {
        "mine": length,
        "gradients": InputXGradient(gate),
        "path": IntegratedGradients(embeds),
        "theirs": StoredScores("theirs", tmp_path / "theirs.jsonl"),
    }
    results = Study(model, tiny.tokenizer(), methods, ONE).run(texts, tmp_path / "s.db", progress=False)
    assert results.methods == ("mine", "gradients", "path", "theirs", "random")
    assert not results.failures()
    assert results.scores("mine")[1].tolist() == tiny.tokenizer()("Dull.")["input_ids"]
    assert results.scores("theirs")[0].tolist() == [0, 0.1, 0.2, 0.3, 0.3, 0]  # of words; "film." is two tokens
    assert results.scores("theirs")[1].tolist() == [0, 1, 2, 3]  # of tokens


def test_what_has_no_forward_that_knows_the_model_is_refused():
    model = tiny.classifier()
    with pytest.raises(ValueError, match="its forward should be an HFForward"):
        tiny.study([InputXGradient(model)], ONE).run(["Fine."], "unused.db")
    with pytest.raises(TypeError, match="a method should be a name"):
        tiny.study([3], ONE).run(["Fine."], "unused.db")


def test_a_layer_method_gives_no_score_per_token_and_is_recorded_as_failed(tmp_path):
    model = tiny.classifier()
    gate = HFForward(model, mode="gate")
    layer = LayerIntegratedGradients(gate, model.bert.encoder.layer[0], multiply_by_inputs=True)
    results = Study(model, tiny.tokenizer(), {"layer": layer}, ONE).run(["Warm."], tmp_path / "s.db", progress=False)
    assert "layer" in {failure.method for failure in results.failures()}


def test_a_score_that_is_no_number_is_a_failure(tmp_path):
    results = tiny.run(tmp_path, {"nan": lambda _, inputs, target: inputs["input_ids"] * math.nan}, data=["Warm."])
    assert "gave token 0 the score nan" in results.failures()[0].error
