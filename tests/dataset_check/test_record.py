"""Records checked one by one, beside counts pixel by pixel."""

import re
from collections import Counter, deque

import numpy as np
import PIL.Image
import pycocotools.mask as mask_util
import pytest
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
from sgr.dataset_check import check_record, examine_record


def count_components(labels, min_area_ratio):
    """Classes of the 8-connected components, largest first, found by walking pixel by pixel."""
    height, width = labels.shape
    seen, found = set(), []
    for start in np.ndindex(height, width):
        if start in seen or labels[start] == 255:
            continue
        seen.add(start)
        queue, area = deque([start]), 0
        while queue:
            y, x = queue.popleft()
            area += 1
            for near in ((y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
                inside = 0 <= near[0] < height and 0 <= near[1] < width
                if inside and near not in seen and labels[near] == labels[start]:
                    seen.add(near)
                    queue.append(near)
        found.append((-area, int(labels[start])))
    largest = -min(found)[0]
    return [label for area, label in sorted(found) if -area >= min_area_ratio * largest]


def test_figures_are_those_of_a_literal_count(record, labels):
    report, maps = examine_record(record, options(max_active=3, min_area_ratio=0.2))
    assert report.faults == [] and report.sizes == [labels.shape]
    count = Counter(labels.ravel().tolist())
    assert report.pixels.tolist() == [count[0], count[1], count[2]]
    assert report.num_ignored == count[255] > 0
    expected = count_components(labels, 0.2)
    assert report.num_components == [len(expected)] and len(expected) > 3
    kept = Counter(expected[:3])
    assert report.components.tolist() == [kept[0], kept[1], kept[2]]
    assert maps.components.indices.max() == 2 and len(maps.components.classes) == 3
    assert np.array_equal(maps.labels, np.where(labels == 255, 3, labels))
    assert maps.image.shape == (*labels.shape, 3)


@pytest.mark.parametrize("kind", ["palette", "16 bits"])
def test_other_files_of_labels(record, labels, kind):
    file = record["sem_seg_file_name"]
    expected = check_record(record, options())
    if kind == "palette":
        image = Image.fromarray(labels)
        image.putpalette(list(range(256)) * 3)
        image.save(file)
        assert Image.open(file).mode == "P"
        report = check_record(record, options())
    else:
        wide = labels.astype(np.uint16)
        wide[labels == 255] = 65535
        Image.fromarray(wide).save(file)
        report = check_record(record, options(ignore_label=65535))
    assert report.faults == []
    assert report.pixels.tolist() == expected.pixels.tolist()
    assert report.num_ignored == expected.num_ignored
    assert report.num_components == expected.num_components


@pytest.mark.parametrize("wide", [False, True])
def test_wrong_labels_are_counted_and_count_for_no_class(record, labels, wide):
    labels = labels.astype(np.uint16 if wide else np.uint8)
    highest = 40000 if wide else 200
    labels[:2, :7], labels[5, 5] = 3, highest
    Image.fromarray(labels).save(record["sem_seg_file_name"])
    report, maps = examine_record(record, options())
    assert report.outside_pixels == {3: 14, highest: 1}
    assert report.outside_images == {3: 1, highest: 1} and report.num_pixels == labels.size
    assert kinds(report) == [FaultKind.LABELS]
    message = report.faults[0].message
    assert f"holds the label(s) 3, {highest}; expected are 0 to 2" in message
    assert record["sem_seg_file_name"] in message
    count = Counter(labels.ravel().tolist())
    assert report.pixels.tolist() == [count[0], count[1], count[2]]
    assert report.num_ignored == count[255]
    assert (maps.labels[:2, :7] == 3).all()


def test_missing_and_damaged_files(record, tmp_path):
    other = {**record, "sem_seg_file_name": str(tmp_path / "none.png")}
    report = check_record(other, options())
    assert kinds(report) == [FaultKind.LABEL_MAP]
    assert report.faults[0].message == f"label map {tmp_path / 'none.png'} does not exist"
    assert report.num_components == [] and not report.pixels.any()

    damaged = tmp_path / "damaged.png"
    content = open(record["file_name"], "rb").read()
    damaged.write_bytes(content[: len(content) // 2])
    report, maps = examine_record({**record, "file_name": str(damaged)}, options())
    assert kinds(report) == [FaultKind.IMAGE] and maps is None
    assert f"{damaged} cannot be read" in report.faults[0].message
    assert report.sizes == [] and report.pixels.any()  # the labels are looked at all the same

    colours = save(tmp_path / "colours.png", np.zeros((30, 40, 3), np.uint8))
    report = check_record({**record, "sem_seg_file_name": colours}, options())
    assert kinds(report) == [FaultKind.LABEL_MAP] and "3 channels" in report.faults[0].message

    report = check_record({"file_name": record["file_name"]}, options())
    assert kinds(report) == [FaultKind.RECORD]
    assert "has no sem_seg_file_name, unlike others" in report.faults[0].message
    report = check_record({}, options())
    assert kinds(report) == [FaultKind.RECORD] * 2


def test_sizes_that_differ(record, labels):
    Image.fromarray(labels[:, :-1].copy()).save(record["sem_seg_file_name"])
    report, maps = examine_record(record, options())
    assert kinds(report) == [FaultKind.SIZE] and maps is None
    assert "is 40 x 30 pixels, but its label map" in report.faults[0].message
    assert report.faults[0].message.endswith("is 39 x 30")

    sizes = {"height": 31, "width": 40}
    report = check_record({**record, **sizes}, options())
    assert kinds(report) == [FaultKind.SIZE] * 2
    assert "is 40 x 30 pixels, and its record says 40 x 31" in report.faults[0].message
    report = check_record({**record, "height": 30}, options())
    assert kinds(report)[0] is FaultKind.RECORD


def test_images_turned_by_their_exif_data(record, tmp_path, labels):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = tmp_path / "turned.jpg"
    Image.open(record["file_name"]).save(turned, exif=exif)
    report = check_record({**record, "file_name": str(turned)}, options())
    assert report.turned == [] and report.sizes == [labels.shape[::-1]]
    assert kinds(report) == [FaultKind.SIZE]
    assert "EXIF data turns the image and not the ground truth" in report.faults[0].message
    Image.fromarray(np.rot90(labels, -1).copy()).save(record["sem_seg_file_name"])
    report = check_record({**record, "file_name": str(turned)}, options())
    assert report.turned == [] and report.faults == []  # its size tells


@pytest.mark.parametrize("turn", range(1, 9))
def test_turns_that_no_size_tells(record, tmp_path, labels, turn):
    """Half turns and reflections, and all of them of square images."""
    exif = Image.Exif()
    exif[0x0112] = turn
    turned = str(tmp_path / "turned.jpg")
    for size, known in (((30, 30), True), (labels.shape, turn < 5)):
        shown = labels[: size[0], : size[1]]
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(turned, exif=exif)
        map_of_labels = np.rot90(shown).copy() if turn > 4 else shown
        Image.fromarray(map_of_labels).save(record["sem_seg_file_name"])
        report = check_record({**record, "file_name": turned}, options())
        assert report.faults == [] and bool(report.turned) == (turn > 1 and known)
    report = check_record({"file_name": turned, "annotations": []}, of_instances())
    assert bool(report.turned) == (turn > 1)


def test_all_ignored(record, labels):
    Image.fromarray(np.full_like(labels, 255)).save(record["sem_seg_file_name"])
    report = check_record(record, options())
    assert report.faults == [] and report.num_components == [0]
    assert report.num_ignored == labels.size and not report.components.any()


def test_instances_are_counted_and_painted(instances):
    report, maps = examine_record(instances, of_instances())
    assert report.faults == []
    assert report.instances.tolist() == [2, 1] and report.crowds.tolist() == [0, 1]
    assert report.without_mask.tolist() == [0, 0] and report.without_box == 0
    # The disc, of which the other one is a part, the box, and the background but for the crowd.
    assert report.pixels.tolist() == [80, 48, 30 * 40 - 80 - 48 - 40] and report.num_ignored == 40
    assert report.components.tolist() == [1, 0, 1]  # the box has less than 5 % of the background
    assert maps.labels[22, 33] == 1 and maps.labels[2, 25] == 3 and maps.labels[29, 0] == 2


def test_faults_of_annotations_are_all_named(instances):
    code = mask_util.encode(np.zeros((20, 20), np.uint8, order="F"))
    short = {"size": [30, 40], "counts": [10, 5]}
    instances["annotations"] += [
        annotation(2, polygon(0, 0, 5, 5), id=77),
        annotation(0, code),
        annotation(0, short),
        annotation(0, polygon(0, 0, 5, 5), bbox=[0, 0, -3, 5]),
        {"segmentation": polygon(0, 0, 5, 5)},
        annotation(0, [[1, 2, float("nan"), 4, 5, 6]]),
    ]
    report = check_record(instances, of_instances())
    assert kinds(report) == [FaultKind.ANNOTATIONS] * 6
    words = [
        r"annotation 4 \(id 77\) of .* category_id 2; expected are 0 to 1",
        "annotation 5 of .* a mask of 20 x 20, but the image is 40 x 30",
        "annotation 6 of .* run-length code has 15 pixels",
        "annotation 7 of .* which is -3 x 5",
        "annotation 8 of .* no category_id",
        "annotation 9 of .* not finite",
    ]
    for word, fault in zip(words, sorted(fault.message for fault in report.faults)):
        assert re.match(word, fault)
    assert report.instances.tolist() == [2, 1]


def test_what_is_no_fault(instances):
    """Boxes without masks, masks without boxes, and images without anything."""
    instances["annotations"] = [
        annotation(0, None),
        annotation(1, [[1, 1, 5, 5]]),  # two corners
        {"category_id": 1, "segmentation": polygon(0, 0, 9, 9)},
    ]
    report = check_record(instances, of_instances())
    assert report.faults == []
    assert report.instances.tolist() == [1, 2] and report.without_mask.tolist() == [1, 1]
    assert report.without_box == 1
    report, maps = examine_record({**instances, "annotations": []}, of_instances())
    assert report.faults == [] and not report.instances.any()
    assert report.pixels.tolist() == [0, 0, 1200] and report.num_components == [1]
    assert (maps.labels == 2).all()
    report = check_record({**instances, "file_name": "none.png"}, of_instances())
    assert kinds(report) == [FaultKind.IMAGE] and report.instances.tolist() == [1, 2]


def test_label_maps_and_instances(record, instances, tmp_path, labels):
    record = {**instances, "sem_seg_file_name": save(tmp_path / "l.png", labels)}
    both = ("sem_seg_file_name", "annotations")
    report = check_record(record, of_instances(both))
    assert report.faults == [] and report.instances.tolist() == [2, 1]
    assert report.pixels.sum() + report.num_ignored == labels.size
    assert report.pixels.tolist() == [int((labels == label).sum()) for label in range(3)]


def test_panoptic_segments(panoptic, labels):
    report, maps = examine_record(panoptic, of_segments())
    assert report.faults == []
    car = (labels == 2) & (np.arange(40) < 20)
    crowd = (labels == 2) & ~car
    assert crowd.any() and car.any()
    assert report.pixels.tolist() == [(labels == 0).sum(), (labels == 1).sum(), car.sum()]
    assert report.num_ignored == (labels == 255).sum() + crowd.sum()
    assert report.instances.tolist() == [0, 0, 1] and report.crowds.tolist() == [0, 0, 1]
    expected = count_components(np.where(crowd, 255, labels), 0.05)
    assert report.num_components == [len(expected)]
    assert (maps.labels[crowd] == 3).all()


def test_faults_of_segments(panoptic, tmp_path):
    segments = panoptic["segments_info"]
    segments.append({"id": 9, "category_id": 0})
    report = check_record(panoptic, of_segments())
    assert report.faults == [] and report.empty_segments == 1
    segments[0] = {"id": 1, "category_id": 3}
    report = check_record(panoptic, of_segments())
    assert kinds(report) == [FaultKind.SEGMENTS]
    assert "segment 1 of" in report.faults[0].message and report.pixels[0] == 0
    del segments[0]
    report = check_record(panoptic, of_segments())
    assert kinds(report) == [FaultKind.SEGMENTS]
    assert "holds the id(s) 1, which its segments_info lacks" in report.faults[0].message
    segments[0] = {"id": 1}
    assert "segment 0 of" in check_record(panoptic, of_segments()).faults[0].message
    panoptic["pan_seg_file_name"] = str(tmp_path / "none.png")
    segments[0] = {"id": 1, "category_id": 0}
    assert kinds(check_record(panoptic, of_segments())) == [FaultKind.LABEL_MAP]
    del panoptic["segments_info"]
    assert kinds(check_record(panoptic, of_segments())) == [FaultKind.RECORD]


def test_segments_count_and_label_maps_are_checked_beside(panoptic, tmp_path, labels):
    wrong = labels.copy()
    wrong[0, 0] = 9
    panoptic["sem_seg_file_name"] = save(tmp_path / "wrong.png", wrong)
    both = ("pan_seg_file_name", "sem_seg_file_name")
    alone, report = (check_record(panoptic, of_segments(truth)) for truth in (both[:1], both))
    assert kinds(report) == [FaultKind.LABELS] and report.outside_pixels == {9: 1}
    assert report.pixels.tolist() == alone.pixels.tolist()
    assert (report.num_ignored, report.num_pixels) == (alone.num_ignored, alone.num_pixels)


def test_instances_beside_segments_are_counted_once(panoptic, instances):
    record = {**panoptic, "annotations": instances["annotations"]}
    both = ("pan_seg_file_name", "annotations")
    report = check_record(record, of_instances(both, thing_ids=frozenset({0, 1})))
    assert report.faults == []
    assert report.instances.tolist() == [2, 1] and report.crowds.tolist() == [0, 1]


ODD = [
    ({"file_name": None}, r"the record of a record without a file name .*Error: "),
    ({"file_name": 7}, r"the record of 7 cannot be used: \w+Error: "),
    ({"annotations": None}, r"the record of .*a\.png cannot be used: TypeError: "),
    ({"annotations": ["car"]}, r"annotation 0 of .*a\.png is 'car', not a dict"),
    ({"sem_seg_file_name": None}, r"the record of .*a\.png cannot be used: \w+Error"),
    ({"segments_info": None}, r"the record of .*a\.png cannot be used: TypeError"),
    ({"segments_info": [None]}, r"the record of .*a\.png cannot be used: TypeError"),
    (
        {"segments_info": [{"id": 2**70, "category_id": 0}]},
        r"panoptic picture .*pan\.png has segments whose ids are no integers",
    ),
    (
        {"segments_info": [{"id": "one", "category_id": 0}]},
        r"panoptic picture .*pan\.png has segments whose ids are no integers",
    ),
    ({"height": "tall", "width": 3}, "its record says 3 x .tall."),
]


@pytest.mark.parametrize("change, message", ODD)
def test_an_odd_record_is_a_fault_and_no_end(panoptic, record, change, message):
    truth = next((key for key in ("annotations", "sem_seg_file_name") if key in change), None)
    check = of_segments() if truth is None else of_instances((truth,))
    if truth is None:
        record = panoptic
    records = [{**record, **change}, {**record, **({"annotations": []} if truth else {})}]
    report = checked(records, check)
    assert report.num_checked == 2
    (found,) = (fault for fault in report.faults if re.search(message, fault.message))
    assert found.kind in FaultKind


def test_pictures_of_two_channels_and_of_too_many_pixels(panoptic, monkeypatch):
    Image.new("LA", (40, 30)).save(panoptic["pan_seg_file_name"])
    report = check_record(panoptic, of_segments())
    assert kinds(report) == [FaultKind.SEGMENTS]
    assert "pan.png has 2 channels, not 1 or 3" in report.faults[0].message
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 500)
    report = check_record(panoptic, of_segments())
    assert kinds(report) == [FaultKind.IMAGE, FaultKind.LABEL_MAP]
    assert "a.png is too large" in report.faults[0].message
