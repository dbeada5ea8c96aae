"""Reading and checking images and label maps, with errors that name the file."""

from __future__ import annotations

import struct

import numpy as np
from detectron2.data import detection_utils
from PIL import Image

__all__ = [
    "QUARTER_TURNS",
    "check_labels",
    "exif_orientation",
    "find_wrong_labels",
    "read_image",
    "read_labels",
    "size_fault",
]

# EXIF orientations that exchange height and width; 1 is none, 2 to 4 are half turns and
# reflections.
QUARTER_TURNS = range(5, 9)
_EXIF_ORIENTATION = 0x0112

# What Pillow raises for files that are cut off, damaged, no image at all, or far too large.
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


def read_image(file_name: str, format: str | None) -> np.ndarray:
    """Read an image.

    Args:
        file_name: path.
        format: "BGR" or a mode of Pillow's, as in ``INPUT.FORMAT``; None leaves the values as they
            are stored.

    Returns:
        (H, W, C) uint8 array; without a format of the file's own shape and type.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file cannot be read as an image.
    """
    return _read(file_name, format, "image")


def read_labels(file_name: str) -> np.ndarray:
    """Read a label map: a single-channel or palette image whose values are the labels.

    Returns:
        (H, W) integer array, uint8 or, if the file has more than 8 bits, int32.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file cannot be read as an image.
        ValueError: the image has several channels.
    """
    # Without a format Pillow's values come as they are: a palette image yields indices.
    labels = _read(file_name, None, "label map")
    if labels.ndim != 2:
        raise ValueError(
            f"label map {file_name} must have one channel of class labels, but has "
            f"{labels.shape[2]} channels; convert its colours to labels first"
        )
    if labels.dtype == np.uint16:  # PyTorch knows few operations on these.
        return labels.astype(np.int32)
    return labels.astype(np.uint8) if labels.dtype == bool else labels


def check_labels(
    labels: np.ndarray, file_name: str, *, num_classes: int, ignore_label: int | None
) -> None:
    """Raise unless every label is a class or the ignored one.

    Args:
        labels: (H, W) integers.
        file_name: where they come from, for the message.
        num_classes: labels are in ``[0, num_classes)``.
        ignore_label: the label of unlabelled pixels; None where there is none.

    Raises:
        ValueError: there are others; the message names up to ten of them.
    """
    wrong = find_wrong_labels(labels, file_name, num_classes=num_classes, ignore_label=ignore_label)
    if wrong:
        raise ValueError(wrong[1])


def find_wrong_labels(
    labels: np.ndarray, file_name: str, *, num_classes: int, ignore_label: int | None
) -> tuple[np.ndarray, str] | None:
    """What :func:`check_labels` objects to.

    Returns:
        The (H, W) bool mask of labels that are neither a class nor ignored, and the message; None
        where there are none.
    """
    wrong = labels >= num_classes
    if labels.dtype.kind != "u":
        wrong |= labels < 0
    if ignore_label is not None:
        wrong &= labels != ignore_label
    if not wrong.any():
        return None
    values = np.unique(labels[wrong])
    shown = ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
    expected = f"expected are 0 to {num_classes - 1}"
    if ignore_label is None:
        expected += ", and the dataset's metadata have no ignore_label"
    else:
        expected += f", and {ignore_label} for ignored pixels"
    return wrong, f"label map {file_name} holds the label(s) {shown}; {expected}"


def exif_orientation(file_name: str) -> int:
    """How its EXIF data turn an image when it is read: 1, not at all, to 8. Reads the header.

    Raises:
        OSError: there is no such file, or it is no image.
    """
    with Image.open(file_name) as image:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    return orientation if orientation in range(2, 9) else 1


def size_fault(
    file_name: str, size: tuple[int, ...], its_truth_is: str, other: tuple[int, ...], turn: int = 1
) -> str:
    """The message about an image and ground truth of another size.

    Args:
        file_name: of the image.
        size, other: (height, width) of the image as it is read, and of its ground truth.
        its_truth_is: "its label map FILE is", for instance.
        turn: the image's :func:`exif_orientation`.
    """
    message = (
        f"image {file_name} is {size[1]} x {size[0]} pixels, but {its_truth_is} "
        f"{other[1]} x {other[0]}"
    )
    if turn in QUARTER_TURNS and tuple(other) == tuple(size[::-1]):
        message += (
            "; the orientation in its EXIF data turns the image and not the ground truth: remove it"
        )
    return message


def _read(file_name: str, format: str | None, what: str) -> np.ndarray:
    try:
        return detection_utils.read_image(file_name, format=format)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{what} {file_name} does not exist") from error
    except _PILLOW_ERRORS as error:
        raise OSError(f"{what} {file_name} cannot be read, it may be damaged: {error}") from error
