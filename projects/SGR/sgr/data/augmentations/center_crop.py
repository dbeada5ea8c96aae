"""Crops out of the middle of an image."""

from __future__ import annotations

import sys

import numpy as np
from detectron2.data import transforms as T


class CenterCrop(T.RandomCrop):
    """A crop of the same size as by Detectron2's ``RandomCrop``, from the middle of the image.

    If the exact middle is not possible, the crop lies half a pixel further up or left. Only the
    size is random, and only if ``crop_type`` is a range.
    """

    def get_transform(self, image: np.ndarray) -> T.CropTransform:
        return self.transform_of(image.shape[:2])

    def transform_of(self, size: tuple[int, int]) -> T.CropTransform:
        """The crop of an image of this (height, width)."""
        height, width = size
        rows, columns = self.get_crop_size(size)
        return T.CropTransform((width - columns) // 2, (height - rows) // 2, columns, rows)


class CentralSquare(T.Augmentation):
    """Resizes the shorter side to ``side`` pixels, then cuts out the square in the middle.

    This is a test protocol (SGR paper, Sec. A.1) and not random. The longer side keeps its
    proportion and is rounded as by ``ResizeShortestEdge``. Small images are enlarged.
    """

    def __init__(self, side: int):
        """``side`` is in pixels. A side that is not positive raises a ValueError."""
        super().__init__()
        if side < 1:
            raise ValueError(
                "TEST.CENTER_CROP_SIZE must be the side of a square in pixels, or 0 to test on "
                f"whole images, not {side}"
            )
        self.side = side
        self._crop = CenterCrop("absolute", (side, side))

    def get_transform(self, image: np.ndarray) -> T.TransformList:
        return self.transform_of(image.shape[:2])

    def transform_of(self, size: tuple[int, int]) -> T.TransformList:
        """The transform of an image of this (height, width)."""
        resized = T.ResizeShortestEdge.get_output_shape(*size, self.side, sys.maxsize)
        crop = self._crop.transform_of(resized)
        return T.TransformList([T.ResizeTransform(*size, *resized), crop])
