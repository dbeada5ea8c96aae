import copy

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from detectron2.utils.env import seed_all_rng
from PIL import Image

from sgr.config import add_sgr_config
from sgr.data.components import connected_components
from sgr.data.mappers import DetectionConceptMapper, InstanceConceptMapper, build_mapper
from sgr.data.truth.annotations import AnnotationChecker, check_outlines

NUM_CLASSES = 3
SIZE = (60, 80)
BACKGROUND, IGNORED = NUM_CLASSES, NUM_CLASSES + 1

# x0, y0, x1, y1; class; crowd. The second lies in the first; the last is cut by the crowd.
BOXES = [
    ((5, 5, 45, 45), 0, 0),
    ((15, 15, 30, 35), 1, 0),
    ((50, 20, 80, 60), 2, 1),
    ((60, 0, 75, 40), 2, 0),
]


def polygon(x0, y0, x1, y1):
    return [float(each) for each in (x0, y0, x1, y0, x1, y1, x0, y1)]


def box_mask(x0, y0, x1, y1):
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[y0:y1, x0:x1] = 1
    return mask


def annotation(box, category, crowd=0, **more):
    x0, y0, x1, y1 = (float(each) for each in box)
    return {
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": category,
        "iscrowd": crowd,
        **more,
    }


def class_map_by_hand():
    """Masks that are their boxes give the same map either way."""
    labels = np.full(SIZE, BACKGROUND)
    labels[box_mask(*BOXES[2][0]) > 0] = IGNORED
    for index in (0, 3, 1):
        labels[box_mask(*BOXES[index][0]) > 0] = BOXES[index][1]
    return labels


