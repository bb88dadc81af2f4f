"""``captum-norm heads`` says what the counter says; the counter is its definition."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from captum_norm.capture import recording
from captum_norm.functional import head_norms, transformed_norms
from captum_norm.head_activity import QUANTITIES, HeadCounter, HeadStore, corpus, counting
from captum_norm.visualization import head_grid
from tests.attr.models import ids, tiny
from tests.cli.running import answer

ROOT = Path(__file__).resolve().parents[2]


def test_counts_are_their_definition():
    model, tokens = tiny("GPT2").double(), [ids(1, 6, seed=n) for n in range(3)]
    counter = HeadCounter(model)
    for each in tokens:
        counter.add(each, [False, False, True, False, False, False])
    found = counter.result()
    expected = {name: [] for name in QUANTITIES}
    for each in tokens:
        with torch.no_grad(), recording() as records:
            model(each)
        first = records[0]
        weights, norms = first.weights[0], head_norms(first.weights, first.values, first.W_O)[0]
        shares = norms[:, 1:] / norms[:, 1:].sum(-1, keepdim=True)
        lengths = transformed_norms(first.values, first.W_O)[0]
        out = torch.einsum("hqk,hke,hed->hqd", weights, first.values[0], first.W_O)[:, 1:].norm(dim=-1).mean(1)
        for name, value in {
            "first_weight": weights[:, 1:, 0].mean(1),
            "first_norm": shares[..., 0].mean(1),
            "special_weight": weights[:, 1:, 2].mean(1),
            "special_norm": shares[..., 2].mean(1),
            "first_length": lengths[:, 0] / lengths[:, 1:].mean(1),
            "activity": out / out.mean(),
        }.items():
            expected[name].append(value)
    for name, values in expected.items():
        stacked = torch.stack(values)
        torch.testing.assert_close(found.means[name][0], stacked.mean(0))
        torch.testing.assert_close(found.margins[name][0], 1.96 * stacked.std(0) / math.sqrt(3))
    assert (found.sequences, found.tokens) == (3, 18)
    assert len(found.as_table().rows) == 2 * 4


class Hiding(torch.nn.Module):
    """GPT-2 that hides each token of id 7."""

    def __init__(self):
        super().__init__()
        self.model = tiny("GPT2").double()

    def forward(self, input_ids):
        return self.model(input_ids, attention_mask=(input_ids != 7).long())


def test_a_sequence_in_which_a_length_is_not_defined_is_left_out_of_its_mean(tmp_path):
    first_is_seen, first_is_hidden, other = (torch.tensor([row]) for row in ([1, 2, 3, 4], [7, 2, 3, 4], [5, 2, 3]))
    counters = [HeadCounter(Hiding()) for _ in range(3)]
    for counter, sequences in zip(
        counters, ([first_is_seen, other], [first_is_hidden, first_is_seen, other], [first_is_hidden]), strict=True
    ):
        for each in sequences:
            counter.add(each, [False] * each.shape[1])
    without, found, none = (counter.result() for counter in counters)
    for table, expected in ((found.means, without.means), (found.margins, without.margins)):
        torch.testing.assert_close(table["first_length"], expected["first_length"])
        assert all(of.isfinite().all() for name in QUANTITIES for of in table[name])
    assert [of.tolist() for of in found.counted["first_length"]] == [[2.0] * 4] * 2
    assert [of.tolist() for of in found.counted["activity"]] == [[3.0] * 4] * 2
    assert found.as_dict()["counted"]["first_length"] == [[2] * 4] * 2
    assert none.as_dict()["means"]["first_length"] == [[None] * 4] * 2
    with HeadStore(tmp_path / "a.db", {}) as store:
        for part in (1, 2):
            store.add(part, counters[part].counts)
        torch.testing.assert_close(store.total().result().means["first_length"], without.means["first_length"])


def test_heads_tells_over_how_many_sequences_a_length_is(capsys, folders, text_file, monkeypatch):
    asked = ["heads", "--model", folders / "decoder", "--text", text_file]
    assert "in which it is defined" not in answer(capsys, *asked)[1]
    length = QUANTITIES.index("first_length")
    taken, found = [], counting._of_record

    def undefined_once(record, special):
        taken.append(found(record, special))
        taken[-1][length] += torch.nan if len(taken) == 1 else 0
        return taken[-1]

    monkeypatch.setattr(counting, "_of_record", undefined_once)
    assert "over the sequences in which it is defined, 2 or more" in " ".join(answer(capsys, *asked)[1].split())


def test_a_store_of_before_is_read_as_one_in_which_all_is_defined(tmp_path):
    counter = HeadCounter(tiny("GPT2").double())
    for seed in range(2):
        counter.add(ids(1, 5, seed=seed), [False] * 5)
    with HeadStore(tmp_path / "a.db", {}) as store:
        store.add(0, counter.counts)
        [(text,)] = store._base.execute("SELECT counts FROM parts")
        before = json.loads(text)
        del before["counted"]
        text = json.dumps(before)
        store._base.execute("UPDATE parts SET counts = ?, digest = ?", (text, corpus._digest(0, text)))
        found, expected = store.total().result(), counter.result()
    for name in QUANTITIES:
        torch.testing.assert_close(found.means[name], expected.means[name])
        torch.testing.assert_close(found.margins[name], expected.margins[name])


def test_heads_says_what_the_counter_says(capsys, folders, tmp_path, text_file, monkeypatch):
    file = tmp_path / "heads.json"
    code, out, err = answer(capsys, "heads", "--model", folders / "decoder", "--text", text_file, "--json", file)
    assert (code, err) == (0, "")
    saved = json.loads(file.read_text("utf-8"))
    assert saved["sequences"] == 3
    assert set(saved["means"]) == set(QUANTITIES)
    assert saved["means"]["special_weight"] == [[0.0] * 4] * 2  # this tokenizer puts none around a text
    assert f"{100 * saved['means']['first_norm'][1][2]:.1f}" in out
    model = GPT2LMHeadModel.from_pretrained(folders / "decoder")
    assert len(saved["layers"]) == model.config.n_layer
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = answer(capsys, "heads", "--model", folders / "encoder", "--text", text_file)
    assert max(map(len, out.splitlines())) <= 80
    code, out, _ = answer(capsys, "heads", "--model", folders / "encoder", "--text", text_file, "--json", "-")
    assert json.loads(out)["means"]["special_weight"][0][0] > 0


def test_what_cannot_be_counted_is_refused(capsys, folders, tmp_path, text_file):
    counter = HeadCounter(tiny("GPT2"))
    with pytest.raises(ValueError, match="no sequence was added"):
        counter.result()
    with pytest.raises(ValueError, match="one sequence of two tokens or more at a time"):
        counter.add(ids(2, 4), [False] * 4)
    (tmp_path / "short").write_text("film\n", "utf-8")
    code, _, err = answer(capsys, "heads", "--model", folders / "decoder", "--text", tmp_path / "short")
    assert (code, "no sequence of two tokens" in err) == (2, True)
    code, _, err = answer(capsys, "heads", "--model", folders / "decoder", "--text", text_file, "--max-tokens", 99)
    assert (code, "takes 32 tokens at most" in err) == (2, True)


def test_a_count_that_was_stopped_goes_on_and_ends_with_the_same_numbers(
    capsys, folders, tmp_path, text_file, monkeypatch
):
    monkeypatch.setattr("captum_norm.cli.heads.PART", 1)
    asked = ["heads", "--model", folders / "decoder", "--text", text_file, "--json"]
    assert answer(capsys, *asked, tmp_path / "at once")[0] == 0
    added, store = HeadStore.add, tmp_path / "heads.db"

    def killed(self, part, counts):
        added(self, part, counts)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(HeadStore, "add", killed)
        assert answer(capsys, *asked, tmp_path / "none", "--store", store)[0] == 130
    with monkeypatch.context() as patch:
        patch.setattr(HeadStore, "add", lambda self, part, counts: (added(self, part, counts), resumed.append(part)))
        resumed = []
        assert answer(capsys, *asked, tmp_path / "resumed", "--store", store)[0] == 0
    assert resumed == [1, 2]
    assert (tmp_path / "resumed").read_text() == (tmp_path / "at once").read_text()
    code, _, err = answer(capsys, *asked, "-", "--store", store, "--max-tokens", 3)
    assert (code, "belongs to another count: max_tokens was" in err) == (2, True)


def test_processes_share_a_count_and_what_one_of_them_left_is_taken_in(folders, tmp_path):
    model, config = tiny("GPT2").double(), {"text": "seven"}
    counts = []
    for seed in range(4):
        counter = HeadCounter(model)
        counter.add(ids(1, 5, seed=seed), [False] * 5)
        counts.append(counter.counts)
    with HeadStore(tmp_path / "a.db", config) as whole:
        for part in (2, 0):
            whole.add(part, counts[part])
        with HeadStore(tmp_path / "a.db.part-1", config) as other:
            for part in (3, 1):
                other.add(part, counts[part])
        whole.take_in(tmp_path / "a.db.part-1")
        found, expected = whole.total().result(), (counts[0] + counts[1] + counts[2] + counts[3]).result()
    assert all(torch.equal(a, b) for a, b in zip(found.means["activity"], expected.means["activity"], strict=True))
    assert found.calls == expected.calls
    assert not (tmp_path / "a.db.part-1").exists()
    (tmp_path / "no.db").write_text("no store")
    with pytest.raises(ValueError, match="is no store of head counts"):
        HeadStore(tmp_path / "no.db", config)


def test_heads_are_drawn_a_square_each(capsys, folders, tmp_path, text_file):
    file = tmp_path / "heads.png"
    assert answer(capsys, "heads", "--model", folders / "decoder", "--text", text_file, "--figure", file)[0] == 0
    assert file.read_bytes()[:4] == b"\x89PNG"
    drawn = head_grid({"first_weight": [torch.tensor([0.25, 1.0]), torch.tensor([0.5])]})
    assert [text.get_text() for text in drawn.axes[0].texts] == ["25", "100", "50"]


@pytest.mark.slow
def test_processes_of_a_launcher_count_what_one_counts(capsys, folders, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"film {'the ' * (n % 7)}film\n" for n in range(200)), "utf-8")
    asked = ["heads", "--model", str(folders / "decoder"), "--text", str(text), "--json"]
    assert answer(capsys, *asked, tmp_path / "one.json")[0] == 0
    launch = "accelerate.commands.launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no"
    command = f"-m {launch} --dynamo_backend no -m captum_norm".split()
    ends = [str(tmp_path / "two.json"), "--store", str(tmp_path / "heads.db")]
    done = subprocess.run([sys.executable, *command, *asked, *ends], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "two.json").read_text() == (tmp_path / "one.json").read_text()
    assert not list(tmp_path.glob("heads.db.part-*"))
