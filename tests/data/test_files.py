"""Files that are complete or as they were before."""

import os
import threading

import pytest

from sgr.data.files import draft_of, warn_unless_written


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


def test_the_longest_name(tmp_path):
    target = tmp_path / ("長" * 83 + ".png")  # 253 bytes of the 255 that file systems allow
    with draft_of(target) as draft:
        draft.write_text("after")
    assert target.read_text() == "after" and os.listdir(tmp_path) == [target.name]


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
