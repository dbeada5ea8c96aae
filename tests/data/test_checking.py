"""Records looked at one by one and summed up, beside counts pixel by pixel."""

import re
from collections import Counter, deque

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.structures import BoxMode
from PIL import Image

from sgr.data.checking import (
    CheckOptions,
    DatasetReport,
    FaultKind,
    check_record,
    check_records,
    class_faults,
    examine_record,
    find_unpaired,
    options_for,
    spread,
    tell,
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
    assert report.faults == [] and report.size == labels.shape
    count = Counter(labels.ravel().tolist())
    assert report.pixels.tolist() == [count[0], count[1], count[2]]
    assert report.ignored == count[255] > 0
    expected = count_components(labels, 0.2)
    assert report.num_components == len(expected) > 3
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
    assert report.ignored == expected.ignored
    assert report.num_components == expected.num_components


@pytest.mark.parametrize("wide", [False, True])
def test_wrong_labels_are_counted_and_count_for_no_class(record, labels, wide):
    labels = labels.astype(np.uint16 if wide else np.uint8)
    highest = 40000 if wide else 200
    labels[:2, :7], labels[5, 5] = 3, highest
    Image.fromarray(labels).save(record["sem_seg_file_name"])
    report, maps = examine_record(record, options())
    assert report.outside == {3: 14, highest: 1}
    assert kinds(report) == [FaultKind.LABELS]
    message = report.faults[0].message
    assert f"holds the label(s) 3, {highest}; expected are 0 to 2" in message
    assert record["sem_seg_file_name"] in message
    count = Counter(labels.ravel().tolist())
    assert report.pixels.tolist() == [count[0], count[1], count[2]]
    assert report.ignored == count[255]
    assert (maps.labels[:2, :7] == 3).all()


def test_missing_and_damaged_files(record, tmp_path):
    other = {**record, "sem_seg_file_name": str(tmp_path / "none.png")}
    report = check_record(other, options())
    assert kinds(report) == [FaultKind.LABEL_MAP]
    assert report.faults[0].message == f"label map {tmp_path / 'none.png'} does not exist"
    assert report.num_components is None and not report.pixels.any()

    damaged = tmp_path / "damaged.png"
    content = open(record["file_name"], "rb").read()
    damaged.write_bytes(content[: len(content) // 2])
    report, maps = examine_record({**record, "file_name": str(damaged)}, options())
    assert kinds(report) == [FaultKind.IMAGE] and maps is None
    assert f"{damaged} cannot be read" in report.faults[0].message
    assert report.size is None and report.pixels.any()  # the labels are looked at all the same

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
    assert report.is_turned and report.size == labels.shape[::-1]
    assert kinds(report) == [FaultKind.SIZE]
    assert "EXIF data turns the image and not the ground truth" in report.faults[0].message
    Image.fromarray(np.rot90(labels, -1).copy()).save(record["sem_seg_file_name"])
    report = check_record({**record, "file_name": str(turned)}, options())
    assert report.is_turned and report.faults == []


def test_all_ignored(record, labels):
    Image.fromarray(np.full_like(labels, 255)).save(record["sem_seg_file_name"])
    report = check_record(record, options())
    assert report.faults == [] and report.num_components == 0
    assert report.ignored == labels.size and not report.components.any()


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
    assert report.pixels.tolist() == [80, 48, 30 * 40 - 80 - 48 - 40] and report.ignored == 40
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
    assert report.pixels.tolist() == [0, 0, 1200] and report.num_components == 1
    assert (maps.labels == 2).all()
    report = check_record({**instances, "file_name": "none.png"}, of_instances())
    assert kinds(report) == [FaultKind.IMAGE] and report.instances.tolist() == [1, 2]


def test_label_maps_and_instances(record, instances, tmp_path, labels):
    record = {**instances, "sem_seg_file_name": save(tmp_path / "l.png", labels)}
    both = ("sem_seg_file_name", "annotations")
    report = check_record(record, of_instances(both))
    assert report.faults == [] and report.instances.tolist() == [2, 1]
    assert report.pixels.sum() + report.ignored == labels.size
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
    assert report.ignored == (labels == 255).sum() + crowd.sum()
    assert report.instances.tolist() == [0, 0, 1] and report.crowds.tolist() == [0, 0, 1]
    expected = count_components(np.where(crowd, 255, labels), 0.05)
    assert report.num_components == len(expected)
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
    alone, report = (
        check_record(panoptic, of_segments(truth)) for truth in (both[:1], both)
    )
    assert kinds(report) == [FaultKind.LABELS] and report.outside == {9: 1}
    assert report.pixels.tolist() == alone.pixels.tolist() and report.ignored == alone.ignored


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
        report = DatasetReport("mine", options(max_active=2, min_area_ratio=0), len(records))
        check_records(records, report, workers=workers)
        reports.append(report)
    first, second = (report.figures() for report in reports)
    assert str(first) == str(second)
    report = reports[0]
    assert report.pixels.tolist() == [*counts[:, :2].sum(0), 0]
    assert report.share_ignored == counts[:, 2].sum() / counts.sum()
    assert report.images_with.tolist() == [6, 6, 0] and report.num_unlabelled == 1
    assert report.intact == [0, 1, 2, 4, 5, 6, 7] and report.num_checked == 8
    assert len(report.num_components) == 7
    assert report.share_over == np.mean([n > 2 for n in report.num_components]) > 0
    assert report.components.sum() == sum(min(n, 2) for n in report.num_components)
    assert report.never_there() == ["car"]
    warnings = report.all_warnings()
    assert "classes that do not occur in any image: car" in warnings
    assert any(each == "images without a labelled pixel: 1" for each in warnings)
    text = tell(report)
    assert "mine: 8 images, label maps" in text and "| image width" in text
    assert "1 x label maps that are missing or cannot be read:\n- label map none.png" in text
    assert "Errors: 1\n" in text


def test_labels_that_count_from_one(record, labels):
    labels = np.where(labels == 255, 255, labels + 1).astype(np.uint8)
    Image.fromarray(labels).save(record["sem_seg_file_name"])
    report = DatasetReport("mine", options(), 1)
    check_records([record], report)
    assert any("do the labels count from 1?" in each for each in report.all_warnings())
    row = rf"\| label 3, no class +\| {(labels == 3).sum()} pixels in 1 images +\|"
    assert re.search(row, tell(report))


def test_tables_of_instances(instances, panoptic, tmp_path, labels):
    report = DatasetReport("mine", of_instances(), 1)
    check_records([instances], report)
    rows = [line.split("|") for line in tell(report).splitlines() if "| disc" in line]
    assert len(rows) == 1 and rows[0][-3].strip() == "2" and rows[0][-2].strip() == "0"  # crowds
    assert "3 in 1 images, and 1 crowds" in tell(report)
    assert "component that is kept, which supervise no concept: box\n" in tell(report)

    both = ("sem_seg_file_name", "annotations")
    record = {**instances, "sem_seg_file_name": save(tmp_path / "l.png", labels)}
    report = DatasetReport("mine", of_instances(both), 1)
    check_records([record], report)
    assert "|   category | thing   |" in tell(report)

    report = DatasetReport("mine", of_segments(), 1)
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
    with pytest.raises(ValueError, match="no stuff_classes.*SEM_SEG_HEAD.NUM_CLASSES"):
        options_for([{"sem_seg_file_name": ""}], {}, cfg)
    found = options_for([{"sem_seg_file_name": ""}], {}, cfg, cfg_is_chosen=True)
    assert len(found.class_names) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES


def test_classes_and_the_config(cfg):
    cfg = cfg.clone()
    for number, words in ((3, None), (2, "is 2, but the dataset has 3"), (4, "has 3 stuff")):
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = number
        faults, warnings = class_faults(options(), cfg)
        assert not warnings and len(faults) == (words is not None)
        assert words is None or words in faults[0].message
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
    faults, warnings = class_faults(of_instances(), cfg)
    assert not faults and "3, but the dataset has 2 thing_classes" in warnings[0]
    cfg.MODEL.META_ARCHITECTURE = "ConceptGeneralizedRCNN"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    faults, _ = class_faults(of_instances(), cfg)
    assert "MODEL.ROI_HEADS.NUM_CLASSES is 1" in faults[0].message
    assert class_faults(options(), cfg) == ([], [])  # no things to detect
    faults, _ = class_faults(options(ignore_label=1))
    assert "ignore_label in the metadata is 1, which is one of the 3" in faults[0].message
    assert class_faults(options()) == ([], [])


# Folders

def make_pairs(root, names, suffix=""):
    records = []
    for name in names:
        pair = root / "images" / f"{name}.jpg", root / "labels" / f"{name}{suffix}.png"
        for path in pair:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        records.append(dict(zip(("file_name", "sem_seg_file_name"), map(str, pair))))
    return records, str(root / "images"), str(root / "labels")


@pytest.mark.parametrize("suffix", ["", "_mask"])
def test_files_without_a_partner(tmp_path, suffix):
    arguments = make_pairs(tmp_path, ["a", "b", "city/c"], suffix)
    found = find_unpaired(*arguments)
    assert (found.images, found.labels, found.num_pairs) == ([], [], 0)
    for file in ("images/city/d.JPG", f"labels/e{suffix}.png", "images/.hidden.jpg", "images/x.md"):
        (tmp_path / file).touch()
    found = find_unpaired(*arguments)
    assert found.images == [str(tmp_path / "images" / "city" / "d.JPG")]
    assert found.labels == [str(tmp_path / "labels" / f"e{suffix}.png")]
    records, *roots = arguments
    assert find_unpaired(records[1:], *roots).num_pairs == 1


def test_folders_that_tell_nothing(tmp_path):
    records, images, labels = make_pairs(tmp_path, ["a", "b"])
    assert find_unpaired(records, images, str(tmp_path / "elsewhere")) is None
    records[1]["sem_seg_file_name"] = records[0]["sem_seg_file_name"]
    assert find_unpaired(records, images, labels) is None
