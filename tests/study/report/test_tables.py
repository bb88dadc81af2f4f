"""Tables say the same in every form."""


import numpy as np
import pytest

from captum_norm.study.report.typeset import number


def test_the_best_is_the_highest_or_the_lowest_as_the_metric_has_it(results):
    table = results.table(resamples=50, permutations=9)
    competing = results.methods[:3]
    for metric, choose in (("comprehensiveness", max), ("sufficiency", min), ("auprc", max)):
        assert table.best(metric) == choose(competing, key=lambda name: table.cells[name][metric].mean)
    assert table.metrics == {"comprehensiveness": True, "sufficiency": False, "auprc": True}


def test_every_form_of_the_table_holds_the_numbers(results):
    table = results.table(resamples=50, permutations=9)
    mean = number(table.cells["Saliency"]["auprc"].mean)
    text, page, paper = table.as_text(), table.to_markdown(), table.to_latex()
    assert all(mean in form and "Saliency" in form for form in (text, page, paper))
    assert "auprc ↑" in text
    assert r"sufficiency$\downarrow$" in paper.replace(" ", "")
    assert "Tokens are removed by: delete." in text
    assert max(map(len, table.as_text(width=70).splitlines())) <= 70
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
    assert "Kendall's τ-b of the scores of words" in words.as_text()
    assert list(words.to_pandas().columns) == list(words.methods)
    with pytest.raises(ValueError, match="level should be"):
        results.agreement(level="letter")
    with pytest.raises(ValueError, match="measure should be one of"):
        results.agreement("pearson")
