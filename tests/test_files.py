"""A file is there whole or not at all, and is like any other file of its user."""

import os
import stat

import pytest

from captum_norm.files import check_writable, is_stream, replacing


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


def test_a_link_stays_a_link_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "scores.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    with replacing(link) as unfinished:
        unfinished.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["scores.json"]


def test_a_link_to_a_file_that_is_not_there_yet_makes_it(tmp_path):
    link = tmp_path / "link.json"
    link.symlink_to("later.json")
    with replacing(link) as unfinished:
        unfinished.write_text("new")
    assert (link.is_symlink(), (tmp_path / "later.json").read_text()) == (True, "new")


def test_a_link_that_leads_round_in_a_circle_is_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="leads round in a circle"), replacing(tmp_path / "a"):
        pass
    assert (tmp_path / "a").is_symlink()


@pytest.fixture
def pipe(tmp_path):
    """A pipe, and the end that its reader holds."""
    path = tmp_path / "pipe.json"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    yield path, reader
    os.close(reader)


@pytest.mark.parametrize("by", ["itself", "a link"])
def test_a_pipe_is_written_into_and_stays(pipe, by, tmp_path):
    path, reader = pipe
    named = path
    if by == "a link":
        named = tmp_path / "link"
        named.symlink_to(path)
    assert is_stream(named)
    check_writable(named)
    with replacing(named) as unfinished:
        assert unfinished.parent != tmp_path
        unfinished.write_text("[1.0]")
    assert os.read(reader, 100) == b"[1.0]"
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_nothing_half_written_enters_a_pipe(pipe):
    path, reader = pipe
    with pytest.raises(KeyboardInterrupt):
        write_half(path)
    assert os.read(reader, 100) == b""


def test_standard_output_that_is_a_file_keeps_what_it_holds(tmp_path):
    with (tmp_path / "log.txt").open("w+") as log:
        log.write("before ")
        log.flush()
        with replacing(f"/dev/fd/{log.fileno()}") as unfinished:
            unfinished.write_text("after")
        assert (tmp_path / "log.txt").read_text() == "before after"


def test_a_file_keeps_its_permissions(tmp_path):
    target = tmp_path / "secret.json"
    target.write_text("old")
    target.chmod(0o600)
    with replacing(target) as unfinished:
        unfinished.write_text("new")
    assert target.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("use", [check_writable, lambda path: replacing(path).__enter__()])
def test_a_protected_file_is_not_replaced(tmp_path, use):
    target = tmp_path / "kept.json"
    target.write_text("old")
    target.chmod(0o400)
    with pytest.raises(PermissionError, match="protected from writing"):
        use(target)


def test_what_can_be_written_is_told_before(tmp_path):
    check_writable(tmp_path / "new.json")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="does not exist"):
        check_writable(tmp_path / "absent" / "x")
    with pytest.raises(IsADirectoryError):
        check_writable(tmp_path)
