import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.cityscapes_panoptic import load_cityscapes_panoptic
from PIL import Image

from official_layouts import (
    CITYSCAPES_EVALUATED,
    CITYSCAPES_THINGS,
    forget_colors,
    write_ade20k,
    write_cityscapes,
    write_cityscapes_panoptic,
)
from sgr.config import add_sgr_config
from sgr.data.datasets import ade20k, camvid, cityscapes, coco_stuff_10k
from sgr.data.datasets.missing import IncompleteDataset
from sgr.data.datasets.pairs import load_sem_seg_pairs
from sgr.data.datasets.registration import add_metadata, register, replace_builtin
from sgr.data.mappers import PanopticConceptMapper
from sgr.data.truth.segments import read_segment_map, segment_labels
from sgr.evaluation import build_evaluator

SHARED_CAMVID = Path(__file__).parents[3].parent / "shared" / "data" / "camvid"

NAMES = [
    *(f"shapes_sem_seg_{split}" for split in ("train", "val")),
    *(f"shapes_instance_{split}" for split in ("train", "val")),
    *(f"camvid_sem_seg_{split}" for split in ("train", "val", "test")),
    *(f"coco_stuff_10k_sem_seg_{split}" for split in ("train", "test")),
    *(f"ade20k_sem_seg_{split}" for split in ("train", "val")),
    *(f"cityscapes_fine_sem_seg_{split}" for split in ("train", "val", "test")),
]


@pytest.fixture(autouse=True)
def no_colors_left():
    yield
    forget_colors()


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def make_pairs(image_dir, label_dir, names, suffix):
    for folder in (image_dir, label_dir):
        folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(image_dir / f"{name}{suffix}")
        Image.fromarray(np.full((6, 8), 11, np.uint8)).save(label_dir / f"{name}.png")


@pytest.mark.parametrize("name", NAMES)
def test_registered_and_missing(name, root):
    with pytest.raises(FileNotFoundError) as caught:
        DatasetCatalog.get(name)
    message = str(caught.value)
    assert str(root) in message and "DETECTRON2_DATASETS" in message
    split = name.rsplit("_", 1)[-1]
    if name.startswith("shapes"):
        assert "python datasets/make_shapes.py" in message and f"{split}" in message
    elif name.startswith("camvid"):
        assert "SegNet" in message and "trainannot" in message
    elif name.startswith("coco_stuff"):
        assert "cocostuff10k" in message and "annotations_detectron2" in message
        assert "python datasets/prepare_coco_stuff_10k.py" in message
    elif name.startswith("ade20k"):
        assert "ADEChallengeData2016.zip" in message
        assert "python datasets/prepare_ade20k.py" in message
    else:
        assert "gtFine_trainvaltest.zip" in message and "labelTrainIds" in message
        assert "python datasets/prepare_cityscapes.py" in message


def test_default_root_is_told(monkeypatch, tmp_path):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="set the environment variable DETECTRON2_DATASETS"):
        DatasetCatalog.get("camvid_sem_seg_train")


NUM_CLASSES = {"shapes": 9, "camvid": 11, "coco": 171, "ade20k": 150, "cityscapes": 19}


@pytest.mark.parametrize("name", NAMES)
def test_metadata(name):
    metadata = MetadataCatalog.get(name)
    if "instance" in name:
        assert metadata.evaluator_type == "coco"
        return
    is_cityscapes = name.startswith("cityscapes")
    assert metadata.evaluator_type == ("cityscapes_sem_seg" if is_cityscapes else "sem_seg")
    folders = ("image_dir", "gt_dir") if is_cityscapes else ("image_root", "sem_seg_root")
    assert all(metadata.get(each) for each in folders)
    count = NUM_CLASSES[name.partition("_")[0]]
    assert len(metadata.stuff_classes) == len(set(metadata.stuff_classes)) == count
    assert metadata.ignore_label == (11 if name.startswith("camvid") else 255)
    if name.startswith(("ade20k", "cityscapes")):  # from the first loading on
        module = ade20k if name.startswith("ade20k") else cityscapes
        colors = np.array(module.ADE20K_COLORS if module is ade20k else module.CITYSCAPES_COLORS)
    else:
        colors = np.array(metadata.stuff_colors)
    assert colors.shape == (count, 3) and colors.min() >= 0 and colors.max() <= 255
    # ADE20K's own palette has one colour for "road, route" and "skyscraper".
    assert len(set(map(tuple, colors))) == count - name.startswith("ade20k")


