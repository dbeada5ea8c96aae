"""Records looked at one by one and summed up, beside counts pixel by pixel."""

import re
from collections import Counter, deque
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pycocotools.mask as mask_util
import pytest
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from sgr.data.faults import FaultKind
from sgr.dataset_check import (
    CheckOptions,
    Report,
    check_record,
    check_records,
    class_faults,
    examine_record,
    options_for,
    samples_of,
    spread,
    tell,
    training_faults,
    training_mapper,
)
from sgr.engine import load_config

CLASSES = ("sky", "road", "car")


def options(truth=("sem_seg_file_name",), **more):
    return CheckOptions(**{"truth": truth, "class_names": CLASSES, "kernel_size": 1, **more})


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return str(path)


@pytest.fixture
def labels():
    """Blocky labels of three classes, some of them ignored."""
    blocks = np.random.default_rng(3).integers(0, 4, (6, 8))
    return np.where(blocks == 3, 255, blocks).astype(np.uint8).repeat(5, 0).repeat(5, 1)


@pytest.fixture
def record(tmp_path, labels):
    image = np.random.default_rng(0).integers(0, 256, (*labels.shape, 3)).astype(np.uint8)
    return {
        "file_name": save(tmp_path / "images" / "a.png", image),
        "sem_seg_file_name": save(tmp_path / "labels" / "a.png", labels),
    }


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


def kinds(report):
    return [fault.kind for fault in report.faults]


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
    assert "got (40, 30), expect (40, 31)" in report.faults[0].message
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


# Instances

THINGS = ("disc", "box")


def of_instances(truth=("annotations",), **more):
    names = (*THINGS, "background") if truth == ("annotations",) else CLASSES
    more = {"class_names": names, "thing_names": THINGS, **more}
    return options(truth, **more)


def polygon(x0, y0, x1, y1):
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def annotation(category, segmentation, **more):
    box = {"bbox": [0, 0, 5, 5], "bbox_mode": BoxMode.XYWH_ABS}
    return {"category_id": category, "segmentation": segmentation, **box, **more}


@pytest.fixture
def instances(record):
    record = {"file_name": record["file_name"]}
    mask = np.zeros((30, 40), np.uint8, order="F")
    mask[20:26, 30:38] = 1
    record["annotations"] = [
        annotation(0, polygon(2, 2, 12, 10)),
        annotation(0, polygon(8, 4, 10, 8)),
        annotation(1, mask_util.encode(mask)),
        annotation(1, polygon(20, 0, 30, 4), iscrowd=1),
    ]
    return record


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


# Panoptic


