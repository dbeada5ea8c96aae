"""The tool from its command line to its exit status."""

import json
import os
import re
import runpy
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from sgr.data.datasets.pairs import load_sem_seg_pairs
from tiny_model import CHECKOUT, CONFIG

TOOL = CHECKOUT / "tools" / "check_dataset.py"


@pytest.fixture(scope="module")
def tool():
    return runpy.run_path(str(TOOL))


@pytest.fixture
def run(tool, tmp_path):
    def main(*arguments):
        return tool["main"]([*map(str, arguments), "--output", str(tmp_path / "out")])

    return main


@pytest.fixture
def register():
    names = []

    def add(name, records, **metadata):
        DatasetCatalog.register(name, records if callable(records) else lambda: records)
        MetadataCatalog.get(name).set(**metadata)
        names.append(name)

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def folder(tmp_path):
    """Six images with labels 0 to 2; the records, and the metadata with their folders."""
    rng = np.random.default_rng(0)
    records = []
    for index in range(6):
        image = rng.integers(0, 256, (24, 32, 3)).astype(np.uint8)
        labels = rng.integers(0, 3, (3, 4)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        record = {"image_id": index}
        for key, kind, array in (
            ("file_name", "images", image),
            ("sem_seg_file_name", "labels", labels),
        ):
            record[key] = str(tmp_path / kind / f"{index}.png")
            Path(record[key]).parent.mkdir(exist_ok=True)
            Image.fromarray(array).save(record[key])
        records.append(record)
    metadata = {
        "stuff_classes": ["sky", "road", "car"],
        "ignore_label": 255,
        "evaluator_type": "sem_seg",
        "image_root": str(tmp_path / "images"),
        "sem_seg_root": str(tmp_path / "labels"),
    }
    return records, metadata


def test_a_good_dataset(run, register, folder, tmp_path, capsys):
    register("check_good", folder[0], **folder[1])
    assert run("check_good", "--json", tmp_path / "figures.json", "--workers", 2) == 0
    printed = capsys.readouterr().out
    assert "check_good: 6 images, label maps" in printed and "Errors: none" in printed
    assert "s per 1000 images; samples in" in printed
    with Image.open(tmp_path / "out" / "check_good" / "contact_sheet.jpg") as picture:
        assert picture.size[0] > 1000
    figures = json.loads((tmp_path / "figures.json").read_text())["check_good"]
    labels = [np.array(Image.open(record["sem_seg_file_name"])) for record in folder[0]]
    for label, row in enumerate(figures["classes"]):
        assert row["pixels"] == sum((each == label).sum() for each in labels)
        assert row["images"] == sum((each == label).any() for each in labels)
    assert figures["faults"] == [] and figures["components_per_image"]["max_active"] == 64


def test_a_bad_dataset(run, register, folder, tmp_path, capsys):
    records, metadata = folder
    labels = np.full((24, 32), 1, np.uint8)
    labels[0, :5] = 77
    Image.fromarray(labels).save(records[0]["sem_seg_file_name"])
    Path(records[1]["sem_seg_file_name"]).unlink()
    Path(records[2]["file_name"]).write_bytes(b"no image")
    Image.fromarray(labels[:, 1:] % 2).save(records[3]["sem_seg_file_name"])
    register("check_bad", records, **metadata)
    assert run("check_bad", "--json", tmp_path / "figures.json", "MODEL.SGR.NUM_HEADS", 4) == 1
    printed, messages = capsys.readouterr()
    assert "There are errors in check_bad." in messages
    assert "Errors: 4" in printed and "holds the label(s) 77" in printed
    assert "| label 77, no class" in printed and "5 pixels in 1 image " in printed
    figures = json.loads((tmp_path / "figures.json").read_text())["check_bad"]
    assert figures["labels_outside"] == {"77": {"images": 1, "pixels": 5}}
    assert figures["num_faults_by_kind"] == {"labels": 1, "label_map": 1, "image": 1, "size": 1}
    assert [each["kind"] for each in figures["faults"]] == ["labels", "label_map", "image", "size"]
    # Of the two that are left.
    assert (tmp_path / "out" / "check_bad" / "contact_sheet.jpg").is_file()


def test_tree(run, register, folder, capsys):
    records, metadata = folder
    register("check_tree", records, class_tree={"up": ["sky"], "down": ["road", "car"]}, **metadata)
    assert run("check_tree", "--num-samples", 0) == 0
    assert "3 + 2 nodes:\n\nup\n└── 0 sky\ndown\n├── 1 road\n└── 2 car\n" in capsys.readouterr().out
    register("check_wrong_tree", records, class_tree={"up": ["sky", "road"]}, **metadata)
    assert run("check_wrong_tree", "--num-samples", 0) == 1
    printed = capsys.readouterr().out
    assert "class_tree in the metadata: classes that the tree does not have: car" in printed
    assert "nodes:" not in printed


def test_files_without_a_partner(run, register, folder, tmp_path, capsys):
    """All of them are named, and the rest is looked at."""
    Image.new("L", (3, 3), 9).save(folder[0][0]["sem_seg_file_name"])  # another fault
    images = [tmp_path / "images" / f"alone_{index}.png" for index in range(3)]
    label_map = tmp_path / "labels" / "alone_too.png"
    for file in (*images, label_map):
        file.write_bytes(Path(folder[0][0]["file_name"]).read_bytes())
    load = partial(load_sem_seg_pairs, tmp_path / "images", tmp_path / "labels")
    register("check_pairs", load, **folder[1])

    def load_with_a_hint():
        try:
            return load()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error} (a hint)") from error

    register("check_hint", load_with_a_hint, **folder[1])
    for name in ("check_pairs", "check_hint"):
        assert run(name, "--num-samples", 0, "--json", tmp_path / "f.json") == 1
        printed = capsys.readouterr().out
        assert f"{name}: 6 images" in printed
        assert "4 x files that are missing, or without a partner:" in printed
        for file in images:
            assert f"image without a label map: {file} has no partner" in printed
        assert f"label map without an image: {label_map} has no partner" in printed
        assert "holds the label(s) 9" in printed
        assert not (tmp_path / "out").exists()
        kinds = json.loads((tmp_path / "f.json").read_text())[name]["num_faults_by_kind"]
        assert kinds == {"pairs": 4, "size": 1, "labels": 1}
    Image.new("L", (32, 24), 1).save(folder[0][0]["sem_seg_file_name"])
    assert run("check_pairs", "--num-samples", 0, "--partial") == 0
    printed = capsys.readouterr().out
    assert "Warnings: 1\n- files that are missing, or without a partner: 4" in printed
    assert f"- image without a label map: {images[2]}" in printed


