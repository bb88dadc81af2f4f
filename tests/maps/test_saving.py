"""A file of maps is whole or not there, and what is loaded is what was saved."""

import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from captum_norm.maps import AttentionMaps, attention_maps
from tests.maps.records import IDS


def test_what_is_loaded_is_what_was_saved(saved):
    maps, path = saved
    again = AttentionMaps.load(path)
    assert again.calls == maps.calls
    assert again.certificate == maps.certificate
    assert (again.tokens, again.versions, again.quantities) == (maps.tokens, maps.versions, maps.quantities)
    for name in ("weights", "head_norms", "summed_norms"):
        assert all(map(torch.equal, getattr(again, name), getattr(maps, name)))
    assert torch.equal(again.transformed_norms[0], maps.transformed_norms[0])
    with pytest.raises(ValueError, match="gated has no transformed_norms: an element-wise gate"):
        _ = again.transformed_norms[1]
    assert again.keys[0].source == "input_ids"
    assert torch.equal(again.keys[0].index, maps.keys[0].index)
    assert torch.equal(again.query_masks[1], maps.query_masks[1])
    assert again.key_masks == (None, None)


def test_modules_stay_out_of_the_file(bert, tmp_path):
    maps = attention_maps(bert, IDS)
    assert maps.calls[0].module is not None
    maps.save(tmp_path / "maps")
    assert AttentionMaps.load(tmp_path / "maps").calls[0].modules == ()


def test_tokens_of_any_script_survive_the_file(saved, tmp_path):
    named = replace(saved[0], input_tokens={"input_ids": (("[CLS]", "naïve", "日本"), ('"', "\\", "\n"))})
    named.save(tmp_path / "named")
    assert AttentionMaps.load(tmp_path / "named").tokens == named.tokens


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing: no such file"):
        AttentionMaps.load(tmp_path / "nothing")


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def cut_in_the_header(path):
    path.write_bytes(path.read_bytes()[:20])


def emptied(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("these are no maps")


def pickled(path):
    torch.save({"weights": torch.ones(2)}, path)


def foreign(path):
    save_file({"weights/0": torch.ones(1, 1, 2, 2)}, path)


def of_other_shape(path):
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors | {"weights/0": torch.ones(3)}, path, metadata)


def without_a_tensor(path):
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del tensors["weights/0"]
    save_file(tensors, path, metadata)


def described_wrongly(path):
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, {"captum_norm.AttentionMaps": json.dumps({"calls": 3})})


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        cut_in_the_header,
        emptied,
        text,
        pickled,
        foreign,
        of_other_shape,
        without_a_tensor,
        described_wrongly,
    ],
)
def test_a_damaged_or_foreign_file_is_refused_by_name(saved, damage):
    _, path = saved
    damage(path)
    with pytest.raises(ValueError, match=r"maps\.safetensors cannot be read as attention maps: .*attention_maps\("):
        AttentionMaps.load(path)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(saved, monkeypatch):
    maps, path = saved
    before = path.read_bytes()

    def fail(tensors, filename, metadata):
        filename.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("captum_norm.maps.saving.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        maps.save(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_folder_that_does_not_exist_is_named(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist"):
        saved[0].save(tmp_path / "nowhere" / "maps")
