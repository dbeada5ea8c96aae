from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sgr.data.datasets import camvid, coco_stuff_10k, shapes
from sgr.data.datasets.registration import load_sem_seg_pairs, register

SHARED_CAMVID = Path(__file__).parents[2].parent / "shared" / "data" / "camvid"

NAMES = [
    *(f"shapes_sem_seg_{split}" for split in ("train", "val")),
    *(f"shapes_instance_{split}" for split in ("train", "val")),
    *(f"camvid_sem_seg_{split}" for split in ("train", "val", "test")),
    *(f"coco_stuff_10k_sem_seg_{split}" for split in ("train", "test")),
]


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
    else:
        assert "cocostuff10k" in message and "annotations_detectron2" in message


def test_default_root_is_told(monkeypatch, tmp_path):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="set the environment variable DETECTRON2_DATASETS"):
        DatasetCatalog.get("camvid_sem_seg_train")


def test_metadata():
    for name in NAMES:
        metadata = MetadataCatalog.get(name)
        if "sem_seg" in name:
            assert metadata.evaluator_type == "sem_seg"
            assert metadata.sem_seg_root and metadata.image_root
            assert metadata.ignore_label not in range(len(metadata.stuff_classes))
            colors = metadata.get("stuff_colors", metadata.stuff_classes)
            assert len(colors) == len(metadata.stuff_classes)
        else:
            assert metadata.evaluator_type == "coco"
    assert len(camvid.CAMVID_CLASSES) == 11
    assert MetadataCatalog.get("camvid_sem_seg_val").ignore_label == 11
    assert len(set(shapes.SHAPES_COLORS)) == len(shapes.SHAPES_CLASSES) == 9


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