def test_missing_files_are_named_beside_unknown_classes(run, register, folder, tmp_path, capsys):
    Path(folder[0][4]["file_name"]).unlink()
    register("check_4", partial(load_sem_seg_pairs, tmp_path / "images", tmp_path / "labels"))
    assert run("check_4") == 1
    printed = capsys.readouterr().out
    assert "cannot be checked: its metadata have no stuff_classes" in printed
    assert f"Furthermore:\n- label map without an image: {tmp_path}/labels/4.png" in printed


def test_folders_without_a_pair(run, register, tmp_path, capsys):
    for name in ("images/a.png", "labels/b.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name)
    load = partial(load_sem_seg_pairs, tmp_path / "images", tmp_path / "labels")
    register("check_none", load, stuff_classes=["a"])
    assert run("check_none") == 1
    assert "check_none: cannot be checked: image without a label map" in capsys.readouterr().out


def test_part_of_a_dataset(run, register, folder, tmp_path, capsys):
    records, metadata = folder
    Path(records[1]["file_name"]).unlink()
    register("check_some", records, **metadata)
    assert run("check_some", "--limit", 3, "--num-samples", 2) == 0  # 0, 2 and 5
    assert "check_some: 3 of 6 images" in capsys.readouterr().out


def test_the_title_names_the_whole_dataset(tool, run, register, folder, monkeypatch):
    titles = []

    def draw(samples, *, title, **_):
        titles.append(title)
        return np.zeros((len(list(samples)), 5, 3), np.uint8)

    monkeypatch.setitem(tool["draw_samples"].__globals__, "draw_contact_sheet", draw)
    register("check_good", folder[0], **folder[1])
    assert run("check_good", "--limit", 3, "--num-samples", 2) == 0
    assert titles == ["check_good, 2 of 6 images"]


def test_samples_of_faulty_records(run, register, folder, tmp_path, capsys):
    records, metadata = folder
    register("check_faulty", records, **{**metadata, "stuff_classes": ["sky", "road"]})
    assert run("check_faulty") == 1
    assert (tmp_path / "out" / "check_faulty" / "contact_sheet.jpg").is_file()
    broken = [{**record, "sem_seg_file_name": "none.png"} for record in records]
    register("check_broken", broken, **metadata)
    assert run("check_broken") == 1
    printed = capsys.readouterr().out
    assert "no samples, for no image could be drawn with its ground truth" in printed


def test_the_report_is_there_before_the_pictures(
    tool, run, register, folder, monkeypatch, tmp_path, capsys
):
    def fail(*_, **__):
        raise OSError("no space left")

    def fail_at_all(*_, **__):
        raise RuntimeError("out of ideas")

    register("check_good", folder[0], **folder[1])
    monkeypatch.setitem(tool["draw_samples"].__globals__, "draw_contact_sheet", fail)
    assert run("check_good", "--json", tmp_path / "new" / "f.json") == 1
    assert "they cannot be written: no space left" in capsys.readouterr().out
    monkeypatch.setitem(tool["draw_samples"].__globals__, "draw_contact_sheet", fail_at_all)
    (tmp_path / "new" / "f.json").unlink()
    with pytest.raises(RuntimeError):
        run("check_good", "--json", tmp_path / "new" / "f.json")
    assert "Errors: none" in capsys.readouterr().out
    assert json.loads((tmp_path / "new" / "f.json").read_text())["check_good"]["checked"] == 6


def test_places_that_cannot_be_written(run, register, folder, tmp_path, capsys):
    register("check_good", folder[0], **folder[1])
    file = tmp_path / "file"
    file.touch()
    assert run("check_good", "--json", file / "f.json") == 2
    assert run("check_good", "--json", tmp_path) == 2
    (tmp_path / "out").rmdir()
    (tmp_path / "out").touch()
    assert run("check_good") == 2
    assert run("check_good", "--num-samples", 0) == 0
    printed, messages = capsys.readouterr()
    assert printed.count("check_good: 6 images") == 1 and messages.count("error: ") == 3


def test_data_that_the_config_cannot_learn_from(run, register, folder, capsys):
    records, _ = folder
    instances = [
        {
            "file_name": record["file_name"],
            "annotations": [{"category_id": 0, "segmentation": [[1, 1, 9, 1, 9, 9]]}],
        }
        for record in records
    ]
    register("check_instances", instances, thing_classes=["car"])
    command = ["--num-samples", 0, "--config-file", CONFIG]
    assert run("check_instances", *command) == 1
    printed = capsys.readouterr().out
    assert "1 x what the training would refuse:" in printed
    assert "learns from label maps (sem_seg_file_name), but the records have instances" in printed
    evaluated = ["DATASETS.TEST", "('check_instances',)"]
    assert run("check_instances", *command, *evaluated) == 0
    assert run("check_instances", "--num-samples", 0) == 0


def test_classes_of_the_config(run, register, folder, tmp_path, capsys):
    register("check_classes", folder[0], **folder[1])
    options = ["--num-samples", 0, "check_classes", "MODEL.SEM_SEG_HEAD.NUM_CLASSES"]
    assert run("--config-file", CONFIG, *options, 3) == 0
    assert run("--config-file", CONFIG, *options, 4) == 1
    printed = capsys.readouterr().out
    assert "MODEL.SEM_SEG_HEAD.NUM_CLASSES is 4, but the dataset has 3 stuff_classes" in printed
    assert run(*options, 4) == 0  # of no training that is known


def test_datasets_of_the_config(run, tiny_shapes, tmp_path, capsys):
    assert run("--config-file", CONFIG, "--json", tmp_path / "figures.json") == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures) == ["shapes_sem_seg_train", "shapes_sem_seg_val"]
    assert figures["shapes_sem_seg_train"]["checked"] == 12
    instances = figures["shapes_sem_seg_val"]["instances"]
    records = DatasetCatalog.get("shapes_sem_seg_val")
    assert instances["total"] == sum(len(record["annotations"]) for record in records)
    assert (tmp_path / "out" / "shapes_sem_seg_val" / "contact_sheet.jpg").is_file()


