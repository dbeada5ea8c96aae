import random

import cv2
import numpy as np
import pytest
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform

from sgr.data.augmentations.center_crop import CenterCrop
from sgr.data.augmentations.color_jitter import ColorJitter
from sgr.data.augmentations.fast import ConstrainedCrop, accelerated, with_a_pixel
from sgr.data.augmentations.resized_crop import ResizedCrop


def seed_all(seed):
    random.seed(seed)
    np.random.seed(seed)


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_colours_are_those_of_detectron2(image_format):
    """In all orders of the steps; None stands for brightness and contrast."""
    image = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    image[0, :, 0] = image[0, :, 1] = image[0, :, 2]  # grey
    theirs, ours = ColorAugSSDTransform(image_format), ColorJitter(image_format)
    steps = set()
    for seed in range(200):
        seed_all(seed)
        expected = theirs.apply_image(image.copy())
        after = random.random()
        seed_all(seed)
        transform = ours.get_transform(image)
        assert random.random() == after
        np.testing.assert_array_equal(transform.apply_image(image), expected)
        steps.add(tuple(channel for channel, _ in transform.steps))
    assert len(steps) >= 10 and () in steps and (None, None, 1, 0) in steps


def test_colours_leave_the_rest():
    transform = ColorJitter("RGB").get_transform(np.zeros((2, 2, 3), np.uint8))
    corners, labels = np.ones((2, 2)), np.ones((4, 4), np.uint8)
    assert transform.apply_coords(corners) is corners
    assert transform.apply_segmentation(labels) is labels
    with pytest.raises(ValueError, match="'YUV-BT.601'"):
        ColorJitter("YUV-BT.601")


@pytest.mark.parametrize("dtype, ignored", [(np.uint8, 255), (np.int32, -1), (np.int32, None)])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.75, 1.0])
def test_constrained_crops_are_those_of_detectron2(dtype, ignored, share):
    rng = np.random.default_rng(0)
    image = np.empty((60, 80, 3), np.uint8)
    for seed in range(40):
        labels = rng.integers(0, 3, (3, 4)).repeat(20, 0).repeat(20, 1).astype(dtype)
        labels[:20] = 0 if ignored is None else ignored
        options = ("absolute", (30, 30), share, ignored)
        seed_all(seed)
        expected = T.RandomCrop_CategoryAreaConstraint(*options).get_transform(image, labels)
        after = np.random.random()
        seed_all(seed)
        crop = ConstrainedCrop(*options).get_transform(image, labels)
        assert np.random.random() == after
        assert (crop.x0, crop.y0, crop.w, crop.h) == (
            expected.x0,
            expected.y0,
            expected.w,
            expected.h,
        )


@pytest.mark.parametrize("ignored", [255, None])
def test_crops_without_a_labelled_pixel_are_drawn_again(ignored):
    labels = np.full((60, 80), 255, np.uint8)
    options = ("absolute", (30, 30), 0.75, ignored)
    ends = []
    for crop in (T.RandomCrop_CategoryAreaConstraint(*options), ConstrainedCrop(*options)):
        seed_all(0)
        crop.get_transform(np.empty((60, 80, 3), np.uint8), labels)
        ends.append(np.random.random())
    np.random.seed(0)
    assert ends[0] == ends[1] != np.random.random()


def test_what_takes_whose_place():
    resize, flip = T.ResizeShortestEdge(20), T.RandomFlip()
    crops = [
        T.RandomCrop("absolute", (8, 8)),
        CenterCrop("absolute", (8, 8)),
        T.FixedSizeCrop((8, 8)),
        T.RandomCrop_CategoryAreaConstraint("absolute", (8, 8), 0.75, 255),
    ]
    for crop in crops:
        both, colours, last = accelerated([resize, crop, ColorAugSSDTransform("RGB"), flip])
        assert type(both) is ResizedCrop and both.resize is resize
        assert both.crop is crop or type(both.crop) is ConstrainedCrop
        assert type(colours) is ColorJitter and colours.image_format == "RGB" and last is flip
        # Only what follows at once is done together.
        assert [type(each) for each in accelerated([crop, resize])][1:] == [type(resize)]
        assert accelerated([resize, flip, crop])[:2] == [resize, flip]
    assert type(accelerated(crops[3:])[0]) is ConstrainedCrop
    assert accelerated([]) == []


def test_classes_of_ones_own_stay():
    class Mine(T.RandomCrop):
        def get_transform(self, image):
            assert image.any()
            return super().get_transform(image)

    class MyResize(T.ResizeShortestEdge):
        pass

    class ColorAugSSDTransform:  # somebody else's of this name
        pass

    for ours in (
        [T.ResizeShortestEdge(20), Mine("absolute", (8, 8))],
        [MyResize(20), T.RandomCrop("absolute", (8, 8))],
        [ColorAugSSDTransform()],
    ):
        assert accelerated(ours) == ours


def test_options_of_the_colours_count():
    theirs = ColorAugSSDTransform("BGR", 10, 0.9, 1.1, 0.8, 1.2, 5)
    (ours,) = accelerated([theirs])
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    for seed in range(40):
        seed_all(seed)
        expected = theirs.apply_image(image)
        seed_all(seed)
        np.testing.assert_array_equal(ours.get_transform(image).apply_image(image), expected)


def test_opencv_looks_bytes_up_in_views():
    """As flipped images are."""
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    table = np.arange(256, dtype=np.uint8)[::-1].copy()
    np.testing.assert_array_equal(cv2.LUT(image[:, ::-1], table), 255 - image[:, ::-1])


@pytest.mark.parametrize("shape", [(9000, 2, 3), (2, 9000, 3)])
def test_thin_images_keep_a_pixel(shape):
    """Detectron2's sizes are 0 along the short side, which OpenCV and Pillow refuse."""
    image = np.zeros(shape, np.uint8)
    resizes = [T.ResizeShortestEdge((96,), 512, "choice"), T.ResizeScale(0.1, 0.1, 512, 512)]
    for resize in resizes:
        assert min(resize.get_transform(image).apply_coords(np.array([shape[1::-1]]))[0]) < 1
        for more in ([], [T.RandomCrop("absolute", (64, 64))]):
            sides = T.AugInput(image)
            T.AugmentationList(with_a_pixel(accelerated([resize, *more])))(sides)
            assert min(sides.image.shape[:2]) == 1
