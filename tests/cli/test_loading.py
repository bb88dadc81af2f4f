"""A model that cannot be used is named with the reason; libraries are silent only while a command runs."""

import re
import shutil

import pytest

from tests.cli.running import answer


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere/at/all", "no such folder"),
        ("nan", r"its weight bert\.encoder\.layer\.1\.attention\.self\.value\.weight holds NaN"),
        ("no attention", "no attention call was seen"),
        ("vision", "the tokenizer of --model .* cannot be loaded"),
        ("without config", "holds no config.json"),
        ("with broken config", "cannot be loaded: .*not a valid JSON"),
        ("with cut weights", "cannot be loaded"),
        ("without head", r"its files lack 2 weights of BertForSequenceClassification, for example classifier\.bias"),
        ("a file", "is a file: give the folder"),
        ("some-org/no-such-model", "cannot be loaded"),
    ],
)
def test_a_model_that_cannot_be_used_is_named_with_the_reason(capsys, folders, tmp_path, model, message):
    damage(folders, tmp_path)
    path = folders / model if (folders / model).exists() else tmp_path / model
    named = model if model.startswith("some-org") else path
    code, out, err = answer(capsys, "compare", "a warm film", "--model", named, "--json", tmp_path / "scores.json")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(message, err)
    assert not (tmp_path / "scores.json").exists()


def damage(folders, to):
    (to / "without config").mkdir()
    (to / "a file").write_text("")
    for name, source in (
        ("with broken config", "encoder"),
        ("with cut weights", "encoder"),
        ("without head", "encoder"),
    ):
        shutil.copytree(folders / source, to / name)
    (to / "with broken config" / "config.json").write_text("{")
    weights = to / "with cut weights" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    config = to / "without head" / "config.json"
    config.write_text(config.read_text().replace('"BertModel"', '"BertForSequenceClassification"'))


def test_libraries_speak_again_after_the_command(capsys, folders):
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_info()
    try:
        answer(capsys, "certify", "--model", folders / "encoder")
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, bars)
    finally:
        logging.set_verbosity(level)
