"""The figures, warnings and tables of datasets."""

import re

import numpy as np
import pytest
from detectron2.structures import BoxMode
from PIL import Image

from checked_records import (
    annotation,
    checked,
    kinds,
    of_instances,
    of_segments,
    options,
    polygon,
    save,
)
from sgr.data.faults import FaultKind
from sgr.dataset_check import spread, tell


def test_sums_do_not_depend_on_the_workers(record, tmp_path):
    rng = np.random.default_rng(0)
    records, counts = [], np.zeros((7, 3), int)
    for index in range(7):
        labels = rng.choice([0, 1, 255], (30, 40)).astype(np.uint8)
        if index == 5:
            labels[...] = 255
        file = save(tmp_path / "labels" / f"{index}.png", labels)
        records.append({**record, "sem_seg_file_name": file})
        counts[index] = [(labels == label).sum() for label in (0, 1, 255)]
    records.insert(3, {**record, "sem_seg_file_name": "none.png"})
    reports = []
    for workers in (1, 3):
        report = checked(records, options(max_active=2, min_area_ratio=0), workers=workers)
        reports.append(report)
    first, second = (report.figures() for report in reports)
    assert str(first) == str(second)
    report = reports[0]
    assert report.pixels.tolist() == [*counts[:, :2].sum(0), 0]
    assert report.share_ignored == counts[:, 2].sum() / counts.sum()
    assert report.images_with.tolist() == [6, 6, 0] and report.num_unlabelled == 1
    assert np.flatnonzero(report.can_be_drawn).tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert report.num_intact == 7 and report.num_checked == 8
    assert len(report.num_components) == 7
    assert report.share_over == np.mean([n > 2 for n in report.num_components]) > 0
    assert report.components.sum() == sum(min(n, 2) for n in report.num_components)
    assert report.absent_classes() == ["car"]
    warnings = report.all_warnings()
    assert "classes that do not occur in any image: car" in warnings
    assert any(each == "images without a labelled pixel: 1" for each in warnings)
    text = tell(report)
    assert "mine: 8 images, label maps" in text and "| image width" in text
    assert "1 x label maps that are missing or cannot be read:\n- label map none.png" in text
    assert "Errors: 1\n" in text


def test_masks_of_0_and_255(record, labels):
    for values, expected in (((0, 255), True), ((0, 1), False)):
        mask = np.where(labels == 0, *values).astype(np.uint8)
        Image.fromarray(mask).save(record["sem_seg_file_name"])
        report = checked([record], options())
        found = any("one class, 0 (sky)" in each for each in report.all_warnings())
        assert found == expected and not report.faults


@pytest.mark.parametrize("unlabelled", [255, 0])
def test_labels_that_count_from_one(record, labels, unlabelled):
    labels = np.where(labels == 255, unlabelled, labels + 1).astype(np.uint8)
    Image.fromarray(labels).save(record["sem_seg_file_name"])
    report = checked([record], options())
    assert any("do the labels count from 1?" in each for each in report.all_warnings())
    row = rf"\| label 3, no class +\| {(labels == 3).sum()} pixels in 1 image +\|"
    assert re.search(row, tell(report))


def test_tables_of_instances(instances, panoptic, tmp_path, labels):
    report = checked([instances], of_instances())
    rows = [line.split("|") for line in tell(report).splitlines() if "| disc" in line]
    assert len(rows) == 1 and rows[0][-3].strip() == "2" and rows[0][-2].strip() == "0"  # crowds
    assert "3 in 1 image, and 1 crowd " in tell(report)
    assert "component that is kept, in whole images: box\n" in tell(report)

    both = ("sem_seg_file_name", "annotations")
    record = {**instances, "sem_seg_file_name": save(tmp_path / "l.png", labels)}
    report = checked([record], of_instances(both))
    assert "|   category | thing   |" in tell(report)

    report = checked([panoptic], of_segments())
    lines = [line for line in tell(report).splitlines() if "| sky" in line or "| car" in line]
    assert [line.split("|")[-3].strip() for line in lines] == ["", "1"]


def test_spread():
    assert spread(3, 9) == [0, 4, 8]
    assert spread(5, 3) == [0, 1, 2] and spread(1, 7) == [0] and spread(0, 7) == []
    assert spread(4, 0) == []


