"""Files of instances as they are found: what is handled, and what errors say of the rest."""

import copy
import json
import logging

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode
from PIL import Image

from sgr.data.loading import load_dataset
from sgr.data.mappers import DetectionConceptMapper, InstanceConceptMapper
from sgr.data.truth.annotations import AnnotationChecker
from sgr.data.truth.coco_file import coco_file_faults, explain_coco_errors
from sgr.data.truth.records import read_instance_map
from sgr.engine import Trainer
from tiny_model import CHECKOUT, tiny_config

SIZE = (64, 96)
CONFIG = CHECKOUT / "configs" / "shapes" / "mask_rcnn_R50_sgr.yaml"


def polygon(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def mask_of(x0, y0, x1, y1, size=SIZE):
    mask = np.zeros(size, np.uint8, order="F")
    mask[y0:y1, x0:x1] = 1
    return mask


def plain_rle(mask):
    runs = np.flatnonzero(np.diff(mask.flatten(order="F").astype(int), prepend=0))
    return {"size": list(mask.shape), "counts": np.diff([0, *runs, mask.size]).tolist()}


def compressed_rle(mask):
    rle = mask_util.encode(mask)
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


@pytest.fixture
def content():
    """Crowds, gaps between the ids, polygons and both kinds of codes, an image without any.

    Annotation 14 has a box of zero area and 15 no polygon; 16 is of an image that is not there.
    """
    big, small = (8, 8, 60, 56), (20, 16, 40, 40)

    def annotation(id, image_id, category_id, box, segmentation, iscrowd=0):
        x0, y0, x1, y1 = box
        return {
            "id": id,
            "image_id": image_id,
            "category_id": category_id,
            "iscrowd": iscrowd,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0),
            "segmentation": segmentation,
        }

    return {
        "images": [
            {"id": id, "file_name": f"{id}.png", "height": SIZE[0], "width": SIZE[1]}
            for id in (5, 70, 900)
        ],
        "categories": [{"id": id, "name": f"class {id}"} for id in (90, 3, 17)],
        "annotations": [
            annotation(10, 5, 17, big, [polygon(*big)]),
            annotation(11, 5, 90, small, compressed_rle(mask_of(*small))),
            annotation(12, 5, 3, (64, 0, 96, 64), plain_rle(mask_of(64, 0, 96, 64)), iscrowd=1),
            annotation(13, 900, 3, small, plain_rle(mask_of(*small))),
            annotation(14, 900, 3, (4, 4, 4, 20), [polygon(4, 4, 4, 20)]),
            annotation(15, 900, 3, big, [[8, 8, 60, 56], [8, 8, 60, 56, 8, 56, 9]]),
            annotation(16, 12345, 3, big, [polygon(*big)]),
        ],
    }


