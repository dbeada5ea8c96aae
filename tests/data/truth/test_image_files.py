import struct
from pathlib import Path
from zlib import compress, crc32

import cv2
import numpy as np
import pytest
from PIL import Image

from sgr.data.truth.image_files import (
    IMAGE_SUFFIXES,
    check_labels,
    exif_orientation,
    find_wrong_labels,
    read_image,
    read_labels,
    size_fault,
)
from sgr.data.truth.segments import read_segment_map


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_images_of_all_suffixes_are_read(tmp_path, suffix):
    path = str(tmp_path / f"image{suffix}")
    Image.new("L" if suffix == ".pgm" else "RGB", (4, 3), "white").save(path)
    assert read_image(path, "RGB").tolist() == [[[255] * 3] * 4] * 3


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
        with pytest.raises(OSError, match="huge.png is too large .*2500 pixels.*tiles"):
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


@pytest.mark.parametrize("exif", [b"Exif\0\0no-tiff", b"Exif\0\0II*\0"])
def test_damaged_exif_data_turn_nothing(tmp_path, exif):
    path = str(tmp_path / "a.jpg")
    Image.new("L", (4, 2)).save(path, exif=exif, dpi=(72, 72))  # else Pillow reads them at once
    assert exif_orientation(path) == 1 and read_image(path, "L").shape == (2, 4, 1)


RAMP = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16


