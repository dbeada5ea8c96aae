import copy

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.env import seed_all_rng
from PIL import Image

from sgr.data.components import connected_components
from sgr.data.mappers import InstanceConceptMapper, build_mapper
from sgr.data.truth.records import read_instance_map

NUM_CLASSES = 3
SIZE = (60, 80)
BACKGROUND, IGNORED = NUM_CLASSES, 99


def polygon(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def box_mask(x0, y0, x1, y1):
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[y0:y1, x0:x1] = 1
    return mask


def plain_rle(mask):
    runs = np.flatnonzero(np.diff(mask.flatten(order="F").astype(int), prepend=0))
    return {"size": list(SIZE), "counts": np.diff([0, *runs, mask.size]).tolist()}


# Box, class, crowd, format. The second lies in the first; the last is cut by the crowd.
SHAPES = [
    ((5, 5, 45, 45), 0, 0, "polygon"),
    ((15, 15, 30, 35), 1, 0, "rle"),
    ((50, 20, 80, 60), 2, 1, "rle"),
    ((60, 0, 75, 40), 2, 0, "plain"),
]


@pytest.fixture
def record(tmp_path):
    """The image shows, by its colours, which of the shapes lies on top."""
    image = np.full((*SIZE, 3), 200, np.uint8)
    annotations = []
    for index in (2, 0, 3, 1):
        box, _, crowd, _ = SHAPES[index]
        image[box_mask(*box) > 0] = 40 * index
    for box, category, crowd, kind in SHAPES:
        mask = box_mask(*box)
        segmentation = {
            "polygon": [polygon(*box)],
            "rle": mask_util.encode(mask),
            "plain": plain_rle(mask),
        }[kind]
        annotations.append(
            {"category_id": category, "iscrowd": crowd, "segmentation": segmentation}
        )
    Image.fromarray(image).save(tmp_path / "image.png")
    return {"file_name": str(tmp_path / "image.png"), "image_id": 3, "annotations": annotations}


def class_map_by_hand():
    labels = np.full(SIZE, BACKGROUND)
    labels[box_mask(*SHAPES[2][0]) > 0] = IGNORED
    for index in (0, 1, 3):
        labels[box_mask(*SHAPES[index][0]) > 0] = SHAPES[index][1]
    return labels


def plain_mapper(**changes):
    """A mapper that augments nothing."""
    return InstanceConceptMapper(
        **{"augmentations": [], "image_format": "RGB", "num_classes": NUM_CLASSES, **changes}
    )


@pytest.fixture
def cfg(small_crops):
    return small_crops("mask_former_instance_concept", NUM_CLASSES)


def test_without_augmentation(record):
    before = copy.deepcopy(record)
    out = plain_mapper()(record)
    assert record == before and "annotations" not in out
    assert out["image"].shape == (3, *SIZE) and (out["height"], out["width"]) == SIZE

    kept = [(box, category) for box, category, crowd, _ in SHAPES if not crowd]
    instances = out["instances"]
    assert instances.image_size == SIZE
    assert instances.gt_classes.dtype == torch.int64 and instances.gt_masks.dtype == torch.bool
    assert instances.gt_classes.tolist() == [category for _, category in kept]
    for (box, _), mask in zip(kept, instances.gt_masks, strict=True):
        np.testing.assert_array_equal(mask, box_mask(*box))

    expected = connected_components(class_map_by_hand(), ignore_label=IGNORED)
    np.testing.assert_array_equal(out["component_map"], expected.indices)
    np.testing.assert_array_equal(out["component_classes"], expected.classes)
    assert BACKGROUND in out["component_classes"]


def test_padding_is_in_no_mask_and_no_component(record):
    out = plain_mapper(min_side=70, size_divisibility=32)(record)
    assert out["image"].shape == (3, 96, 96) and (out["image"][:, 60:] == 128).all()
    masks = out["instances"].gt_masks
    assert masks.shape == (3, 96, 96)
    assert not masks[:, 60:].any() and not masks[:, :, 80:].any()
    assert (out["component_map"][60:] == -1).all() and (out["component_map"][:, 80:] == -1).all()
    assert (out["component_map"][:60, :80] >= 0).any()


@pytest.mark.parametrize("as_polygons", [True, False])
@pytest.mark.parametrize("x0, y0", [(0, 0), (20, 10), (40, 25)])
def test_a_crop_equals_the_crop_of_the_mask(record, x0, y0, as_polygons):
    """Corners outside of the crop, left, right, above and below of it, included."""
    if as_polygons:
        for annotation, (box, *_) in zip(record["annotations"], SHAPES):
            annotation["segmentation"] = [polygon(*box)]
    crop = slice(y0, y0 + 20), slice(x0, x0 + 25)
    out = plain_mapper(augmentations=[T.CropTransform(x0, y0, 25, 20)])(record)
    expected = [
        (category, box_mask(*box)[crop])
        for box, category, crowd, _ in SHAPES
        if not crowd and box_mask(*box)[crop].any()
    ]
    assert out["instances"].gt_classes.tolist() == [category for category, _ in expected]
    for (_, mask), found in zip(expected, out["instances"].gt_masks, strict=True):
        np.testing.assert_array_equal(found, mask)
    components = connected_components(class_map_by_hand()[crop], ignore_label=IGNORED)
    np.testing.assert_array_equal(out["component_map"], components.indices)


@pytest.mark.parametrize("name", ["mask_former_instance_concept", "coco_instance_lsj_concept"])
def test_everything_moves_together(record, cfg, name):
    cfg.INPUT.DATASET_MAPPER_NAME = name
    lsj = name == "coco_instance_lsj_concept"
    mapper = build_mapper(cfg)
    padded = set()
    for seed in range(12):
        seed_all_rng(seed)
        out = mapper(record)
        image, masks = out["image"][0].numpy(), out["instances"].gt_masks.numpy()
        assert masks.shape[1:] == image.shape == out["component_map"].shape
        assert masks.any(axis=(1, 2)).all()
        if lsj:
            assert image.shape == (64, 64)
        padding = (image == 128).all(axis=1)
        padded.add(bool(padding.any()))
        assert not masks[:, padding].any() and (out["component_map"][padding] == -1).all()
        of_class = dict(zip(out["instances"].gt_classes.tolist(), masks))
        # Where the image shows a shape, its mask is set, but for a pixel at the seams.
        for index in (1, 3):
            category = SHAPES[index][1]
            shown = image == 40 * index
            mask = of_class.get(category, np.zeros_like(shown))
            assert (shown & ~mask).sum() <= 2 * sum(image.shape)
            if shown.sum() > 200:
                assert (shown & mask).sum() > 0.8 * shown.sum()
    assert padded == ({True, False} if lsj else {False})


def test_the_full_size_decides_what_lies_on_top(record):
    """Of a large instance the crop shows a sliver only, yet the smaller one stays above it."""
    record["annotations"] = [
        {"category_id": 0, "segmentation": [polygon(0, 0, 32, 60)]},
        {"category_id": 1, "segmentation": [polygon(20, 10, 50, 30)]},
    ]
    mapper = plain_mapper(
        augmentations=[T.CropTransform(30, 10, 30, 30)], kernel_size=1, min_area_ratio=0.0
    )
    out = mapper(record)
    assert out["instances"].gt_masks.flatten(1).sum(1).tolist() == [2 * 30, 20 * 20]
    assert out["component_classes"][out["component_map"][0, 0].long()] == 1


def test_no_annotations(record):
    out = plain_mapper()({**record, "annotations": []})
    assert out["instances"].gt_masks.shape == (0, *SIZE)
    assert out["instances"].gt_classes.dtype == torch.int64
    assert out["component_classes"].tolist() == [BACKGROUND]
    crowd = {"category_id": 0, "iscrowd": 1, "segmentation": [polygon(0, 0, 80, 60)]}
    out = plain_mapper()({**record, "annotations": [crowd]})
    assert len(out["instances"]) == 0 and (out["component_map"] == -1).all()


def test_many_classes(record):
    out = plain_mapper(num_classes=255)(record)
    assert 255 in out["component_classes"] and len(out["instances"]) == 3


def test_shapes_that_enclose_nothing_are_left_out(record):
    record["annotations"] += [
        {"category_id": 0, "segmentation": []},
        {"category_id": 0, "segmentation": [[1, 1, 5, 5]]},
        {"category_id": 0, "segmentation": mask_util.encode(np.zeros(SIZE, np.uint8, order="F"))},
    ]
    assert len(plain_mapper()(record)["instances"]) == 3


def test_user_mistakes_are_named(record, cfg):
    def annotated(**changes):
        return {**record, "annotations": [{**record["annotations"][0], **changes}]}

    with pytest.raises(ValueError, match=r"image\.png has no annotations"):
        plain_mapper()({"file_name": record["file_name"]})
    wrong = r"annotation 0 of .*image\.png has category_id 3; .* 0 to 2,.*SEM_SEG_HEAD.NUM_CLASSES"
    with pytest.raises(ValueError, match=wrong):
        plain_mapper()(annotated(category_id=3))
    with pytest.raises(ValueError, match=r"annotation 0 of .*image\.png has no segmentation.*bbox"):
        boxes = [{"category_id": 0, "bbox": [0, 0, 3, 3]}]
        plain_mapper()({**record, "annotations": boxes})
    wrong = r"annotation 0 of .* has a mask of 5 x 9, but the image is 80 x 60"
    with pytest.raises(ValueError, match=wrong):
        small = mask_util.encode(np.ones((9, 5), np.uint8, order="F"))
        plain_mapper()(annotated(segmentation=small))
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    with pytest.raises(ValueError, match="SINGLE_CATEGORY_MAX_AREA is 0.75"):
        build_mapper(cfg)


def test_classes_are_the_things(cfg):
    MetadataCatalog.get("test_instance_mapper").set(
        thing_classes=["a", "b"], stuff_classes=["x"] * 9
    )
    cfg.DATASETS.TRAIN = ("test_instance_mapper",)
    assert build_mapper(cfg).num_classes == 2


def test_real_images(shared, cfg):
    root, name = shared / "data" / "coco_mini", "test_instance_mapper_coco_mini"
    register_coco_instances(
        name, {}, str(root / "annotations" / "instances_train2017.json"), str(root / "train2017")
    )
    try:
        records = DatasetCatalog.get(name)
    finally:
        DatasetCatalog.remove(name)
    mapper = plain_mapper(num_classes=80)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 80
    cfg.INPUT.IMAGE_SIZE = 256
    cfg.INPUT.DATASET_MAPPER_NAME = "coco_instance_lsj_concept"
    jittered = build_mapper(cfg)
    crowded = [r for r in records if any(a["iscrowd"] for a in r["annotations"])]
    for record in records[:6] + crowded[:3]:
        out = mapper(record)
        size = out["height"], out["width"]
        instances = out["instances"]
        annotations = [each for each in record["annotations"] if not each["iscrowd"]]
        assert instances.gt_classes.tolist() == [each["category_id"] for each in annotations]
        # What the evaluation says of the same record: all but what lies below others is there.
        on_top = read_instance_map(record, size)
        masks = iter(instances.gt_masks.numpy())
        for index, annotation in enumerate(record["annotations"]):
            if not annotation["iscrowd"]:
                mask = next(masks)
                assert mask[on_top == index].all()
        covered = instances.gt_masks.any(0).numpy()
        np.testing.assert_array_equal(covered, on_top >= 0)
        component = out["component_map"].numpy()
        classes = out["component_classes"].numpy()
        background = (component >= 0) & (classes[component] == 80)
        assert not (background & covered).any()

        out = jittered(record)
        assert out["image"].shape == (3, 256, 256)
        assert out["instances"].gt_masks.shape[1:] == (256, 256)