def test_instances_and_segments(run, register, folder, tmp_path, capsys):
    records, _ = folder
    boxes = {"bbox": [1, 1, 8, 8], "bbox_mode": BoxMode.XYWH_ABS}
    of_instances = [
        {
            "file_name": record["file_name"],
            "annotations": [
                {"category_id": 0, "segmentation": [[1, 1, 9, 1, 9, 9]], **boxes},
                {"category_id": 0, "segmentation": None, **boxes},
            ][:index],
        }
        for index, record in enumerate(records)
    ]
    register("check_instances", of_instances, thing_classes=["car"])
    # Labels as ids: segment 1 is sky, and what is 0 has none.
    of_segments = [
        {
            "file_name": record["file_name"],
            "pan_seg_file_name": record["sem_seg_file_name"],
            "segments_info": [{"id": 1, "category_id": 0}, {"id": 2, "category_id": 1}],
        }
        for record in records
    ]
    register(
        "check_segments",
        of_segments,
        stuff_classes=["sky", "car"],
        thing_dataset_id_to_contiguous_id={3: 1},
    )
    assert run("check_instances", "check_segments") == 0
    printed = capsys.readouterr().out
    assert "check_instances: 6 images, instances" in printed
    assert "instances without a mask, which serve detectors only: 4" in printed
    assert "9 in 5 images" in printed
    assert "check_segments: 6 images, panoptic segments" in printed
    for name in ("check_instances", "check_segments"):
        assert (tmp_path / "out" / name / "contact_sheet.jpg").is_file()


