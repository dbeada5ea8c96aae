import numpy as np
import pytest

from sgr.data.colors import UNLABELLED
from sgr.visualization import color_labels, distinct_colors, overlay_heat, overlay_labels
from sgr.visualization.overlays import overlay_errors


def test_labels_outside_the_classes_are_grey():
    colors = np.array([[10, 20, 30], [200, 100, 0]], np.uint8)
    picture = color_labels(np.array([[0, 1], [255, -1]]), colors)
    assert picture[0].tolist() == colors.tolist()
    assert picture[1].tolist() == [[48, 48, 48]] * 2
    assert color_labels(np.array([[255]], np.uint8), colors).tolist() == [[[48, 48, 48]]]


def test_labels_over_an_image(scene):
    image, labels, _, _ = scene
    picture = overlay_labels(np.zeros_like(image), labels, distinct_colors(3))
    assert picture.shape == image.shape and picture.dtype == np.uint8
    assert picture[15, 15].tolist() == np.round(0.6 * distinct_colors(3)[0]).tolist()
    assert picture[29, 15].tolist() == [245] * 3  # the line between labels 0 and 1


def test_heat_is_nothing_at_zero_and_bright_at_one(scene):
    image, *_ = scene
    grey = overlay_heat(image, np.zeros(image.shape[:2]))
    assert (grey == grey[..., :1]).all() and grey.max() <= 153
    hot = overlay_heat(np.zeros_like(image), np.ones(image.shape[:2]))
    assert (hot[..., 0] > 150).all()


@pytest.mark.parametrize("level", [0, 20, 128, 255])
def test_regions_are_seen_on_images_of_any_brightness(level):
    """Half a region stands out from the image, and neither is nearly black."""
    image = np.full((20, 30, 3), level, np.uint8)
    heat = np.zeros((20, 30))
    heat[:, 15:] = 0.5
    picture = overlay_heat(image, heat).astype(int)
    assert picture.max(axis=-1).min() >= 60
    assert np.abs(picture[0, 0] - picture[0, -1]).sum() > 100


def test_the_content_of_a_dark_image_is_seen():
    dark = np.zeros((20, 30, 3), np.uint8)
    dark[:10] = 25
    picture = overlay_heat(dark, np.zeros((20, 30))).astype(int)
    assert picture[0, 0, 0] - picture[-1, 0, 0] > 40


def test_mistakes_are_named(scene):
    image, labels, *_ = scene
    with pytest.raises(ValueError, match=r"\(60, 70\) cannot be laid over an image of \(60, 80\)"):
        overlay_labels(image, labels[:, :70], distinct_colors(3))
    with pytest.raises(ValueError, match="uint8 image, got .* float64"):
        overlay_heat(image / 255, np.zeros((60, 80)))


def test_errors_are_red_and_unlabelled_pixels_dark(scene):
    image, *_ = scene
    wrong, labelled = np.zeros((2, *image.shape[:2]), bool)
    labelled[:, :40] = True
    wrong[:10, :10] = True
    picture = overlay_errors(image, wrong, labelled).astype(int)
    assert (picture[wrong][:, 0] > picture[wrong][:, 1] + 60).all()
    right = picture[labelled & ~wrong]
    assert (right == right[:, :1]).all() and right.min() >= 127  # pale grey
    assert (picture[~labelled] == UNLABELLED).all()
