import cv2
import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.utils.env import seed_all_rng
from PIL import Image

from sgr.data.augmentations.labelled_image import LabelledImage
from sgr.data.components import connected_components
from sgr.data.mappers import PanopticConceptMapper, build_mapper

NUM_CLASSES = 5
SIZE = (60, 80)

# id, category, crowd; two cars of category 1, and a crowd of cars.
SEGMENTS = [(70000, 0, 0), (300, 1, 0), (5, 1, 0), (6, 1, 1), (16000000, 4, 0)]


def save_picture(path, ids):
    picture = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(picture).save(path)


@pytest.fixture
def ids():
    ids = np.full(SIZE, 70000)
    ids[10:40, 5:25] = 300
    ids[10:40, 25:45] = 5
    ids[40:, 50:70] = 6
    ids[50:, :30] = 16000000
    ids[:5] = 0
    return ids


@pytest.fixture
def record(tmp_path, ids):
    """The image shows the place of each pixel's segment in the list."""
    image = np.full((*SIZE, 3), 250, np.uint8)
    for index, (id, _, _) in enumerate(SEGMENTS):
        image[ids == id] = 40 * index
    Image.fromarray(image).save(tmp_path / "image.png")
    save_picture(tmp_path / "segments.png", ids)
    return {
        "file_name": str(tmp_path / "image.png"),
        "pan_seg_file_name": str(tmp_path / "segments.png"),
        "sem_seg_file_name": "of other classes.png",
        "segments_info": [
            {"id": id, "category_id": category, "iscrowd": crowd, "isthing": category == 1}
            for id, category, crowd in SEGMENTS
        ],
        "image_id": 7,
    }


def plain_mapper(**changes):
    """A mapper that augments nothing."""
    return PanopticConceptMapper(
        **{"augmentations": [], "image_format": "RGB", "num_classes": NUM_CLASSES, **changes}
    )


@pytest.fixture
def cfg(small_crops):
    return small_crops("mask_former_panoptic_concept", NUM_CLASSES)


def labels_by_hand(ids, ignore=255):
    labels = np.full(ids.shape, ignore)
    for id, category, crowd in SEGMENTS:
        if not crowd:
            labels[ids == id] = category
    return labels


def test_without_augmentation(record, ids):
    before = {**record, "segments_info": [dict(each) for each in record["segments_info"]]}
    out = plain_mapper()(record)
    assert record == before
    assert not {"segments_info", "pan_seg_file_name", "sem_seg_file_name"} & out.keys()
    assert out["image"].dtype == torch.uint8 and out["image"].shape == (3, *SIZE)
    assert (out["height"], out["width"], out["image_id"]) == (*SIZE, 7)

    labels = labels_by_hand(ids)
    assert out["sem_seg"].dtype == torch.int64
    np.testing.assert_array_equal(out["sem_seg"], labels)

    kept = [(id, category) for id, category, crowd in SEGMENTS if not crowd]
    instances = out["instances"]
    assert instances.image_size == SIZE
    assert instances.gt_classes.dtype == torch.int64 and instances.gt_masks.dtype == torch.bool
    assert instances.gt_classes.tolist() == [category for _, category in kept]
    for (id, _), mask in zip(kept, instances.gt_masks, strict=True):
        np.testing.assert_array_equal(mask, ids == id)

    expected = connected_components(labels)
    np.testing.assert_array_equal(out["component_map"], expected.indices)
    np.testing.assert_array_equal(out["component_classes"], expected.classes)
    # Two cars side by side are one component: components know no instances.
    assert (out["component_classes"] == 1).sum() == 1


def test_padding_is_ignored_and_in_no_mask(record, ids):
    out = plain_mapper(min_side=70, size_divisibility=32)(record)
    assert out["image"].shape == (3, 96, 96) and (out["image"][:, 60:] == 128).all()
    assert (out["sem_seg"][60:] == 255).all() and (out["sem_seg"][:, 80:] == 255).all()
    assert (out["component_map"][60:] == -1).all()
    masks = out["instances"].gt_masks
    assert not masks[:, 60:].any() and not masks[:, :, 80:].any()
    np.testing.assert_array_equal(out["sem_seg"][:60, :80], labels_by_hand(ids))


