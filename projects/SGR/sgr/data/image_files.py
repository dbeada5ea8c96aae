"""Reading images and label maps, with errors that name the file."""

from __future__ import annotations

import struct

import numpy as np
from detectron2.data import detection_utils

__all__ = ["read_image", "read_labels"]

# What Pillow raises for files that are cut off, damaged or no image at all.
_PILLOW_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error)


def read_image(file_name: str, format: str) -> np.ndarray:
    """Read an image.

    Args:
        file_name: path.
        format: "BGR" or a mode of Pillow's, as in ``INPUT.FORMAT``.

    Returns:
        (H, W, C) uint8 array.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file cannot be read as an image.
    """
    return _read(file_name, format, "image")


def read_labels(file_name: str) -> np.ndarray:
    """Read a label map: a single-channel or palette image whose values are the labels.

    Returns:
        (H, W) integer array, uint8 unless the file has more than 8 bits.

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
    return labels.astype(np.uint8) if labels.dtype == bool else labels


def _read(file_name: str, format: str | None, what: str) -> np.ndarray:
    try:
        return detection_utils.read_image(file_name, format=format)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{what} {file_name} does not exist") from error
    except _PILLOW_ERRORS as error:
        raise OSError(f"{what} {file_name} cannot be read, it may be damaged: {error}") from error
