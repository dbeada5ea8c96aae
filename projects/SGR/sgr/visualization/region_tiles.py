"""Concept regions as small pictures beside a large one."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .figure import find_font
from .overlays import overlay_heat

# The smallest and largest height of the large picture, in pixels.
_HEIGHTS = (360, 1080)
# And its largest width. A strip that is longer is drawn higher than it is.
_WIDTH = 4 * _HEIGHTS[1]
_GAP = 4


def region_tile_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels of the picture of a region, beside an image of (H, W)."""
    height, width = _large_size(size)
    tile_height = (height - _GAP) // 2
    return tile_height, max(1, round(width * tile_height / height))


def draw_regions_beside(
    picture: np.ndarray, image: np.ndarray, regions: np.ndarray, names: Sequence[str]
) -> np.ndarray:
    """Draw a picture, and to its right the image and the regions, in two rows of half its height.

    The size of the result depends only on the size of the picture and the number of regions, as
    a video needs it. :func:`sgr.visualization.draw_panel` draws ground truth and legends too.

    Args:
        picture: (H, W, 3) uint8, RGB, such as a prediction. It becomes 360 to 1080 pixels high.
        image: (H, W, 3) uint8, RGB. It is drawn as the first tile, and below the regions.
        regions: (T, h, w) in [0, 1]. They cover the image, and (h, w) is best that of
            :func:`region_tile_size`.
        names: T titles of one line.

    Returns:
        (height, width, 3) uint8, RGB. Height and width are even.

    Raises:
        ValueError: if regions and names differ in number, or picture and image differ in size.
    """
    if len(regions) != len(names):
        raise ValueError(f"{len(regions)} regions have {len(names)} names")
    if picture.shape != image.shape:
        raise ValueError(f"the picture is {picture.shape}, the image {image.shape}")
    height, width = _large_size(image.shape[:2])
    tile_height, tile_width = region_tile_size(image.shape[:2])
    columns = -(-(1 + len(regions)) // 2)
    full_width = width + columns * (_GAP + tile_width)
    canvas = np.full((height, full_width + full_width % 2, 3), 255, dtype=np.uint8)
    canvas[:, :width] = _resize(picture, (height, width))
    small = _resize(image, (tile_height, tile_width))
    # That of Pillow has few letters beyond the English ones.
    font = ImageFont.truetype(find_font("".join(names)).fname, max(11, tile_height // 15))
    heats = (_resize(np.asarray(each, dtype=np.float32), small.shape[:2]) for each in regions)
    tiles = [small, *(overlay_heat(small, heat) for heat in heats)]
    for index, (tile, name) in enumerate(zip(tiles, ("image", *names))):
        titled = Image.fromarray(tile)
        ImageDraw.Draw(titled).text(
            (4, 2), name, fill="white", font=font, stroke_width=2, stroke_fill="black"
        )
        top = (index % 2) * (tile_height + _GAP)
        left = width + _GAP + (index // 2) * (tile_width + _GAP)
        canvas[top : top + tile_height, left : left + tile_width] = np.asarray(titled)
    return canvas


def draw_beside(image: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Put an image and a picture of the same size side by side: (H, 2 W + 4, 3) uint8, RGB."""
    gap = np.full((image.shape[0], _GAP, 3), 255, dtype=np.uint8)
    return np.concatenate([image, gap, picture], axis=1)


def _large_size(size: tuple[int, int]) -> tuple[int, int]:
    height = min(max(size[0], _HEIGHTS[0]), _HEIGHTS[1])
    height -= height % 2
    return height, min(max(1, round(size[1] * height / size[0])), _WIDTH)


def _resize(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if picture.shape[:2] == size:
        return picture
    shrinks = size[0] < picture.shape[0]
    return cv2.resize(
        picture, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