@pytest.mark.parametrize("name", ["mask_former_panoptic_concept", "coco_panoptic_lsj_concept"])
def test_everything_moves_together(record, cfg, name):
    cfg.INPUT.DATASET_MAPPER_NAME = name
    side = 64 if name == "coco_panoptic_lsj_concept" else None
    mapper = build_mapper(cfg)
    of_index = np.array([255 if crowd else category for _, category, crowd in SEGMENTS])
    padded, compared = set(), 0
    for seed in range(12):
        seed_all_rng(seed)
        out = mapper(record)
        image, labels = out["image"][0].numpy(), out["sem_seg"].numpy()
        assert image.shape == labels.shape == out["component_map"].shape
        if side:
            assert image.shape == (side, side)
        masks = out["instances"].gt_masks.numpy()
        assert masks.any(axis=(1, 2)).all() and masks.sum(axis=0).max() <= 1
        # Away from seams, where the resized image has in-between colours, it tells the segment.
        kernel = np.ones((5, 5), np.uint8)
        pure = cv2.erode(image, kernel) == cv2.dilate(image, kernel)
        pure &= np.isin(image, 40 * np.arange(len(SEGMENTS)))
        compared += pure.sum()
        np.testing.assert_array_equal(labels[pure], of_index[image[pure] // 40])
        covered = np.full(labels.shape, 255)
        for mask, label in zip(masks, out["instances"].gt_classes.tolist()):
            covered[mask] = label
        np.testing.assert_array_equal(covered, labels)
        padding = (image == 128).all(axis=1)
        padded.add(bool(padding.any()))
        assert (labels[padding] == 255).all() and (out["component_map"][padding] == -1).all()
    assert padded == ({True, False} if side else {False})
    assert compared > 5000


def test_crops_are_drawn_by_class_not_by_segment(record, monkeypatch):
    """Two segments of one class count together, as the constraint means it."""
    seen = []

    class Watch(T.Augmentation):
        def get_transform(self, image, sem_seg):
            seen.append(sem_seg.copy())
            return T.NoOpTransform()

    plain_mapper(augmentations=[Watch()])(record)
    assert np.unique(seen[0]).tolist() == [0, 1, 4, 255]


def test_labels_are_made_only_for_augmentations_that_look_at_them(record, cfg, monkeypatch):
    made = []
    lazily = LabelledImage.sem_seg.fget
    monkeypatch.setattr(
        LabelledImage, "sem_seg", property(lambda self: made.append(1) or lazily(self))
    )
    build_mapper(cfg)(record)
    assert not made
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    build_mapper(cfg)(record)
    assert len(made) == 1


def test_many_segments_stay_in_register(tmp_path, record):
    """Beside segments that nothing shows, the same ones are resized in the same way."""
    resize = {"augmentations": [T.Resize((101, 47))]}
    few = plain_mapper(**resize)(record)
    record["segments_info"] = [{"id": id, "category_id": 0} for id in range(1000, 1300)] + record[
        "segments_info"
    ]
    many = plain_mapper(**resize)(record)
    assert torch.equal(many["sem_seg"], few["sem_seg"])
    assert torch.equal(many["instances"].gt_masks, few["instances"].gt_masks)
    assert torch.equal(many["instances"].gt_classes, few["instances"].gt_classes)


def test_many_segments_and_an_ignore_value_beyond_a_byte(tmp_path, record):
    ids = np.arange(1, 301).reshape(15, 20).repeat(4, 0).repeat(4, 1)
    save_picture(tmp_path / "segments.png", ids)
    record["segments_info"] = [{"id": int(id), "category_id": int(id) % 5} for id in range(1, 301)]
    out = plain_mapper(ignore_value=65535, augmentations=[T.Resize((30, 40))])(record)
    assert len(out["instances"]) == 300
    np.testing.assert_array_equal(out["sem_seg"], ids[::2, ::2] % 5)


def test_nothing_labelled(tmp_path, record):
    save_picture(tmp_path / "segments.png", np.zeros(SIZE, int))
    for segments in (record["segments_info"], []):
        out = plain_mapper()({**record, "segments_info": segments})
        assert (out["sem_seg"] == 255).all() and (out["component_map"] == -1).all()
        assert out["instances"].gt_masks.shape == (0, *SIZE)
        assert out["instances"].gt_classes.dtype == torch.int64


def test_components_can_be_left_out(record):
    assert "component_map" not in plain_mapper(with_components=False)(record)


def test_user_mistakes_are_named(tmp_path, record, ids):
    with pytest.raises(ValueError, match=r"image\.png has no pan_seg_file_name.*separated"):
        plain_mapper()({"file_name": record["file_name"], "annotations": []})
    with pytest.raises(ValueError, match=r"segments\.png holds the id\(s\) 300,"):
        del record["segments_info"][1]
        plain_mapper()(record)
    record["segments_info"].append({"id": 300, "category_id": 5})
    wrong = (
        r"segment 300 of .*segments\.png has category_id 5; .* 0 to 4,.*SEM_SEG_HEAD.NUM_CLASSES"
    )
    with pytest.raises(ValueError, match=wrong):
        plain_mapper()(record)
    save_picture(tmp_path / "segments.png", ids[:, 1:])
    record["segments_info"][-1]["category_id"] = 1
    with pytest.raises(ValueError, match=r"image\.png is 80 x 60.*segments\.png is 79 x 60"):
        plain_mapper()(record)
    record["pan_seg_file_name"] = str(tmp_path / "gone.png")
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        plain_mapper()(record)
    with pytest.raises(ValueError, match=r"ignore_value \(MODEL.SEM_SEG_HEAD.IGNORE_VALUE\) is 4"):
        plain_mapper(ignore_value=4)
