"""The files of a folder."""

from sgr.data.listing import visible_files


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
