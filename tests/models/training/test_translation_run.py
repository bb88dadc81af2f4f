"""A run in training: it resumes exactly, learns, and refuses a checkpoint that is not its own."""

import pytest
import torch

from captum_norm.models.training.translation_run import (
    PooledDropout,
    Progress,
    TranslationSettings,
    rate_factor,
    summed_loss,
)
from captum_norm.models.translation import build_translation

from .small import SMALL, a_run


class TestTraining:
    @pytest.mark.slow
    def test_killed_and_resumed_is_as_never_stopped(self, tmp_path, pieces, rows):
        """Also with another number of threads."""
        unbroken = a_run(tmp_path / "one", pieces)
        unbroken.train(rows)
        part = a_run(tmp_path / "two", pieces, TranslationSettings(**{**vars(SMALL), "tokens": 300}))
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

    @pytest.mark.slow
    def test_the_loss_falls(self, tmp_path, pieces, rows):
        run = a_run(tmp_path / "run", pieces, TranslationSettings(**{**vars(SMALL), "tokens": 3000, "averaging": 0.9}))
        run.model.train(False)
        before = float(summed_loss(run.model, rows[0]).detach())
        run.model.train(True)
        run.train(rows)
        run.model.train(False)
        assert float(summed_loss(run.model, rows[0]).detach()) < 0.7 * before

    def test_the_learning_rate_rises_stays_and_falls(self):
        settings = TranslationSettings(tokens=1000, cool_down=200, warmup=10)
        heights = [
            rate_factor(Progress(step=s, tokens=t), settings) for s, t in ((0, 0), (4, 50), (50, 500), (90, 900))
        ]
        assert heights == [0.1, 0.5, 1.0, 0.5]
        assert rate_factor(Progress(step=100, tokens=1000), settings) == 0

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
        with pytest.raises(ValueError, match=r"checkpoint\.safetensors is no checkpoint of this run"):
            a_run(tmp_path / "run", pieces)
