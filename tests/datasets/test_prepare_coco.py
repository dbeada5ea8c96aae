"""The script datasets/prepare_coco.py on a miniature copy of the official downloads."""

import importlib.util
import json
import os
import shutil
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
from official_layouts import check_label_maps, file_contents, turn_by_exif, write_coco

CHECKOUT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location(
    "prepare_coco", CHECKOUT / "datasets" / "prepare_coco.py"
)
SCRIPT = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(SCRIPT)


def run(root, *arguments):
    arguments = ["--root", str(root), "--workers", "2", *arguments]
    return preparation.main(SCRIPT.find_splits, description=SCRIPT.__doc__, arguments=arguments)


def change(file, function):
    """Change the content of a JSON file in place."""
    content = json.loads(file.read_text())
    function(content)
    file.write_text(json.dumps(content))


def test_classes():
    assert SCRIPT.CLASSES[1] == SCRIPT.CLASSES[90] == 0
    assert SCRIPT.CLASSES[92] == 1 and SCRIPT.CLASSES[200] == 53
    assert len(SCRIPT.CLASSES) == 133 and set(SCRIPT.CLASSES.values()) == set(range(54))


def test_official_download(tmp_path, capsys):
    expected = write_coco(tmp_path)
    before = file_contents(tmp_path)
    assert run(tmp_path, "--partial") == 0
    check_label_maps(expected)
    assert {0, 255} < set(np.unique(list(expected.values())).tolist())
    output = capsys.readouterr().out
    assert "train2017: 3 images ready (3 made, 0 were there); faults: 0" in output
    assert "val2017: 4 images ready" in output
    assert "instances of 4 images in annotations/instances_val2017.json" in output
    assert "panoptic segments of 4 images in annotations/panoptic_val2017.json" in output
    # One is turned when read, but its size tells that its annotations are, too.
    assert "are turned" not in output
    for name in ("instances_train", "panoptic_train", "instances_val", "panoptic_val"):
        assert output.count(f"reading annotations/{name}2017.json\n") == 1
    after = file_contents(tmp_path)
    assert before.items() <= after.items() and len(after) == len(before) + len(expected)


def test_again_and_check_write_nothing(tmp_path, capsys):
    expected = write_coco(tmp_path)
    assert run(tmp_path, "--partial", "--check") == 1
    assert capsys.readouterr().err.count(" is missing") == len(expected)
    assert not any(file.exists() for file in expected)
    run(tmp_path, "--partial")
    before = file_contents(tmp_path)
    for arguments in ([], ["--check"]):
        capsys.readouterr()
        assert run(tmp_path, "--partial", *arguments) == 0
        assert "(0 made, 4 were there)" in capsys.readouterr().out
        assert file_contents(tmp_path) == before


