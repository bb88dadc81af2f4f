"""The embedded translation model: what it may learn from, how it is trained and resumed, what is written and read."""

import json
import random
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MarianMTModel

from captum_norm.models import load_translation, translation_card
from captum_norm.models.bleu import bleu
from captum_norm.models.parallel_text import (
    Pair,
    hold_out,
    letters,
    read_tatoeba,
    read_tokenised,
    usable,
    without,
    words,
)
from captum_norm.models.train_translation import main
from captum_norm.models.translation import TRANSLATION_WEIGHTS, as_tokenizer, build_translation, learn_pieces
from captum_norm.models.translation_batches import encode, epoch_batches, joined
from captum_norm.models.translation_run import PooledDropout, Progress, Run, Settings, height, summed_loss
from captum_norm.models.translation_writing import write

SENTENCES = [
    Pair(words(german), words(english))
    for german, english in [
        ("Der Hund schläft.", "The dog sleeps."),
        ("Die Katze schläft.", "The cat sleeps."),
        ("Der Hund sieht die Katze.", "The dog sees the cat."),
        ("Die Katze sieht den Hund nicht.", "The cat does not see the dog."),
        ("Wir haben einen Hund.", "We have a dog."),
        ("Wir haben keine Katze!", "We have no cat!"),
        ("Weiß der Hund, dass wir da sind?", "Does the dog know that we are there?"),
        ("Das ist gut.", "That is good."),
    ]
]
SMALL = Settings(tokens=600, cool_down=100, warmup=3, part=60, vocabulary=100, held_out=(1, 1, 1))


@pytest.fixture(scope="module")
def pieces():
    return learn_pieces([side for pair in SENTENCES for side in pair], SMALL.vocabulary)


@pytest.fixture(scope="module")
def rows(pieces):
    data = encode(pieces, SENTENCES)
    return [data, data[:3], data[3:5]]


def a_run(folder, pieces, settings=SMALL, threads=1):
    folder.mkdir(exist_ok=True)
    pieces.save(str(folder / "pieces.json"))
    return Run(folder, pieces, settings, threads)


class TestWhatIsLearntFrom:
    def test_words_are_cut_as_in_the_gold_alignments(self):
        assert words("Er sagte: „Das ist 's, bzw. 12.30 Uhr!“") == (
            "er", "sagte", ":", '"', "das", "ist", "'s", ",", "bzw", ".", "12.30", "uhr", "!", '"',
        )  # fmt: skip
        assert words("a well-known man's") == ("a", "well-known", "man", "'s")

    @given(st.text(max_size=40))
    def test_words_lose_no_letter(self, text):
        assert letters(words(text)) == letters(text.lower())

    def test_pieces_and_escapes_are_undone(self, tmp_path):
        (tmp_path / "de").write_text("Mil@@ len@@ ium @-@ Bug &quot;\nzwei\n", encoding="utf-8")
        (tmp_path / "en").write_text("a\nb\n", encoding="utf-8")
        assert read_tokenised(tmp_path / "de", tmp_path / "en")[0].german == ("millenium-bug", '"')

    def test_files_of_other_lengths_are_refused(self, tmp_path):
        (tmp_path / "de").write_text("eins\nzwei\n")
        (tmp_path / "en").write_text("one\n")
        with pytest.raises(ValueError, match=r"de has 3 lines, .*en has 2"):
            read_tokenised(tmp_path / "de", tmp_path / "en")

    def test_an_archive_of_something_else_is_refused(self, tmp_path):
        (tmp_path / "no.zip").write_text("text")
        with pytest.raises(ValueError, match=r"is not the archive with deu\.txt"):
            read_tatoeba(tmp_path / "no.zip")
        with zipfile.ZipFile(tmp_path / "untabbed.zip", "w") as archive:
            archive.writestr("deu.txt", "Hi.\tHallo!\nHi there.\n")
        with pytest.raises(ValueError, match=r"line 2 of deu\.txt has no tab"):
            read_tatoeba(tmp_path / "untabbed.zip")

    def test_a_sentence_kept_out_is_kept_out_on_either_side_however_it_is_written(self):
        pairs = [Pair(("das", "stimmt", "nicht", "!"), ("no", ".")), Pair(("ja",), ("that", "'s", "it")), SENTENCES[0]]
        assert without(pairs, ["Das stimmt nicht.", ("THAT'S", "it")]) == [SENTENCES[0]]

    def test_pairs_of_unlike_lengths_are_not_used(self):
        assert usable([Pair(("a",), ("b",) * 6), Pair((), ("b",)), SENTENCES[0], Pair(("a",) * 61, ("b",) * 61)]) == [
            SENTENCES[0]
        ]

    def test_what_is_held_out_shares_no_sentence_with_what_is_learnt(self):
        twins = [*SENTENCES, Pair(SENTENCES[0].german, ("another", "one"))]
        learnt, held = hold_out(twins, 3)
        assert len(held) == 3
        sides = {letters(side) for pair in held for side in pair}
        assert not any(letters(side) in sides for pair in learnt for side in pair)
        assert hold_out(list(reversed(twins)), 3)[1] == held
        with pytest.raises(ValueError, match="9 pairs cannot be held out of 9"):
            hold_out(twins, 9)