@pytest.fixture
def register(tmp_path):
    """A function that registers a file's content, under a new name each time, and its images."""
    names = []

    def register(content):
        name = f"test_robustness_{tmp_path.name}_{len(names)}"
        json_file = tmp_path / f"{len(names)}.json"
        json_file.write_text(json.dumps(content))
        rng = np.random.default_rng(0)
        images = content["images"] if isinstance(content, dict) else None
        for image in images or ():
            pixels = rng.integers(0, 255, (*SIZE, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{image['id']}.png")
        register_coco_instances(name, {}, str(json_file), str(tmp_path))
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def config(tmp_path, name, **more):
    return tiny_config(
        tmp_path / "out",
        CONFIG,
        **{
            "DATASETS__TRAIN": f"('{name}',)",
            "DATASETS__TEST": f"('{name}',)",
            "INPUT__DATASET_MAPPER_NAME": "detection_concept",
            "INPUT__MASK_FORMAT": "bitmask",
            "MODEL__ROI_HEADS__NUM_CLASSES": 3,
            "MODEL__SGR__SUPERVISION__WEIGHT": 0.25,
            "SOLVER__IMS_PER_BATCH": 2,
            "SOLVER__MAX_ITER": 2,
            "DATALOADER__ASPECT_RATIO_GROUPING": False,
            **more,
        },
    )


def test_what_detectron2_loads(content, register, caplog):
    with caplog.at_level(logging.WARNING):
        records = DatasetCatalog.get(register(content))
    assert "7 annotations, but only 6" in caplog.text  # the one of an image that is not there
    assert "Filtered out 1 instances without valid segmentation" in caplog.text
    assert [record["image_id"] for record in records] == [5, 70, 900]
    # By the order of the ids, which have gaps.
    assert [each["category_id"] for each in records[0]["annotations"]] == [1, 2, 0]
    assert records[1]["annotations"] == []
    assert [each["bbox"][2] for each in records[2]["annotations"]] == [20, 0]
    instances = read_instance_map(records[0], SIZE)
    assert np.unique(instances).tolist() == [-1, 0, 1] and instances[20, 25] == 1
    assert (instances[:, 64:] == -1).all()
    assert (read_instance_map(records[1], SIZE) == -1).all()
    assert np.unique(read_instance_map(records[2], SIZE)).tolist() == [-1, 0]


@pytest.mark.parametrize("filter_empty", [True, False])
def test_training_and_evaluation(content, register, tmp_path, filter_empty):
    """From the file to losses, components among them, and to AP, with the image without any."""
    name = register(content)
    cfg = config(
        tmp_path,
        name,
        DATALOADER__FILTER_EMPTY_ANNOTATIONS=filter_empty,
        SOLVER__IMS_PER_BATCH=2 if filter_empty else 3,
        TEST__EVAL_PERIOD=2,
    )
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    batch = next(trainer._trainer._data_loader_iter)
    assert all("component_map" in each for each in batch)
    trainer.train()
    losses = trainer.storage.latest()
    assert {"loss_mask", "loss_rpn_cls", "loss_concept_dice"} <= losses.keys()
    assert np.isfinite(losses["total_loss"][0])
    # And "segm", if there is a prediction.
    assert "bbox" in trainer._last_eval_results
    loader = Trainer.build_train_loader(cfg)
    assert loader.num_images == (2 if filter_empty else 3)


def test_boxes_alone(content, register, tmp_path):
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    name = register(content)
    with pytest.raises(
        ValueError,
        match=(
            r"(?s)5 faults.*annotation 0 of .*5\.png has no segmentation.*.*MODEL\.MASK_ON to False"
        ),
    ):
        Trainer.build_train_loader(config(tmp_path, name))
    loader = Trainer.build_train_loader(config(tmp_path, name, MODEL__MASK_ON=False))
    for each in next(iter(loader)):
        # One of the second image's has zero area.
        assert len(each["instances"]) == 2 and len(each["component_classes"]) > 1


def test_without_concept_losses_there_are_no_components(content, register, tmp_path):
    cfg = config(tmp_path, register(content), MODEL__SGR__SUPERVISION__WEIGHT=0.0)
    assert all("component_map" not in each for each in next(iter(Trainer.build_train_loader(cfg))))


def test_codes_need_bit_masks(content, register, tmp_path):
    cfg = config(tmp_path, register(content), INPUT__MASK_FORMAT="polygon")
    expected = r"annotation 1 of .*5\.png has a run-length code: set INPUT\.MASK_FORMAT to bitmask"
    with pytest.raises(ValueError, match=expected):
        Trainer.build_train_loader(cfg)


@pytest.mark.parametrize("damage", ["missing", "cut", "other size"])
def test_images_that_cannot_be_used(content, register, tmp_path, damage):
    """In training and in testing the message names the file."""
    cfg = config(tmp_path, register(content))
    for id in (5, 70, 900):
        path = tmp_path / f"{id}.png"
        if damage == "missing":
            path.unlink()
        elif damage == "cut":
            path.write_bytes(path.read_bytes()[:2000])
        else:
            Image.new("RGB", (50, 40)).save(path)
    error, message = {
        "missing": (FileNotFoundError, r"image .*\.png does not exist"),
        "cut": (OSError, r"image .*\.png cannot be read, it may be damaged"),
        "other size": (ValueError, r"\.png is 50 x 40 pixels, and its record says 96 x 64"),
    }[damage]
    with pytest.raises(error, match=message):
        next(iter(Trainer.build_train_loader(cfg)))
    with pytest.raises(error, match=message):
        next(iter(Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])))