def test_well_known_colours():
    classes = MetadataCatalog.get("ade20k_sem_seg_val").stuff_classes
    of_ade = dict(zip(classes, ade20k.ADE20K_COLORS))
    assert of_ade["wall"] == [120, 120, 120] and of_ade["sky"] == [6, 230, 230]
    assert of_ade["person"] == [150, 5, 61] and of_ade["flag"] == [92, 0, 255]
    classes = MetadataCatalog.get("cityscapes_fine_sem_seg_val").stuff_classes
    of_cityscapes = dict(zip(classes, cityscapes.CITYSCAPES_COLORS))
    assert of_cityscapes["road"] == (128, 64, 128) and of_cityscapes["car"] == (0, 0, 142)


COLORS_OF_OTHERS = """
import {first}
from detectron2.data import DatasetCatalog, MetadataCatalog
own = [[120, 120, 120], [1, 2, 3]]
for name in ("ade20k_sem_seg_train", "cityscapes_fine_sem_seg_val"):
    MetadataCatalog.get(name).set(stuff_colors=own)
import {second}
for name in ("ade20k_sem_seg_train", "cityscapes_fine_sem_seg_val"):
    try:
        DatasetCatalog.get(name)
    except FileNotFoundError:
        pass
    assert MetadataCatalog.get(name).stuff_colors == own
"""


@pytest.mark.parametrize("first, second", [("sgr", "json"), ("detectron2.data.datasets", "sgr")])
def test_others_may_set_colours(first, second, root):
    """Mask2Former does at import, before or after this package's."""
    code = COLORS_OF_OTHERS.format(first=first, second=second)
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_colours_come_with_the_first_loading(root):
    for name in ("ade20k_sem_seg_val", "cityscapes_fine_sem_seg_train"):
        metadata = MetadataCatalog.get(name)
        assert not hasattr(metadata, "stuff_colors")
        for _ in range(2):
            with pytest.raises(FileNotFoundError):
                DatasetCatalog.get(name)
            assert len(metadata.stuff_colors) == len(metadata.stuff_classes)


def test_coco_stuff_classes():
    classes = coco_stuff_10k.COCO_STUFF_CLASSES
    assert len(classes) == len(set(classes)) == 171
    assert classes[0] == "person" and classes[79] == "toothbrush" and classes[-1] == "wood"
    # The stuff is in alphabetical order.
    assert classes[80:] == sorted(classes[80:])


def test_registering_twice_changes_nothing():
    before = DatasetCatalog["camvid_sem_seg_val"]
    register("camvid_sem_seg_val", lambda: [], stuff_classes=["other"])
    assert DatasetCatalog["camvid_sem_seg_val"] is before
    assert MetadataCatalog.get("camvid_sem_seg_val").stuff_classes == camvid.CAMVID_CLASSES


@pytest.mark.parametrize("folder", ["CamVid", "camvid"])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_camvid(root, folder, suffix):
    for split in ("train", "val", "test"):
        make_pairs(
            root / folder / split, root / folder / f"{split}annot", [f"b_{split}", "a"], suffix
        )
        records = DatasetCatalog.get(f"camvid_sem_seg_{split}")
        assert [record["image_id"] for record in records] == ["a", f"b_{split}"]
        assert records[1]["file_name"] == str(root / folder / split / f"b_{split}{suffix}")
        label_file = root / folder / f"{split}annot" / f"b_{split}.png"
        assert records[1]["sem_seg_file_name"] == str(label_file)
        # The metadata follow the environment, even though it changed since the import.
        metadata = MetadataCatalog.get(f"camvid_sem_seg_{split}")
        assert metadata.image_root == str(root / folder / split)
        assert metadata.sem_seg_root == str(root / folder / f"{split}annot")