class TestTheOrder:
    def test_an_epoch_is_the_same_each_time_and_another_is_another(self, rows):
        def of(epoch, seed=0):
            return epoch_batches(rows, (0.5, 2, 3), (0.5, 0.5), 40, epoch, seed)

        assert of(1) == of(1) != of(2)
        assert of(1) != of(1, seed=1)

    def test_the_first_epoch_has_short_sentences_alone(self, rows):
        batches = epoch_batches(rows, (0.5, 2, 3), (0, 1), 40, 0, 0)
        seen = [row for batch in batches for part in batch for row in part]
        assert all(row in rows[0] and len(row[1]) <= 12 for row in seen)

    @given(size=st.integers(20, 200), epoch=st.integers(0, 3))
    def test_no_part_is_larger_than_allowed_but_for_a_single_row(self, rows, size, epoch):
        for batch in epoch_batches(rows, (1, 1, 1), (0.5, 0.5), size, epoch, 0):
            assert len(batch) == 2
            for part in batch:
                widest = 1 + max(max(map(len, row)) for row in part)
                assert len(part) == 1 or widest * len(part) <= size

    def test_joined_rows_keep_sentences_beside_their_translations(self, rows):
        long = joined(rows[0], (0, 0, 1), random.Random(0))
        assert len(long) == 3
        assert sorted(i for row in long for i in row[0]) == sorted(i for row in rows[0] for i in row[0])
        source, target = long[0]
        first = next(row for row in rows[0] if source[: len(row[0])] == row[0])
        assert target[: len(first[1])] == first[1]