# Of annotation 10, in the file; None stands for a key that is not there.
FAULTS_IN_THE_LOADER = [
    ({"category_id": 4}, "annotation 10 of image 5 has category_id 4, which is not among the cat"),
    ({"category_id": None}, r"annotations\[0\] has no category_id, only \['area', 'bbox'"),
    ({"id": None}, r"annotations\[0\] has no id"),
    ({"id": 11}, "2 annotations have the id 11"),
    ({"ignore": 1}, 'annotation 10 of image 5 is marked "ignore"'),
    ({"bbox": []}, "annotation 10 of image 5 has an empty bbox"),
    ({"segmentation": polygon(0, 0, 9, 9)}, "annotation 10 of image 5 has plain numbers"),
    ({"segmentation": {"size": [64, 96]}}, r"annotation 10 .* run-length code of \['size'\]"),
    ({"segmentation": {"size": None, "counts": [1]}}, "annotation 10 .* of the size None, not of"),
    ({"category_id": [17]}, r"annotations\[0\] has a list as category_id"),
]


@pytest.mark.parametrize("change, message", FAULTS_IN_THE_LOADER)
def test_files_that_detectron2_does_not_load(content, register, tmp_path, change, message):
    annotation = content["annotations"][0]
    annotation.update(change)
    for key in [key for key, value in change.items() if value is None]:
        del annotation[key]
    cfg = config(tmp_path, register(content))
    message = rf"(?s)test_robustness.* cannot be loaded from .*\.json.*{message}"
    with pytest.raises(ValueError, match=message):
        Trainer.build_train_loader(cfg)
    with pytest.raises(ValueError, match=message):
        Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda content: [], "holds a list"),
        (lambda content: {**content, "categories": []}, "the file has no categories"),
        (
            lambda content: {**content, "images": [{"id": 5}]},
            r"images\[0\] has no file_name, height",
        ),
        (lambda content: {**content, "images": None}, "images is a NoneType, not a list"),
        (lambda content: {**content, "images": [{"id": []}]}, r"images\[0\] has a list as id"),
        (lambda content: {**content, "annotations": None}, "annotations is a NoneType, not a list"),
        (
            lambda content: {**content, "annotations": {"0": {}}},
            "annotations is a dict, not a list",
        ),
        (
            lambda content: {**content, "annotations": [None]},
            r"annotations\[0\] is a NoneType, not a",
        ),
        (
            lambda content: {**content, "categories": ["cat"]},
            r"categories\[0\] is a str, not a record",
        ),
        # Nothing that is looked for.
        (lambda content: content["annotations"][0].update(bbox=4) or content, "TypeError: .*'int'"),
        # Of several faults, one that can be named.
        (
            lambda content: (
                content["annotations"][0].update(bbox=4, segmentation=[[10**400] * 6]) or content
            ),
            "annotation 10 of image 5 has a polygon that does not consist of numbers",
        ),
    ],
)
def test_files_of_another_form(content, register, change, message):
    name = register(change(content))
    message = rf"(?s)the dataset {name} cannot be loaded from .*\.json.*{message}"
    with pytest.raises(ValueError, match=message), explain_coco_errors([name]):
        DatasetCatalog.get(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ([], r"categories\[1\] has a list as name"),
        ("\ud800", "'.ud800'; names are texts of Unicode"),
    ],
)
def test_names_of_categories_that_are_no_texts(content, register, name, message):
    content["categories"][1]["name"] = name
    with pytest.raises(ValueError, match=rf"(?s)cannot be loaded.*{message}"):
        load_dataset(register(content))


def test_other_errors_of_loading(content, register, tmp_path):
    """They are told with the file, but for those of datasets without one, and of disks."""
    name = register(content)
    assert coco_file_faults(MetadataCatalog.get(name).json_file) == []
    message = rf"dataset {name} cannot be loaded from .*\.json: KeyError: 'something else'"
    with pytest.raises(ValueError, match=message), explain_coco_errors([name]):
        raise KeyError("something else")
    for names in ([], ["test_robustness_unknown"], [name, "test_robustness_unknown"]):
        with pytest.raises(KeyError, match="else"), explain_coco_errors(names):
            raise KeyError("something else")
    damaged = tmp_path / "damaged.json"
    damaged.write_text('{"images": [')
    assert "not JSON" in coco_file_faults(str(damaged))[0]
    damaged.unlink()
    register_coco_instances("test_robustness_missing", {}, str(damaged), str(tmp_path))
    try:
        with pytest.raises(FileNotFoundError, match=r"damaged\.json"):
            with explain_coco_errors(["test_robustness_missing"]):
                DatasetCatalog.get("test_robustness_missing")
    finally:
        DatasetCatalog.remove("test_robustness_missing")