def write_16_bit(path, colour=False, values=RAMP, **options):
    """A PNG of 16 bits; Pillow cannot write one in colour."""
    if colour:
        assert cv2.imwrite(str(path), np.stack([values, values // 2, values // 4], axis=2))
    else:
        Image.fromarray(values).save(path, **options)
    return str(path)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_grey_images_of_16_bits(tmp_path, suffix):
    file = write_16_bit(tmp_path / f"a.{suffix}")
    with pytest.raises(OSError, match=rf"image .*a\.{suffix} .*16 bits.*\(mode I.*SIXTEEN_BIT"):
        read_image(file, "RGB")
    for order in ("RGB", "BGR"):
        full = read_image(file, order, sixteen_bit="full_range")
        assert full.shape == (64, 64, 3) and full.dtype == np.uint8
        np.testing.assert_array_equal(full[..., 1], np.round(RAMP / 65535 * 255))
        # Values of 12 bits in 16, as of many cameras.
        file_12 = write_16_bit(tmp_path / f"b.{suffix}", values=RAMP // 16)
        spread = read_image(file_12, order, sixteen_bit="percentile")
        assert spread.min() == 0 and spread.max() == 255
        assert abs(int(np.median(spread)) - 127) <= 1
    np.testing.assert_array_equal(read_labels(file), RAMP)  # labels are never scaled


def test_an_image_of_one_value(tmp_path):
    file = write_16_bit(tmp_path / "a.png", values=np.full((4, 5), 7, np.uint16))
    assert not read_image(file, "RGB", sixteen_bit="percentile").any()


@pytest.mark.parametrize("suffix", ["png", "tif", "ppm"])
def test_colour_images_of_16_bits(tmp_path, suffix):
    file = write_16_bit(tmp_path / f"a.{suffix}", colour=True)
    with pytest.raises(OSError, match=rf"a\.{suffix} .*16 bits.*\(mode RGB\).*SIXTEEN_BIT"):
        read_image(file, "RGB")
    expected = np.stack([RAMP // 4, RAMP // 2, RAMP], axis=2) / 257
    full = read_image(file, "RGB", sixteen_bit="full_range")
    assert np.abs(full - expected).max() <= 1
    spread = read_image(file, "BGR", sixteen_bit="percentile")
    assert (spread[..., 0] >= spread[..., 1]).all() and spread.max() == 255


@pytest.mark.parametrize("kind", ["colour.png", "colour.tif", "grey.png"])
def test_images_of_16_bits_with_alpha(tmp_path, kind):
    """Alpha is no colour: it does not move the percentiles."""
    file, colour = tmp_path / kind, tmp_path / "opaque.png"
    values = np.stack([RAMP, RAMP // 2, RAMP // 4] if kind[0] == "c" else [RAMP] * 3, axis=2)
    alpha = np.full((64, 64, 1), 65535, np.uint16)
    cv2.imwrite(str(colour), values)
    if kind[0] == "c":
        cv2.imwrite(str(file), np.concatenate([values, alpha], axis=2))
    else:
        write_grey_alpha(file, np.concatenate([values[..., :1], alpha], axis=2))
    with pytest.raises(OSError, match=r"16 bits.*\(mode RGBA\).*SIXTEEN_BIT"):
        read_image(str(file), "RGB")
    for way in ("full_range", "percentile"):
        for order in ("RGB", "BGR"):
            with_alpha = read_image(str(file), order, sixteen_bit=way)
            np.testing.assert_array_equal(
                with_alpha, read_image(str(colour), order, sixteen_bit=way)
            )


def write_grey_alpha(path, values):
    """A PNG of 16 bits with two channels, which neither Pillow nor OpenCV writes."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc32(name + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 4, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def test_pixels_of_16_bits_are_no_values_of_16_bits(tmp_path):
    """A BMP file may have 5 or 6 bits for each colour."""
    header = struct.pack("<2sIII", b"BM", 66 + 16, 0, 66)
    header += struct.pack("<IiiHHIIiiII", 40, 4, 2, 1, 16, 3, 16, 0, 0, 0, 0)
    header += struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    file = tmp_path / "a.bmp"
    file.write_bytes(header + b"\xff" * 16)
    for sixteen_bit in ("refuse", "percentile"):
        read = read_image(str(file), "RGB", sixteen_bit=sixteen_bit)
        assert read.shape == (2, 4, 3) and (read == 255).all()


def test_orientations_of_16_bits(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = write_16_bit(tmp_path / "a.png", values=RAMP[:, :32].copy(), exif=exif)
    assert read_image(file, "RGB", sixteen_bit="full_range").shape == (32, 64, 3)


@pytest.mark.parametrize("dtype, mode", [(np.int32, "I"), (np.float32, "F")])
@pytest.mark.parametrize("sixteen_bit", ["refuse", "full_range", "percentile"])
def test_images_of_32_bits(tmp_path, dtype, mode, sixteen_bit):
    file = str(tmp_path / "a.tif")
    Image.fromarray(np.ones((4, 5), dtype)).save(file)
    with pytest.raises(OSError, match=rf"a\.tif .*32 bits per value \(mode {mode}\)"):
        read_image(file, "RGB", sixteen_bit=sixteen_bit)


def test_label_maps_of_floating_point_numbers(tmp_path):
    file = str(tmp_path / "a.tif")
    Image.fromarray(np.ones((4, 5), np.float32)).save(file)
    with pytest.raises(ValueError, match=r"label map .*a\.tif has floating-point .*mode F"):
        read_labels(file)
    with pytest.raises(ValueError, match=r"panoptic picture .*a\.tif has floating-point"):
        read_segment_map({"pan_seg_file_name": file, "segments_info": []})


def test_multispectral_images(tmp_path):
    bands = [np.zeros((6, 8), np.uint8)] * 6
    file = str(tmp_path / "a.tif")
    assert cv2.imwritemulti(file, bands)  # pages, of which the first is an image
    assert read_image(file, "RGB").shape == (6, 8, 3)
    data = bytearray(Path(file).read_bytes())
    entry = data.index(b"\x15\x01\x03\x00\x01\x00\x00\x00\x01\x00")  # SamplesPerPixel: 1
    data[entry + 8] = 6
    Path(file).write_bytes(data)
    with pytest.raises(OSError, match=r"a\.tif .*(multispectral|may be damaged)"):
        read_image(file, "RGB")


def test_formats_that_start_programs_are_not_read(tmp_path):
    """Pillow would hand a PostScript file of any name to Ghostscript."""
    file = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(file)
    with pytest.raises(OSError, match=r"a\.png cannot be read: .*none of the formats BMP"):
        read_image(str(file), "RGB")


def test_an_unknown_way(tmp_path):
    with pytest.raises(ValueError, match="INPUT.SIXTEEN_BIT is 'scale'; known are 'refuse'"):
        read_image("a.png", "RGB", sixteen_bit="scale")