def test_coco_stuff_10k(root):
    folder = root / "coco" / "coco_stuff_10k"
    make_pairs(
        folder / "images_detectron2" / "test",
        folder / "annotations_detectron2" / "test",
        ["COCO_1"],
        ".jpg",
    )
    assert len(DatasetCatalog.get("coco_stuff_10k_sem_seg_test")) == 1


def test_ade20k(root):
    expected = write_ade20k(root)
    for file, labels in expected.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(file)
    records = DatasetCatalog.get("ade20k_sem_seg_train")
    assert [Path(each["sem_seg_file_name"]) for each in records] == list(expected)[:3]
    folder = root / "ADEChallengeData2016"
    assert MetadataCatalog.get("ade20k_sem_seg_train").image_root == str(folder / "images/training")
    # Detectron2 would leave out an image of another suffix, and take hidden files.
    image = folder / "images/training/ADE_train_00000001.jpg"
    Image.open(image).save(image.with_suffix(".png"))
    image.unlink()
    (image.parent / f"._{image.name}").write_text("")
    (Path(records[0]["sem_seg_file_name"]).parent / "._ADE_train_00000001.png").write_text("")
    found = [Path(each["file_name"]) for each in DatasetCatalog.get("ade20k_sem_seg_train")]
    assert found[0] == image.with_suffix(".png") and len(found) == 3
    # It would leave this image out, too.
    next(iter(expected)).unlink()
    message = "(?s)without a label map.*prepare_ade20k.py"
    with pytest.raises(IncompleteDataset, match=message) as caught:
        DatasetCatalog.get("ade20k_sem_seg_train")
    assert len(caught.value.faults) == 1 and len(caught.value.records) == 2
    assert len(DatasetCatalog.get("ade20k_sem_seg_val")) == 2


def test_cityscapes(root):
    expected = write_cityscapes(root)
    with pytest.raises(FileNotFoundError, match="(?s)missing:.*TrainIds.*prepare_cityscapes.py"):
        DatasetCatalog.get("cityscapes_fine_sem_seg_train")
    for file, labels in expected.items():
        Image.fromarray(labels).save(file)
    records = DatasetCatalog.get("cityscapes_fine_sem_seg_train")
    assert {Path(each["sem_seg_file_name"]) for each in records} == set(list(expected)[:4])
    assert {(each["height"], each["width"]) for each in records} == {(24, 32)}
    for each in records:
        assert Path(each["file_name"]).name.startswith(Path(each["file_name"]).parent.name)

    # Detectron2 would not look at the files of the last image, and fail at others without a word.
    last = list(expected)[3]
    last.unlink()
    with pytest.raises(IncompleteDataset, match=str(last)) as caught:
        DatasetCatalog.get("cityscapes_fine_sem_seg_train")
    assert caught.value.faults == [f"missing: {last}"] and caught.value.records == records[:3]
    Image.fromarray(expected[last]).save(last)
    images = root / "cityscapes/leftImg8bit/train"
    for hidden in (images / ".DS_Store", images / "bochum/._a_leftImg8bit.png"):
        hidden.write_text("")
    assert DatasetCatalog.get("cityscapes_fine_sem_seg_train") == records
    strangers = [images / name for name in ("notes.txt", "bochum/a")]
    for stranger in strangers:
        stranger.write_text("")
        with pytest.raises(ValueError, match=f"(?s)nothing but .*{stranger}"):
            DatasetCatalog.get("cityscapes_fine_sem_seg_train")
        stranger.unlink()
    polygons = next((root / "cityscapes/gtFine/train/bochum").glob("*polygons.json"))
    for damaged in ("", "{}", "[]"):
        polygons.write_text(damaged)
        with pytest.raises(ValueError, match=f"{polygons} is damaged"):
            DatasetCatalog.get("cityscapes_fine_sem_seg_train")
    for folder in [images / "aachen", images / "bochum"]:
        for file in folder.iterdir():
            file.unlink()
    with pytest.raises(FileNotFoundError, match="is empty"):
        DatasetCatalog.get("cityscapes_fine_sem_seg_train")