GOOD = {
    "category_id": 0,
    "bbox": [1.0, 1, 5, 5],
    "bbox_mode": BoxMode.XYWH_ABS,
    "segmentation": [polygon(1, 1, 6, 6)],
}
NAN = float("nan")

# Of an annotation that is loaded; None stands for a key that is not there.
FAULTS = [
    ({"category_id": 3}, r"has category_id 3; expected are 0 to 2.*ROI_HEADS\.NUM_CLASSES"),
    ({"category_id": "cat"}, "has category_id 'cat'; expected are 0 to 2"),
    ({"category_id": None}, "has no category_id, only"),
    ({"bbox": None}, "has no bbox, only"),
    ({"bbox_mode": None}, "has no bbox_mode, only"),
    ({"bbox_mode": BoxMode.XYXY_REL}, "has the bbox_mode .*XYWH_ABS or BoxMode.XYXY_ABS"),
    ({"bbox": [1, 2, 3]}, r"has the bbox \[1, 2, 3\], not four numbers"),
    ({"bbox": [1, 2, NAN, 3]}, "has the bbox .* not finite"),
    ({"bbox": [9, 9, -4, 3]}, r"has the bbox .* \(XYWH_ABS\), which is -4 x 3: .*zero.* left out"),
    (
        {"bbox": [9, 9, 12, 4], "bbox_mode": BoxMode.XYXY_ABS},
        r"has the bbox .* \(XYXY_ABS\), which is 3 x -5",
    ),
    ({"segmentation": None}, "has no segmentation, only .* set MODEL.MASK_ON to False"),
    ({"segmentation": polygon(1, 1, 6, 6)}, "has plain numbers as segmentation; polygons are"),
    ({"segmentation": [[1, 2, NAN, 3, 4, 5]]}, "has a polygon with a coordinate .* not finite"),
    ({"segmentation": [[1, 2, 3, 4, 5, "6"]]}, "has a polygon that does not consist of numbers"),
    ({"segmentation": [[1, 2, 3, 4, 5, "x"]]}, "has a polygon that does not consist of numbers"),
    ({"segmentation": "mask.png"}, "has a segmentation of type str"),
    ({"segmentation": {"size": [64, 96]}}, r"has a run-length code of \['size'\]"),
    (
        {"segmentation": {"size": [64, 96], "counts": 7}},
        "has a run-length code with counts of type int",
    ),
    (
        {"segmentation": {"size": [64, 96], "counts": [1, "a"]}},
        "has a run-length code with counts that are not numbers",
    ),
    (
        {"segmentation": {"size": [64], "counts": [6144]}},
        r"has a run-length code of the size \[64\], not of two numbers",
    ),
    (
        {"segmentation": {"size": None, "counts": "0P"}},
        "has a run-length code of the size None, not of two numbers",
    ),
    (
        {"segmentation": {"size": ["64", 96], "counts": "0P"}},
        r"has .* of the size \['64', 96\], not",
    ),
    (
        {"segmentation": compressed_rle(mask_of(0, 0, 5, 5, (96, 64)))},
        "has a mask of 64 x 96, but the image is 96 x 64 pixels",
    ),
]
# Found where the mask is made, not before.
RUNS = [
    ({"segmentation": {"size": [64, 96], "counts": [6000, 40]}}, "has 6040 pixels.* wants 6144"),
    ({"segmentation": {"size": [64, 96], "counts": [-1, 6145]}}, "negative run"),
    ({"segmentation": {**compressed_rle(mask_of(0, 0, 9, 9)), "counts": "0P"}}, "has 0 pixels"),
]


def changed(change):
    annotation = {**copy.deepcopy(GOOD), **change}
    return {key: value for key, value in annotation.items() if value is not None}


@pytest.fixture
def image(tmp_path):
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "image.png")
    return str(tmp_path / "image.png")


def mapper(**changes):
    options = {"augmentations": [], "image_format": "RGB", "num_classes": 3}
    return DetectionConceptMapper(
        **{**options, "use_instance_mask": True, "instance_mask_format": "bitmask", **changes}
    )


@pytest.mark.parametrize("change, message", FAULTS)
def test_annotations_that_cannot_be_used(image, change, message):
    """Found by the look at all records, where the size of the image is known, and in mapping."""
    bad = {**changed(change), "id": 77}
    record = {"file_name": image, "annotations": [GOOD, bad], "height": SIZE[0], "width": SIZE[1]}
    message = rf"annotation 1 \(id 77\) of .*image\.png {message}"
    with pytest.raises(ValueError, match=message):
        mapper().check_records([{**record, "annotations": [GOOD]}, record])
    with pytest.raises(ValueError, match=message):
        mapper()({"file_name": image, "annotations": [GOOD, bad]})


