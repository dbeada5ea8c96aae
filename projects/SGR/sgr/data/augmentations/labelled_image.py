"""The input of augmentations: an image and an integer map of its pixels."""

from __future__ import annotations

import numpy as np
from detectron2.data import transforms as T


class LabelledImage:
    """An image and an integer map, which augmentations change together.

    It replaces Detectron2's ``AugInput``, which serves only maps of bytes. Detectron2 resizes bytes
    like images, by the centres of the pixels, but all other numbers by their corners. This shifts
    the map against its image by up to half a pixel (of the coarser of the two). Here, maps of
    larger numbers are resized as pictures with four bytes per pixel.

    Attributes:
        image: (H, W, 3) uint8.
        indices: (H, W) uint8 or int32, see :func:`compact`.
    """

    def __init__(
        self, image: np.ndarray, indices: np.ndarray, labels: np.ndarray | None = None
    ) -> None:
        """``labels`` (N,) are those of the indices; None if the indices are labels."""
        self.image = image
        self.indices = indices
        self._labels = labels

    @property
    def sem_seg(self) -> np.ndarray:
        """(H, W) labels, for augmentations that look at them; made on demand."""
        return self.indices if self._labels is None else self._labels[self.indices]

    def transform(self, transform: T.Transform) -> None:
        """Apply a transform to the image and the map."""
        self.image = transform.apply_image(self.image)
        if self.indices.dtype == np.uint8:
            self.indices = transform.apply_segmentation(self.indices)
        else:
            in_bytes = np.ascontiguousarray(self.indices)[..., None].view(np.uint8)
            in_bytes = np.ascontiguousarray(transform.apply_segmentation(in_bytes))
            self.indices = in_bytes.view(np.int32)[..., 0]


def compact(indices: np.ndarray, *values: int) -> np.ndarray:
    """Convert (H, W) integers to bytes if all ``values`` fit, else to int32.

    ``values`` are the largest value of the map, and others that it will get later. A map that has
    the type already is returned itself. It may be read-only.
    """
    dtype = np.uint8 if all(0 <= value <= 255 for value in values) else np.int32
    return indices.astype(dtype, copy=False)