def test_boxes_beyond_their_images(instances):
    boxes = [
        ([30, 20, 40, 30], BoxMode.XYWH_ABS),  # of corners
        ([30, 20, 11, 11], BoxMode.XYWH_ABS),  # a pixel beyond
        ([30, 20, 11.1, 5], BoxMode.XYWH_ABS),
        ([-1.1, 0, 4, 4], BoxMode.XYXY_ABS),
        ([0, 0, 41, 31], BoxMode.XYXY_ABS),
    ]
    instances["annotations"] = [
        annotation(0, polygon(2, 2, 12, 10), bbox=box, bbox_mode=mode) for box, mode in boxes
    ]
    report = checked([instances], of_instances())
    assert report.faults == [] and report.boxes_beyond == 3
    (warning,) = (each for each in report.all_warnings() if "bbox_mode" in each)
    assert warning.startswith("boxes that reach beyond") and warning.endswith(": 3")


def test_masks_outside_of_their_images(instances):
    instances["annotations"][1:2] = [annotation(0, polygon(100, 100, 120, 110))]
    report = checked([instances], of_instances())
    assert report.empty_masks == 1
    assert "instances whose mask has no pixel in the image: 1" in report.all_warnings()


def test_label_maps_with_losses(record, labels):
    lossy = record["sem_seg_file_name"].replace(".png", ".JPG")
    Image.fromarray(np.zeros_like(labels)).save(lossy, format="JPEG")
    report = checked([{**record, "sem_seg_file_name": lossy}], options())
    assert any("JPEG" in each and each.endswith(": 1") for each in report.all_warnings())


def test_nothing_to_learn_from(record, instances, labels):
    Image.fromarray(np.full_like(labels, 255)).save(record["sem_seg_file_name"])
    for check, one, lacking in (
        (options(), record, "labelled pixel"),
        (of_instances(), {**instances, "annotations": []}, "instance"),
    ):
        report = checked([one, one], check)
        (fault,) = report.faults
        assert fault.kind is FaultKind.EMPTY
        assert fault.message == f"none of the 2 images looked at has a {lacking}"
    report = checked([{**record, "sem_seg_file_name": "none.png"}], options())
    assert kinds(report) == [FaultKind.LABEL_MAP]  # which says it all


def test_warnings_that_follow_from_figures(record, instances, panoptic, tmp_path):
    panoptic["segments_info"].append({"id": 9, "category_id": 0})
    report = checked([panoptic], of_segments())
    assert "segments without a pixel in their panoptic picture: 1" in report.all_warnings()

    exif = Image.Exif()
    exif[0x0112] = 3
    turned = str(tmp_path / "turned.jpg")
    Image.open(record["file_name"]).save(turned, exif=exif)
    del instances["annotations"][0]["bbox"]
    report = checked([{**instances, "file_name": turned}], of_instances())
    warnings = report.all_warnings()
    assert "instances without a box, which detectors need: 1" in warnings
    assert any(each.endswith(f"turned alike: {turned}") for each in warnings)
    assert report.figures()["turned_by_exif"] == [turned]


def test_classes_that_few_images_supervise(record, tmp_path):
    """One image is half road; in the others the road is too small beside the sky."""
    half, speck = np.zeros((2, 30, 40), np.uint8)
    half[:15] = 1
    speck[0, :4] = 1
    large, small = (
        {**record, "sem_seg_file_name": save(tmp_path / f"{name}.png", labels)}
        for name, labels in (("half", half), ("speck", speck))
    )
    limits = options(min_area_ratio=0.25)
    warnings = checked([large, small], limits).all_warnings()
    assert not any("0.5 components" in each for each in warnings)
    warnings = checked([large, small, small], limits).all_warnings()
    (warning,) = (each for each in warnings if "0.5 components" in each)
    assert "MIN_AREA_RATIO, 0.25" in warning and warning.endswith("road (0.33)")


