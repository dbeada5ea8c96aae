from pathlib import Path

import pytest

from sgr.inference import IMAGE_SUFFIXES, find_files, output_files, refuse_overwriting

KEEP = (".jpg", ".png")


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png", "sub/c.png", "x[1].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def found(folder, *inputs):
    files, problems = find_files([str(folder / each) for each in inputs], IMAGE_SUFFIXES)
    return [str(file.relative_to(folder)) for file in files], list(problems.values())


def test_a_folder_gives_its_images(folder):
    assert found(folder, "") == (["a.JPG", "b.png", "x[1].png"], [])


def test_patterns_and_files(folder):
    assert found(folder, "**/*.png") == (["b.png", "sub/c.png", "x[1].png"], [])
    # A name that looks like a pattern, a suffix that is not known, and a file named twice.
    assert found(folder, "x[1].png", "notes.txt", "sub/../x[1].png") == (
        ["x[1].png", "notes.txt"],
        [],
    )


def test_what_names_no_file_is_told(folder):
    (folder / "empty").mkdir()
    files, problems = found(folder, "none.png", "empty", "*.gif", "b.png")
    assert files == ["b.png"]
    assert problems[0] == "no such file"
    assert problems[1].startswith("the folder holds no file with .bmp, .gif")
    assert problems[2].startswith("no file with .bmp") and "matches" in problems[2]


def results(*files):
    written = output_files([Path(file) for file in files], Path("out"), KEEP, ".png")
    return [str(path.relative_to("out")) for path in written]


def test_results_have_the_names_of_their_files():
    assert results("a/x.jpg", "b/y.PNG", "z.tif") == ["x.jpg", "y.PNG", "z.png"]


def test_equal_names_do_not_meet():
    assert results("r/a/x.jpg", "r/b/x.jpg", "r/b/c/y.jpg") == ["a/x.jpg", "b/x.jpg", "b/c/y.jpg"]
    assert results("r/x.jpg", "r/a/../b/x.jpg", "x.jpg") == ["r/x.jpg", "r/b/x.jpg", "x.jpg"]
    assert results("../x.jpg", "a/x.jpg")[1].endswith("/a/x.jpg")  # and not out/../x.jpg
    assert results("r/x.jpg", "r/a/X.JPG") == ["x.jpg", "a/X.JPG"]
    assert results("a.tif", "a.gif", "a_2.png", "a.png") == [
        "a.png", "a_2.png", "a_2_2.png", "a_3.png",
    ]  # fmt: skip


def test_inputs_are_not_overwritten(folder):
    (folder / "link").symlink_to(folder)
    files = [folder / "b.png"]
    refuse_overwriting(files, [folder / "a.JPG", folder / "new.png"])
    with pytest.raises(ValueError, match="link/b.png would overwrite the input .*b.png"):
        refuse_overwriting(files, [folder / "link" / "b.png"])
