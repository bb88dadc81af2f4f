"""``captum-norm align``: our own sentences, files, gold links, and one line for what is wrong."""

import json
import re

import pytest

from captum_norm.alignment.examples import examples
from captum_norm.alignment.links import as_talp, check_links
from captum_norm.cli import main
from captum_norm.models.translation import TRANSLATION_WEIGHTS
from tests.cli.running import answer

pytestmark = pytest.mark.skipif(not TRANSLATION_WEIGHTS.exists(), reason="no translation model is shipped")


@pytest.fixture
def files(tmp_path):
    """Our own sentences and links as files."""
    pairs, gold = examples()
    (tmp_path / "de").write_text("".join(" ".join(source) + "\n" for source, _ in pairs), encoding="utf-8")
    (tmp_path / "en").write_text("".join(" ".join(target) + "\n" for _, target in pairs), encoding="utf-8")
    (tmp_path / "gold").write_text("".join(as_talp(links) + "\n" for links in gold), encoding="utf-8")
    return tmp_path


def run(*arguments):
    return main(["align", *map(str, arguments)])


def sentences(files):
    return "--source", files / "de", "--target", files / "en"


def test_our_own_links_fit_our_own_sentences():
    pairs, gold = examples()
    check_links(pairs, gold)
    for (_, target), links in zip(pairs, gold, strict=True):
        assert {t for _, t in links.possible} == set(range(len(target)))


def test_without_arguments_our_own_sentences_are_scored_and_shown(capsys):
    assert run() == 0
    said = capsys.readouterr().out
    for part in (
        "alignment error rate by norm",
        "alignment error rate by weights",
        "diagonal: ",
        "AWI",
        "AWO",
        "house←",
    ):
        assert part in said
    assert all(len(line) <= 100 for line in said.splitlines())


def test_files_without_gold_links_give_a_line_of_links_for_each_pair(files, capsys):
    assert run(*sentences(files)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(examples()[0])
    assert all(re.fullmatch(r"(\d+-\d+ ?)*", line) for line in lines)


def test_other_formats_can_be_asked_for(files, capsys):
    run(*sentences(files))
    zero = capsys.readouterr().out.split("\n")[0].split()[0]
    run(*sentences(files), "--output", "talp")
    one = capsys.readouterr().out.split("\n")[0].split()[0]
    assert [int(n) + 1 for n in zero.split("-")] == [int(n) for n in one.split("-")]
    run(*sentences(files), "--output", "naacl", "--links", files / "links")
    assert capsys.readouterr().out == ""
    assert (files / "links").read_text().startswith("0001 ")


def test_gold_links_choose_on_some_and_report_on_others(files, capsys):
    assert (
        run(*sentences(files), "--gold", files / "gold", "--dev", 5, "--method", "rollout", "--json", files / "j") == 0
    )
    said = capsys.readouterr().out
    assert "on 7 pairs (chosen on 5 others)" in said
    saved = json.loads((files / "j").read_text())
    assert saved["dev"] == 5
    assert saved["evaluations"][0]["pairs"] == 7
    assert len(saved["links"]) == 12


def test_a_layer_and_setting_can_be_given(files, capsys):
    arguments = ("--gold", files / "gold", "--layer", 0, "--head", 1, "--setting", "awi", "--method", "weights")
    assert run(*sentences(files), *arguments) == 0
    assert "chosen: AWI, layer 0, head 1: " in capsys.readouterr().out


def test_a_figure_is_drawn(files, capsys):
    assert run(*sentences(files), "--figure", files / "map.svg") == 0
    drawn = (files / "map.svg").read_text()
    assert drawn.startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--source", "de"), "--source and --target belong together"),
        (("--gold", "gold"), "--gold needs the sentences"),
        (("--source", "de", "--target", "short"), "line n of one should translate line n of the other"),
        (("--source", "de", "--target", "gaps"), "gaps, line 2 is empty"),
        (("--source", "de", "--target", "missing"), "missing"),
        (("--source", "de", "--target", "en", "--gold", "wrong"), "wrong, line 1 holds '1:1', which is no link"),
        (("--source", "en", "--target", "de", "--gold", "gold"), "a gold link joins source word"),
        (("--source", "de", "--target", "en", "--gold", "gold", "--dev", "12"), "leave none of 12 to report on"),
        (("--source", "de", "--target", "en", "--method", "norms"), "--method norms: there are norm, weights"),
        (("--source", "de", "--target", "en", "--layer", "last"), "--layer last should be a number"),
        (("--source", "de", "--target", "en", "--layer=--5"), "--layer --5 should be a number"),
        (("--dev", "3"), "--dev is the number of pairs"),
        (("--languages", "de", "en"), "--languages: the tokenizer of this model knows no languages"),
        (("--batch-size", "0"), "--batch-size 0 should be at least 1"),
        (
            ("--source", "de", "--target", "en", "--gold", "gold", "--setting", "awo", "--layer", "99"),
            "layer=99, but there are 4 cross-attention layers",
        ),
        (
            ("--source", "de", "--target", "en", "--gold", "gold", "--setting", "awo", "--layer", "0", "--head", "9"),
            "head=9, but there are 4 heads in that layer",
        ),
    ],
)
def test_a_mistake_is_one_line_with_the_way_out(files, capsys, monkeypatch, arguments, message):
    (files / "short").write_text("one\n")
    (files / "gaps").write_text("one\n\n" + "x\n" * 10)
    (files / "wrong").write_text("1:1\n" + "1-1\n" * 11)
    monkeypatch.chdir(files)
    assert run(*arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert message in said.err


def test_a_layer_without_files_is_scored_on_our_own_sentences(capsys):
    code, out, err = answer(capsys, "align", "--layer", "0")
    assert (code, err) == (0, "")
    assert "chosen on" in out
