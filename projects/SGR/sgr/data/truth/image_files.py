"""Reading images and label maps, with errors that name the file."""

from __future__ import annotations

import os
import struct
from typing import Any

import numpy as np
from detectron2.data import detection_utils
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from ..faults import list_values

# EXIF orientations that exchange height and width; 1 is none, 2 to 4 are half turns and
# reflections.
_QUARTER_TURNS = range(5, 9)
_EXIF_ORIENTATION = 0x0112

# INPUT.SIXTEEN_BIT: how images of 16 bits become bytes.
SIXTEEN_BIT = ("refuse", "full_range", "percentile")
_PERCENTILES = (0.5, 99.5)

# Without those that start other programs (EPS) or read other files.
Image.init()
_FORMATS = tuple(
    name
    for name in ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
    if name in Image.OPEN  # as Pillow was built
)
# Of the images that are looked for in a folder, in lower case.
IMAGE_SUFFIXES = (
    *(".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pgm"),
    *(".png", ".ppm", ".tif", ".tiff", ".webp"),
)

# Pillow raises these for files that are cut off, damaged, no image at all, or far too large.
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


def read_image(file_name: str, format: str | None, *, sixteen_bit: str = "refuse") -> np.ndarray:
    """Read an image.

    Args:
        file_name: path.
        format: "BGR" or a mode of Pillow, as in ``INPUT.FORMAT``; None keeps the stored values.
        sixteen_bit: one of ``SIXTEEN_BIT``: what is done with images of 16 bits, as in
            ``INPUT.SIXTEEN_BIT``. With format None it has no effect. Of JPEG 2000 files in colour,
            the header that Pillow shows does not tell the bits: they count as 8.

    Returns:
        (H, W, C) uint8 array; with format None, the shape and type of the file.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError: the file cannot be read as an image, or has values that are not bytes and that
            nobody has said how to read.
    """
    if sixteen_bit not in SIXTEEN_BIT:
        known = ", ".join(map(repr, SIXTEEN_BIT))
        raise ValueError(f"INPUT.SIXTEEN_BIT is {sixteen_bit!r}; known are {known}")
    return _read(file_name, format, "image", sixteen_bit)


def read_labels(file_name: str) -> np.ndarray:
    """Read a label map: a single-channel or palette image whose values are the labels.

    Returns:
        (H, W) integer array: uint8, or int32 if the file has more than 8 bits.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError: the file cannot be read as an image.
        ValueError: the image has several channels, or numbers that are no integers.
    """
    # Without a format, the indices of a palette image stay indices.
    labels = _read(file_name, None, "label map")
    if labels.dtype.kind == "f":
        raise ValueError(
            f"label map {file_name} has floating-point numbers (mode F), and labels are integers; "
            "save it as a PNG of 8 or 16 bits"
        )
    if labels.ndim != 2:
        raise ValueError(
            f"label map {file_name} must have one channel of class labels, but has "
            f"{labels.shape[2]} channels; convert its colours to labels first"
        )
    if labels.dtype == np.uint16:  # PyTorch has few operations on this type
        return labels.astype(np.int32)
    return labels.astype(np.uint8) if labels.dtype == bool else labels


def check_labels(
    labels: np.ndarray, file_name: str, *, num_classes: int, ignore_label: int | None
) -> None:
    """Check that every label is a class or the ignored label.

    Args:
        labels: (H, W) integers.
        file_name: the file of the labels, for the message.
        num_classes: classes are in ``[0, num_classes)``.
        ignore_label: the label of unlabelled pixels; None if the dataset has none.

    Raises:
        ValueError: there are other labels. The message names up to ten of them.
    """
    wrong = find_wrong_labels(labels, file_name, num_classes=num_classes, ignore_label=ignore_label)
    if wrong:
        raise ValueError(wrong[1])


def find_wrong_labels(
    labels: np.ndarray, file_name: str, *, num_classes: int, ignore_label: int | None
) -> tuple[np.ndarray, str] | None:
    """Find the labels that :func:`check_labels` refuses.

    Returns:
        The (H, W) bool mask of labels that are neither a class nor ignored, and the message; None
        if all labels are right.
    """
    wrong = labels >= num_classes
    if labels.dtype.kind != "u":
        wrong |= labels < 0
    if ignore_label is not None:
        wrong &= labels != ignore_label
    if not wrong.any():
        return None
    values = list_values(np.unique(labels[wrong]))
    expected = f"expected are 0 to {num_classes - 1}"
    if ignore_label is None:
        expected += ", and the dataset's metadata have no ignore_label"
    else:
        expected += f", and {ignore_label} for ignored pixels"
    return wrong, f"label map {file_name} holds the label(s) {values}; {expected}"


def exif_orientation(file_name: str) -> int:
    """The orientation in the EXIF data of an image, 1 (not turned) to 8. It reads the header.

    Raises:
        OSError: the file does not exist, or is no image.
    """
    with Image.open(file_name) as image:
        orientation = _exif(image).get(_EXIF_ORIENTATION, 1)
    return orientation if orientation in range(2, 9) else 1


