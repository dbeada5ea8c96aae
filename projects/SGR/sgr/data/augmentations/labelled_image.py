"""What the augmentations of the mappers work on: an image and an integer map in register."""

from __future__ import annotations

import numpy as np
from detectron2.data import transforms as T

__all__ = ["LabelledImage", "compact"]


class LabelledImage:
    """An image and an integer map, which augmentations change together.

    Takes the place of Detectron2's ``AugInput``, which is for maps of bytes. These Detectron2
    resizes like images, by the centres of the pixels; any other numbers, though, by their corners,
    which shifts a map against its image by up to half a pixel of the coarser of the two. Here maps
    of larger numbers are resized as pictures of four bytes per pixel.

    Attributes:
        image: (H, W, 3) uint8.
        indices: (H, W) uint8 or int32, see :func:`compact`.
    """

    def __init__(
        self, image: np.ndarray, indices: np.ndarray, labels: np.ndarray | None = None
    ) -> None:
        """
        Args:
            image, indices: see the attributes.
            labels: (N,) integers, what each index stands for; None where indices are labels.
        """
        self.image = image
        self.indices = indices
        self._labels = labels

    @property
    def sem_seg(self) -> np.ndarray:
        """(H, W) labels, for augmentations that look at them; made when one does."""
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
    """A map as bytes if the ``values``, its largest and whatever else it gets, fit, else int32.

    The map itself if it has the type already, which may be read-only.
    """
    dtype = np.uint8 if all(0 <= each <= 255 for each in values) else np.int32
    return indices.astype(dtype, copy=False)