def test_datasets_that_cannot_be_loaded(run, register, folder, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))

    def fail():
        raise AttributeError("oops")

    register("check_good", folder[0], **folder[1])
    register("check_fails", fail)
    register("check_test", [{"file_name": "a.png"}])
    register("check_unnamed", folder[0])
    names = ["shapes_sem_seg_train", "check_fails", "check_test", "check_unnamed", "check_good"]
    assert run(*names, "--num-samples", 0, "--json", tmp_path / "f.json") == 1
    printed, messages = capsys.readouterr()
    assert "shapes_sem_seg_train: cannot be checked: " in printed
    assert "python datasets/make_shapes.py" in printed
    assert "check_fails: cannot be checked: AttributeError: oops" in printed
    assert "check_test: cannot be checked: its records have no ground truth" in printed
    assert "check_unnamed: cannot be checked: its metadata have no stuff_classes" in printed
    assert "check_good: 6 images" in printed and "errors in shapes_sem_seg_train" in messages
    assert "error" in json.loads((tmp_path / "f.json").read_text())["check_fails"]


def test_wrong_command_lines(run, capsys):
    def error(*arguments):
        try:
            assert run(*arguments) == 2
        except SystemExit as stop:
            assert stop.code == 2
        return capsys.readouterr().err

    message = error("shapes_sem_seg_trian")
    assert "is 'shapes_sem_seg_trian', and no dataset is registered" in message
    assert "did you mean 'shapes_sem_seg_train'" in message
    assert "DATASETS.FILES" in message
    assert "under this name. A dataset of your own" in error("qqq")
    assert "name a dataset, or give a --config-file" in error()
    assert "pairs of KEY VALUE, got MODEL.DEVICE" in error("coco_2017_val", "MODEL.DEVICE")
    assert "no config file 'none.yaml'" in error("--config-file", "none.yaml")
    assert "NO.SUCH_KEY" in error("coco_2017_val", "NO.SUCH_KEY", "1")
    assert "must be at least 1, not 0" in error("coco_2017_val", "--workers", 0)
    message = error("coco_2017_val", "INPUT.COMPONENTS.KERNEL_SIZE", -3)
    assert "KERNEL_SIZE is -3; it must be odd and at least 1" in message
    assert "MAX_ACTIVE" in error("coco_2017_val", "MODEL.SGR.SUPERVISION.MAX_ACTIVE", 0)


