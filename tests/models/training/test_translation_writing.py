"""What a run writes: the averaged weights and a description; a damaged file is refused."""

import pytest
import torch

from captum_norm.models import load_translation, translation_card
from captum_norm.models.training.translation_writing import write

from .small import SENTENCES, a_run


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