class TestTraining:
    def test_killed_and_resumed_is_as_never_stopped(self, tmp_path, pieces, rows):
        """Also with another number of threads."""
        unbroken = a_run(tmp_path / "one", pieces)
        unbroken.train(rows)
        part = a_run(tmp_path / "two", pieces, Settings(**{**vars(SMALL), "tokens": 300}))
        # the same height of the learning rate as in the long run
        object.__setattr__(part.settings, "cool_down", 0)
        part.train(rows)
        again = a_run(tmp_path / "two", pieces, threads=2)
        assert again.progress.tokens == part.progress.tokens < SMALL.tokens
        again.train(rows)
        assert (again.progress.step, again.progress.tokens) == (unbroken.progress.step, unbroken.progress.tokens)
        for name, p in unbroken.named.items():
            assert torch.allclose(p, again.named[name], atol=1e-6), name
            assert torch.allclose(unbroken.average[name], again.average[name], atol=1e-6), name

    def test_the_loss_falls(self, tmp_path, pieces, rows):
        run = a_run(tmp_path / "run", pieces, Settings(**{**vars(SMALL), "tokens": 3000, "averaging": 0.9}))
        run.model.train(False)
        before = float(summed_loss(run.model, rows[0]).detach())
        run.model.train(True)
        run.train(rows)
        run.model.train(False)
        assert float(summed_loss(run.model, rows[0]).detach()) < 0.7 * before

    def test_the_learning_rate_rises_stays_and_falls(self):
        settings = Settings(tokens=1000, cool_down=200, warmup=10)
        heights = [height(Progress(step=s, tokens=t), settings) for s, t in ((0, 0), (4, 50), (50, 500), (90, 900))]
        assert heights == [0.1, 0.5, 1.0, 0.5]
        assert height(Progress(step=100, tokens=1000), settings) == 0

    def test_padding_has_no_part_in_the_loss(self, rows, pieces):
        torch.manual_seed(0)
        model = build_translation(SMALL.vocabulary).eval()
        with torch.no_grad():
            together = float(summed_loss(model, rows[0]))
            apart = sum(float(summed_loss(model, [row])) for row in rows[0])
        assert together == pytest.approx(apart, rel=1e-5)

    def test_dropout_drops_its_share_the_same_for_the_same_key_and_nothing_at_rest(self):
        model = build_translation(50).train(True)
        dropout = PooledDropout(model, 0.25, seed=0)
        layer = model.model.encoder.layers[0].fc2
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.ones_(layer.bias)

        def out(key):
            dropout.begin(key)
            return layer(torch.zeros(40, 512)).detach()

        assert float((out("a") == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
        assert float(out("a").mean()) == pytest.approx(1, abs=0.04)
        assert torch.equal(out("a"), out("a"))
        assert not torch.equal(out("a"), out("b"))
        model.train(False)
        assert torch.equal(layer(torch.zeros(1, 512)), torch.ones(1, 256))

    def test_a_checkpoint_of_something_else_is_refused(self, tmp_path, pieces):
        run = a_run(tmp_path / "run", pieces)
        run.checkpoint.write_bytes(b"something else")
        with pytest.raises(ValueError, match=r"checkpoint\.safetensors cannot be gone on from"):
            a_run(tmp_path / "run", pieces)

    def test_the_script_trains_writes_and_goes_on(self, tmp_path, monkeypatch):
        (tmp_path / "gold").write_text("das ist gut .\n")
        lines = (
            [" ".join(pair.german) + "\n" for pair in SENTENCES],
            [" ".join(pair.english) + "\n" for pair in SENTENCES],
        )
        for folder, german, english in (("wmt", "tgt-train.txt", "src-train.txt"), ("ep", "toy.bpe.de", "toy.bpe.en")):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / german).write_text("".join(lines[0]), encoding="utf-8")
            (tmp_path / folder / english).write_text("".join(lines[1]), encoding="utf-8")
        with zipfile.ZipFile(tmp_path / "tatoeba.zip", "w") as archive:
            pairs = zip(lines[1], lines[0], strict=True)
            archive.writestr("deu.txt", "".join(f"{en.strip()}\t{de.strip()}\n" for en, de in pairs))
        monkeypatch.setattr(
            "captum_norm.models.train_translation.Settings", lambda **how: Settings(**{**vars(SMALL), **how})
        )
        arguments = [
            "--tatoeba", tmp_path / "tatoeba.zip", "--wmt", tmp_path / "wmt", "--europarl", tmp_path / "ep",
            "--kept-out", tmp_path / "gold", "--folder", tmp_path / "run", "--threads", "1", "--cool-down", "50",
            "--learning-rate", "1e-3", "--seed", "0",
        ]  # fmt: skip
        main([*map(str, arguments), "--tokens", "150"])
        main([*map(str, arguments), "--tokens", "300"])
        card = json.loads((tmp_path / "run" / "translation.json").read_text())
        assert [part["training"] for part in card["data"]] == [6, 6, 6]  # of eight, one is gold and one held out
        assert card["training"]["progress"]["tokens"] >= 300
        model, tokenizer = load_translation(weights=tmp_path / "run" / "translation.safetensors")
        assert type(model) is MarianMTModel
        assert len(tokenizer) == 100

    def test_a_missing_file_is_one_line(self, tmp_path, capsys):
        with pytest.raises(SystemExit) as exit_:
            main([*"--tatoeba a.zip --wmt w --europarl e --kept-out g --folder".split(), str(tmp_path / "run")])
        assert exit_.value.code == 2
        assert "No such file" in capsys.readouterr().err


class TestWhatIsWritten:
    @pytest.fixture
    def written(self, tmp_path, pieces):
        run = a_run(tmp_path / "run", pieces)
        return run, write(run, {"own": SENTENCES[:2]}, {"languages": ["de", "en"]})

    def test_what_is_read_are_the_averaged_weights_in_half_precision(self, written):
        run, path = written
        model, _ = load_translation(weights=path)
        assert not model.training
        for name, p in model.named_parameters():
            if name in run.average:
                assert torch.equal(p, run.average[name].half().float()), name
        assert {p.dtype for p in model.parameters()} == {torch.float32}

    def test_the_description_says_what_was_tested(self, written):
        card = translation_card(written[1])
        assert card["held_out"]["own"]["pairs"] == 2
        assert card["held_out"]["own"]["loss"] > 0

    def test_a_damaged_or_missing_file_is_refused(self, written):
        _, path = written
        content = path.read_bytes()
        path.write_bytes(content[:-8] + b"\0" * 8)
        with pytest.raises(ValueError, match=r"is corrupt: it is not the file that translation\.json describes"):
            load_translation(weights=path)
        path.write_bytes(content)
        pieces = path.with_suffix(".pieces.json")
        pieces.write_text(pieces.read_text()[:100])
        with pytest.raises(ValueError, match=r"pieces\.json is corrupt"):
            load_translation(weights=path)
        pieces.unlink()
        with pytest.raises(FileNotFoundError, match=r"pieces\.json is missing"):
            load_translation(weights=path)

    def test_loading_draws_none_of_the_callers_random_numbers(self, written):
        torch.manual_seed(1)
        expected = torch.rand(3)
        torch.manual_seed(1)
        load_translation(weights=written[1])
        assert torch.equal(torch.rand(3), expected)


class TestBleu:
    def test_equal_texts_have_a_hundred_and_others_none(self):
        text = [pair.english for pair in SENTENCES]
        assert bleu(text, text) == pytest.approx(100)
        assert bleu([("x",) * 5], [("a", "b", "c", "d", "e")]) == 0

    def test_it_is_the_papers_formula(self):
        # runs of 1 to 4 words: 5/6, 3/5, 2/4, 1/3 right; no brevity penalty
        ours, theirs = "the cat sat on a mat".split(), "the cat sat on the mat".split()
        assert bleu([ours], [theirs]) == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)

    def test_a_short_translation_pays(self):
        theirs = "one two three four five six seven eight".split()
        assert bleu([theirs[:4]], [theirs]) == pytest.approx(100 * torch.e ** (1 - 2))

    def test_nothing_to_compare_is_refused(self):
        with pytest.raises(ValueError, match="1 translations of 0 references"):
            bleu([["a"]], [])


def test_spellings_before_and_after_the_reform_are_one(pieces):
    tokenizer = as_tokenizer(pieces)
    assert tokenizer("Daß WEISS")["input_ids"] == tokenizer("dass weiß")["input_ids"]


@pytest.mark.skipif(not TRANSLATION_WEIGHTS.exists(), reason="no translation model is shipped")
class TestWhatIsShipped:
    def test_it_is_small_enough_and_real(self):
        assert TRANSLATION_WEIGHTS.stat().st_size <= 15_000_000
        model, _ = load_translation()
        assert sum(p.numel() for p in model.parameters()) >= 6_000_000

    def test_it_translates_a_plain_sentence(self):
        model, tokenizer = load_translation()
        ids = model.generate(**tokenizer("das ist gut .", return_tensors="pt"), max_new_tokens=20)
        assert "good" in tokenizer.decode(ids[0], skip_special_tokens=True).split()

    def test_the_card_states_data_and_licences(self):
        card = translation_card()
        assert [part["name"] for part in card["data"]] == ["Tatoeba", "WMT 2015 sample", "Europarl v7 sample"]
        assert all(part["licence"] for part in card["data"])
        assert card["guided_alignment"] is False