@pytest.mark.parametrize("change, message", RUNS)
@pytest.mark.parametrize("of_detection", [True, False])
def test_codes_that_do_not_fill_the_image(image, change, message, of_detection):
    record = {"file_name": image, "annotations": [GOOD, changed(change)]}
    a_mapper = (
        mapper()
        if of_detection
        else InstanceConceptMapper(augmentations=[], image_format="RGB", num_classes=3)
    )
    with pytest.raises(ValueError, match=rf"annotation 1 of .*image\.png: .*{message}"):
        a_mapper(record)


@pytest.mark.parametrize("masks", [True, False, None])
def test_polygons_far_outside_of_the_image(image, masks):
    """Detection with masks and without, and (None) mask classification."""
    far, near = [5000, 5000, 5100, 5000, 5100, 5100], polygon(8, 8, 40, 40)
    annotations = [
        changed({"bbox": [8, 8, 32, 32], "category_id": index, "segmentation": segmentation})
        for index, segmentation in enumerate([[far], [near, far]])
    ]
    record = {"file_name": image, "annotations": annotations, "height": SIZE[0], "width": SIZE[1]}
    options = {"augmentations": [T.HFlipTransform(SIZE[1])], "kernel_size": 1}
    if masks is None:
        a_mapper = InstanceConceptMapper(image_format="RGB", num_classes=3, **options)
    else:
        a_mapper = mapper(use_instance_mask=masks, **options)
    a_mapper.check_records([record])
    out = a_mapper(record)
    assert out["component_classes"].tolist() == [3, 1]  # the background and the polygon inside
    if masks is None:
        assert out["instances"].gt_classes.tolist() == [1]
    only_far = a_mapper({**record, "annotations": annotations[:1]})
    assert only_far["component_classes"].tolist() == [3]


def test_what_is_no_fault():
    fine = [
        {"bbox": [3, 3, 0, 5]},
        {"bbox": (3.0, 3, 4, 5)},
        {"bbox": np.array([3, 3, 5, 5.0]), "bbox_mode": BoxMode.XYXY_ABS},
        {"category_id": np.int64(2)},
        {"segmentation": []},
        {"segmentation": [[1, 2, 3]]},
        {"segmentation": [np.array(polygon(1, 1, 6, 6))]},
        {"segmentation": [[[1, 1], [6, 1], [6, 6]]]},
        {"segmentation": mask_util.encode(mask_of(0, 0, 5, 5))},
        {"segmentation": None, "iscrowd": 1},
        {"segmentation": None, "bbox": None, "iscrowd": 1},
    ]
    annotations = [changed(each) for each in fine]
    records = [
        {"file_name": "a", "annotations": annotations, "height": SIZE[0], "width": SIZE[1]},
        {"file_name": "b", "annotations": []},
    ]
    mapper().check_records(records)
    # What is not learned from is not looked at.
    nonsense = {"file_name": "c", "annotations": [changed({"segmentation": "mask.png"})]}
    mapper(use_instance_mask=False, with_components=False).check_records([nonsense])


def test_many_faults_are_counted():
    records = [
        {"file_name": f"{index}.png", "annotations": [changed({"bbox": None})] * 2}
        for index in range(4)
    ]
    with pytest.raises(ValueError) as raised:
        AnnotationChecker(num_classes=3, boxes_needed=True).check_all([*records, {}])
    message = str(raised.value)
    assert message.startswith("9 faults in the annotations:\n- annotation 0 of 0.png has no bbox")
    assert message.count("\n") == 6 and message.endswith("and 4 more")


@pytest.mark.parametrize("kind", ["detection", "instance"])
def test_records_without_annotations(image, kind):
    a_mapper = (
        mapper()
        if kind == "detection"
        else InstanceConceptMapper(augmentations=[], image_format="RGB", num_classes=3)
    )
    record = {"file_name": image, "sem_seg_file_name": "labels.png"}
    for call in (a_mapper, lambda record: a_mapper.check_records([record])):
        with pytest.raises(ValueError, match=r"image\.png has no annotations.*DATASET_MAPPER_NAME"):
            call(record)