@pytest.fixture
def record(tmp_path):
    """Polygons, but for the crowd."""
    image = np.random.default_rng(0).integers(0, 255, (*SIZE, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    annotations = [
        annotation(*each, segmentation=[polygon(*each[0])]) for each in BOXES if not each[2]
    ]
    crowd = mask_util.encode(box_mask(*BOXES[2][0]))
    annotations.insert(2, annotation(*BOXES[2], segmentation=crowd))
    return {
        "file_name": str(tmp_path / "image.png"),
        "image_id": 3,
        "annotations": annotations,
        "height": SIZE[0],
        "width": SIZE[1],
    }


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_sgr_config(cfg)
    cfg.DATASETS.TRAIN = ()
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = NUM_CLASSES
    cfg.INPUT.DATASET_MAPPER_NAME = "detection_concept"
    cfg.INPUT.MIN_SIZE_TRAIN = (40, 60, 90)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    return cfg


def plain_mapper(**changes):
    """A mapper that augments nothing."""
    options = {
        "augmentations": [],
        "image_format": "RGB",
        "num_classes": NUM_CLASSES,
        "use_instance_mask": True,
        "min_area_ratio": 0.0,
        "kernel_size": 1,
    }
    return DetectionConceptMapper(**{**options, **changes})


def without_masks(record):
    annotations = copy.deepcopy(record["annotations"])
    for each in annotations:
        del each["segmentation"]
    return {**record, "annotations": annotations}


def assert_components(out, class_map):
    expected = connected_components(
        class_map, ignore_label=IGNORED, min_area_ratio=0.0, kernel_size=1
    )
    np.testing.assert_array_equal(out["component_map"], expected.indices)
    np.testing.assert_array_equal(out["component_classes"], expected.classes)


def assert_same(ours, theirs):
    """The result is Detectron2's, but for the components."""
    assert ours.keys() - {"component_map", "component_classes"} == theirs.keys()
    assert torch.equal(ours["image"], theirs["image"])
    assert ours["height"] == theirs["height"] and ours["file_name"] == theirs["file_name"]
    ours, theirs = ours["instances"], theirs["instances"]
    assert ours.get_fields().keys() == theirs.get_fields().keys()
    assert torch.equal(ours.gt_boxes.tensor, theirs.gt_boxes.tensor)
    assert torch.equal(ours.gt_classes, theirs.gt_classes)
    if ours.has("gt_masks"):
        assert type(ours.gt_masks) is type(theirs.gt_masks)
        if isinstance(ours.gt_masks, BitMasks):
            assert torch.equal(ours.gt_masks.tensor, theirs.gt_masks.tensor)
        else:
            for a, b in zip(ours.gt_masks.polygons, theirs.gt_masks.polygons, strict=True):
                for mine, other in zip(a, b, strict=True):
                    np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("mask_on", [True, False])
@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_it_is_the_mapper_of_detectron2(record, cfg, mask_on, mask_format, weight):
    cfg.MODEL.MASK_ON = mask_on
    cfg.INPUT.MASK_FORMAT = mask_format
    cfg.MODEL.SGR.SUPERVISION.WEIGHT = weight
    if mask_format == "bitmask":
        record["annotations"][0]["segmentation"] = mask_util.encode(box_mask(*BOXES[0][0]))
    ours, theirs = build_mapper(cfg), DatasetMapper(cfg, is_train=True)
    assert isinstance(ours, DatasetMapper)
    before = copy.deepcopy(record)
    for seed in range(6):
        seed_all_rng(seed)
        out = ours(record)
        seed_all_rng(seed)
        assert_same(out, theirs(record))
        assert ("component_map" in out) == ("component_classes" in out) == (weight > 0)
    assert record == before


def test_formats_of_masks(record):
    out = plain_mapper()(record)
    assert isinstance(out["instances"].gt_masks, PolygonMasks)
    out = plain_mapper(instance_mask_format="bitmask")(record)
    expected = np.stack([box_mask(*box) for box, _, crowd in BOXES if not crowd])
    np.testing.assert_array_equal(out["instances"].gt_masks.tensor, expected)


def test_components_of_masks(record):
    out = plain_mapper()(record)
    assert out["component_map"].dtype == torch.int16
    assert out["component_classes"].dtype == torch.int64
    assert_components(out, class_map_by_hand())
    assert BACKGROUND in out["component_classes"]
    # As for mask classification.
    other = InstanceConceptMapper(
        augmentations=[],
        image_format="RGB",
        num_classes=NUM_CLASSES,
        min_area_ratio=0.0,
        kernel_size=1,
    )(record)
    assert torch.equal(out["component_map"], other["component_map"])


def test_components_of_boxes_alone(record):
    out = plain_mapper(use_instance_mask=False)(without_masks(record))
    assert not out["instances"].has("gt_masks") and len(out["instances"]) == 3
    assert_components(out, class_map_by_hand())


def test_masks_count_for_components_where_there_are_any(record):
    """Also without MASK_ON. The first has a mask of half its box, the second its box alone."""
    x0, y0, x1, y1 = BOXES[0][0]
    left = (x0, y0, (x0 + x1) // 2, y1)
    record["annotations"][0]["segmentation"] = [polygon(*left)]
    del record["annotations"][1]["segmentation"]
    out = plain_mapper(use_instance_mask=False)(record)
    assert not out["instances"].has("gt_masks")
    labels = class_map_by_hand()
    labels[labels == 0] = BACKGROUND
    labels[(box_mask(*left) > 0) & (labels == BACKGROUND)] = 0
    assert_components(out, labels)


@pytest.mark.parametrize("with_masks", [True, False])
@pytest.mark.parametrize("mode", [BoxMode.XYXY_ABS, BoxMode.XYWH_ABS])
def test_components_move_with_the_image(record, with_masks, mode):
    for each in record["annotations"]:
        each["bbox"] = BoxMode.convert(each["bbox"], BoxMode.XYWH_ABS, mode)
        each["bbox_mode"] = mode
    if not with_masks:
        record = without_masks(record)
    flip_and_double = [T.HFlipTransform(80), T.ResizeTransform(60, 80, 120, 160)]
    out = plain_mapper(augmentations=flip_and_double, use_instance_mask=with_masks)(record)
    assert out["image"].shape == (3, 120, 160)
    assert_components(out, class_map_by_hand()[:, ::-1].repeat(2, axis=0).repeat(2, axis=1))


def test_crops_of_boxes(record):
    """Corners outside of the crop included; what the crop does not show is gone."""
    crop = T.CropTransform(20, 10, 25, 20)
    out = plain_mapper(augmentations=[crop], use_instance_mask=False)(without_masks(record))
    assert out["instances"].gt_classes.tolist() == [0, 1]
    assert_components(out, class_map_by_hand()[10:30, 20:45])


def test_crops_of_masks_without_shapely(record, cfg, monkeypatch):
    """Run-length codes need none; polygons do, and the mapper says so before the training."""
    with_polygons = copy.deepcopy(record)
    for each in record["annotations"]:
        x, y, width, height = (int(value) for value in each["bbox"])
        each["segmentation"] = mask_util.encode(box_mask(x, y, x + width, y + height))
    crop = T.CropTransform(20, 10, 25, 20)
    out = plain_mapper(augmentations=[crop], instance_mask_format="bitmask", recompute_boxes=True)(
        record
    )
    assert out["instances"].gt_masks.tensor.shape == (2, 20, 25)
    assert out["instances"].gt_boxes.tensor[1].tolist() == [0, 5, 10, 20]
    assert_components(out, class_map_by_hand()[10:30, 20:45])

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    cfg.INPUT.CROP.ENABLED = True
    with pytest.raises(ValueError, match="pip install shapely, or set INPUT.CROP.ENABLED"):
        build_mapper(cfg)
    cfg.INPUT.MASK_FORMAT = "bitmask"
    mapper = build_mapper(cfg)
    assert mapper.recompute_boxes
    record["annotations"][2]["segmentation"] = [polygon(*BOXES[2][0])]  # of a crowd: not cropped
    record["annotations"].append(annotation((5, 5, 9, 9), 0, segmentation=[]))
    mapper.check_records([record])
    with pytest.raises(ValueError, match=r"annotation 0 of .* has polygons: .*pip install shapely"):
        mapper.check_records([with_polygons])
    cfg.MODEL.MASK_ON = False
    for cfg.INPUT.MASK_FORMAT in ("bitmask", "polygon"):
        build_mapper(cfg).check_records([with_polygons])


@pytest.mark.parametrize("recompute_boxes", [True, False])
def test_images_without_instances(record, recompute_boxes):
    mapper = plain_mapper(recompute_boxes=recompute_boxes)
    out = mapper({**record, "annotations": []})
    assert len(out["instances"]) == 0 and out["instances"].gt_boxes.tensor.shape == (0, 4)
    assert "annotations" not in out
    assert_components(out, np.full(SIZE, BACKGROUND))
    out = mapper({**record, "annotations": record["annotations"][2:3]})
    assert len(out["instances"]) == 0
    assert_components(out, np.where(box_mask(*BOXES[2][0]), IGNORED, BACKGROUND))


def test_what_encloses_nothing(record):
    """Boxes of zero area and polygons without three corners, among those that are fine."""
    record["annotations"] += [
        annotation((10, 10, 10, 20), 0, segmentation=[polygon(10, 10, 10, 20)]),
        annotation((10, 10, 20, 20), 0, segmentation=[[10.0, 10.0, 20.0, 20.0]]),
        annotation((10, 10, 20, 20), 0, segmentation=[[10.0, 10.0, 20.0, 20.0, 10.0, 20.0, 1.0]]),
        annotation((90, 10, 95, 20), 0, segmentation=[polygon(90, 10, 95, 20)]),
    ]
    record["annotations"][0]["segmentation"].append([1.0, 2.0])
    out = plain_mapper()(record)
    assert out["instances"].gt_classes.tolist() == [0, 1, 2]
    assert_components(out, class_map_by_hand())


def test_a_box_does_for_components_where_polygons_are_none(record):
    record["annotations"][0]["segmentation"] = [[1.0, 2.0]]
    assert_components(plain_mapper(use_instance_mask=False)(record), class_map_by_hand())


def test_polygons_of_whole_numbers_are_scaled_without_a_loss(record):
    corners = [5, 5, 45, 5, 45, 45, 5, 45]
    record["annotations"] = [annotation((5, 5, 45, 45), 0, segmentation=[corners])]
    mapper = plain_mapper(augmentations=[T.ResizeTransform(60, 80, 90, 120)])
    polygons = mapper(record)["instances"].gt_masks.polygons
    assert polygons[0][0].tolist() == [1.5 * each for each in corners]


def test_uncompressed_codes(record):
    mask = box_mask(*BOXES[0][0])
    runs = np.flatnonzero(np.diff(mask.flatten(order="F").astype(int), prepend=0))
    counts = np.diff([0, *runs, mask.size]).tolist()
    record["annotations"][0]["segmentation"] = {"size": list(SIZE), "counts": counts}
    out = plain_mapper(instance_mask_format="bitmask")(record)
    np.testing.assert_array_equal(out["instances"].gt_masks.tensor[0], mask)
    assert_components(out, class_map_by_hand())


def test_classes_are_the_things_and_fit_the_head(cfg):
    assert build_mapper(cfg).num_classes == NUM_CLASSES
    MetadataCatalog.get("test_detection_mapper").set(thing_classes=["a", "b"])
    cfg.DATASETS.TRAIN = ("test_detection_mapper",)
    assert build_mapper(cfg).num_classes == 2
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    with pytest.raises(ValueError, match=r"MODEL\.ROI_HEADS\.NUM_CLASSES is 1.* has 2 classes"):
        build_mapper(cfg)
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    assert build_mapper(cfg).num_classes == 2
    cfg.MODEL.RETINANET.NUM_CLASSES = 1
    with pytest.raises(ValueError, match=r"MODEL\.RETINANET\.NUM_CLASSES is 1"):
        build_mapper(cfg)
    with pytest.raises(ValueError, match=r"is for training.*DatasetMapper"):
        DetectionConceptMapper(cfg, False)


def classes_of(out):
    """(H, W) class of each pixel's component, 255 where there is none."""
    return torch.tensor([*out["component_classes"], 255])[out["component_map"].long()]


def test_real_images(shared, cfg):
    """Real polygons and crowds: components of masks are those of the other mapper."""
    root = shared / "data" / "coco_mini"
    records = load_coco_json(
        str(root / "annotations" / "instances_train2017.json"),
        str(root / "train2017"),
        "test_detection_mapper_coco_mini",
    )
    cfg.DATASETS.TRAIN = ("test_detection_mapper_coco_mini",)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    build_mapper(cfg).check_records(records)
    mapper = plain_mapper(num_classes=80)
    other = InstanceConceptMapper(
        augmentations=[], image_format="RGB", num_classes=80, min_area_ratio=0.0, kernel_size=1
    )
    crowded = [r for r in records if any(a["iscrowd"] for a in r["annotations"])]
    for record in records[:4] + crowded[:2]:
        out, expected = mapper(record), other(record)
        assert torch.equal(out["component_map"], expected["component_map"])
        assert torch.equal(out["component_classes"], expected["component_classes"])
        theirs = DatasetMapper(True, augmentations=[], image_format="RGB", use_instance_mask=True)
        assert_same(out, theirs(record))
        boxes = plain_mapper(num_classes=80, use_instance_mask=False)(without_masks(record))
        # Masks lie in their boxes: where no box is, no mask is either, but for pixels at borders.
        no_box = classes_of(boxes) == 80
        assert (no_box & (classes_of(out) < 80)).float().mean() < 0.005
        assert no_box.any() and (~no_box).any()


def test_a_polygon_that_is_enlarged_with_its_box():
    """Detectron2 draws it 280 times as large, which would end the process."""
    zigzag = [value for n in range(2000) for value in (n % 2 * 600, n % 3)]
    annotation = {"category_id": 0, "bbox_mode": 1, "segmentation": [zigzag]}
    checker = AnnotationChecker(num_classes=1, boxes_needed=True)
    assert checker.fault({**annotation, "bbox": [0, 0, 600, 60]}, (600, 800)) is None
    fault = checker.fault({**annotation, "bbox": [0, 0, 600, 0.01]}, (600, 800))
    assert "enlarged to 28 pixels" in fault


def test_mappers_of_others_get_no_polygon_that_cannot_be_drawn():
    annotation = {"id": 5, "segmentation": [[0, 0, 1e9, 0, 1e9, 1e9]]}
    with pytest.raises(ValueError, match=r"annotation 0 \(id 5\) of a.png has a polygon"):
        check_outlines([{"file_name": "a.png", "annotations": [annotation]}])
