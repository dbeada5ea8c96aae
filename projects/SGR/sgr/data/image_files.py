"""Reading and checking images and label maps, with errors that name the file."""

from __future__ import annotations

import struct

import numpy as np
from detectron2.data import detection_utils

__all__ = ["check_labels", "read_image", "read_labels"]

# What Pillow raises for files that are cut off, damaged or no image at all.
_PILLOW_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error)


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
    wrong = labels >= num_classes
    if labels.dtype.kind != "u":
        wrong |= labels < 0
    if ignore_label is not None:
        wrong &= labels != ignore_label
    if not wrong.any():
        return
    values = np.unique(labels[wrong])
    shown = ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
    expected = f"expected are 0 to {num_classes - 1}"
    if ignore_label is None:
        expected += ", and the dataset's metadata have no ignore_label"
    else:
        expected += f", and {ignore_label} for ignored pixels"
    raise ValueError(f"label map {file_name} holds the label(s) {shown}; {expected}")


def _read(file_name: str, format: str | None, what: str) -> np.ndarray:
    try:
        return detection_utils.read_image(file_name, format=format)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{what} {file_name} does not exist") from error
    except _PILLOW_ERRORS as error:
        raise OSError(f"{what} {file_name} cannot be read, it may be damaged: {error}") from error
