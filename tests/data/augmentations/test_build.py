"""The crop of the training images, and the square of the test images."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.utils.env import seed_all_rng
from PIL import Image

from sgr.data.augmentations.build import build_augmentations
from sgr.data.augmentations.center_crop import CenterCrop, CentralSquare
from sgr.data.augmentations.resized_crop import ResizedCrop
from sgr.data.components import connected_components
from sgr.data.mappers import build_mapper
from sgr.engine import load_config

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
REAL = {
    "ade20k-150/Base-ADE20K-150": 512,
    "coco-stuff-10k-171/Base-COCOStuff10K-171": 512,
    "cityscapes-19/Base-Cityscapes-19": 768,
}
HEIGHT, WIDTH = 70, 91


def position_picture(height=HEIGHT, width=WIDTH):
    """(H, W, 3) uint8: each pixel says where it is."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, 7)], axis=-1).astype(np.uint8)


@pytest.fixture
def record(tmp_path):
    """An image whose first channel is 40 times its label, in blocks of uneven size."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    labels = ((rows // 9 + columns // 13) % 5).astype(np.uint8)
    labels[:3] = 255
    image = position_picture()
    image[..., 0] = np.where(labels == 255, 220, labels * 40)
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(labels).save(tmp_path / "labels.png")
    return {
        "file_name": str(tmp_path / "image.png"),
        "sem_seg_file_name": str(tmp_path / "labels.png"),
        "height": HEIGHT,
        "width": WIDTH,
    }


@pytest.fixture
def cfg():
    """Only a crop from the middle, 32 high and 45 wide."""
    return load_config(
        "",
        [
            str(each)
            for pair in {
                "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 5,
                "INPUT.FORMAT": "RGB",
                "INPUT.MIN_SIZE_TRAIN": f"({HEIGHT},)",
                "INPUT.RANDOM_FLIP": "none",
                "INPUT.CROP.ENABLED": True,
                "INPUT.CROP.TYPE": "absolute",
                "INPUT.CROP.SIZE": "[32, 45]",
                "INPUT.CROP.POSITION": "center",
            }.items()
            for each in pair
        ],
    )


def middle(array, rows, columns):
    """The crop, by taking away rows and columns one by one, first at the end."""
    for axis, side in enumerate((rows, columns)):
        at_the_end = True
        while array.shape[axis] > side:
            index = array.shape[axis] - 1 if at_the_end else 0
            array = np.delete(array, index, axis)
            at_the_end = not at_the_end
    return array


class TestCenterCrop:
    @pytest.mark.parametrize("height, width", [(70, 91), (71, 90), (32, 91), (20, 91), (20, 30)])
    @pytest.mark.parametrize("rows, columns", [(32, 45), (33, 44), (1, 1)])
    def test_absolute(self, height, width, rows, columns):
        data = T.AugInput(position_picture(height, width))
        T.AugmentationList([CenterCrop("absolute", (rows, columns))])(data)
        expected = middle(position_picture(height, width), rows, columns)
        np.testing.assert_array_equal(data.image, expected)

    @pytest.mark.parametrize("share", [(0.5, 0.5), (0.31, 1.0), (0.9, 0.77)])
    def test_relative(self, share):
        image = position_picture()
        crop = CenterCrop("relative", share).get_transform(image).apply_image(image)
        # Of the size that Detectron2's has.
        rows, columns = T.RandomCrop("relative", share).get_crop_size((HEIGHT, WIDTH))
        np.testing.assert_array_equal(crop, middle(image, rows, columns))

    @pytest.mark.parametrize(
        "kind, size",
        [
            ("relative_range", (0.3, 0.5)),
            ("absolute_range", (20, 60)),
        ],
    )
    def test_ranges_are_drawn_as_by_detectron2(self, kind, size):
        image = position_picture()
        for seed in range(5):
            np.random.seed(seed)
            crop = CenterCrop(kind, size).get_transform(image).apply_image(image)
            np.random.seed(seed)
            expected = T.RandomCrop(kind, size).get_crop_size((HEIGHT, WIDTH))
            np.testing.assert_array_equal(crop, middle(image, *expected))

    def test_draws_nothing(self):
        before = np.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state()
        CenterCrop("absolute", (32, 45)).get_transform(position_picture())
        CenterCrop("relative", (0.5, 0.5)).get_transform(position_picture())
        assert (np.random.get_state()[1] == before[0]).all()
        assert random.getstate() == before[1]
        assert torch.equal(torch.get_rng_state(), before[2])


class TestMappers:
    @pytest.mark.parametrize("name", ["semantic_concept", "mask_former_semantic_concept"])
    def test_image_labels_and_components_are_of_the_middle(self, record, cfg, name):
        cfg.INPUT.DATASET_MAPPER_NAME = name
        image = np.asarray(Image.open(record["file_name"]))
        labels = np.asarray(Image.open(record["sem_seg_file_name"]))
        for seed in range(3):
            seed_all_rng(seed)
            out = build_mapper(cfg)(record)
            np.testing.assert_array_equal(
                out["image"].permute(1, 2, 0).numpy(), middle(image, 32, 45)
            )
            expected = middle(labels, 32, 45)
            np.testing.assert_array_equal(out["sem_seg"].numpy(), expected)
            components = connected_components(expected)
            np.testing.assert_array_equal(out["component_map"].numpy(), components.indices)
            np.testing.assert_array_equal(out["component_classes"].numpy(), components.classes)

    def test_small_images_are_padded(self, record, cfg):
        cfg.INPUT.CROP.SIZE = [96, 45]
        cfg.INPUT.SIZE_DIVISIBILITY = 96
        out = build_mapper(cfg)(record)
        labels = np.asarray(Image.open(record["sem_seg_file_name"]))
        expected = np.full((96, 96), 255)
        expected[:HEIGHT, :45] = middle(labels, HEIGHT, 45)
        np.testing.assert_array_equal(out["sem_seg"].numpy(), expected)
        assert (out["image"][:, HEIGHT:] == 128).all() and (out["image"][..., 45:] == 128).all()
        assert (out["component_map"].numpy()[expected == 255] == -1).all()

    def test_scale_and_flip_stay_random_and_in_register(self, record, cfg):
        """Away from the seams of the labels, where the image has colours in between."""
        cfg.INPUT.MIN_SIZE_TRAIN = (35, 52, 70, 140)
        cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
        cfg.INPUT.RANDOM_FLIP = "horizontal"
        mapper, samples = build_mapper(cfg), set()
        for seed in range(12):
            seed_all_rng(seed)
            out = mapper(record)
            labels, red = out["sem_seg"].numpy(), out["image"][0].numpy()
            flat = np.ones(labels.shape, bool)
            for axis in (0, 1):
                for step in range(-5, 6):
                    flat &= np.roll(labels, step, axis) == labels
            flat[:5] = flat[-5:] = flat[:, :5] = flat[:, -5:] = False
            assert (red[flat & (labels < 5)] == labels[flat & (labels < 5)] * 40).all()
            samples.add(red.tobytes())
            seed_all_rng(seed)
            again = mapper(record)
            assert torch.equal(again["image"], out["image"])
            assert torch.equal(again["sem_seg"], out["sem_seg"])
        assert len(samples) >= 6

    def test_random_is_the_default_and_moves(self, record, cfg):
        cfg.INPUT.CROP.POSITION = load_config("").INPUT.CROP.POSITION
        mapper, corners = build_mapper(cfg), set()
        for seed in range(8):
            seed_all_rng(seed)
            corners.add(int(mapper(record)["image"][1, 0, 0]))
        assert len(corners) > 3

    def test_large_scale_jitter_knows_no_crop(self, cfg):
        cfg.INPUT.CROP.POSITION = "corner"
        kinds = [type(each) for each in build_augmentations(cfg, large_scale_jitter=True)]
        assert kinds == [T.ResizeScale, T.FixedSizeCrop]

    def test_the_class_of_the_crop(self, cfg):
        def crop():
            return build_augmentations(cfg)[1]

        assert type(crop()) is CenterCrop
        cfg.INPUT.CROP.POSITION = "random"
        assert type(crop()) is T.RandomCrop
        cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
        cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 65535
        assert type(crop()) is T.RandomCrop_CategoryAreaConstraint
        assert crop().single_category_max_area == 0.75
        assert crop().ignored_category == 65535
        cfg.INPUT.CROP.ENABLED = False
        assert len(build_augmentations(cfg)) == 1

    def test_errors(self, cfg):
        cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
        match = (
            "CROP.POSITION 'center' .*INPUT.CROP.SINGLE_CATEGORY_MAX_AREA 0.75 of it; set that to"
        )
        with pytest.raises(ValueError, match=match):
            build_mapper(cfg)
        cfg.INPUT.CROP.POSITION = "centre"
        with pytest.raises(ValueError, match="must be 'random' or 'center', not 'centre'"):
            build_mapper(cfg)

    @pytest.mark.parametrize("position", ["random", "center"])
    @pytest.mark.parametrize(
        "kind, size, match",
        [
            (
                "square",
                [32, 45],
                "TYPE must be one of 'relative_range', 'relative', 'absolute', "
                "'absolute_range', not 'square'",
            ),
            ("absolute", [32], "two positive integers, not .32.$"),
            ("absolute", [32, 45, 3], "two positive integers"),
            (
                "absolute",
                [32, 0],
                "height and width in pixels, two positive integers, not .32, 0.$",
            ),
            ("absolute", [-32, 45], "two positive integers"),
            ("absolute", [0.9, 0.9], "two positive integers, not .0.9, 0.9.$"),
            ("absolute", ["32", 45], "two positive integers"),
            ("absolute_range", [45, 32], "smallest and the largest side .*not .45, 32.$"),
            ("absolute_range", [0, 32], "two positive integers"),
            ("relative", [512, 512], "TYPE 'relative' must be shares .*at most 1, not .512, 512.$"),
            ("relative", [0.0, 0.5], "above 0"),
            ("relative_range", [0.9, 1.1], "'relative_range' must be the smallest shares"),
        ],
    )
    def test_no_size_of_a_crop(self, cfg, position, kind, size, match):
        cfg.INPUT.CROP.POSITION, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = position, kind, size
        with pytest.raises(ValueError, match=f"^INPUT.CROP.*{match}"):
            build_augmentations(cfg)
        cfg.INPUT.CROP.ENABLED = False
        build_augmentations(cfg)

    @pytest.mark.parametrize(
        "kind, size",
        [
            ("absolute", [32, 45]),
            ("absolute_range", [32, 32]),
            ("relative", [1, 0.5]),
            ("relative_range", [0.1, 1.0]),
        ],
    )
    def test_all_types_of_crops(self, cfg, kind, size):
        cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = kind, size
        build_augmentations(cfg)[1].get_transform(position_picture())

    @pytest.mark.parametrize("position", ["random", "center"])
    @pytest.mark.parametrize("share", [0.0, -0.5, float("nan")])
    def test_no_share_of_a_class(self, cfg, position, share):
        cfg.INPUT.CROP.POSITION, cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = position, share
        with pytest.raises(ValueError, match=f"SINGLE_CATEGORY_MAX_AREA must be .*, not {share}"):
            build_augmentations(cfg)

    def test_many_classes_by_a_constrained_crop(self, record, cfg):
        """Labels of two bytes, of which the fast augmentations make what Detectron2's do."""
        rows, columns = np.mgrid[:HEIGHT, :WIDTH]
        labels = np.where(columns < WIDTH // 2, 299, 1 + rows // 20 * 90 + columns // 70)
        labels[20:50, 20:60] = 65535
        Image.fromarray(labels.astype(np.uint16)).save(record["sem_seg_file_name"])
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 300
        cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 65535
        cfg.INPUT.MIN_SIZE_TRAIN = (50, 70, 99)
        cfg.INPUT.CROP.POSITION = "random"
        cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.6
        fast, plain = build_mapper(cfg), build_mapper(cfg)
        plain.augmentations = T.AugmentationList(build_augmentations(cfg))
        assert any(isinstance(each, ResizedCrop) for each in fast.augmentations.augs)
        cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
        unconstrained = build_mapper(cfg)
        seen, drawn_again = set(), 0
        for seed in range(20):
            results = []
            for mapper in (fast, plain, unconstrained):
                seed_all_rng(seed)
                results.append(mapper(record))
            ours, theirs, other = results
            for key in ("image", "sem_seg", "component_map", "component_classes"):
                assert torch.equal(ours[key], theirs[key])
            seen.update(ours["sem_seg"].unique().tolist())
            drawn_again += not torch.equal(ours["sem_seg"], other["sem_seg"])
        assert {299, 65535} < seen and seen <= set(labels.ravel().tolist())
        assert 0 < drawn_again < 20


class TestCentralSquare:
    @pytest.mark.parametrize(
        "height, width",
        [
            (70, 91),
            (91, 70),
            (64, 64),
            (32, 32),
            (32, 400),
            (33, 47),
            (1, 1),
            (13, 10),
        ],
    )
    def test_resize_and_crop(self, height, width):
        image = position_picture(height, width)
        data = T.AugInput(image)
        transform = T.AugmentationList([CentralSquare(32)])(data)
        longer = int(32 / min(height, width) * max(height, width) + 0.5)
        size = (32, longer) if height <= width else (longer, 32)
        resized = np.asarray(Image.fromarray(image).resize(size[::-1], Image.BILINEAR))
        np.testing.assert_array_equal(data.image, middle(resized, 32, 32))
        # By size alone the same.
        again = CentralSquare(32).transform_of((height, width))
        np.testing.assert_array_equal(again.apply_image(image), data.image)
        np.testing.assert_array_equal(transform.apply_image(image), data.image)

    @pytest.mark.parametrize("side", [0, -512])
    def test_no_square(self, side):
        with pytest.raises(ValueError, match=f"TEST.CENTER_CROP_SIZE must be .*, not {side}"):
            CentralSquare(side)


@pytest.mark.parametrize("name", REAL)
def test_the_papers_augmentation(name):
    """Sec. A.1, with the crop of the public code; scales are relative to the test's size."""
    options = load_config(str(CONFIGS / f"{name}.yaml")).INPUT
    base = options.MIN_SIZE_TEST
    assert list(options.MIN_SIZE_TRAIN) == [int(base * tenth / 10) for tenth in range(5, 21)]
    assert all(0.5 <= side / base <= 2 for side in options.MIN_SIZE_TRAIN)
    assert base == (1024 if "cityscapes" in name else REAL[name])
    assert options.MIN_SIZE_TRAIN_SAMPLING == "choice"
    assert options.MAX_SIZE_TRAIN >= 2 * max(options.MIN_SIZE_TRAIN)
    assert options.RANDOM_FLIP == "horizontal" and options.COLOR_AUG_SSD
    crop = options.CROP
    assert crop.ENABLED and crop.TYPE == "absolute" and crop.SIZE == [REAL[name]] * 2
    assert crop.POSITION == "random" and crop.SINGLE_CATEGORY_MAX_AREA == 1.0
    assert options.SIZE_DIVISIBILITY == REAL[name]


def test_colours_of_other_formats_are_refused():
    grey = ["INPUT.FORMAT", "L", "MODEL.PIXEL_MEAN", "[100.0]", "MODEL.PIXEL_STD", "[1.0]"]
    cfg = load_config("", ["INPUT.COLOR_AUG_SSD", "True", *grey])
    with pytest.raises(ValueError, match="INPUT.FORMAT is 'L'; set COLOR_AUG_SSD to False"):
        build_augmentations(cfg)
