"""A file is there whole or not at all, and is like any other file of its user."""

import os

import pytest

from captum_norm.files import replacing


@pytest.fixture
def umask():
    """A umask that lets the group read, for the length of a test."""
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def test_a_finished_file_takes_the_place_of_the_old_one(tmp_path):
    target = tmp_path / "scores.json"
    target.write_text("old")
    with replacing(target) as unfinished:
        unfinished.write_text("new")
        assert target.read_text() == "old"
        assert unfinished.suffix == ".json"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"scores.json": "new"}


def write_half(target):
    with replacing(target) as unfinished:
        unfinished.write_text("ne")
        raise KeyboardInterrupt


def test_whatever_raises_the_old_file_stays_and_nothing_is_left_beside_it(tmp_path):
    target = tmp_path / "scores.json"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_half(target)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"scores.json": "old"}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_the_file_gets_what_the_users_umask_gives_and_the_umask_stays(tmp_path, umask):
    with replacing(tmp_path / "scores.json"):
        pass
    assert (tmp_path / "scores.json").stat().st_mode & 0o777 == 0o640
    assert os.umask(umask) == umask


def test_a_folder_is_no_file_to_write(tmp_path):
    with pytest.raises(IsADirectoryError, match="name a file inside it"), replacing(tmp_path):
        pass


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent does not exist"), replacing(tmp_path / "absent" / "x.json"):
        pass