def test_cityscapes_without_annotations_of_a_city(root):
    write_cityscapes(root)
    for file in (root / "cityscapes/gtFine/val/munster").iterdir():
        file.unlink()
    (root / "cityscapes/gtFine/val/munster").rmdir()
    with pytest.raises(FileNotFoundError, match="munster_000000_000019_gtFine_instanceIds.png"):
        DatasetCatalog.get("cityscapes_fine_sem_seg_val")


@pytest.fixture
def panoptic(root):
    """Cityscapes in a folder with a dot in its name, which Detectron2 cannot read; label maps."""
    for file, labels in (expected := write_cityscapes(root / "v1.0")).items():
        Image.fromarray(labels).save(file)
    write_cityscapes_panoptic(root / "v1.0")
    return expected


def test_cityscapes_panoptic(root, panoptic, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root / "v1.0"))
    name = "cityscapes_fine_panoptic_train"
    records = DatasetCatalog.get(name)
    assert len(records) == 4
    crowds = 0
    for record in records:
        segments = record["segments_info"]
        labels = segment_labels(segments, ignore_value=255)[read_segment_map(record)]
        expected = panoptic[Path(record["sem_seg_file_name"])]
        is_crowd = np.isin(expected, [each["category_id"] for each in segments if each["iscrowd"]])
        crowds += is_crowd.any()
        np.testing.assert_array_equal(labels, np.where(is_crowd, 255, expected))
    assert 0 < crowds < 4

    metadata = MetadataCatalog.get(name)
    folder = root / "v1.0/cityscapes"
    assert metadata.image_root == str(folder / "leftImg8bit/train")
    assert metadata.gt_dir == str(folder / "gtFine/train")
    assert metadata.panoptic_json == str(folder / "gtFine/cityscapes_panoptic_train.json")
    assert metadata.evaluator_type == "cityscapes_panoptic_seg" and metadata.ignore_label == 255
    assert len(metadata.stuff_classes) == len(metadata.stuff_colors) == 19
    assert [CITYSCAPES_EVALUATED[each] for each in range(11, 19)] == list(CITYSCAPES_THINGS)
    things = metadata.thing_dataset_id_to_contiguous_id
    assert things == dict(zip(CITYSCAPES_THINGS, range(11, 19)))

    # Of a folder without a dot, Detectron2's records are the same.
    (root / "v1.0").rename(root / "v1")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root / "v1"))
    records = DatasetCatalog.get(name)
    arguments = [metadata.image_root, metadata.panoptic_root, metadata.panoptic_json]
    assert records == load_cityscapes_panoptic(*arguments, metadata.as_dict())


@pytest.mark.parametrize("split", ["train", "val"])
def test_missing_panoptic_cityscapes(split, root, panoptic, monkeypatch):
    name = f"cityscapes_fine_panoptic_{split}"
    with pytest.raises(FileNotFoundError, match="(?s)csCreatePanopticImgs.*leftImg8bit_trainval"):
        DatasetCatalog.get(name)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root / "v1.0"))
    folder = root / f"v1.0/cityscapes/gtFine/cityscapes_panoptic_{split}"
    folder.rename(root / "elsewhere")
    folder.write_text("")
    with pytest.raises(FileNotFoundError, match=f"(?s){folder} is a file, not .*csCreatePanoptic"):
        DatasetCatalog.get(name)
    folder.unlink()
    (root / "elsewhere").rename(folder)
    records = DatasetCatalog.get(name)
    for file in (
        Path(records[0]["file_name"]),
        Path(records[-1]["pan_seg_file_name"]),
        Path(records[1]["sem_seg_file_name"]),
    ):
        file.rename(root / "elsewhere")
        message = f"(?s)missing:\n.*{file.name}.*prepare_city"
        with pytest.raises(IncompleteDataset, match=message) as caught:
            DatasetCatalog.get(name)
        (fault,) = caught.value.faults
        assert fault.startswith("missing: ") and file.name in fault
        assert caught.value.records == [r for r in records if str(file) not in r.values()]
        (root / "elsewhere").rename(file)
    assert DatasetCatalog.get(name) == records