EXPECTED_TEXT = """
mine: 4 images, label maps, instances

| | |
|:-|:-|
| image height | 4 |
| image width | 6 to 10, median 6 |
| pixels ignored | 21.43% |
| label 9, no class | 4 pixels in 1 image |
| components per image | mean 1.0, 95th percentile 1.85, max 2 |
| images with more than L = 1 | 25.00% |
| instances | 2 in 2 images, and 1 crowd |

| label | class | images | % of pixels | components |
|-:|:-|-:|-:|-:|
| 0 | sky | 2 | 30.36 | 1.00 |
| 1 | road | 2 | 42.86 | 0.50 |
| 2 | car | 1 | 1.79 | 0.00 |

Components are those of whole images, larger than 50% of the largest; training makes them of \
crops. The table has the mean over the images with the class, of the 1 largest of each.

| category | thing | images | instances | crowds | without mask |
|-:|:-|-:|-:|-:|-:|
| 0 | car | 2 | 2 | 1 | 1 |

Warnings: 6
- classes that do not occur in any image: tree
- classes without a component that is kept, in whole images: car
- images without a labelled pixel: 1
- instances without a mask, which serve detectors only: 1
- instances without a box, which detectors need: 1
- boxes that reach beyond their image by more than a pixel (is their bbox_mode right? \
x, y, x, y taken for x, y, width, height looks like this): 1

Errors: 1

1 x labels that are no class:
- label map d.png holds the label(s) 9; expected are 0 to 3, and 255 for ignored pixels
"""


EXPECTED_FIGURES = {
    "dataset": "mine",
    "ground_truth": ("sem_seg_file_name", "annotations"),
    "records": 4,
    "checked": 4,
    "intact": 3,
    "width": {"min": 6, "median": 6.0, "max": 10},
    "height": {"min": 4, "median": 4.0, "max": 4},
    "turned_by_exif": [],
    "share_ignored": 24 / 112,
    "unlabelled_images": 1,
    "labels_outside": {9: {"images": 1, "pixels": 4}},
    "classes": [
        {"label": 0, "name": "sky", "images": 2, "pixels": 34, "components": 2},
        {"label": 1, "name": "road", "images": 2, "pixels": 48, "components": 1},
        {"label": 2, "name": "car", "images": 1, "pixels": 2, "components": 0},
        {"label": 3, "name": "tree", "images": 0, "pixels": 0, "components": 0},
    ],
    "components_per_image": {
        "max_active": 1,
        "min_area_ratio": 0.5,
        "kernel_size": 1,
        "mean": 1.0,
        "percentile_95": 1.85,
        "max": 2,
        "share_over_max_active": 0.25,
    },
    "instances": {
        "total": 2,
        "images": 2,
        "without_box": 1,
        "boxes_beyond_image": 1,
        "empty_masks": 0,
        "categories": [
            {
                "category_id": 0,
                "name": "car",
                "instances": 2,
                "images": 2,
                "crowds": 1,
                "without_mask": 1,
            }
        ],
    },
    "num_faults": 1,
    "num_faults_by_kind": {"labels": 1},
}


def test_all_of_a_small_dataset(tmp_path, monkeypatch):
    """Every figure and every line, as counted by hand."""
    monkeypatch.chdir(tmp_path)
    a, b, c = np.zeros((3, 4, 6), np.uint8)
    a[2:] = 1
    b[1, 2:4] = 2
    c[...] = 255
    d = np.ones((4, 10), np.uint8)
    d[0, :4] = 9
    car = annotation(0, polygon(2, 1, 4, 2))
    del car["bbox"]
    crowd = annotation(0, polygon(0, 0, 6, 1), iscrowd=1)
    beyond = annotation(0, None, bbox=[0, 0, 12, 2])
    things = {"a": [], "b": [car, crowd], "c": [], "d": [beyond]}
    records = []
    for name, labels in {"a": a, "b": b, "c": c, "d": d}.items():
        image = np.zeros((*labels.shape, 3), np.uint8)
        Image.fromarray(image).save(f"{name}.bmp")
        Image.fromarray(labels).save(f"{name}.png")
        record = {"file_name": f"{name}.bmp", "sem_seg_file_name": f"{name}.png"}
        records.append({**record, "annotations": things[name]})
    check = options(
        ("sem_seg_file_name", "annotations"),
        class_names=("sky", "road", "car", "tree"),
        thing_names=("car",),
        max_active=1,
        min_area_ratio=0.5,
    )
    report = checked(records, check, workers=2)

    text = re.sub(r"--+", "-", re.sub("  +", " ", tell(report)))
    assert text == EXPECTED_TEXT.replace("\\\n", "").strip()
    figures = report.figures()
    warnings, faults = figures.pop("warnings"), figures.pop("faults")
    assert [f"- {each}" in text for each in warnings] == [True] * 6
    (fault,) = faults
    assert fault["kind"] == "labels" and fault["message"] in text
    of_components = figures["components_per_image"]
    of_components["percentile_95"] = round(of_components["percentile_95"], 9)
    assert figures == EXPECTED_FIGURES