def test_names_and_keys(tool):
    parse = tool["parse_args"]
    args = parse(["a", "b", "a", "--limit", "3", "SEED", "-1", "DATASETS.FILES", "['c.yaml']"])
    assert args.names == ["a", "b"] and args.limit == 3
    assert args.opts == ["SEED", "-1", "DATASETS.FILES", "['c.yaml']"]


def test_described_datasets(run, folder, tmp_path, capsys):
    description = tmp_path / "mine.yaml"
    description.write_text(
        "name: check_described\nclasses: [sky, road, car]\n"
        "splits:\n  train: {images: images, labels: labels}\n"
    )
    files = ["DATASETS.FILES", f"['{description}']"]
    assert run("check_described_train", "--num-samples", 1, *files) == 0
    assert "check_described_train: 6 images" in capsys.readouterr().out
    DatasetCatalog.remove("check_described_train")
    MetadataCatalog.remove("check_described_train")


def test_ctrl_c(run, register, folder, monkeypatch, tmp_path, capsys):
    register("check_good", folder[0], **folder[1])
    report_class = sys.modules["sgr.dataset_check.report"].Report
    add, seen = report_class.add, []

    def interrupt(report, each):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        add(report, each)

    monkeypatch.setattr(report_class, "add", interrupt)
    assert run("check_good", "--json", tmp_path / "f.json") == 130
    printed, messages = capsys.readouterr()
    assert len(seen) == 3 and "stopped after 2 of the 6 images of check_good" in messages
    assert "check_good: 2 of 6 images" in printed and "| road" in printed
    assert json.loads((tmp_path / "f.json").read_text())["check_good"]["checked"] == 2
    assert not (tmp_path / "out" / "check_good").exists()


def test_a_file_name_that_is_not_utf8(run, tmp_path, capfd):
    """It shows in messages, in the JSON file and on the contact sheet."""
    name = os.fsdecode(b"\xff\xe9")
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        for index, stem in enumerate(("a", name)):
            array = np.full((20, 30), index, np.uint8)
            Image.fromarray(array if kind == "labels" or index else array.T).save(
                tmp_path / kind / f"{stem}.png"
            )
    description = {"name": "odd", "classes": 3, "val_share": 0.5}
    description |= {"images": "images", "labels": "labels"}
    (tmp_path / "odd.yaml").write_text(json.dumps(description))
    files = ["DATASETS.FILES", f"['{tmp_path / 'odd.yaml'}']"]
    (tmp_path / "labels" / f"{name}.png").write_bytes(b"damaged")
    try:
        assert run("odd_train", "odd_val", "--json", tmp_path / "f.json", *files) == 1
    finally:
        for dataset in ("odd_train", "odd_val"):
            DatasetCatalog.remove(dataset)
            MetadataCatalog.remove(dataset)
    assert r"\udcff\udce9.png" in capfd.readouterr().out
    assert r"\udcff\udce9.png" in (tmp_path / "f.json").read_text()


def test_the_example_of_the_help_exists(tool):
    for file in re.findall(r"configs/\S+\.yaml", tool["__doc__"]):
        assert (CHECKOUT / file).is_file()
