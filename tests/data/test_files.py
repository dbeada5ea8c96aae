"""Files that are complete or as they were before, and the files of a folder."""

import os
import threading

import pytest

from sgr.data.files import draft_of, visible_files, warn_unless_written


def test_after_an_error_the_file_is_as_before(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("before")
    with pytest.raises(KeyboardInterrupt), draft_of(target) as draft:
        draft.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "before" and os.listdir(tmp_path) == ["a.txt"]
    with draft_of(target) as draft:
        assert draft.suffix == ".tmp" and draft.parent == tmp_path
        draft.write_text("after")
    assert target.read_text() == "after" and os.listdir(tmp_path) == ["a.txt"]


def test_the_draft_of_a_killed_run_is_no_obstacle(tmp_path):
    source, target = tmp_path / "a.jpg", tmp_path / "b.jpg"
    source.write_bytes(b"image")
    left = tmp_path / f".b.jpg.{os.getpid()}-{threading.get_ident()}.tmp"
    os.link(source, left)
    with draft_of(target) as draft:
        os.link(source, draft)
    assert target.read_bytes() == b"image" and not left.exists()


def names_in(folder):
    return [path.relative_to(folder).as_posix() for path in visible_files(folder)]


def test_links_are_followed_but_no_folder_is_read_twice(tmp_path, caplog):
    """Two links to the folder itself would be 2^40 files, 40 links deep."""
    data, other = tmp_path / "data", tmp_path / "other"
    for folder in (data / "real", data / ".hidden", other):
        folder.mkdir(parents=True)
        (folder / "1.png").touch()
    (data / "0.png").touch()
    (data / "all").symlink_to("real")  # its own name counts, although it comes later
    (data / "linked").symlink_to(other)
    for name, target in (("self", "."), ("again", "."), ("up", ".."), ("root", "/")):
        (data / name).symlink_to(target)
    (other / "back").symlink_to(data)
    assert names_in(data) == ["0.png", "linked/1.png", "real/1.png"]
    left_out = {record.message.split(" is left out")[0] for record in caplog.records}
    inside = {"all", "self", "again", "up", "root", "linked/back"}
    assert left_out == {str(data / name) for name in inside}
    assert visible_files(tmp_path / "missing") == []


def test_a_folder_that_is_itself_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "1.png").touch()
    (tmp_path / "link").symlink_to("real")
    assert names_in(tmp_path / "link") == ["1.png"]


def test_a_file_that_others_can_do_without(tmp_path, caplog):
    with warn_unless_written(tmp_path / "new" / "a.txt") as draft:
        draft.write_text("after")
    assert (tmp_path / "new" / "a.txt").read_text() == "after" and not caplog.text
    with warn_unless_written(tmp_path / "new" / "a.txt") as draft:
        draft.write_text("half")
        raise OSError(28, "No space left on device")
    assert (tmp_path / "new" / "a.txt").read_text() == "after"
    assert "a.txt cannot be written: [Errno 28] No space left on device" in caplog.text
    with pytest.raises(KeyError), warn_unless_written(tmp_path / "a.txt"):
        raise KeyError
