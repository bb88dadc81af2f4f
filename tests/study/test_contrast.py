"""Why this class and not that one: methods explain the lead of the label, metrics ask of the two alone."""

import pytest
import torch
from captum.attr import InputXGradient

from captum_norm import HFForward
from captum_norm.attr import ALTILogit, DecompX
from captum_norm.study import Example, Study
from captum_norm.study.batches import tokenize
from tests.study import tiny

NAMES = ("AttentionNorm", "DecompX", "ALTILogit", "InputXGradient", "FeatureAblation")
PAIRS = [Example("a warm film", "shine", foil="dull", key="0"), Example("the plot is", "thin", foil="never", key="1")]


@pytest.fixture(scope="module")
def decoder():
    return tiny.language_models()[0]


def ids_of(tokenizer, text):
    return tokenizer(text, return_tensors="pt")


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
def test_methods_explain_the_lead_and_metrics_the_choice_between_the_two(decoder, tmp_path):
    model, tokenizer = decoder
    study = Study(model, tokenizer, NAMES, ["comprehensiveness", "log_odds"], target="contrast", special="keep")
    results = study.run(PAIRS, tmp_path / "pairs.db", progress=False)
    for number, example in enumerate(PAIRS):
        encoding = ids_of(tokenizer, example.text)
        good, bad = (tiny.PIECES.index(word) for word in (example.label, example.foil))
        for method in (DecompX, ALTILogit):
            expected = method(HFForward(model)).attribute(**HFForward(model).inputs(encoding), target=(good, bad))
            found = torch.as_tensor(results.scores(method.__name__)[number])
            torch.testing.assert_close(found, expected[0].double(), rtol=1e-4, atol=1e-6)
        gate = HFForward(model, mode="gate")
        one, other = (InputXGradient(gate).attribute(**gate.inputs(encoding), target=of) for of in (good, bad))
        found = torch.as_tensor(results.scores("InputXGradient")[number])
        torch.testing.assert_close(found, (one - other)[0].double(), rtol=1e-4, atol=1e-6)
        order = found.argsort(descending=True)
        left = encoding["input_ids"][:, [n for n in range(len(found)) if n != int(order[0])]]
        with torch.no_grad():
            lead = [float(row[good] - row[bad]) for row in (model(ids).logits[0, -1] for ids in (
                left, encoding["input_ids"]))]  # fmt: skip
        moved = results.values("log_odds")["InputXGradient"][number]
        assert moved == pytest.approx(lead[0] - lead[1], abs=1e-5)


def test_words_go_on_where_tokens_tell_them_apart_and_classes_go_by_name(decoder, tmp_path):
    model, tokenizer = decoder
    [text] = tokenize([PAIRS[0]], tokenizer, model)
    assert (text.label, text.foil) == (tiny.PIECES.index("shine"), tiny.PIECES.index("dull"))
    for example, message in (
        (Example("A warm film.", "shine"), "has no foil"),
        (Example("A warm film.", "shine", foil="shines"), "begin with the same class or token"),
        (Example("A warm film.", 3, foil=99), "the label 99 is no class of the model"),
    ):
        with pytest.raises(ValueError, match=message):
            Study(model, tokenizer, ["AttentionNorm"], target="contrast").run([example], tmp_path / "no.db")
    with pytest.raises(ValueError, match="sensitivity runs methods again"):
        Study(model, tokenizer, ["AttentionNorm"], ["sensitivity"], target="contrast")
    with pytest.raises(ValueError, match="'predicted', 'label' or 'contrast'"):
        Study(model, tokenizer, target="foil")
