import numpy as np
import pytest

from sgr.visualization import Sample, distinct_colors, draw_contact_sheet


def test_a_sheet_grows_with_its_samples(scene):
    image, labels, segments, names = scene
    colors = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250]], np.uint8)
    sample = Sample("street.png", image, labels, segments, names, segments, names)
    options = {"class_names": ["sky", "road", "car"], "class_colors": colors, "title": "streets"}
    one, two, three = (draw_contact_sheet([sample] * n, **options) for n in (1, 2, 3))
    assert one.dtype == np.uint8 and one.shape[2] == 3
    assert two.shape[0] == one.shape[0] and two.shape[1] > 1.9 * one.shape[1]
    assert three.shape[1] == two.shape[1]
    assert three.shape[0] - two.shape[0] > 225  # a picture of 300 x 225, and its name
    narrow = draw_contact_sheet([Sample("street.png", image, labels)], **options)
    assert narrow.shape[1] < 0.6 * one.shape[1]
    # Of the colours, the legend shows each class alone.
    for color in colors:
        assert (one == color).all(-1).sum() > 50


def test_pictures_keep_their_pixels(scene):
    """An image of the tile's size is shown as it is, wherever the page puts it."""
    image = np.random.default_rng(0).integers(0, 256, (260, 300, 3)).astype(np.uint8)
    sheet = draw_contact_sheet([Sample("noise", image)], class_names=[])
    row, column = np.argwhere((sheet[:-259, :-299] == image[0, 0]).all(-1))[0]
    assert np.array_equal(sheet[row : row + 260, column : column + 300], image)


def test_only_classes_that_are_shown_have_a_legend(scene):
    image, *_ = scene
    colors = distinct_colors(171)
    names = [f"class-number-{index}" for index in range(171)]
    shown = np.arange(0, 171, 5)
    labels = shown[np.arange(60 * 80).reshape(60, 80) % len(shown)]
    sheet = draw_contact_sheet([Sample("a", image, labels)], class_names=names, class_colors=colors)
    # Below the picture, which ends in row 261; a patch is 15 x 8 pixels or so.
    below = sheet[265:].reshape(-1, 3)
    counts = [(below == color).all(-1).sum() for color in colors]
    assert all(counts[index] > 30 for index in shown)
    assert sum(count > 30 for count in counts) == len(shown)


def test_portraits_and_landscapes_of_any_size():
    samples = [
        Sample("a-very-long-name-of-a-file-" * 4, np.zeros((30, 9, 3), np.uint8)),
        Sample("b", np.zeros((90, 1700, 3), np.uint8), np.full((90, 1700), 255, np.uint8)),
        Sample("c", np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.int64)),
    ]
    sheet = draw_contact_sheet(samples, class_names=["only"])
    assert sheet.shape[0] > 520  # two rows


def test_mistakes_are_named(scene):
    image, labels, *_ = scene
    with pytest.raises(ValueError, match="no sample"):
        draw_contact_sheet([], class_names=[])
    with pytest.raises(ValueError, match=r"\(60, 70\) cannot be laid over"):
        draw_contact_sheet([Sample("a", image, labels[:, :70])], class_names=["a"])