def is_turn_unproven(turn: int, size: tuple[int, int], is_compared: bool) -> bool:
    """Whether EXIF data turn an image, and nothing proves that its ground truth is turned too.

    Args:
        turn: :func:`exif_orientation` of the image.
        size: its (height, width).
        is_compared: whether the ground truth has a size, which is compared with the image's. This
            proves a quarter turn of an image that is not square.
    """
    is_proven = is_compared and turn in _QUARTER_TURNS and size[0] != size[1]
    return turn != 1 and not is_proven


def size_fault(
    file_name: str, size: tuple[int, int], its_truth_is: str, other: tuple[int, ...]
) -> str | None:
    """The message if an image and its ground truth differ in size; None if they do not.

    Args:
        file_name: the image.
        size: its (height, width).
        its_truth_is: the middle of the message, for example "its label map FILE is".
        other: (height, width) of the ground truth.
    """
    if tuple(size) == tuple(other):
        return None
    message = (
        f"image {file_name} is {size[1]} x {size[0]} pixels, but {its_truth_is} "
        f"{other[1]} x {other[0]}"
    )
    if tuple(other) == tuple(size[::-1]) and exif_orientation(file_name) in _QUARTER_TURNS:
        message += (
            "; the orientation in its EXIF data turns the image and not the ground truth: remove it"
        )
    return message


def _read(file_name: str, format: str | None, what: str, sixteen_bit: str = "") -> np.ndarray:
    try:
        # A number is not the name of a file, but would be an open one.
        with open(os.fspath(file_name), "rb") as file, Image.open(file, formats=_FORMATS) as opened:
            image: Image.Image = opened
            if format is not None:
                bits = _bits(opened)
                if bits == 16:
                    image = _as_bytes(image, file_name, sixteen_bit)
                elif bits > 16:
                    raise OSError(
                        f"it has {bits} bits per value (mode {image.mode}), and how these become "
                        "bytes is not known: convert it to 8 or 16 bits"
                    )
            return detection_utils.convert_PIL_to_numpy(
                detection_utils._apply_exif_orientation(image), format
            )
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{what} {file_name} does not exist") from error
    except UnidentifiedImageError as error:
        raise OSError(f"{what} {file_name} cannot be read: {_unknown(file_name)}") from error
    except Image.DecompressionBombError as error:
        raise OSError(
            f"{what} {file_name} is too large ({error}); cut it into tiles or make it smaller, or, "
            "if you trust where it comes from, raise PIL.Image.MAX_IMAGE_PIXELS in your program"
        ) from error
    except _PILLOW_ERRORS as error:
        raise OSError(f"{what} {file_name} cannot be read, it may be damaged: {error}") from error


def _bits(image: ImageFile) -> int:
    """The bits of a value in the file, as its header tells them: 8 or less, 16 or 32."""
    arguments: Any = image.tile[0][3] if image.tile else ""
    # Pixels of 16 bits in BMP files have 5 or 6 bits per value.
    has_16 = ";16" in str(arguments) and "BGR;16" not in str(arguments)
    if image.mode.startswith("I;16") or has_16:
        return 16
    if image.format == "PPM" and image.mode == "RGB" and isinstance(arguments, tuple):
        return 16 if arguments[-1] > 255 else 8  # the largest value that a pixel can have
    if image.mode == "I":  # of 16 bits in PNG and PPM files
        return 16 if image.format in ("PNG", "PPM") else 32
    return 32 if image.mode == "F" else 8


def _as_bytes(image: Image.Image, file_name: str, sixteen_bit: str) -> Image.Image:
    """An image of 16 bits as bytes, with its EXIF orientation."""
    if sixteen_bit == "refuse":
        raise OSError(
            f"it has 16 bits per value (mode {image.mode}): set INPUT.SIXTEEN_BIT to full_range, "
            "if values go from 0 to 65535, or to percentile, which spreads the values of each image"
        )
    values = np.asarray(image)
    if values.dtype == np.uint8:  # Pillow has only the higher bytes, of all but grey images
        if sixteen_bit == "full_range":
            return image
        import cv2

        flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
        as_stored = None if image.mode == "CMYK" else cv2.imread(file_name, flags)
        if as_stored is None:
            raise OSError("its 16 bits cannot be read in colour; set INPUT.SIXTEEN_BIT full_range")
        values = as_stored[..., 2::-1]
    low, high = 0.0, 65535.0
    if sixteen_bit == "percentile":
        low, high = np.percentile(values, _PERCENTILES)
    scaled = (values - low) * (255 / max(high - low, 1))
    result = Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))
    result.info["exif"] = _exif(image).tobytes()
    return result


def _exif(image: Image.Image) -> Image.Exif:
    """The EXIF data of an image, none if they are damaged: Detectron2 does not use them, either."""
    try:
        return image.getexif()
    except Exception:  # of many kinds, SyntaxError among them
        return Image.Exif()


def _unknown(file_name: str) -> str:
    with open(file_name, "rb") as file:
        is_tiff = file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    if is_tiff:
        return (
            "it is a TIFF file of a kind that Pillow does not know, such as one of many channels "
            "(multispectral) or of floating-point colours; convert it to RGB of 8 bits"
        )
    return f"it is damaged, or none of the formats {', '.join(_FORMATS)}"