def test_goes_on_mends_and_leaves_other_content(tmp_path, capsys):
    expected = write_coco(tmp_path)
    run(tmp_path, "--partial")
    kept, lost, cut_off, other, *_ = expected
    before = kept.stat().st_mtime_ns
    lost.unlink()
    cut_off.write_bytes(cut_off.read_bytes()[: cut_off.stat().st_size // 2])
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(other)
    assert run(tmp_path, "--partial", "--check") == 1
    error = capsys.readouterr().err
    assert f"{lost} is missing" in error and f"{cut_off} is damaged" in error
    assert f"{other} is there already" in error and "faults: 3\n" in error
    assert run(tmp_path, "--partial") == 1
    assert "faults: 1\n" in capsys.readouterr().err
    assert not np.asarray(Image.open(other)).any()
    other.unlink()
    assert run(tmp_path, "--partial") == 0
    check_label_maps(expected)
    assert kept.stat().st_mtime_ns == before


def test_part_of_the_release(tmp_path, capsys):
    write_coco(tmp_path)
    shutil.rmtree(tmp_path / "coco/train2017")
    assert run(tmp_path) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path / 'coco/train2017'} holds no images" in error
    for kind in ("instances", "panoptic"):
        assert f"{kind}_val2017.json names 4 of the 5000 images of the release" in error
    assert "--partial" in error
    assert run(tmp_path, "--partial") == 0
    output = capsys.readouterr().out
    assert "train2017: left out" in output and "train2017: 0 images" not in output
    assert "val2017: 4 images ready" in output
    shutil.rmtree(tmp_path / "coco")
    assert run(tmp_path, "--partial") == 1
    assert "there is nothing to prepare under" in capsys.readouterr().err


def test_counts_of_the_release_are_enough(tmp_path, monkeypatch):
    expected = write_coco(tmp_path)
    monkeypatch.setattr(SCRIPT, "NUM_IMAGES", {"train2017": 3, "val2017": 4})
    assert run(tmp_path) == 0
    check_label_maps(expected)


def test_instances_alone(tmp_path, capsys):
    write_coco(tmp_path, panoptic=False)
    before = file_contents(tmp_path)
    assert run(tmp_path, "--partial") == 0
    output = capsys.readouterr().out
    assert "no panoptic segments, because there is no annotations/panoptic_train2017.json" in output
    assert "train2017: 3 images ready" in output
    assert file_contents(tmp_path) == before
    image = tmp_path / "coco/train2017/000000000009.jpg"
    image.write_bytes(image.read_bytes()[:300])
    (tmp_path / "coco/val2017/000000000139.jpg").unlink()
    assert run(tmp_path, "--partial") == 1
    error = capsys.readouterr().err
    assert f"image {image} cannot be read, it may be damaged" in error
    assert f"image {tmp_path / 'coco/val2017/000000000139.jpg'} does not exist" in error
    assert "faults: 2\n" in error


def test_panoptic_segments_alone(tmp_path, capsys):
    expected = write_coco(tmp_path)
    for file in (tmp_path / "coco/annotations").glob("instances_*"):
        file.unlink()
    assert run(tmp_path, "--partial") == 0
    assert "no instances, because there is no annotations/inst" in capsys.readouterr().out
    check_label_maps(expected)


def test_no_annotations_at_all(tmp_path, capsys):
    write_coco(tmp_path, panoptic=False)
    shutil.rmtree(tmp_path / "coco/annotations")
    assert run(tmp_path, "--partial") == 1
    assert capsys.readouterr().err.count("panoptic_val2017.json exists") == 1


def test_archives_in_the_archive(tmp_path, capsys):
    write_coco(tmp_path)
    pictures = tmp_path / "coco/panoptic_val2017"
    pictures.rename(tmp_path / "coco/annotations/panoptic_val2017")
    assert run(tmp_path, "--partial") == 1
    error = capsys.readouterr().err
    assert f"{pictures} holds no pictures: unpack annotations/panoptic_val2017.zip" in error
    assert "faults: 1\n" in error
    (tmp_path / "coco/annotations/panoptic_val2017").rename(pictures)
    (tmp_path / "coco/annotations/panoptic_val2017.json").unlink()
    assert run(tmp_path, "--partial") == 1
    assert "panoptic_val2017.json does not exist, although" in capsys.readouterr().err


def test_files_at_fault(tmp_path, capsys):
    expected = write_coco(tmp_path)
    coco = tmp_path / "coco"
    stems = ["000000000139", "000000000285", "000000000632", "000000581781"]
    damaged, missing, small, other = (coco / f"panoptic_val2017/{stem}.png" for stem in stems)
    damaged.write_bytes(damaged.read_bytes()[:150])
    missing.unlink()
    Image.open(small).crop((0, 0, 30, 24)).save(small)
    picture = np.array(Image.open(other))
    picture[0, 0] = (1, 2, 3)
    Image.fromarray(picture).save(other)
    image = coco / "train2017/000000000009.jpg"
    Image.open(image).resize((31, 24)).save(image)
    turned = coco / "train2017/000000000025.jpg"  # its annotations are those of the stored pixels
    Image.open(turned).transpose(Image.Transpose.ROTATE_90).save(turned)
    turn_by_exif(turned)
    stored = {"height": 24, "width": 32}
    for kind in ("instances", "panoptic"):
        file = coco / f"annotations/{kind}_train2017.json"
        change(file, lambda content: content["images"][1].update(stored))
    assert run(tmp_path, "--partial") == 1
    error = capsys.readouterr().err
    assert "faults: 6\n" in error
    assert f"{damaged} cannot be read" in error
    assert f"- panoptic picture {missing} does not exist" in error
    assert f"000000000632.jpg is 32 x 24 pixels, but its label map {small} is 30 x 24" in error
    assert f"{other} holds the id(s) {1 + 2 * 256 + 3 * 65536}, which" in error
    assert f"{image} is 31 x 24 pixels, but its annotations say 32 x 24" in error
    assert f"{turned} is 24 x 32 pixels, but its annotations say 32 x 24; the orien" in error
    made = [file for file in expected if file.exists()]
    assert [file.name for file in made] == ["000000309022.png"]


def test_segments_at_fault(tmp_path, capsys):
    write_coco(tmp_path)
    file = tmp_path / "coco/annotations/panoptic_val2017.json"
    lost = {"id": 7, "category_id": 1, "area": 5}

    def spoil(content):
        first, second, third, fourth = (each["segments_info"] for each in content["annotations"])
        first.append(lost)
        second.append({**lost, "area": 0})  # nothing is what it says
        third[0]["category_id"] = 12
        fourth[1]["id"] = fourth[0]["id"]

    change(file, spoil)
    assert run(tmp_path, "--partial") == 1
    error = capsys.readouterr().err
    assert "faults: 3\n" in error
    assert "000000000139.png lacks the segments 7" in error
    assert "000000000632.png have categories that COCO does not have: 12" in error
    assert "several segments of" in error and "000000581781.png have the same id" in error


def test_json_files_at_fault(tmp_path, capsys):
    expected = write_coco(tmp_path)
    annotations = tmp_path / "coco/annotations"
    (annotations / "instances_train2017.json").write_text("{")
    (annotations / "panoptic_train2017.json").write_text('{"images": [{}]}')

    def spoil(content):
        del content["images"][0]
        content["images"][0]["width"] = 33
        content["categories"][0]["name"] = "somebody"

    change(annotations / "instances_val2017.json", spoil)
    change(annotations / "panoptic_val2017.json", lambda content: content["annotations"].pop())
    assert run(tmp_path, "--partial") == 1
    error = capsys.readouterr().err
    assert "instances_train2017.json cannot be read, it may be damaged: JSONDecodeE" in error
    assert "panoptic_train2017.json cannot be read, it may be damaged: ValueError: it has" in error
    assert "instances_val2017.json has annotations of image 139, which it does not name" in error
    assert "instances_val2017.json: the categories are not COCO's 80; register" in error
    assert "panoptic_val2017.json has no segments of 000000581781.jpg" in error
    assert "panoptic_val2017.json gives another size" in error and "for 000000000285.jpg" in error
    assert "000000000285.jpg is 32 x 24 pixels, but its annotations say 33 x 24" in error
    assert sum(file.exists() for file in expected) == 2


def test_faults_of_instances(tmp_path, capsys):
    write_coco(tmp_path, panoptic=False)
    file = tmp_path / "coco/annotations/instances_val2017.json"
    change(file, lambda content: content["annotations"][0].update(category_id=12))
    assert run(tmp_path, "--partial") == 1
    error = capsys.readouterr().err
    assert f"{file}: annotation 139003 of image 139 has category_id 12" in error


BOTH = ("instances", "panoptic")


@pytest.mark.parametrize(
    "kinds, spoil, message",
    [
        (BOTH, lambda content: content.pop("annotations"), "it has no list of annotations"),
        (BOTH, lambda content: content.update(images=7), "it has no list of images"),
        (BOTH, lambda content: content.pop("categories"), "it has no list of categories"),
        (BOTH, lambda content: content["images"][1].update(file_name=5), "file_name is 5, not a s"),
        (["instances"], lambda content: content["images"][1].update(file_name=None), "NoneType"),
        (["panoptic"], lambda content: content["images"][1].update(file_name=None), "is None, not"),
        (["panoptic"], lambda content: content["annotations"][1].update(file_name=5), "is 5, not"),
        (BOTH, lambda content: content["images"][1].update(height="24"), "height is '24', not an"),
        (BOTH, lambda content: content["images"][1].update(width=-1), "width is -1, not an"),
        (BOTH, lambda content: content["annotations"][0].update(image_id=[1]), "list"),
        (BOTH, lambda content: content["images"].insert(0, "a"), "str"),
        (["panoptic"], lambda content: segment_of(content).update(id=1e30), "id is 1e+30, not"),
        (["panoptic"], lambda content: segment_of(content).update(id=256**3), "id is 16777216, no"),
        (["panoptic"], lambda content: segment_of(content).update(category_id=None), "id is None,"),
    ],
)
def test_records_at_fault(tmp_path, capsys, kinds, spoil, message):
    """They are told, and everything else is done."""
    expected = write_coco(tmp_path)
    for kind in kinds:
        change(tmp_path / f"coco/annotations/{kind}_train2017.json", spoil)
    assert run(tmp_path, "--partial") == 1
    output, error = capsys.readouterr()
    faults = [line for line in error.splitlines() if line.startswith("- ")]
    assert len(faults) == len(kinds)
    for kind, fault in zip(kinds, faults):
        assert f"{kind}_train2017.json" in fault and message in fault
    assert f"train2017: {3 * (len(kinds) == 1)} images ready" in output
    assert "val2017: 4 images ready (4 made" in output
    check_label_maps({file: expected[file] for file in list(expected)[3:]})


def segment_of(content):
    return content["annotations"][0]["segments_info"][0]


def test_panoptic_files_unlike_cocos(tmp_path, capsys):
    write_coco(tmp_path)
    file = tmp_path / "coco/annotations/panoptic_val2017.json"

    def spoil(content):
        content["categories"][100]["name"] = "mine"
        content["annotations"].append(content["annotations"][1])

    change(file, spoil)
    assert run(tmp_path, "--partial") == 1
    error = capsys.readouterr().err
    assert f"{file}: the categories are not COCO's 133; register" in error
    assert f"{file} has 2 annotations of 000000000285.png" in error and "faults: 2\n" in error


def test_faults_of_each_kind_are_named(tmp_path, capsys):
    """And not a line for each image of the release."""
    write_coco(tmp_path)
    for split in ("train2017", "val2017"):
        for kind in BOTH:
            change(
                tmp_path / f"coco/annotations/{kind}_{split}.json",
                lambda content: content["images"].extend(
                    {"id": 10**6 + place, "file_name": f"{place}.jpg", "height": 9, "width": 9}
                    for place in range(50)
                ),
            )
    assert run(tmp_path, "--partial", "--check") == 1
    error = capsys.readouterr().err.split("faults: ")[1].splitlines()
    assert error[0] == str(2 * (50 + 50) + 3 + 4)
    for kind, count in [("has no segments of", 40), (".jpg does not exist", 40), ("is missing", 7)]:
        assert sum(kind in line for line in error) == count
    assert error.count("and 30 more") == 4 and len(error) == 1 + 87 + 4


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_interrupted_run_goes_on(tmp_path, monkeypatch, capsys):
    expected = write_coco(tmp_path)
    read, calls = SCRIPT.read_labels_of_segments, []

    def interrupted(segments, file):
        calls.append(file)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        return read(segments, file)

    monkeypatch.setattr(SCRIPT, "read_labels_of_segments", interrupted)
    assert run(tmp_path, "--partial") == 130
    assert "run this again to go on" in capsys.readouterr().err
    done = [file for file in expected if file.exists()]
    assert 0 < len(done) < len(expected)
    assert not list(done[0].parent.glob(".*"))
    monkeypatch.undo()
    check_label_maps({file: expected[file] for file in done})
    assert run(tmp_path, "--partial") == 0
    check_label_maps(expected)


def test_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        run("root", "--help")
    output = capsys.readouterr().out
    assert "--check" in output and "panoptic_stuff_{train,val}2017/" in output


def test_command_line(tmp_path):
    write_coco(tmp_path)
    command = [sys.executable, "-W", "ignore", CHECKOUT / "datasets/prepare_coco.py"]
    result = subprocess.run([*command, "--root", tmp_path], capture_output=True, text=True)
    assert result.returncode == 1 and "4 of the 5000 images" in result.stderr


def test_part_of_the_real_images(shared, capsys, tmp_path):
    (tmp_path / "coco").symlink_to(shared / "data" / "coco_mini")
    assert run(tmp_path, "--partial") == 0
    output = capsys.readouterr().out
    assert "train2017: 80 images ready" in output and "val2017: 79 images ready" in output


def test_prepared_data_can_be_loaded(tmp_path, monkeypatch):
    expected = write_coco(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for kind in ("separated", "stuffonly"):
        with pytest.raises(FileNotFoundError, match="prepare_coco.py"):
            DatasetCatalog.get(f"coco_2017_val_panoptic_{kind}")
    run(tmp_path, "--partial")
    for kind in ("separated", "stuffonly"):
        records = DatasetCatalog.get(f"coco_2017_val_panoptic_{kind}")
        found = {Path(each["sem_seg_file_name"]) for each in records}
        assert found == set(list(expected)[3:])
