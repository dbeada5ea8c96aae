import shutil

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.utils.env import seed_all_rng
from PIL import Image

from sgr.config import add_sgr_config
from sgr.data.augmentations.build import build_augmentations
from sgr.data.augmentations.color_jitter import ColorJitter
from sgr.data.augmentations.resized_crop import ResizedCrop
from sgr.data.components import connected_components
from sgr.data.mappers import (
    MAPPER_REGISTRY,
    MaskFormerSemanticConceptMapper,
    SemanticConceptMapper,
    build_mapper,
)

NUM_CLASSES = 5


@pytest.fixture
def record(tmp_path):
    """A 90 x 70 image, whose labels show in its colours, and its label map."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, NUM_CLASSES, (7, 9)).repeat(10, 0).repeat(10, 1).astype(np.uint8)
    labels[:4] = 255
    image = np.repeat((labels * 40)[:, :, None], 3, axis=2)
    image[labels == 255] = 250
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(labels).save(tmp_path / "labels.png")
    return {
        "file_name": str(tmp_path / "image.png"),
        "sem_seg_file_name": str(tmp_path / "labels.png"),
        "image_id": "image",
        "annotations": [{"never": "touched"}],
    }


def labels_of(record):
    return np.asarray(Image.open(record["sem_seg_file_name"]))


def save_labels(record, labels, **options):
    Image.fromarray(labels).save(record["sem_seg_file_name"], **options)


def plain_mapper(mapper_class=MaskFormerSemanticConceptMapper, **changes):
    """A mapper that augments nothing."""
    return mapper_class(
        **{"augmentations": [], "image_format": "RGB", "num_classes": NUM_CLASSES, **changes}
    )


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_sgr_config(cfg)
    cfg.DATASETS.TRAIN = ()
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = NUM_CLASSES
    cfg.INPUT.MIN_SIZE_TRAIN = (50, 70, 100, 140)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = (64, 64)
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    cfg.INPUT.COLOR_AUG_SSD = True
    cfg.INPUT.SIZE_DIVISIBILITY = 64
    return cfg


def is_same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if hasattr(a, "get_fields"):
        fields = a.get_fields()
        return fields.keys() == b.get_fields().keys() and all(
            is_same(value, b.get(key)) for key, value in fields.items()
        )
    return a == b


def test_without_augmentation(record):
    before = dict(record)
    out = plain_mapper()(record)
    assert record == before
    labels = labels_of(record)
    assert out["image"].dtype == torch.uint8 and out["image"].shape == (3, 70, 90)
    assert out["sem_seg"].dtype == torch.int64
    assert (out["sem_seg"].numpy() == labels).all()
    assert (out["image"].numpy()[0] == np.asarray(Image.open(record["file_name"]))[..., 0]).all()
    assert out["height"] == 70 and out["width"] == 90 and out["image_id"] == "image"
    assert "annotations" not in out and "sem_seg_file_name" not in out

    instances = out["instances"]
    assert instances.image_size == (70, 90)
    assert instances.gt_classes.dtype == torch.int64 and instances.gt_masks.dtype == torch.bool
    assert instances.gt_classes.tolist() == [c for c in np.unique(labels) if c != 255]
    for label, mask in zip(instances.gt_classes, instances.gt_masks, strict=True):
        assert (mask.numpy() == (labels == int(label))).all()

    expected = connected_components(labels)
    assert out["component_map"].dtype == torch.int16
    assert out["component_classes"].dtype == torch.int64
    assert (out["component_map"].numpy() == expected.indices).all()
    assert (out["component_classes"].numpy() == expected.classes).all()


def test_components_can_be_left_out_or_changed(record):
    out = plain_mapper(with_components=False)(record)
    assert "component_map" not in out and "component_classes" not in out
    out = plain_mapper(max_components=3, kernel_size=1, min_area_ratio=0.0)(record)
    assert len(out["component_classes"]) == 3
    expected = connected_components(
        labels_of(record), max_components=3, kernel_size=1, min_area_ratio=0.0
    )
    assert (out["component_map"].numpy() == expected.indices).all()


def test_plain_semantic_mapper_has_no_instances(record):
    out = plain_mapper(SemanticConceptMapper)(record)
    assert "instances" not in out
    assert {"image", "sem_seg", "component_map", "component_classes"} <= out.keys()


@pytest.mark.parametrize("name", ["mask_former_semantic_concept", "semantic_concept"])
def test_from_config(record, cfg, name):
    cfg.INPUT.DATASET_MAPPER_NAME = name
    mapper = build_mapper(cfg)
    sizes = set()
    for seed in range(20):
        seed_all_rng(seed)
        out = mapper(record)
        height, width = out["image"].shape[1:]
        sizes.add((height, width))
        assert out["sem_seg"].shape == (height, width) == out["component_map"].shape
        assert set(out["sem_seg"].unique().tolist()) <= {*range(NUM_CLASSES), 255}
        assert out["height"] == 70 and out["width"] == 90
        # Components lie within their class.
        classes = torch.cat([out["component_classes"], torch.tensor([-1])])
        of_component = classes[out["component_map"].long()]
        inside = out["component_map"] >= 0
        assert (of_component[inside] == out["sem_seg"][inside]).all()
    assert sizes == {(64, 64)}


def test_the_fast_augmentations_are_used(cfg):
    """What they give is the same, so that nothing else would tell."""
    cfg.INPUT.COLOR_AUG_SSD = cfg.INPUT.CROP.ENABLED = True
    first = build_mapper(cfg).augmentations.augs[:2]
    assert [type(each) for each in first] == [ResizedCrop, ColorJitter]


def test_same_seed_same_sample(record, cfg):
    mapper = build_mapper(cfg)

    def sample(seed):
        seed_all_rng(seed)
        return mapper(record)

    first, second, other = sample(3), sample(3), sample(4)
    assert first.keys() == second.keys()
    assert all(is_same(first[key], second[key]) for key in first)
    assert not is_same(first["image"], other["image"])


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize("share", [0.75, 1.0])
def test_image_and_labels_are_those_of_detectron2s_mapper(record, cfg, image_format, share):
    """With the same augmentations and random numbers, to the last bit, but for the padding."""
    cfg.INPUT.DATASET_MAPPER_NAME = "semantic_concept"
    cfg.INPUT.FORMAT = image_format
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = share
    augmentations = build_augmentations(cfg)
    ours = build_mapper(cfg)
    theirs = DatasetMapper(True, augmentations=augmentations, image_format=image_format)
    record = {key: record[key] for key in record if key != "annotations"}
    for seed in range(20):
        seed_all_rng(seed)
        expected = theirs(record)
        seed_all_rng(seed)
        out = ours(record)
        height, width = expected["image"].shape[1:]
        assert torch.equal(out["image"][:, :height, :width], expected["image"])
        assert torch.equal(out["sem_seg"][:height, :width], expected["sem_seg"])


def test_image_and_labels_move_together(record, cfg):
    cfg.INPUT.COLOR_AUG_SSD = False
    cfg.INPUT.FORMAT = "RGB"
    mapper = build_mapper(cfg)
    for seed in range(10):
        seed_all_rng(seed)
        out = mapper(record)
        # Away from seams, where the resized image has in-between colours.
        labels = out["sem_seg"].numpy().astype(np.uint8)
        kernel = np.ones((7, 7), np.uint8)
        flat = cv2.erode(labels, kernel) == cv2.dilate(labels, kernel)
        flat &= labels != 255
        assert flat.any()
        assert (out["image"].numpy()[0][flat] == labels[flat] * 40).all()


def test_flip_and_sampling_follow_the_config(record, cfg):
    cfg.INPUT.COLOR_AUG_SSD = False
    cfg.INPUT.CROP.ENABLED = False
    cfg.INPUT.SIZE_DIVISIBILITY = -1
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.MIN_SIZE_TRAIN = (70,)
    out = build_mapper(cfg)(record)
    assert (out["sem_seg"].numpy() == labels_of(record)).all()
    cfg.INPUT.RANDOM_FLIP = "vertical"
    seen = set()
    for seed in range(8):
        seed_all_rng(seed)
        out = build_mapper(cfg)(record)
        seen.add(bool((out["sem_seg"][-4:] == 255).all()))
    assert seen == {True, False}


@pytest.mark.parametrize("value", ["both", "Horizontal"])
def test_unknown_flips_are_named(cfg, value):
    cfg.INPUT.RANDOM_FLIP = value
    match = f"INPUT.RANDOM_FLIP must be 'none', 'horizontal' or 'vertical', not '{value}'"
    with pytest.raises(ValueError, match=match):
        build_mapper(cfg)


def test_padding(record):
    out = plain_mapper(size_divisibility=32)(record)
    assert out["image"].shape == (3, 96, 96)
    assert (out["image"][:, 70:] == 128).all() and (out["image"][:, :, 90:] == 128).all()
    assert (out["sem_seg"][70:] == 255).all() and (out["sem_seg"][:, 90:] == 255).all()
    assert (out["component_map"][70:] == -1).all()
    assert not out["instances"].gt_masks[:, 70:].any()
    assert out["instances"].image_size == (96, 96)
    assert (out["sem_seg"][:70, :90].numpy() == labels_of(record)).all()


def test_nothing_labelled(record, cfg):
    save_labels(record, np.full((70, 90), 255, np.uint8))
    for mapper in (plain_mapper(), build_mapper(cfg)):
        out = mapper(record)
        height, width = out["sem_seg"].shape
        assert (out["sem_seg"] == 255).all() and (out["component_map"] == -1).all()
        assert out["component_classes"].shape == (0,)
        assert out["component_classes"].dtype == torch.int64
        assert out["instances"].gt_masks.shape == (0, height, width)
        assert out["instances"].gt_classes.shape == (0,)


def test_ignore_label_of_the_files_becomes_that_of_the_models(record):
    labels = labels_of(record).copy()
    labels[labels == 255] = 11
    save_labels(record, labels)
    out = plain_mapper(ignore_label=11, size_divisibility=32)(record)
    assert (out["sem_seg"][:70, :90].numpy() == np.where(labels == 11, 255, labels)).all()
    assert (out["sem_seg"][70:] == 255).all()
    assert (out["component_map"][:4] == -1).all()
    out = plain_mapper(ignore_label=11, ignore_value=-1)(record)
    assert (out["sem_seg"].numpy() == np.where(labels == 11, -1, labels.astype(int))).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_many_classes(tmp_path, record, dtype):
    labels = labels_of(record).astype(dtype)
    labels[labels == 255] = 65535
    labels[labels == 3] = 700
    record["sem_seg_file_name"] = str(tmp_path / "labels.tif")
    save_labels(record, labels)
    out = plain_mapper(num_classes=847, ignore_label=65535, ignore_value=65535)(record)
    assert (out["sem_seg"].numpy() == labels).all()
    assert 700 in out["instances"].gt_classes and 700 in out["component_classes"]


def test_many_classes_stay_in_register(tmp_path, record):
    """Resized like few classes are, which lie over the image."""
    resize = {"augmentations": [T.Resize((101, 47))]}
    few = plain_mapper(**resize)(record)["sem_seg"]
    labels = labels_of(record).astype(int)
    labels = np.where(labels == 255, 65535, labels + 600).astype(np.int32)
    record["sem_seg_file_name"] = str(tmp_path / "labels.tif")
    save_labels(record, labels)
    many_classes = {"num_classes": 847, "ignore_label": 65535, "ignore_value": 65535}
    many = plain_mapper(**many_classes, **resize)(record)["sem_seg"]
    assert torch.equal(many, torch.where(few == 255, 65535, few + 600))


def test_palette_images_are_read_as_labels(record):
    labels = labels_of(record)
    image = Image.fromarray(labels, mode="P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    image.save(record["sem_seg_file_name"])
    assert (plain_mapper()(record)["sem_seg"].numpy() == labels).all()


def test_wrong_labels_are_named(record):
    labels = labels_of(record).copy()
    labels[60:, :5], labels[60:, 5:7] = 77, 5
    save_labels(record, labels)
    with pytest.raises(ValueError, match=r"labels\.png.* 5, 77; expected are 0 to 4, and 255"):
        plain_mapper()(record)


def test_labels_with_colours_are_refused(record):
    save_labels(record, np.zeros((70, 90, 3), np.uint8))
    with pytest.raises(ValueError, match=r"labels\.png .*3 channels"):
        plain_mapper()(record)


@pytest.mark.parametrize("key", ["file_name", "sem_seg_file_name"])
@pytest.mark.parametrize("damage", ["cut", "text", "empty", "gone"])
def test_damaged_files_are_named(record, key, damage):
    path = record[key]
    with open(path, "rb") as file:
        content = file.read()
    if damage == "gone":
        shutil.move(path, path + ".elsewhere")
    else:
        damaged = {"cut": content[: len(content) // 2], "text": b"hello", "empty": b""}
        with open(path, "wb") as file:
            file.write(damaged[damage])
    error = FileNotFoundError if damage == "gone" else OSError
    with pytest.raises(error, match=path.rsplit("/", 1)[-1]):
        plain_mapper()(record)


def test_sizes_must_agree(record):
    save_labels(record, np.zeros((70, 80), np.uint8))
    with pytest.raises(ValueError, match=r"image\.png is 90 x 70.*labels\.png is 80 x 70"):
        plain_mapper()(record)
    save_labels(record, np.zeros((70, 90), np.uint8))
    with pytest.raises(SizeMismatchError, match=r"image\.png"):
        plain_mapper()({**record, "width": 100, "height": 70})


def test_record_without_labels(record):
    del record["sem_seg_file_name"]
    with pytest.raises(ValueError, match=r"image\.png has no sem_seg_file_name"):
        plain_mapper()(record)


def test_ignored_label_is_no_class():
    with pytest.raises(ValueError, match="ignore_label is 0"):
        plain_mapper(ignore_label=0)
    with pytest.raises(ValueError, match=r"ignore_value \(MODEL.SEM_SEG_HEAD.IGNORE_VALUE\) is 4"):
        plain_mapper(ignore_value=4)


def test_config_decides_on_components(cfg):
    cfg.MODEL.SGR.SUPERVISION.MAX_ACTIVE = 7
    cfg.INPUT.COMPONENTS.KERNEL_SIZE = 5
    cfg.INPUT.COMPONENTS.MIN_AREA_RATIO = 0.2
    mapper = build_mapper(cfg)
    assert mapper.with_components
    assert (mapper.max_components, mapper.kernel_size, mapper.min_area_ratio) == (7, 5, 0.2)
    cfg.MODEL.SGR.SUPERVISION.WEIGHT = 0.0
    assert not build_mapper(cfg).with_components


def test_metadata_decide_on_labels(cfg):
    for name, num_classes, ignore_label in [("a", 4, 9), ("b", 4, 9), ("c", 5, 9), ("d", 6, 9)]:
        metadata = {"stuff_classes": ["x"] * num_classes, "ignore_label": ignore_label}
        MetadataCatalog.get(f"test_mappers_{name}").set(**metadata)
    cfg.DATASETS.TRAIN = ("test_mappers_a", "test_mappers_b")
    mapper = build_mapper(cfg)
    assert (mapper.num_classes, mapper.ignore_label, mapper.ignore_value) == (4, 9, 255)
    cfg.DATASETS.TRAIN = ("test_mappers_a", "test_mappers_c")
    with pytest.raises(ValueError, match="test_mappers_c"):
        build_mapper(cfg)
    cfg.DATASETS.TRAIN = ("test_mappers_d",)
    with pytest.raises(ValueError, match="NUM_CLASSES is 5.*test_mappers_d.*6"):
        build_mapper(cfg)


def test_registry(cfg):
    assert type(build_mapper(cfg)) is MaskFormerSemanticConceptMapper
    cfg.INPUT.DATASET_MAPPER_NAME = "semantic_concept"
    assert type(build_mapper(cfg)) is SemanticConceptMapper
    cfg.INPUT.DATASET_MAPPER_NAME = "detectron2_default"
    assert isinstance(build_mapper(cfg), DatasetMapper) and build_mapper(cfg).is_train
    cfg.INPUT.DATASET_MAPPER_NAME = "nothing"
    with pytest.raises(ValueError, match="'nothing'; registered.*mask_former_semantic_concept"):
        build_mapper(cfg)
    assert "mask_former_semantic_concept" in MAPPER_REGISTRY


def test_testing_uses_the_mapper_of_detectron2(record, cfg):
    mapper = build_mapper(cfg, is_train=False)
    assert isinstance(mapper, DatasetMapper) and not mapper.is_train
    out = mapper(record)
    assert out["image"].dtype == torch.uint8 and out["height"] == 70
    with pytest.raises(ValueError, match="DatasetMapper"):
        MaskFormerSemanticConceptMapper(cfg, False)


def test_in_a_worker(record, cfg):
    mapper = build_mapper(cfg)

    class Records(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return mapper(record), cv2.getNumThreads()

    threads = cv2.getNumThreads()
    loader = torch.utils.data.DataLoader(Records(), batch_size=None, num_workers=1)
    for out, worker_threads in loader:
        assert out["image"].shape == (3, 64, 64)
        assert worker_threads == 1
    assert cv2.getNumThreads() == threads


def test_in_the_main_process_opencv_keeps_its_threads(record, cfg):
    threads = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        build_mapper(cfg)(record)
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(threads)
