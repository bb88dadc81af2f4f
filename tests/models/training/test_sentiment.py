"""The training of the classifier: it learns, repeats itself, writes what loads, and says what is wrong first."""

import json
import zipfile

import pytest
import torch

from captum_norm.models import load_encoder, load_sentiment, sentiment_card
from captum_norm.models.embedded import build_sentiment, read_encoder
from captum_norm.models.training.polarity import (
    Snippet,
)
from captum_norm.models.training.sentiment import (
    SentimentSettings,
    accuracy,
    changes,
    encode,
    main,
    prepare,
    train,
    with_gaps,
)


class TestTraining:
    SNIPPETS = (
        [f"{word} and {other} nonsense" for word in ("dull", "awful", "lifeless") for other in ("empty", "tired")],
        [f"{word} and {other} delight" for word in ("moving", "lovely", "superb") for other in ("clever", "warm")],
    )

    @pytest.fixture
    def files(self, tmp_path):
        """Two tiny data sets in the real ones' formats."""
        with zipfile.ZipFile(tmp_path / "polarity.zip", "w") as archive:
            for end, snippets in zip(("neg", "pos"), self.SNIPPETS, strict=True):
                archive.writestr(f"sentence_polarity/rt-polarity.{end}", " \n".join([*snippets, ""]))
        for part, trees in {"dev": "(1 (2 Dull) (2 treebank))\n", "test": "(4 (2 Superb) (2 treebank))\n"}.items():
            (tmp_path / f"{part}.txt").write_text(trees)
        (tmp_path / "out").mkdir()
        return tmp_path

    def options(self, files, **changed):
        chosen = {
            "polarity": files / "polarity.zip",
            "sst": files,
            "output": files / "out" / "new.safetensors",
        } | changed
        few = {"epochs": 1, "rank": 1, "held-out": 2}
        return [text for name, value in (few | chosen).items() for text in (f"--{name}", str(value))]

    @pytest.mark.slow
    def test_a_run_writes_a_model_that_loads(self, files, capsys):
        main(self.options(files))
        assert sorted(path.name for path in (files / "out").iterdir()) == ["new.json", "new.safetensors"]
        card = sentiment_card(files / "out" / "new.safetensors")
        assert card["tested_on"] == {"held_out": 2, "sst_dev": 1, "sst_test": 1}
        assert json.loads(capsys.readouterr().out) == card["accuracy"]
        model, tokenizer = load_sentiment(weights=files / "out" / "new.safetensors")
        assert torch.isfinite(model(**tokenizer("A film.", return_tensors="pt")).logits).all()

    @pytest.mark.slow
    def test_training_learns_and_repeats_itself(self):
        _, tokenizer = load_encoder()
        data = encode(tokenizer, [Snippet(text, label) for label, texts in enumerate(self.SNIPPETS) for text in texts])
        learnt = []
        for _ in range(2):
            torch.manual_seed(0)
            model = build_sentiment(read_encoder("test")[0])
            prepare(model, 1)
            train(model, data, SentimentSettings(epochs=6, batch=4, rank=1, learning_rate=2e-3))
            learnt.append(changes(model))
        assert accuracy(model, data) == 1.0
        assert all(torch.equal(tensor, learnt[1][name]) for name, tensor in learnt[0].items())
        assert {name.rsplit(".", 1)[1] for name in learnt[0]} == {"up", "down", "weight", "bias"}

    def test_gaps_hide_words_and_nothing_else(self):
        ids = torch.tensor([[101, 2023, 2143, 1037, 102, 0]])
        chance = torch.Generator().manual_seed(0)
        assert torch.equal(with_gaps(ids, 0.0, chance), ids)
        assert with_gaps(ids, 1.0, chance).tolist() == [[101, 103, 103, 103, 102, 0]]
        some = with_gaps(ids.expand(1000, -1), 0.1, chance)
        assert 0.08 < (some == 103).sum().item() / 3000 < 0.12

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"polarity": "nowhere.zip"}, "nowhere.zip"),
            ({"sst": "nowhere"}, "nowhere"),
            ({"output": "nowhere/new.safetensors"}, "there is no such folder"),
            ({"held-out": 100}, "only 12 of 12 remain"),
        ],
    )
    def test_what_cannot_be_done_is_said_before_training(self, files, capsys, changed, message):
        with pytest.raises(SystemExit) as stop:
            main(self.options(files, **changed))
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
        assert not list((files / "out").iterdir())
