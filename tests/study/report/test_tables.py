"""Tables say the same in every form."""

import math
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from captum_norm.study.report.cells import Statistics
from captum_norm.study.report.legend import of_draws, of_few
from captum_norm.study.report.typeset import in_tex, interval, number
from tests.study import tiny


def test_the_best_is_the_highest_or_the_lowest_as_the_metric_has_it(results):
    table = results.table(resamples=50, permutations=9)
    competing = results.methods[:3]
    for metric, choose in (("comprehensiveness", max), ("sufficiency", min), ("auprc", max)):
        assert table.best(metric) == choose(competing, key=lambda name: table.cells[name][metric].mean)
    assert table.metrics == {"comprehensiveness": True, "sufficiency": False, "auprc": True}


def test_every_form_of_the_table_holds_the_numbers(results):
    table = results.table(resamples=50, permutations=9)
    mean = number(table.cells["Saliency"]["auprc"].mean)
    text, page, paper = table.to_text(), table.to_markdown(), table.to_latex()
    assert all(mean in form and "Saliency" in form for form in (text, page, paper))
    assert "auprc ↑" in text
    assert r"sufficiency$\downarrow$" in paper.replace(" ", "")
    assert "Tokens are removed by: delete." in text
    assert max(map(len, table.to_text(width=70).splitlines())) <= 70
    shown = table._repr_html_()
    assert mean in shown
    assert "Tokens are removed by: delete." in shown
    assert f"{table.cells['Saliency']['auprc'].mean!r}" in table.to_csv()
    frame = table.to_pandas()
    assert len(frame) == 15
    assert {"mean", "low", "high", "n", "p", "p_holm", "effect"} <= set(frame.columns)


def test_agreement_is_of_tokens_or_words_with_special_tokens_or_without(results):
    table = results.agreement()
    assert table.methods == ("AttentionNorm", "Saliency", "AttentionNorm(aggregate=rollout)", "random")
    assert np.allclose(np.diag(table.means), 1)
    assert np.allclose(table.means, table.means.T)
    kept, words = results.agreement(special="keep"), results.agreement("kendall_tau_b", level="word")
    assert not np.allclose(kept.means, table.means)
    assert "Kendall's τ-b of the scores of words" in words.to_text()
    assert list(words.to_pandas().columns) == list(words.methods)
    assert all(name in form for name in words.methods for form in (words.to_markdown(), words._repr_html_()))
    assert max(map(len, words.to_text(width=60).split("\n\n", 1)[1].splitlines())) <= 60
    with pytest.raises(ValueError, match="level should be"):
        results.agreement(level="letter")
    with pytest.raises(ValueError, match="measure should be one of"):
        results.agreement("pearson")


def test_nothing_is_marked_over_different_examples(tmp_path):
    def picky(forward, inputs, target):
        if (inputs["input_ids"] == tiny.PIECES.index("dull")).any():
            raise RuntimeError("no dull films, please")
        return inputs["input_ids"].double().sin()

    results = tiny.run(tmp_path, {"picky": picky, "patient": lambda _, inputs, target: inputs["input_ids"].double()})
    complete, available = (results.table("patient", cases=cases) for cases in ("complete", "available"))
    left = len(tiny.TEXTS) - sum("dull" in text.lower() for text, _ in tiny.TEXTS)
    assert f"comprehensiveness ↑ n={left}" in complete.to_text()
    assert complete.best("comprehensiveness") is not None
    assert available.best("comprehensiveness") is None
    assert not any(available.differs(method, "comprehensiveness") for method in ("picky",))
    assert f"n={left}" in available.to_text()
    assert f"n={len(tiny.TEXTS)}" in available.to_markdown()


def test_a_table_says_when_no_difference_can_be_marked(results):
    few = results.table(resamples=30).explanation()
    assert "With 8 examples and 3 tests no difference, however large, can be marked." in few
    assert any("Below 20 examples nobody has tried" in line for line in results.table().explanation())


def test_differences_have_intervals_of_their_own_in_every_form(results):
    table = results.table(resamples=99, margin=0.5)
    cell = table.cells["Saliency"]["auprc"]
    assert f"[{number(cell.difference_low)}, {number(cell.difference_high)}]" in table.differences_as_text()
    assert {"difference_low", "difference_high", "p_equivalent"} <= set(table.to_pandas().columns)
    assert any("= is level with AttentionNorm, within 0.5" in line for line in table.explanation())
    assert results.needed_examples("auprc", 0.1)["Saliency"] > 2
    with pytest.raises(KeyError, match="no method 'Salience'"):
        results.needed_examples("auprc", 0.1, "Salience")


@pytest.mark.parametrize(("fewest", "correction", "said"), [(30, "table", 1), (30, "metric", 0), (50, "table", 0)])
def test_a_whole_table_of_few_examples_says_what_else_a_star_asks(fewest, correction, said):
    lines = of_few(Statistics(correction=correction), fewest, tests=88 if correction == "table" else 11)
    assert len(lines) == said
    assert all("the largest of all resampled differences" in line for line in lines)


def test_what_has_a_unit_is_said_with_it():
    said = of_draws(Statistics(), ["auprc", "log_odds(fractions=(0.1,), removal=mask)"])
    assert said.endswith("correlations have no unit; log_odds(fractions=(0.1,), removal=mask) is in nats.")
    assert of_draws(Statistics(), ["auprc"]).endswith("correlations have no unit.")


def test_methods_that_look_at_no_class_are_named(results):
    said = " ".join(results.table(resamples=9).explanation())
    assert "No class is looked at by AttentionNorm, AttentionNorm(aggregate=rollout): they say the same of any." in said


def test_latex_is_a_document_that_compiles_by_itself_with_its_legend(results):
    table = results.table(resamples=99)
    part, whole = table.to_latex(), table.to_latex(document=True)
    assert part.startswith(r"% needs \usepackage{booktabs}")
    for said in (r"\documentclass", r"\usepackage{booktabs}", r"\begin{document}", r"\end{document}"):
        assert said in whole
        assert said not in part.split("\n", 1)[1]
    for form in (part, whole):
        assert "99 resamples, seed 0." in form
        assert "studentised bootstrap" in form
        assert form.isascii()
        assert form.count("{") == form.count("}")
        body = form[form.index(r"\midrule") : form.index(r"\bottomrule")]
        assert not re.search(r"[\[ &]-\d", body)  # a hyphen is no minus
    assert r"{[}$-$$\infty$, $\infty$]" in in_tex(interval(-math.inf, math.inf))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
@pytest.mark.parametrize("document", [True, False], ids=["alone", "within another"])
def test_latex_compiles(results, tmp_path, document):
    table, notes = results.table(resamples=99, margin=0.02), {"locked": "−∞ ± ρ τ < 1 | ~ ^ \\ {}"}
    odd = replace(table, methods=("A_b & 50% #1", *table.methods[1:]), notes={**table.notes, **notes})
    odd.cells["A_b & 50% #1"] = table.cells[table.methods[0]]
    text = odd.to_latex(document=document)
    if not document:
        head = [r"\documentclass{article}", r"\usepackage{booktabs}", r"\begin{document}"]
        text = "\n".join([*head, text, r"\end{document}"])
    (tmp_path / "table.tex").write_text(text, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert (tmp_path / "table.pdf").stat().st_size
