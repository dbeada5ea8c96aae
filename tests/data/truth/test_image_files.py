import numpy as np
import pytest
from PIL import Image

from sgr.data.truth.image_files import (
    check_labels,
    exif_orientation,
    find_wrong_labels,
    read_image,
    read_labels,
    size_fault,
)


@pytest.mark.parametrize("dtype, read_as", [(np.uint8, np.uint8), (np.uint16, np.int32)])
def test_labels_are_read_as_stored(tmp_path, dtype, read_as):
    labels = np.arange(12, dtype=dtype).reshape(3, 4) * np.iinfo(dtype).bits * 2
    path = str(tmp_path / "labels.png")
    Image.fromarray(labels).save(path)
    read = read_labels(path)
    assert read.dtype == read_as
    np.testing.assert_array_equal(read, labels)


def test_a_palette_does_not_matter(tmp_path):
    labels = np.array([[0, 3], [255, 1]], np.uint8)
    image = Image.fromarray(labels).convert("P")
    image.putdata(labels.flatten().tolist())
    image.putpalette([(7 * value) % 256 for value in range(768)])
    path = str(tmp_path / "palette.png")
    image.save(path)
    np.testing.assert_array_equal(read_labels(path), labels)


def test_a_colour_picture_is_an_error(tmp_path):
    path = str(tmp_path / "colour.png")
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(path)
    with pytest.raises(ValueError, match="colour.png .* has 3 channels"):
        read_labels(path)


def test_right_labels_pass():
    check_labels(np.array([[0, 4, 255]], np.uint8), "a.png", num_classes=5, ignore_label=255)
    check_labels(np.array([[0, 4, -1]]), "a.png", num_classes=5, ignore_label=-1)
    check_labels(np.array([[0, 4, 255]], np.uint8), "a.png", num_classes=847, ignore_label=65535)
    check_labels(np.array([[0, 4]], np.uint8), "a.png", num_classes=5, ignore_label=None)


def test_wrong_labels_are_named():
    labels = np.array([[9, 5, -2, 255, 5, 4]])
    message = r"a\.png holds the label\(s\) -2, 5, 9; expected are 0 to 4, and 255 for ignored"
    with pytest.raises(ValueError, match=message):
        check_labels(labels, "a.png", num_classes=5, ignore_label=255)
    with pytest.raises(ValueError, match="-2, 5, 9, 255; .* the dataset's metadata have no ignore"):
        check_labels(labels, "a.png", num_classes=5, ignore_label=None)
    with pytest.raises(ValueError, match=r" 5, 6, .*, 13, 14, \.\.\.; expected"):
        check_labels(np.arange(16)[None], "a.png", num_classes=5, ignore_label=255)


def test_the_mask_of_wrong_labels():
    labels = np.array([[0, 4], [5, 255]], np.uint8)
    wrong, message = find_wrong_labels(labels, "a.png", num_classes=5, ignore_label=255)
    assert wrong.tolist() == [[False, False], [True, False]]
    assert message.startswith("label map a.png holds the label(s) 5;")
    assert find_wrong_labels(labels, "a.png", num_classes=6, ignore_label=255) is None


def test_an_image_of_too_many_pixels_is_named(tmp_path, monkeypatch):
    path = str(tmp_path / "huge.png")
    Image.new("L", (50, 50)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for read in (lambda: read_image(path, "RGB"), lambda: read_labels(path)):
        with pytest.raises(OSError, match="huge.png cannot be read"):
            read()


@pytest.mark.parametrize("turn", [None, *range(10)])
def test_exif_orientation(tmp_path, turn):
    exif = Image.Exif()
    if turn is not None:
        exif[0x0112] = turn
    path = str(tmp_path / "a.jpg")
    Image.new("L", (4, 2)).save(path, exif=exif)
    expected = turn if turn in range(1, 9) else 1
    assert exif_orientation(path) == expected
    fault = size_fault(path, (4, 2), "its label map b.png is", (2, 4))
    assert fault.startswith(f"image {path} is 2 x 4 pixels, but its label map b.png is 4 x 2")
    assert ("EXIF" in fault) == (turn in range(5, 9))
    assert "EXIF" not in size_fault(path, (4, 2), "it is", (3, 4))
