"""Detectron2's coco_2017_{train,val} and their panoptic forms on a miniature copy."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import (
    builtin,
    load_coco_json,
    load_sem_seg,
    register_coco_instances,
)
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES, _get_builtin_metadata
from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json, merge_to_panoptic
from PIL import Image

from official_layouts import COCO_STUFF, COCO_THINGS, write_coco
from sgr.config import add_sgr_config
from sgr.data.datasets import coco
from sgr.data.datasets.missing import IncompleteDataset
from sgr.data.mappers import build_mapper
from sgr.data.truth.coco_file import explain_coco_errors
from sgr.data.truth.segments import read_segment_map, segment_labels
from sgr.evaluation import build_evaluator

ENDINGS = ("", "_panoptic", "_panoptic_separated", "_panoptic_stuffonly")
NAMES = [f"coco_2017_{split}{ending}" for split in ("train", "val") for ending in ENDINGS]


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


@pytest.fixture
def prepared(root):
    """Label maps of :func:`write_coco`, written."""
    expected = write_coco(root)
    for file, labels in expected.items():
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(labels).save(file)
    return expected


@pytest.mark.parametrize("name", NAMES)
def test_missing(name, root):
    with pytest.raises(FileNotFoundError) as caught:
        DatasetCatalog.get(name)
    message = str(caught.value)
    assert message.startswith(str(root / "coco"))
    assert "panoptic_annotations_trainval2017.zip" in message
    assert "python datasets/prepare_coco.py" in message and "DETECTRON2_DATASETS" in message


@pytest.mark.parametrize("name", NAMES)
def test_metadata(name):
    metadata = MetadataCatalog.get(name)
    if name.endswith(("train", "val")):
        assert metadata.evaluator_type == "coco"
        names, colors = metadata.thing_classes, metadata.thing_colors
        assert len(names) == len(set(names)) == len(colors) == 80
        ids = metadata.thing_dataset_id_to_contiguous_id
        assert ids == {id: index for index, id in enumerate(COCO_THINGS)}
        return
    is_semantic = name.endswith("stuffonly")
    assert metadata.evaluator_type == ("sem_seg" if is_semantic else "coco_panoptic_seg")
    assert metadata.ignore_label == 255
    # Mask2Former takes these away when it is imported, to set its own.
    is_standard = name.endswith("panoptic")
    things = [each for each in COCO_CATEGORIES if is_standard or each["id"] in COCO_THINGS]
    assert metadata.thing_classes == [each["name"] for each in things]
    assert metadata.thing_colors == [each["color"] for each in things]
    names, colors = metadata.stuff_classes, np.array(metadata.stuff_colors)
    count = 133 if is_standard else 54
    assert len(names) == len(set(names)) == count
    assert colors.shape == (count, 3) and colors.min() >= 0 and colors.max() <= 255
    things = metadata.thing_dataset_id_to_contiguous_id
    assert things == {id: index for index, id in enumerate(COCO_THINGS)}
    first = 80 if count == 133 else 1
    stuff = {id: index for index, id in enumerate(COCO_STUFF, start=first)}
    assert stuff.items() <= metadata.stuff_dataset_id_to_contiguous_id.items()


# What the import of Mask2Former's public code does to these datasets.
MASK2FORMER = """
from detectron2.data import DatasetCatalog, MetadataCatalog
for split in ("train", "val"):
    name = f"coco_2017_{split}_panoptic"
    metadata, instances = MetadataCatalog.get(name), MetadataCatalog.get(f"coco_2017_{split}")
    delattr(metadata, "thing_classes")
    delattr(metadata, "thing_colors")
    metadata.set(thing_classes=list("ab"), thing_colors=[[0, 0, 0], [1, 1, 1]])
    DatasetCatalog.register(name + "_with_sem_seg", lambda: [{}])
    paths = {"image_root": instances.image_root, "json_file": instances.json_file}
    MetadataCatalog.get(name + "_with_sem_seg").set(evaluator_type="coco_panoptic_seg", **paths)
"""


@pytest.mark.parametrize("order", ["before", "after"])
def test_beside_mask2former(order, root):
    write_coco(root)
    codes = [MASK2FORMER, "import sgr"]
    code = (
        "\n".join(codes if order == "before" else codes[::-1])
        + """
