"""The scripts datasets/prepare_*.py on miniature copies of the official downloads."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

import preparation
from official_layouts import (
    check_label_maps,
    file_contents,
    forget_colors,
    write_ade20k,
    write_cityscapes,
    write_coco_stuff_10k,
)
from sgr.data.mappers import SemanticConceptMapper

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_colors_left():
    yield
    forget_colors()


def load_script(name):
    path = CHECKOUT / "datasets" / f"prepare_{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPTS = {name: load_script(name) for name in ("ade20k", "cityscapes", "coco_stuff_10k")}
WRITERS = {
    "ade20k": write_ade20k,
    "cityscapes": write_cityscapes,
    "coco_stuff_10k": write_coco_stuff_10k,
}
NAMES = sorted(SCRIPTS)


def run(name, root, *arguments):
    script = SCRIPTS[name]
    arguments = ["--root", str(root), "--workers", "2", *arguments]
    return preparation.main(
        script.find_splits, script.read, description=script.__doc__, arguments=arguments
    )


@pytest.mark.parametrize("name", NAMES)
def test_official_download(name, tmp_path, capsys):
    expected = WRITERS[name](tmp_path)
    before = file_contents(tmp_path)
    assert run(name, tmp_path, "--partial") == 0
    check_label_maps(expected)
    output = capsys.readouterr().out
    assert f"{len(expected) // 2 + len(expected) % 2} images ready" in output
    # The official files are as they were, and nothing unfinished is left behind.
    after = file_contents(tmp_path)
    assert before.items() <= after.items()
    made = after.keys() - before.keys()
    images = sum(file.endswith(".jpg") for file in made)
    assert images == (len(expected) if name == "coco_stuff_10k" else 0)
    assert len(made) == len(expected) + images


@pytest.mark.parametrize("name", NAMES)
def test_again_and_check_write_nothing(name, tmp_path, capsys):
    expected = WRITERS[name](tmp_path)
    assert run(name, tmp_path, "--partial", "--check") == 1
    assert capsys.readouterr().err.count(" is missing") >= len(expected)
    assert not any(file.exists() for file in expected)
    run(name, tmp_path, "--partial")
    before = file_contents(tmp_path)
    for arguments in ([], ["--check"]):
        capsys.readouterr()
        assert run(name, tmp_path, "--partial", *arguments) == 0
        assert "0 made" in capsys.readouterr().out
        assert file_contents(tmp_path) == before


@pytest.mark.parametrize("name", NAMES)
def test_goes_on_and_mends(name, tmp_path, capsys):
    expected = WRITERS[name](tmp_path)
    run(name, tmp_path, "--partial")
    kept, lost, cut_off, *_ = expected
    before = kept.stat().st_mtime_ns
    lost.unlink()
    cut_off.write_bytes(cut_off.read_bytes()[: cut_off.stat().st_size // 2])
    assert run(name, tmp_path, "--partial", "--check") == 1
    error = capsys.readouterr().err
    assert f"{lost} is missing" in error and f"{cut_off} is damaged" in error
    assert "faults: 2\n" in error
    assert run(name, tmp_path, "--partial") == 0
    check_label_maps(expected)
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", NAMES)
def test_other_content_is_not_overwritten(name, tmp_path, capsys):
    expected = WRITERS[name](tmp_path)
    file = next(iter(expected))
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(file)
    before = file.read_bytes()
    assert run(name, tmp_path, "--partial") == 1
    assert f"{file} is there already" in capsys.readouterr().err
    assert file.read_bytes() == before
    file.unlink()
    assert run(name, tmp_path, "--partial") == 0
    check_label_maps(expected)


@pytest.mark.parametrize("name", ["ade20k", "coco_stuff_10k"])
def test_results_that_cannot_be_read_are_not_overwritten(name, tmp_path, monkeypatch, capsys):
    expected = WRITERS[name](tmp_path)
    run(name, tmp_path, "--partial")
    locked = [next(iter(expected))]
    if name == "coco_stuff_10k":
        file = list(expected)[1]
        locked.append(file.parents[2] / "images_detectron2" / "train" / f"{file.stem}.jpg")
    before = file_contents(tmp_path)
    builtin_open = open

    def refuse(file, *arguments, **options):
        if Path(str(file)) in locked:
            raise PermissionError(13, "Permission denied", str(file))
        return builtin_open(file, *arguments, **options)

    monkeypatch.setattr("builtins.open", refuse)
    for arguments in ([], ["--check"]):
        assert run(name, tmp_path, "--partial", *arguments) == 1
        error = capsys.readouterr().err
        assert f"faults: {len(locked)}\n" in error
        for file in locked:
            assert f"{file} is there already, and cannot be read" in error
    monkeypatch.undo()
    assert file_contents(tmp_path) == before


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_linked_cities_are_found_and_hidden_folders_are_not(tmp_path, capsys):
    write_cityscapes(tmp_path)
    for part in ("leftImg8bit", "gtFine"):
        city = tmp_path / "cityscapes" / part / "train" / "aachen"
        city.rename(tmp_path / f"{part}_elsewhere")
        city.symlink_to(tmp_path / f"{part}_elsewhere")
        bochum = city.with_name("bochum")
        (bochum / ".ipynb_checkpoints").mkdir()
        copy = bochum / ".ipynb_checkpoints" / f"bochum_0_0_{part}.png"
        copy.write_bytes(next(bochum.glob("*.png")).read_bytes())
    assert run("cityscapes", tmp_path, "--partial") == 0
    assert "train: 4 images ready" in capsys.readouterr().out


def test_root_in_the_home_folder(tmp_path, monkeypatch):
    expected = write_ade20k(tmp_path / "data")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert run("ade20k", "~/data", "--partial") == 0
    check_label_maps(expected)


@pytest.mark.parametrize("name", ["cityscapes", "coco_stuff_10k"])
def test_text_files_are_read_in_any_locale(name, tmp_path, monkeypatch):
    WRITERS[name](tmp_path)
    read_text, encodings = Path.read_text, []

    def spy(file, encoding=None, errors=None):
        encodings.append(encoding)
        return read_text(file, encoding, errors)

    monkeypatch.setattr(Path, "read_text", spy)
    assert run(name, tmp_path, "--partial") == 0
    assert encodings and {*encodings} <= {"utf-8", "utf-8-sig"}


@pytest.mark.parametrize("name", ["ade20k", "cityscapes"])
def test_an_incomplete_release_is_told(name, tmp_path, capsys):
    WRITERS[name](tmp_path)
    assert run(name, tmp_path) == 1
    error = capsys.readouterr().err
    assert ("3 of the 20210 images" if name == "ade20k" else "4 of the 2975 images") in error
    assert "--partial" in error


@pytest.mark.parametrize("name", NAMES)
def test_nothing_there(name, tmp_path, capsys):
    for arguments in ([], ["--partial"]):
        assert run(name, tmp_path, *arguments) == 1
        assert str(tmp_path) in capsys.readouterr().err


def source_of(target, name):
    """The official label map and image that a result is made of."""
    if name == "ade20k":
        text = str(target).replace("annotations_detectron2", "annotations")
        return Path(text), Path(text.replace("annotations", "images")).with_suffix(".jpg")
    if name == "cityscapes":
        text = str(target).replace("labelTrainIds", "labelIds")
        image = text.replace("gtFine_labelIds", "leftImg8bit").replace("gtFine", "leftImg8bit")
        return Path(text), Path(image)
    folder = target.parents[2]
    return folder / "annotations" / f"{target.stem}.mat", folder / "images" / f"{target.stem}.jpg"


@pytest.mark.parametrize("name", NAMES)
def test_missing_and_damaged_files_are_named(name, tmp_path, capsys):
    expected = WRITERS[name](tmp_path)
    first, second, third, fourth, *_ = expected
    source_of(first, name)[0].unlink()
    source_of(second, name)[1].unlink()
    labels, image = source_of(third, name)[0], source_of(fourth, name)[1]
    for file in (labels, image):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert run(name, tmp_path, "--partial") == 1
    error = capsys.readouterr().err
    assert "faults: 4\n" in error
    for what, file in [("label map", first), ("image", second)]:
        stem = file.stem.removesuffix("_gtFine_labelTrainIds")
        assert re.search(rf"lacks the {what} of .*{stem}\n", error)
    assert f"label map {labels} cannot be read" in error
    assert f"image {image} cannot be read" in error
    # The others are done.
    for file in (first, second, third, fourth):
        assert not file.exists()
    check_label_maps({file: expected[file] for file in list(expected)[4:]})


@pytest.mark.parametrize("name, label", [("ade20k", 151), ("cityscapes", 34), ("cityscapes", 255)])
def test_unexpected_labels_are_named(name, label, tmp_path, capsys):
    target = next(iter(WRITERS[name](tmp_path)))
    labels = source_of(target, name)[0]
    Image.fromarray(np.full((24, 32), label, np.uint8)).save(labels)
    assert run(name, tmp_path, "--partial") == 1
    assert f"label map {labels} holds the label(s) {label}," in capsys.readouterr().err
    assert not target.exists()


@pytest.mark.parametrize("name", NAMES)
def test_other_size_of_labels(name, tmp_path, capsys):
    target = next(iter(WRITERS[name](tmp_path)))
    labels, image = source_of(target, name)
    Image.fromarray(np.zeros((30, 32, 3), np.uint8)).save(image)
    assert run(name, tmp_path, "--partial") == 1
    message = f"image {image} is 32 x 30 pixels, but its label map {labels} is 32 x 24"
    assert message in capsys.readouterr().err


def save_turned(image, file, orientation=6):
    """An image file that shows ``image`` with its EXIF orientation obeyed."""
    stored = np.rot90(image, 1) if orientation == 6 else np.rot90(image, 2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(file, exif=exif, quality=95)


def test_exif_orientation(tmp_path, capsys):
    expected = write_ade20k(tmp_path)
    first, second, third, *_ = expected
    picture = np.zeros((24, 32, 3), np.uint8)
    # Turned as its label map is; sizes tell so of the first, but not of a half turn.
    save_turned(picture, source_of(first, "ade20k")[1])
    save_turned(picture, source_of(second, "ade20k")[1], orientation=3)
    assert run("ade20k", tmp_path, "--partial") == 0
    output = capsys.readouterr().out
    assert "1 images are turned when read" in output
    assert second.stem in output and first.stem not in output and third.stem not in output
    # The label map is that of the stored pixels.
    save_turned(picture.transpose(1, 0, 2), source_of(third, "ade20k")[1])
    assert run("ade20k", tmp_path, "--partial") == 1
    assert "orientation in its EXIF data turns the image and not" in capsys.readouterr().err
    # Nor do sizes tell of squares.
    third.unlink()
    save_turned(picture[:, :24], source_of(third, "ade20k")[1])
    Image.fromarray(np.zeros((24, 24), np.uint8)).save(source_of(third, "ade20k")[0])
    assert run("ade20k", tmp_path, "--partial") == 0
    assert "2 images are turned when read" in capsys.readouterr().out


def test_forms_of_label_files(tmp_path):
    expected = write_ade20k(tmp_path)
    palette, wide, *_ = expected
    file = source_of(palette, "ade20k")[0]
    image = Image.open(file).convert("P")
    image.putdata(np.asarray(Image.open(file)).flatten().tolist())
    image.putpalette([(7 * value) % 256 for value in range(768)])
    image.save(file)
    assert Image.open(file).mode == "P"
    file = source_of(wide, "ade20k")[0]
    Image.fromarray(np.asarray(Image.open(file)).astype(np.uint16)).save(file)
    assert run("ade20k", tmp_path, "--partial") == 0
    check_label_maps(expected)


@pytest.mark.parametrize("form", ["uint8", "uint16", "float64", "png"])
def test_forms_of_coco_stuff(form, tmp_path):
    expected = write_coco_stuff_10k(tmp_path, form=form)
    assert run("coco_stuff_10k", tmp_path) == 0
    check_label_maps(expected)
    for file in (tmp_path / "coco/coco_stuff_10k/images_detectron2").rglob("*.jpg"):
        assert os.path.samefile(file, file.parents[2] / "images" / file.name)


@pytest.mark.parametrize("label", [12, 91, 183])
def test_numbers_that_coco_stuff_has_not(label, tmp_path, capsys):
    target = next(iter(write_coco_stuff_10k(tmp_path, form="png")))
    file = source_of(target, "coco_stuff_10k")[0].with_suffix(".png")
    Image.fromarray(np.full((24, 32), label, np.uint8)).save(file)
    assert run("coco_stuff_10k", tmp_path) == 1
    assert f"holds the label(s) {label}," in capsys.readouterr().err


def write_v1_0(file, labels, savemat):
    names = ["unlabeled", *(f"name {i}" for i in range(1, 172))]
    names = np.array(names, object)[:, None]
    savemat(file, {"S": labels, "names": names})


def test_coco_stuff_version_1_0(tmp_path):
    from scipy.io import savemat

    labels = np.arange(1, 173, dtype=np.uint8).reshape(4, 43)
    write_v1_0(tmp_path / "a.mat", labels, savemat)
    classes = SCRIPTS["coco_stuff_10k"].read(tmp_path / "a.mat")
    # 1 is unlabelled, and 2 to 172 the classes.
    assert classes.flatten().tolist() == [255, *range(171)]
    # Without the names nobody could say which version it is.
    others = {"none": None, "empty": [], "other": [f"name {i}" for i in range(172)]}
    for name, names in others.items():
        fields = {} if names is None else {"names": np.array(names, object).reshape(-1, 1)}
        savemat(tmp_path / f"{name}.mat", {"S": labels, **fields})
        with pytest.raises(ValueError, match=rf"names in label map .*{name}\.mat must tell"):
            SCRIPTS["coco_stuff_10k"].read(tmp_path / f"{name}.mat")
    write_v1_0(tmp_path / "b.mat", np.zeros((2, 2), np.uint8), savemat)
    with pytest.raises(ValueError, match=r"b\.mat holds the label\(s\) 0,"):
        SCRIPTS["coco_stuff_10k"].read(tmp_path / "b.mat")


UNLABELED = [[ord(each)] for each in "unlabeled"]


def write_matlab_7_3(file, h5py, labels):
    with h5py.File(file, "w", userblock_size=512) as content:
        content["S"] = labels.T
        names = np.empty((1, 172), h5py.ref_dtype)
        for i in range(172):
            letters = np.array([[ord(each)] for each in f"name {i}" if i] or UNLABELED, np.uint16)
            names[0, i] = content.create_dataset(f"#refs#/{i}", data=letters).ref
        content.create_dataset("names", data=names, dtype=h5py.ref_dtype)
    header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    with open(file, "r+b") as opened:
        opened.write(header)


def test_coco_stuff_in_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    labels = np.arange(1, 173, dtype=np.float64).reshape(4, 43)
    write_matlab_7_3(tmp_path / "a.mat", h5py, labels)
    classes = SCRIPTS["coco_stuff_10k"].read(tmp_path / "a.mat")
    assert classes.shape == (4, 43) and classes.flatten().tolist() == [255, *range(171)]


def test_coco_stuff_in_hdf5_without_h5py(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    file = tmp_path / "a.mat"
    file.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(2000))
    with pytest.raises(OSError, match="pip install h5py"):
        SCRIPTS["coco_stuff_10k"].read(file)


def test_coco_stuff_fields(tmp_path):
    from scipy.io import savemat

    for name, fields, message in [
        ("none", {"T": np.zeros((2, 2))}, "has no field S"),
        ("halves", {"S": np.full((2, 2), 0.5)}, "no .* map of integers"),
        ("three", {"S": np.zeros((2, 2, 2))}, "no .* map of integers"),
    ]:
        savemat(tmp_path / f"{name}.mat", fields)
        with pytest.raises(ValueError, match=message):
            SCRIPTS["coco_stuff_10k"].read(tmp_path / f"{name}.mat")


def test_images_are_copied_where_they_cannot_be_linked(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    write_coco_stuff_10k(tmp_path)
    assert run("coco_stuff_10k", tmp_path) == 0
    folder = tmp_path / "coco/coco_stuff_10k"
    copies = sorted((folder / "images_detectron2").rglob("*.jpg"))
    assert len(copies) == 5
    for copy in copies:
        assert copy.read_bytes() == (folder / "images" / copy.name).read_bytes()
    # A copy that was cut off is made anew, another picture is not touched.
    copies[0].write_bytes(copies[0].read_bytes()[:300])
    assert run("coco_stuff_10k", tmp_path) == 0
    assert copies[0].read_bytes() == (folder / "images" / copies[0].name).read_bytes()
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(copies[0])
    assert run("coco_stuff_10k", tmp_path) == 1


def test_two_runs_at_once_leave_nothing_unfinished(tmp_path, monkeypatch):
    """The other run has made the same link by the time this one has."""
    write_coco_stuff_10k(tmp_path)
    link = os.link

    def link_both(source, unfinished):
        link(source, unfinished)
        link(source, unfinished.with_name(unfinished.name[1:].partition(".jpg")[0] + ".jpg"))

    monkeypatch.setattr(os, "link", link_both)
    assert run("coco_stuff_10k", tmp_path) == 0
    images = tmp_path / "coco/coco_stuff_10k/images_detectron2"
    assert len(list(images.rglob("*.jpg"))) == 5 and not list(images.rglob("*.tmp"))


def test_names_of_coco_stuff_lists(tmp_path, capsys):
    expected = write_coco_stuff_10k(tmp_path)
    folder = tmp_path / "coco/coco_stuff_10k"
    for file in (folder / "images").glob("*.jpg"):
        if file.stem not in {each.stem for each in list(expected)[:4]}:
            file.unlink()
            (folder / "annotations" / f"{file.stem}.mat").unlink()
    assert run("coco_stuff_10k", tmp_path) == 1
    assert "lacks the image of COCO_train2014_" in capsys.readouterr().err
    assert run("coco_stuff_10k", tmp_path, "--partial") == 0
    test = folder / "imageLists" / "test.txt"
    test.write_text("\ufeff" + test.read_text(), encoding="utf-8")  # a byte order mark
    assert run("coco_stuff_10k", tmp_path, "--partial") == 0
    test.unlink()
    assert run("coco_stuff_10k", tmp_path, "--partial") == 1
    assert "test.txt does not exist" in capsys.readouterr().err


def test_cityscapes_test_split(tmp_path, capsys):
    expected = write_cityscapes(tmp_path, splits=("train", "val", "test"))
    assert run("cityscapes", tmp_path, "--partial") == 0
    assert "test: 2 images ready" in capsys.readouterr().out
    check_label_maps(expected)


def test_other_files_of_cityscapes(tmp_path, capsys):
    first, second, third, *_ = write_cityscapes(tmp_path)
    polygons = [
        Path(str(each).replace("labelTrainIds.png", "polygons.json")) for each in (first, second)
    ]
    polygons[0].unlink()
    polygons[1].write_text(json.dumps({"imgHeight": 1, "imgWidth": 2}))
    Path(str(third).replace("labelTrainIds", "instanceIds")).unlink()
    assert run("cityscapes", tmp_path, "--partial") == 1
    error = capsys.readouterr().err
    assert f"{polygons[0]} does not exist" in error
    assert f"{polygons[1]} says 2 x 1 pixels" in error
    assert "lacks the instanceIds.png of bochum/" in error
    polygons[1].write_text("{")
    run("cityscapes", tmp_path, "--partial")
    assert f"{polygons[1]} cannot be read" in capsys.readouterr().err


def test_a_full_disk_stops_it(tmp_path, monkeypatch, capsys):
    expected = write_ade20k(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert run("ade20k", tmp_path, "--partial") == 1
    assert "No space left" in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".tmp"]
    assert not any(file.exists() for file in expected)


def test_wrong_number_of_workers(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("ade20k", tmp_path, "--workers", "0")
    assert "at least 1" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_interrupted_run_goes_on(tmp_path, capsys):
    expected = write_ade20k(tmp_path, train=40, val=1)
    script = SCRIPTS["ade20k"]
    calls = []

    def read(file):
        calls.append(file)
        if len(calls) == 8:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.02)
        return script.read(file)

    arguments = ["--root", str(tmp_path), "--workers", "2", "--partial"]
    status = preparation.main(script.find_splits, read, description="", arguments=arguments)
    assert status == 130
    assert "run this again to go on" in capsys.readouterr().err
    done = [file for file in expected if file.exists()]
    assert 0 < len(done) < len(expected)
    assert not list(done[0].parent.glob(".*"))
    check_label_maps({file: expected[file] for file in done})
    assert run("ade20k", tmp_path, "--partial") == 0
    check_label_maps(expected)


def test_command_line():
    """A script runs on its own; --help shows what it reads and writes."""
    command = [sys.executable, "-W", "ignore", CHECKOUT / "datasets/prepare_ade20k.py", "--help"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "--check" in output and "annotations_detectron2/" in output


@pytest.mark.parametrize(
    "name, dataset, num_classes",
    [
        ("ade20k", "ade20k_sem_seg_train", 150),
        ("cityscapes", "cityscapes_fine_sem_seg_train", 19),
        ("coco_stuff_10k", "coco_stuff_10k_sem_seg_train", 171),
    ],
)
def test_prepared_data_reach_the_mapper(name, dataset, num_classes, tmp_path, monkeypatch):
    expected = WRITERS[name](tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"prepare_{name}.py"):
        DatasetCatalog.get(dataset)
    run(name, tmp_path, "--partial")
    mapper = SemanticConceptMapper(
        augmentations=[], image_format="RGB", num_classes=num_classes, ignore_label=255
    )
    records = DatasetCatalog.get(dataset)
    assert len(records) == (4 if name == "cityscapes" else 3)
    for record in records:
        labels = expected[Path(record["sem_seg_file_name"])]
        mapped = mapper(record)
        np.testing.assert_array_equal(mapped["sem_seg"].numpy(), labels)
        assert mapped["image"].shape == (3, 24, 32)
        assert (mapped["height"], mapped["width"]) == (24, 32)