@pytest.fixture
def panoptic(record, tmp_path, labels):
    """Four segments: sky, road, a car and a crowd of cars; what the labels ignore has none."""
    segments = labels.astype(np.int64) + 1
    segments[(labels == 2) & (np.arange(40) >= 20)] = 70000
    segments[labels == 255] = 0
    colours = np.stack([segments // 256**i % 256 for i in range(3)], -1).astype(np.uint8)
    return {
        "file_name": record["file_name"],
        "pan_seg_file_name": save(tmp_path / "pan.png", colours),
        "segments_info": [
            {"id": 1, "category_id": 0},
            {"id": 2, "category_id": 1},
            {"id": 3, "category_id": 2},
            {"id": 70000, "category_id": 2, "iscrowd": 1},
        ],
    }


def of_segments(truth=("pan_seg_file_name",)):
    return options(truth, thing_names=CLASSES, thing_ids=frozenset({2}))


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


# A dataset


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
        report = Report(options(max_active=2, min_area_ratio=0), "mine", len(records))
        check_records(records, report, workers=workers)
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
        report = Report(options(), "mine", 1)
        check_records([record], report)
        found = any("one class, 0 (sky)" in each for each in report.all_warnings())
        assert found == expected and not report.faults


@pytest.mark.parametrize("unlabelled", [255, 0])
def test_labels_that_count_from_one(record, labels, unlabelled):
    labels = np.where(labels == 255, unlabelled, labels + 1).astype(np.uint8)
    Image.fromarray(labels).save(record["sem_seg_file_name"])
    report = Report(options(), "mine", 1)
    check_records([record], report)
    assert any("do the labels count from 1?" in each for each in report.all_warnings())
    row = rf"\| label 3, no class +\| {(labels == 3).sum()} pixels in 1 image +\|"
    assert re.search(row, tell(report))


def test_tables_of_instances(instances, panoptic, tmp_path, labels):
    report = Report(of_instances(), "mine", 1)
    check_records([instances], report)
    rows = [line.split("|") for line in tell(report).splitlines() if "| disc" in line]
    assert len(rows) == 1 and rows[0][-3].strip() == "2" and rows[0][-2].strip() == "0"  # crowds
    assert "3 in 1 image, and 1 crowd " in tell(report)
    assert "component that is kept, in whole images: box\n" in tell(report)

    both = ("sem_seg_file_name", "annotations")
    record = {**instances, "sem_seg_file_name": save(tmp_path / "l.png", labels)}
    report = Report(of_instances(both), "mine", 1)
    check_records([record], report)
    assert "|   category | thing   |" in tell(report)

    report = Report(of_segments(), "mine", 1)
    check_records([panoptic], report)
    lines = [line for line in tell(report).splitlines() if "| sky" in line or "| car" in line]
    assert [line.split("|")[-3].strip() for line in lines] == ["", "1"]


def test_spread():
    assert spread(3, 9) == [0, 4, 8]
    assert spread(5, 3) == [0, 1, 2] and spread(1, 7) == [0] and spread(0, 7) == []
    assert spread(4, 0) == []


# Options


@pytest.fixture(scope="module")
def cfg():
    return load_config("", ["MODEL.META_ARCHITECTURE", "MaskFormerSegmentor"])


def test_options_of_datasets(cfg):
    semantic = {"stuff_classes": ["a", "b"], "ignore_label": 9, "thing_classes": ["b"]}
    found = options_for([{"file_name": "", "sem_seg_file_name": ""}], semantic, cfg)
    assert found.truth == ("sem_seg_file_name",) and found.class_names == ("a", "b")
    assert (found.thing_names, found.ignore_label, found.max_active) == ((), 9, 64)
    found = options_for([{"annotations": []}, {"sem_seg_file_name": ""}], semantic, cfg)
    assert found.truth == ("sem_seg_file_name", "annotations") and found.thing_names == ("b",)
    found = options_for([{"annotations": []}], semantic, cfg)
    assert found.class_names == ("b", "background")
    panoptic = {**semantic, "thing_dataset_id_to_contiguous_id": {7: 1}}
    found = options_for([{"pan_seg_file_name": ""}], panoptic, cfg)
    assert found.thing_names == ("a", "b") and found.thing_ids == {1}

    with pytest.raises(ValueError, match="it has no record"):
        options_for([], semantic, cfg)
    with pytest.raises(ValueError, match=r"no ground truth .* only \['file_name'\]"):
        options_for([{"file_name": ""}], semantic, cfg)
    with pytest.raises(ValueError, match="must be dicts, not None"):
        options_for([None], semantic, cfg)
    with pytest.raises(ValueError, match="no stuff_classes.*--config-file"):
        options_for([{"sem_seg_file_name": ""}], {}, cfg)
    of_labels = SimpleNamespace(truth_key="sem_seg_file_name", num_classes=7)
    found = options_for([{"sem_seg_file_name": ""}], {}, cfg, mapper=of_labels)
    assert found.class_names == tuple(f"class {label}" for label in range(7))
    with pytest.raises(ValueError, match="no thing_classes"):
        options_for([{"annotations": []}], {}, cfg, mapper=of_labels)
    of_things = SimpleNamespace(truth_key="annotations", num_classes=3)
    found = options_for([{"annotations": []}], {}, cfg, mapper=of_things)
    assert len(found.thing_names) == 3


def test_an_ignored_class():
    (fault,) = class_faults(options(ignore_label=1))
    assert "ignore_label in the metadata is 1, which is one of the 3" in fault.message
    assert class_faults(options()) == []


# Records that are odd

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
    ({"height": "tall", "width": 3}, "got .* expect"),
]


@pytest.mark.parametrize("change, message", ODD)
def test_an_odd_record_is_a_fault_and_no_end(panoptic, record, change, message):
    truth = next((key for key in ("annotations", "sem_seg_file_name") if key in change), None)
    check = of_segments() if truth is None else of_instances((truth,))
    if truth is None:
        record = panoptic
    records = [{**record, **change}, {**record, **({"annotations": []} if truth else {})}]
    report = Report(check, "mine", 2)
    check_records(records, report)
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
    assert "a.png cannot be read" in report.faults[0].message


# What passes for good


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
    report = Report(of_instances(), "mine", 1)
    check_records([instances], report)
    assert report.faults == [] and report.boxes_beyond == 3
    (warning,) = (each for each in report.all_warnings() if "bbox_mode" in each)
    assert warning.startswith("boxes that reach beyond") and warning.endswith(": 3")


def test_masks_outside_of_their_images(instances):
    instances["annotations"][1:2] = [annotation(0, polygon(100, 100, 120, 110))]
    report = Report(of_instances(), "mine", 1)
    check_records([instances], report)
    assert report.empty_masks == 1
    assert "instances whose mask has no pixel in the image: 1" in report.all_warnings()


def test_label_maps_with_losses(record, labels):
    lossy = record["sem_seg_file_name"].replace(".png", ".JPG")
    Image.fromarray(np.zeros_like(labels)).save(lossy, format="JPEG")
    report = Report(options(), "mine", 1)
    check_records([{**record, "sem_seg_file_name": lossy}], report)
    assert any("JPEG" in each and each.endswith(": 1") for each in report.all_warnings())


def test_nothing_to_learn_from(record, instances, labels):
    Image.fromarray(np.full_like(labels, 255)).save(record["sem_seg_file_name"])
    for check, one, lacking in (
        (options(), record, "labelled pixel"),
        (of_instances(), {**instances, "annotations": []}, "instance"),
    ):
        report = Report(check, "mine", 2)
        check_records([one, one], report)
        (fault,) = report.faults
        assert fault.kind is FaultKind.EMPTY
        assert fault.message == f"none of the 2 images looked at has a {lacking}"
    report = Report(options(), "mine", 1)
    check_records([{**record, "sem_seg_file_name": "none.png"}], report)
    assert kinds(report) == [FaultKind.LABEL_MAP]  # which says it all


def test_instances_beside_segments_are_counted_once(panoptic, instances):
    record = {**panoptic, "annotations": instances["annotations"]}
    both = ("pan_seg_file_name", "annotations")
    report = check_record(record, of_instances(both, thing_ids=frozenset({0, 1})))
    assert report.faults == []
    assert report.instances.tolist() == [2, 1] and report.crowds.tolist() == [0, 1]


def test_warnings_that_follow_from_figures(record, instances, panoptic, tmp_path):
    panoptic["segments_info"].append({"id": 9, "category_id": 0})
    report = Report(of_segments(), "mine", 1)
    check_records([panoptic], report)
    assert "segments without a pixel in their panoptic picture: 1" in report.all_warnings()

    exif = Image.Exif()
    exif[0x0112] = 3
    turned = str(tmp_path / "turned.jpg")
    Image.open(record["file_name"]).save(turned, exif=exif)
    del instances["annotations"][0]["bbox"]
    report = Report(of_instances(), "mine", 1)
    check_records([{**instances, "file_name": turned}], report)
    warnings = report.all_warnings()
    assert "instances without a box, which detectors need: 1" in warnings
    assert any(each.endswith(f"turned alike: {turned}") for each in warnings)
    assert report.figures()["turned_by_exif"] == [turned]


# All of it

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
    report = Report(check, "mine", 4)
    check_records(records, report, workers=2)

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


def test_samples(record, instances, tmp_path):
    broken = {**record, "sem_seg_file_name": "none.png"}
    wrong = {**record, "sem_seg_file_name": save(tmp_path / "w.png", np.full((30, 40), 9, "u1"))}
    good, faulty = samples_of([record, broken, wrong], options())
    assert good.name == "a.png" and faulty.name == "a.png (faulty)"
    assert len(good.component_names) == good.components.max() + 1
    assert good.instances is None and (faulty.labels == 3).all()
    instances["annotations"].insert(0, annotation(1, None))
    (sample,) = samples_of([instances], of_instances())
    assert sample.instance_names == ["disc 1", "disc 2", "box"]
    assert sample.instances[22, 33] == 2 and sample.instances[5, 3] == 0
    assert sample.instances[5, 9] == 1 and sample.instances[29, 0] == -1


# Training

MAPPERS = {
    "mask_former_semantic_concept": "sem_seg_file_name",
    "mask_former_panoptic_concept": "pan_seg_file_name",
    "mask_former_instance_concept": "annotations",
    "detection_concept": "annotations",
}


@pytest.fixture
def metadata():
    MetadataCatalog.get("check_mapper").set(stuff_classes=list(CLASSES), thing_classes=THINGS)
    yield
    MetadataCatalog.remove("check_mapper")


def mapper_and_config(cfg, name, **heads):
    cfg = cfg.clone()
    cfg.INPUT.DATASET_MAPPER_NAME = name
    for head, count in heads.items():
        cfg.MODEL[head].NUM_CLASSES = count
    return training_mapper("check_mapper", cfg), cfg


@pytest.mark.parametrize("name", MAPPERS)
@pytest.mark.parametrize("truth", sorted(set(MAPPERS.values())))
def test_truth_that_the_mapper_learns_from(cfg, metadata, name, truth):
    mapper, cfg = mapper_and_config(cfg, name, SEM_SEG_HEAD=3, ROI_HEADS=2)
    checks = {
        "sem_seg_file_name": options(),
        "pan_seg_file_name": of_segments(),
        "annotations": of_instances(),
    }
    for is_trained_on in (True, False):
        faults, _ = training_faults(mapper, [], checks[truth], cfg, is_trained_on=is_trained_on)
        if truth == MAPPERS[name] or not is_trained_on:
            assert faults == []
        else:
            (fault,) = faults
            assert fault.kind is FaultKind.TRAINING
            assert f"{name!r} learns from" in fault.message and truth in fault.message


def test_annotations_that_the_mapper_refuses(cfg, metadata):
    record = {"file_name": "a.png", "annotations": [annotation(0, None)]}
    for name, refused in (("mask_former_instance_concept", True), ("detection_concept", False)):
        mapper, changed = mapper_and_config(cfg, name, ROI_HEADS=2)
        check = of_instances()
        faults, _ = training_faults(mapper, [record], check, changed, is_trained_on=True)
        assert len(faults) == refused
        assert not refused or "annotation 0 of a.png has no segmentation" in faults[0].message


def test_number_of_classes(cfg, metadata):
    name = "mask_former_semantic_concept"
    for count, is_wrong in ((3, False), (4, True), (0, False)):
        mapper, changed = mapper_and_config(cfg, name, SEM_SEG_HEAD=count)
        faults, warnings = training_faults(mapper, [], options(), changed, is_trained_on=False)
        assert len(faults) == is_wrong and not warnings
        assert not is_wrong or "is 4, but the dataset has 3 stuff_classes" in faults[0].message
    with pytest.raises(ValueError, match="NUM_CLASSES is 2, but the dataset check_mapper has 3"):
        mapper_and_config(cfg, name, SEM_SEG_HEAD=2)
    mapper, changed = mapper_and_config(cfg, "detection_concept", ROI_HEADS=9)
    faults, warnings = training_faults(mapper, [], of_instances(), changed, is_trained_on=True)
    assert not faults and "MODEL.ROI_HEADS.NUM_CLASSES is 9, but the dataset has 2" in warnings[0]
    mapper, changed = mapper_and_config(cfg, "detectron2_default", SEM_SEG_HEAD=9)
    assert training_faults(mapper, [], options(), changed, is_trained_on=True) == ([], [])
