"""One table, every spelling: nothing lost in CSV, nothing that a page or a paper would read as markup."""

import csv
import io
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from torch import nn

from captum_norm.study.report.agreement_table import AgreementTable
from captum_norm.tables import Table
from captum_norm.token_shares import ShareCounter

ONE = Table(("word", "score", "n"), (("a|b_<b>", 0.123456789, 3), ('"quoted", &c', None, 4)), "Title", ("A note.",))


def test_csv_keeps_every_digit_and_comma():
    rows = list(csv.reader(io.StringIO(ONE.to_csv())))
    assert rows == [["word", "score", "n"], ["a|b_<b>", "0.123456789", "3"], ['"quoted", &c', "", "4"]]


def test_csv_is_written_to_a_file(tmp_path):
    assert ONE.to_csv(tmp_path / "one.csv") == (tmp_path / "one.csv").read_bytes().decode()


def test_markdown_and_latex_escape_what_they_would_read_as_markup():
    assert "| a\\|b_<b> | 0.123 | 3 |" in ONE.to_markdown()
    assert r"a\textbar{}b\_\textless{}b\textgreater{} & 0.123 & 3 \\" in ONE.to_latex()
    assert r"\&c" in ONE.to_latex()


def test_a_row_of_latex_that_begins_with_a_bracket_is_no_option_of_the_row_before():
    rows = Table(("token", "score"), (("a", 1), ("[CLS]", 2), ("*", 3))).to_latex()
    assert "{[}CLS] & 2" in rows
    assert "{*} & 3" in rows


def test_html_escapes_and_text_folds():
    assert "<b>" not in ONE._repr_html_().replace("<b>Title</b>", "")
    assert all(len(line) <= 24 for line in ONE.to_text(width=24).splitlines())


def test_pandas_has_the_columns():
    pytest.importorskip("pandas")
    assert ONE.to_pandas()["n"].tolist() == [3, 4]


def test_a_row_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="row 0 has 1 entries under 2 columns"):
        Table(("a", "b"), (("x",),))


def wide(columns=12, rows=3):
    names = tuple(f"measure_number_{column}" for column in range(columns))
    return Table(("layer", "head", *names), tuple((row, "all", *names) for row in range(rows)), keys=2)


def head_rows(latex):
    return re.findall(r"\\toprule\n(.*) \\\\\n", latex)


def test_a_table_wider_than_the_line_is_folded_with_the_columns_that_name_a_row_in_each_part():
    heads = head_rows(wide().to_latex())
    assert len(heads) > 1
    assert all(head.startswith("layer & head & ") for head in heads)
    assert [name for head in heads for name in head.replace(r"\_", "_").split(" & ")[2:]] == list(wide().columns[2:])
    assert len(head_rows(wide().to_latex(width=200))) > len(heads)
    assert len(head_rows(wide().to_latex(width=math.inf))) == 1
    assert all(part.startswith("layer  head") for part in wide().to_text(width=60).split("\n\n"))


def test_a_table_longer_than_a_page_is_cut_between_rows():
    latex = wide(columns=1, rows=95).to_latex()
    assert len(head_rows(latex)) == 3
    assert re.findall(r"^(\d+) & all", latex, re.MULTILINE) == [str(row) for row in range(95)]
    assert max(part.count(r"\\") for part in latex.split(r"\midrule")) <= 41


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
@pytest.mark.parametrize("width", [345, 219], ids=["one column", "two columns"])
def test_tables_stay_within_the_line_and_the_page_of_a_paper(tmp_path, width):
    counter = ShareCounter(nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 6).eval())
    counter.add(torch.randn(1, 4, 8), [["[CLS]", "punctuation", "other", "[SEP]"]])
    methods = ("AttentionNorm", "IntegratedGradients", "AttentionNorm(aggregate=rollout)", "GlobEnc", "ValueZeroing")
    square = np.full((5, 5), 0.5)
    agreement = AgreementTable(methods, square, square.astype(int), "spearman", "word", "mask")
    tables = [of.to_latex(width) for of in (ONE, wide(), counter.result(), agreement)]
    head = [r"\documentclass{article}", rf"\textwidth={width}pt", r"\usepackage{booktabs}", r"\begin{document}"]
    (tmp_path / "all.tex").write_text("\n".join([*head, "\n\n".join(tables), r"\end{document}"]), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


def test_what_another_column_decides_is_said_in_a_note():
    counter = ShareCounter(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval())
    counter.add(torch.randn(1, 3, 8), [["[CLS]", "other", "other"]])
    latex = counter.result().to_latex()
    assert "% call 0: self_attn" in latex
    assert "name" not in head_rows(latex)[0]
    assert "name" in counter.result().as_table().columns
    beside = Table(("call", "share", "name"), ((0, 0.5, "layer.0"),)).told("name", of="call")
    assert (beside.keys, beside.notes) == (1, ("call 0: layer.0",))
