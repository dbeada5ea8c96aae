"""Crops out of the middle of an image."""

from __future__ import annotations

import sys

import numpy as np
from detectron2.data import transforms as T

__all__ = ["CenterCrop", "CentralSquare"]


class CenterCrop(T.RandomCrop):
    """The crop of Detectron2's ``RandomCrop``, of the same size, out of the middle of the image.

    Where it cannot lie exactly in the middle, it lies half a pixel further up or left. Nothing is
    drawn at random, but for the size where ``crop_type`` is a range.
    """

    def get_transform(self, image: np.ndarray) -> T.CropTransform:
        return self.transform_of(image.shape[:2])

    def transform_of(self, size: tuple[int, int]) -> T.CropTransform:
        """The crop of an image of this (height, width)."""
        height, width = size
        rows, columns = self.get_crop_size(size)
        return T.CropTransform((width - columns) // 2, (height - rows) // 2, columns, rows)


class CentralSquare(T.Augmentation):
    """The shorter side resized to ``side`` pixels, then the ``side`` x ``side`` in the middle.

    A test protocol, not a random augmentation (SGR paper, Sec. A.1). The longer side follows in
    proportion, rounded as by ``ResizeShortestEdge``; small images are enlarged.
    """

    def __init__(self, side: int):
        """
        Args:
            side: pixels.

        Raises:
            ValueError: it is not positive.
        """
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
        """What is done to an image of this (height, width)."""
        resized = T.ResizeShortestEdge.get_output_shape(*size, self.side, sys.maxsize)
        crop = self._crop.transform_of(resized)
        return T.TransformList([T.ResizeTransform(*size, *resized), crop])
