import numpy as np
import pytest
from detectron2.data import transforms as T
from PIL import Image

from sgr.data.augmentations.center_crop import CenterCrop
from sgr.data.augmentations.resized_crop import ResizedCrop, ResizedCropTransform

SIZE = (30, 41)


def picture(size=SIZE, *channels):
    return np.random.default_rng(0).integers(0, 256, (*size, *channels), np.uint8)


def one_after_the_other(resize, crop, method, data):
    return getattr(crop, method)(getattr(resize, method)(data))


def assert_same(resize, crop, size):
    """Of an image, of a map, and of one of four bytes per pixel."""
    both = ResizedCropTransform(resize, crop)
    cases = [("apply_image", picture(size, 3))]
    cases += [("apply_segmentation", picture(size, *channels)) for channels in ((), (4,))]
    for method, data in cases:
        before = data.copy()
        expected = one_after_the_other(resize, crop, method, data)
        ours = getattr(both, method)(data)
        assert ours.dtype == expected.dtype
        np.testing.assert_array_equal(ours, expected)
        np.testing.assert_array_equal(data, before)


def test_any_size_and_window():
    rng = np.random.default_rng(1)
    for number in range(400):
        height, width = (int(side) for side in rng.integers(1, 50, 2))
        new_height, new_width = (int(side) for side in rng.integers(1, 120, 2))
        if number % 5 == 0:
            new_height = height
        if number % 7 == 0:
            new_width = width
        y0, x0 = int(rng.integers(new_height)), int(rng.integers(new_width))
        rows, columns = (int(rng.integers(1, 130)) for _ in range(2))  # also out of the image
        assert_same(
            T.ResizeTransform(height, width, new_height, new_width),
            T.CropTransform(x0, y0, columns, rows),
            (height, width),
        )


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.0, 1.1, 1.37, 2.0, 3.3])
def test_scales_that_keep_the_shape(scale):
    height, width = (int(scale * side + 0.5) for side in (240, 320))
    for y0, x0 in ((0, 0), (height // 2, width // 3), (height - 60, width - 80)):
        assert_same(
            T.ResizeTransform(240, 320, height, width), T.CropTransform(x0, y0, 80, 60), (240, 320)
        )


@pytest.mark.parametrize("interp", [Image.NEAREST, Image.BICUBIC])
def test_other_filters(interp):
    resize = T.ResizeTransform(*SIZE, 50, 70, interp)
    assert_same(resize, T.CropTransform(20, 10, 30, 25), SIZE)


def test_other_types_are_left_to_detectron2():
    resize, crop = T.ResizeTransform(*SIZE, 50, 70), T.CropTransform(20, 10, 30, 25)
    both = ResizedCropTransform(resize, crop)
    for method, data in (
        ("apply_image", picture(SIZE)),
        ("apply_image", picture(SIZE, 1)),
        ("apply_image", picture(SIZE, 3).astype(np.float32)),
        ("apply_segmentation", picture(SIZE).astype(np.float32)),
    ):
        expected = one_after_the_other(resize, crop, method, data)
        np.testing.assert_array_equal(getattr(both, method)(data), expected)


def test_views_do_as_images():
    resize, crop = T.ResizeTransform(*SIZE, 50, 70), T.CropTransform(20, 10, 30, 25)
    for image in (picture(SIZE, 3)[..., ::-1], picture((41, 30), 3).transpose(1, 0, 2)):
        expected = one_after_the_other(resize, crop, "apply_image", image)
        ours = ResizedCropTransform(resize, crop).apply_image(image)
        np.testing.assert_array_equal(ours, expected)


def test_corners_and_boxes_move_along():
    resize, crop = T.ResizeTransform(*SIZE, 60, 82), T.CropTransform(20, 10, 30, 25)
    both = ResizedCropTransform(resize, crop)
    assert both.apply_coords(np.array([[15.0, 7.5]])).tolist() == [[10, 5]]
    assert both.apply_box(np.array([[15.0, 7.5, 20, 10]])).tolist() == [[10, 5, 20, 10]]


def test_corners_of_polygons_are_cut_off():
    pytest.importorskip("shapely")
    resize, crop = T.ResizeTransform(*SIZE, 60, 82), T.CropTransform(20, 10, 30, 25)
    corners = np.array([[5.0, 2], [15, 2], [15, 12], [5, 12]])
    (ours,) = ResizedCropTransform(resize, crop).apply_polygons([corners.copy()])
    (expected,) = crop.apply_polygons(resize.apply_polygons([corners.copy()]))
    np.testing.assert_array_equal(ours, expected)


PAIRS = {
    "random": lambda: (
        T.ResizeShortestEdge([20, 30, 45, 60], 100, "choice"),
        T.RandomCrop("absolute", (25, 25)),
    ),
    "range": lambda: (
        T.ResizeShortestEdge([20, 60], 100, "range"),
        T.RandomCrop("relative_range", (0.3, 0.3)),
    ),
    "centre": lambda: (T.ResizeShortestEdge(60, 100), CenterCrop("absolute", (25, 25))),
    "as it is": lambda: (T.ResizeShortestEdge(0, 100), T.RandomCrop("absolute", (25, 25))),
    "large-scale jitter": lambda: (
        T.ResizeScale(0.3, 2.5, 40, 40),
        T.FixedSizeCrop((40, 40), pad=False),
    ),
    "padded": lambda: (T.ResizeScale(0.3, 2.5, 40, 40), T.FixedSizeCrop((40, 40))),
    "not one class": lambda: (
        T.ResizeShortestEdge([30, 60], 100, "choice"),
        T.RandomCrop_CategoryAreaConstraint("absolute", (25, 25), 0.4, 255),
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_draws_and_results_are_those_of_the_two(pair):
    image, labels = picture(SIZE, 3), picture((3, 4)).repeat(10, 0).repeat(11, 1)[:, :41] % 3
    labels[:4] = 255
    resize, crop = PAIRS[pair]()
    shapes = set()
    for seed in range(20):
        np.random.seed(seed)
        expected = T.AugInput(image, sem_seg=labels)
        T.AugmentationList([resize, crop])(expected)
        after = np.random.random()
        np.random.seed(seed)
        ours = T.AugInput(image, sem_seg=labels)
        T.AugmentationList([ResizedCrop(resize, crop)])(ours)
        assert np.random.random() == after
        np.testing.assert_array_equal(ours.image, expected.image)
        np.testing.assert_array_equal(ours.sem_seg, expected.sem_seg)
        shapes.add(ours.image.shape)
    assert len(shapes) > 1 or pair in ("centre", "as it is", "padded", "not one class")


def test_what_is_no_resize_is_refused():
    image = np.zeros((20, 30, 3), np.uint8)
    both = ResizedCrop(T.RandomRotation([30, 30]), T.RandomCrop("absolute", (8, 8)))
    with pytest.raises(TypeError, match="RandomRotation.* does not resize only"):
        both.get_transform(image)


def test_other_sizes_are_refused():
    transform = ResizedCropTransform(T.ResizeTransform(20, 30, 40, 60), T.CropTransform(0, 0, 8, 8))
    for apply, array in (
        (transform.apply_image, np.zeros((50, 50, 3), np.uint8)),
        (transform.apply_segmentation, np.zeros((30, 20), np.uint8)),
    ):
        with pytest.raises(ValueError, match="20 x 30 pixels .* got"):
            apply(array)
