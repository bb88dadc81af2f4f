"""The embedded translation model: it loads, translates, and states its data."""

import hashlib
import json
import re
import shutil

import pytest
from safetensors.torch import load_file, save_file

from captum_norm.models import load_translation, translation_card
from captum_norm.models.translation import TRANSLATION_WEIGHTS


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

    def test_a_file_that_lacks_a_weight_is_refused(self, tmp_path):
        for suffix in (".json", ".pieces.json"):
            shutil.copy(TRANSLATION_WEIGHTS.with_suffix(suffix), tmp_path)
        path = tmp_path / TRANSLATION_WEIGHTS.name
        tensors = load_file(TRANSLATION_WEIGHTS)
        lost = next(name for name in tensors if name.endswith("fc1.weight"))
        save_file({name: tensor for name, tensor in tensors.items() if name != lost}, path)
        card = json.loads(path.with_suffix(".json").read_text())
        card["weights"]["blake2b"] = hashlib.blake2b(path.read_bytes()).hexdigest()
        path.with_suffix(".json").write_text(json.dumps(card))
        with pytest.raises(ValueError, match=rf"the weights of another model: \['{re.escape(lost)}'\] do not fit"):
            load_translation(weights=path)

    def test_the_card_states_data_and_licences(self):
        card = translation_card()
        assert [part["name"] for part in card["data"]] == ["Tatoeba", "WMT 2015 sample", "Europarl v7 sample"]
        assert all(part["licence"] for part in card["data"])
        assert card["guided_alignment"] is False
