"""The script that trains the translation model: it trains, writes, resumes, and says in one line what is missing."""

import json
import zipfile

import pytest
from transformers import MarianMTModel

from captum_norm.models import load_translation
from captum_norm.models.training.translation import main
from captum_norm.models.training.translation_run import (
    TranslationSettings,
)

from .small import SENTENCES, SMALL


@pytest.mark.slow
def test_the_script_trains_writes_and_resumes(tmp_path, monkeypatch):
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
        "captum_norm.models.training.translation.TranslationSettings",
        lambda **how: TranslationSettings(**{**vars(SMALL), **how}),
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


def test_a_missing_file_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([*"--tatoeba a.zip --wmt w --europarl e --kept-out g --folder".split(), str(tmp_path / "run")])
    assert exit_.value.code == 2
    assert "No such file" in capsys.readouterr().err