def test_other_panoptic_json_of_cityscapes(root, panoptic, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root / "v1.0"))
    file = root / "v1.0/cityscapes/gtFine/cityscapes_panoptic_val.json"
    content = json.loads(file.read_text())
    for spoil, error, message in [
        (lambda: content["annotations"].pop(), FileNotFoundError, "segments of munster_000000_004"),
        (lambda: content["categories"].append({"id": 0}), ValueError, "--use-train-id.*[0]"),
        (lambda: content.pop("annotations"), ValueError, "is damaged"),
    ]:
        spoil()
        file.write_text(json.dumps(content))
        with pytest.raises(error, match=message):
            DatasetCatalog.get("cityscapes_fine_panoptic_val")
    file.write_text("{")
    with pytest.raises(ValueError, match=f"{file} is damaged"):
        DatasetCatalog.get("cityscapes_fine_panoptic_val")


def test_panoptic_cityscapes_reach_mapper_and_evaluators(root, panoptic, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root / "v1.0"))
    name = "cityscapes_fine_panoptic_val"
    cfg = get_cfg()
    add_sgr_config(cfg)
    cfg.OUTPUT_DIR = str(root)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 19
    cfg.MODEL.META_ARCHITECTURE = "MaskFormerSegmentor"
    cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON = cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = True
    cfg.TEST.TOKENS.ENABLED = False
    evaluator = build_evaluator(cfg, name)
    kinds = {type(each).__name__ for each in evaluator._evaluators}
    assert kinds == {"MeanIoUEvaluator", "PanopticQualityEvaluator"}
    mapper = PanopticConceptMapper(augmentations=[], image_format="RGB", num_classes=19)
    for record in DatasetCatalog.get(name):
        mapped = mapper(record)
        assert mapped["sem_seg"].shape == (24, 32) and len(mapped["instances"]) > 5
        # The right answers.
        labels = panoptic[Path(record["sem_seg_file_name"])]
        scores = np.stack([labels == label for label in range(19)]).astype(np.float32)
        segments = [
            {"id": place, "category_id": each["category_id"]}
            for place, each in enumerate(record["segments_info"], start=1)
            if not each["iscrowd"]
        ]
        ids = read_segment_map(record) + 1
        ids[~np.isin(ids, [each["id"] for each in segments])] = 0
        output = {
            "sem_seg": torch.from_numpy(scores), "panoptic_seg": (torch.from_numpy(ids), segments)
        }  # fmt: skip
        evaluator.process([{"file_name": record["file_name"]}], [output])
    results = evaluator.evaluate()
    assert results["sem_seg"]["mIoU"] == pytest.approx(100)
    for key in ("PQ", "PQ_th", "PQ_st"):
        assert results["panoptic_seg"][key] == pytest.approx(100)


def test_panoptic_layout_is_that_of_cityscapes_own_command(root, panoptic):
    module = pytest.importorskip("cityscapesscripts.preparation.createPanopticImgs")
    folder = root / "v1.0/cityscapes/gtFine"
    (root / "made").mkdir()
    module.convert2panoptic(str(folder), str(root / "made"), setNames=["train", "val"])
    for split in ("train", "val"):
        made, ours = (
            json.loads((each / f"cityscapes_panoptic_{split}.json").read_text())
            for each in (root / "made", folder)
        )
        assert made["annotations"] == ours["annotations"]
        for each in ours["annotations"]:
            picture = f"cityscapes_panoptic_{split}/{each['file_name']}"
            np.testing.assert_array_equal(
                np.asarray(Image.open(root / "made" / picture)),
                np.asarray(Image.open(folder / picture)),
            )