for ending, count in {"": 4, "_panoptic": 4, "_panoptic_with_sem_seg": 1}.items():
    assert len(DatasetCatalog.get("coco_2017_val" + ending)) == count
assert DatasetCatalog["coco_2017_val_panoptic"].func.__module__ == "sgr.data.datasets.registration"
assert MetadataCatalog.get("coco_2017_val_panoptic").thing_classes == ["a", "b"]
assert len(MetadataCatalog.get("coco_2017_val_panoptic").stuff_classes) == 133
"""
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@pytest.mark.parametrize("split, count", [("train", 3), ("val", 4)])
def test_records_are_those_of_detectron2(split, count, root, prepared):
    folder = root / "coco"
    images, labels = str(folder / f"{split}2017"), str(folder / f"panoptic_stuff_{split}2017")
    name = f"coco_2017_{split}"
    instances_json = str(folder / f"annotations/instances_{split}2017.json")
    instances = load_coco_json(instances_json, images, name)
    stuff = load_sem_seg(labels, images)
    panoptic = load_coco_panoptic_json(
        str(folder / f"annotations/panoptic_{split}2017.json"),
        images,
        str(folder / f"panoptic_{split}2017"),
        _get_builtin_metadata("coco_panoptic_standard"),
    )
    expected = [instances, panoptic, merge_to_panoptic(instances, stuff), stuff]
    for ending, records in zip(ENDINGS, expected):
        assert len(records) == count
        assert DatasetCatalog.get(name + ending) == records
        # The metadata follow the environment, even though it changed since the import.
        metadata = MetadataCatalog.get(name + ending)
        assert metadata.image_root == images
        if "stuffonly" not in ending:
            assert metadata.json_file == instances_json
    assert metadata.sem_seg_root == labels


def test_without_what_a_dataset_does_not_need(root):
    write_coco(root)
    shutil.rmtree(root / "coco/train2017")
    (root / "coco/annotations/instances_val2017.json").unlink()
    assert len(DatasetCatalog.get("coco_2017_val_panoptic")) == 4
    with pytest.raises(FileNotFoundError, match="instances_val2017.json does not exist"):
        DatasetCatalog.get("coco_2017_val")
    with pytest.raises(FileNotFoundError, match="panoptic_stuff_val2017 does not exist"):
        DatasetCatalog.get("coco_2017_val_panoptic_stuffonly")
    (root / "coco/panoptic_stuff_val2017").write_text("")
    with pytest.raises(FileNotFoundError, match="panoptic_stuff_val2017 is a file, not a folder"):
        DatasetCatalog.get("coco_2017_val_panoptic_stuffonly")
    (root / "coco/annotations/instances_val2017.json").mkdir()
    with pytest.raises(FileNotFoundError, match="instances_val2017.json is a folder, not a file"):
        DatasetCatalog.get("coco_2017_val")


@pytest.mark.parametrize("name", NAMES[4:])
@pytest.mark.parametrize("stem", ["000000000139", "000000581781"])
def test_missing_files(name, stem, root, prepared):
    image = root / f"coco/val2017/{stem}.jpg"
    image.rename(root / "elsewhere.jpg")
    message = f"(?s)missing:\n- {image}\n.*prepare_coco.py"
    with pytest.raises(IncompleteDataset, match=message) as caught:
        DatasetCatalog.get(name)
    (root / "elsewhere.jpg").rename(image)
    records = DatasetCatalog.get(name)
    if not (name.endswith("_panoptic") and records[0]["file_name"] == str(image)):
        # Else Detectron2 looks at it first, and at nothing more.
        others = [each for each in records if each["file_name"] != str(image)]
        assert caught.value.records == others and caught.value.faults == [f"missing: {image}"]
    if name == "coco_2017_val":
        return
    folder = "panoptic_val2017" if name.endswith("panoptic") else "panoptic_stuff_val2017"
    labels = root / f"coco/{folder}/{stem}.png"
    labels.unlink()
    with pytest.raises(FileNotFoundError, match=f"(?s)missing:\n- {labels}\n.*prepare_coco.py"):
        DatasetCatalog.get(name)


def test_images_without_segments_need_no_label_map(root, prepared):
    image = root / "coco/val2017/000000000001.jpg"
    shutil.copy(root / "coco/val2017/000000000139.jpg", image)
    (image.parent / "._000000000001.jpg").write_text("")
    (next(iter(prepared)).parent / "._000000000009.png").write_text("")
    assert len(DatasetCatalog.get("coco_2017_val_panoptic_stuffonly")) == 4
    assert len(DatasetCatalog.get("coco_2017_train_panoptic_stuffonly")) == 3
    file = root / "coco/annotations/panoptic_val2017.json"
    file.write_text("{")
    with pytest.raises(ValueError, match=f"{file} is not a file of COCO's panoptic"):
        DatasetCatalog.get("coco_2017_val_panoptic_stuffonly")
    file.unlink()  # nobody knows without it
    with pytest.raises(FileNotFoundError, match=r"panoptic_stuff_val2017/000000000001\.png"):
        DatasetCatalog.get("coco_2017_val_panoptic_stuffonly")
    for file in (root / "coco/val2017").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"val2017/000000000139\.jpg"):
        DatasetCatalog.get("coco_2017_val_panoptic_stuffonly")
    for file in (root / "coco/panoptic_stuff_val2017").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"val2017/NAME\.jpg"):
        DatasetCatalog.get("coco_2017_val_panoptic_stuffonly")


@pytest.mark.parametrize("content", ["{", "[]", '{"annotations": [{}]}'])
def test_damaged_json(content, root, prepared):
    for kind, name in [("instances", "coco_2017_val"), ("panoptic", "coco_2017_val_panoptic")]:
        file = root / f"coco/annotations/{kind}_val2017.json"
        file.write_text(content)
        with pytest.raises(ValueError, match=f"{file} is not a file of COCO's {kind}"):
            DatasetCatalog.get(name)
        with pytest.raises(ValueError, match=f"(?s)the dataset {name} cannot be loaded"):
            with explain_coco_errors([name]):
                DatasetCatalog.get(name)


def test_other_categories(root, prepared):
    file = root / "coco/annotations/panoptic_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"][2]["segments_info"][0]["category_id"] = 12
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="not a file.*the category_id 12, which COCO does not"):
        DatasetCatalog.get("coco_2017_val_panoptic")
    file.write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(ValueError, match=f"{file} has no annotations"):
        DatasetCatalog.get("coco_2017_val_panoptic")
    file = root / "coco/annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    content["categories"].append({"id": 91, "name": "robot"})
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="(?s)instances.*under names of their own"):
        DatasetCatalog.get("coco_2017_val")


def test_data_of_users_are_left_alone(monkeypatch):
    """Even if they are registered by the function that Detectron2 uses for its own."""
    from sgr.data.datasets.registration import replace_builtin

    name = "coco_2017_of_somebody"
    paths = ["coco/annotations/instances_val2017.json", "coco/val2017"]
    keys = ("json_file", "image_root")
    try:
        # Of other names; of the same in another place; and one file of the same place.
        in_place, elsewhere = ([os.path.join(root, each) for each in paths] for root in (
            builtin._root, "/nfs/mine"
        ))  # fmt: skip
        for mine in (["mine/a.json", "mine/a"], elsewhere, [in_place[0], elsewhere[1]]):
            register_coco_instances(name, {}, *mine)
            before = DatasetCatalog.data[name]
            replace_builtin(name, lambda: [], only_at=dict(zip(keys, paths)))
            assert DatasetCatalog.data[name] is before
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_coco_instances(name, {}, *in_place)
        replace_builtin(name, lambda: [], only_at=dict(zip(keys, paths)))
        assert DatasetCatalog.get(name) == []
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def config(root, name, mapper, num_classes, meta_arch="ConceptSemanticSegmentor"):
    cfg = get_cfg()
    add_sgr_config(cfg)
    cfg.OUTPUT_DIR = str(root)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.INPUT.DATASET_MAPPER_NAME = mapper
    cfg.INPUT.MIN_SIZE_TRAIN = (24,)
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.CROP.ENABLED = False
    cfg.INPUT.COLOR_AUG_SSD = False
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = num_classes
    cfg.MODEL.META_ARCHITECTURE = meta_arch
    cfg.TEST.TOKENS.ENABLED = False
    return cfg


def miou_of_right_answers(cfg, name, labels_of):
    evaluator = build_evaluator(cfg, name)
    for record in DatasetCatalog.get(name):
        labels = torch.from_numpy(labels_of(record))
        scores = torch.stack([labels == each for each in range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)])
        evaluator.process([{"file_name": record["file_name"]}], [{"sem_seg": scores.float()}])
    return evaluator.evaluate()["sem_seg"]["mIoU"]


def kinds_of(evaluator):
    return {type(each).__name__ for each in getattr(evaluator, "_evaluators", [evaluator])}


def test_panoptic_data_reach_mapper_and_evaluators(root, prepared):
    name = "coco_2017_val_panoptic"
    cfg = config(root, name, "mask_former_panoptic_concept", 133, "MaskFormerSegmentor")
    mapper = build_mapper(cfg)
    records = DatasetCatalog.get(name)
    for record in records:
        mapped = mapper(record)
        assert mapped["image"].shape == (3, 24, 32)
        labels = mapped["sem_seg"].numpy()
        # The label maps of stuff, told by another script, say the same of all but crowds.
        stuff = prepared[root / f"coco/panoptic_stuff_val2017/{record['image_id']:012d}.png"]
        is_stuff = (stuff > 0) & (stuff < 255)
        np.testing.assert_array_equal(labels[is_stuff], stuff[is_stuff] + 79)
        assert (labels[stuff == 255] == 255).all() and (labels[is_stuff] < 133).all()
        assert set(labels[stuff == 0].tolist()) <= {255, *range(80)}
        crowds = sum(each["iscrowd"] for each in record["segments_info"])
        assert len(mapped["instances"]) == len(record["segments_info"]) - crowds
    assert sum(each["iscrowd"] for each in records[0]["segments_info"]) == 1
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = True
    kinds = kinds_of(build_evaluator(cfg, name))
    assert kinds == {"MeanIoUEvaluator", "PanopticQualityEvaluator", "ThingCOCOEvaluator"}
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = False

    def labels_of(record):  # crowds have a class
        segments = [{**each, "iscrowd": 0} for each in record["segments_info"]]
        return segment_labels(segments, ignore_value=255)[read_segment_map(record)]

    assert miou_of_right_answers(cfg, name, labels_of) == 100


def test_ap_without_the_file_of_instances(root, prepared, caplog):
    name = "coco_2017_val_panoptic"
    file = root / "coco/annotations/instances_val2017.json"
    file.unlink()
    cfg = config(root, name, "mask_former_panoptic_concept", 133, "MaskFormerSegmentor")
    cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = True
    with caplog.at_level("INFO"):
        assert kinds_of(build_evaluator(cfg, name)) == {"MeanIoUEvaluator"}
    assert f"AP, since its json_file {file} does not exist" in caplog.text
    cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON = False
    with pytest.raises(ValueError, match=f"AP, since its json_file {file} does not exist"):
        build_evaluator(cfg, name)


@pytest.mark.parametrize("ending", ["separated", "stuffonly"])
def test_label_maps_of_stuff_reach_mapper_and_evaluator(ending, root, prepared):
    name = f"coco_2017_val_panoptic_{ending}"
    cfg = config(root, name, "semantic_concept", 54)
    mapper = build_mapper(cfg)

    def labels_of(record):
        return prepared[Path(record["sem_seg_file_name"])]

    for record in DatasetCatalog.get(name):
        np.testing.assert_array_equal(mapper(record)["sem_seg"].numpy(), labels_of(record))
    assert miou_of_right_answers(cfg, name, labels_of) == 100


def test_instances_reach_mapper_and_evaluator(root, prepared):
    name = "coco_2017_train"
    cfg = config(root, name, "mask_former_instance_concept", 80, "MaskFormerSegmentor")
    mapper = build_mapper(cfg)
    counts = []
    for record in DatasetCatalog.get(name):
        crowds = sum(each["iscrowd"] for each in record["annotations"])
        assert (crowds, len(record["annotations"])) in [(0, 0), (1, 3)]
        mapped = mapper(record)
        assert mapped["image"].shape == (3, 24, 32)
        counts.append(len(mapped["instances"]))
    assert counts == [2, 0, 2]
    cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = True
    assert "FastCOCOEvaluator" in kinds_of(build_evaluator(cfg, name))


def test_part_of_the_real_images(shared, monkeypatch, tmp_path):
    (tmp_path / "coco").symlink_to(shared / "data" / "coco_mini")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert len(coco.load_coco_instances("train")) == 80
    assert len(DatasetCatalog.get("coco_2017_val")) == 79