def test_only_builtin_loaders_are_replaced():
    loader = DatasetCatalog["camvid_sem_seg_val"]
    replace_builtin("camvid_sem_seg_val", lambda: [])
    assert DatasetCatalog["camvid_sem_seg_val"] is loader
    replace_builtin("no_such_dataset", lambda: [])
    assert "no_such_dataset" not in DatasetCatalog
    add_metadata("camvid_sem_seg_val", stuff_classes=["other"])
    assert MetadataCatalog.get("camvid_sem_seg_val").stuff_classes == camvid.CAMVID_CLASSES


def test_pairs_must_be_complete(tmp_path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    make_pairs(images, labels, ["a", "b", "c"], ".jpg")
    (images / "notes.txt").write_text("not an image")
    assert len(load_sem_seg_pairs(images, labels)) == 3
    (labels / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"image without a label map: .*b\.jpg.*labels"):
        load_sem_seg_pairs(images, labels)
    (images / "b.jpg").unlink()
    (images / "c.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"label map without an image: .*c\.png"):
        load_sem_seg_pairs(images, labels)
    make_pairs(images, labels, ["d", "e", "f"], ".jpg")
    for file in (labels / "d.png", labels / "e.png", images / "f.jpg"):
        file.unlink()
    with pytest.raises(IncompleteDataset) as caught:
        load_sem_seg_pairs(images, labels)
    expected = [
        f"image without a label map: {images / 'd.jpg'} has no partner",
        f"image without a label map: {images / 'e.jpg'} has no partner",
        f"label map without an image: {labels / 'c.png'} has no partner",
        f"label map without an image: {labels / 'f.png'} has no partner",
    ]
    assert [fault.split(" partner")[0] + " partner" for fault in caught.value.faults] == expected
    assert str(caught.value) == f"{caught.value.faults[0]} (and 1 more)"
    assert [record["image_id"] for record in caught.value.records] == ["a"]
    copy = pickle.loads(pickle.dumps(caught.value))  # from a worker
    assert str(copy) == str(caught.value) and copy.faults == caught.value.faults
    make_pairs(images, labels, ["a"], ".png")
    with pytest.raises(ValueError, match=r"a\.png.*a\.jpg"):
        load_sem_seg_pairs(images, labels)
    for file in images.iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match="holds no image"):
        load_sem_seg_pairs(images, labels)


@pytest.mark.skipif(not SHARED_CAMVID.is_dir(), reason="needs ../shared/data/camvid")
def test_real_camvid(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(SHARED_CAMVID.parent))
    assert len(DatasetCatalog.get("camvid_sem_seg_train")) == 367
    records = DatasetCatalog.get("camvid_sem_seg_val")
    assert len(records) == 101
    labels = np.asarray(Image.open(records[0]["sem_seg_file_name"]))
    assert labels.shape == (360, 480) and labels.max() <= 11


def test_shapes_without_some_label_maps(tiny_shapes_root, tmp_path, monkeypatch):
    shutil.copytree(tiny_shapes_root, tmp_path / "root")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))
    for index in (0, 3):
        (tmp_path / f"root/shapes/sem_seg/val/{index:05}.png").unlink()
    with pytest.raises(IncompleteDataset, match="image without a label map") as caught:
        DatasetCatalog.get("shapes_sem_seg_val")
    assert [fault.split("/val/")[1][:5] for fault in caught.value.faults] == ["00000", "00003"]
    assert all("sem_seg_file_name" in record for record in caught.value.records)
    assert len(caught.value.records) == 3
