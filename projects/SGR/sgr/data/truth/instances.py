"""The instances of one image: reading their shapes, drawing them, and which one lies on top."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from .annotations import annotation_name, checked_rle
from .masks import to_rle, valid_polygons


@dataclass(frozen=True)
class InstanceShape:
    """The pixels of one annotation.

    Attributes:
        index: its place in the annotations of the record.
        category: its class; None if the annotation does not have one.
        crowd: whether it stands for many instances.
        rle: its mask at the resolution of the image, as a run-length code.
        polygons: flat arrays of x, y, x, y..., without those far outside of the image; None if the
            annotation has a run-length code.
    """

    index: int
    category: int | None
    crowd: bool
    rle: dict
    polygons: list[np.ndarray] | None


def read_shapes(
    annotations: list[dict],
    *,
    size: tuple[int, int],
    file_name: str,
    with_crowds: bool = True,
    boxes_do: bool = False,
) -> list[InstanceShape]:
    """Read the shapes of annotations. Annotations that enclose nothing are left out.

    Args:
        size: (height, width) of the image.
        with_crowds: also read crowds.
        boxes_do: take the box of an annotation whose segmentation is missing or encloses nothing.

    Raises:
        ValueError: see :func:`~sgr.data.truth.masks.to_rle`. The message names the annotation.
    """
    shapes = []
    for index, annotation in enumerate(annotations):
        crowd = bool(annotation.get("iscrowd", 0))
        if crowd and not with_crowds:
            continue
        segmentation = annotation.get("segmentation")
        name = annotation_name(annotation, index, file_name)
        rle = checked_rle(segmentation, size, name)
        if rle is None and boxes_do and "bbox" in annotation:
            segmentation = [_corners(annotation)]
            rle = to_rle(segmentation, size)
        if rle is None:
            continue
        polygons = None
        if not isinstance(segmentation, dict):  # Of a polygon far outside, clipping leaves nothing.
            polygons = [each for each in valid_polygons(segmentation, size) if len(each)]
        shapes.append(InstanceShape(index, annotation.get("category_id"), crowd, rle, polygons))
    return shapes


def _corners(annotation: dict) -> list[float]:
    """The box of an annotation as a polygon, which any augmentation can move."""
    # A copy, because Detectron2 converts arrays in place.
    box = [float(number) for number in annotation["bbox"]]
    x0, y0, x1, y1 = BoxMode.convert(box, annotation["bbox_mode"], BoxMode.XYXY_ABS)
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def draw_instances(
    shapes: Sequence[InstanceShape],
    size: tuple[int, int],
    transforms: T.TransformList | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Draw instances one by one, in the order in which they cover each other.

    Crowds come first and lie below everything. Larger instances come before smaller ones, which lie
    on top. The size is the area of the whole mask in the image, in pixels, before an augmentation;
    of two equal ones the later lies on top.

    Polygons are drawn at the size of the augmented image; run-length codes are augmented as masks.
    Cost: one mask of this size per instance, about a millisecond per million pixels.

    Args:
        shapes: from :func:`read_shapes`.
        size: (height, width) of the result.
        transforms: the augmentation of the image; None draws at the image's own resolution.

    Yields:
        The place of a shape in ``shapes`` and its (H, W) bool mask, which may be empty and lies row
        by row in memory.
    """
    areas = [int(mask_util.area(shape.rle)) for shape in shapes]
    below_to_above = sorted(
        range(len(shapes)), key=lambda place: (not shapes[place].crowd, -areas[place])
    )
    for place in below_to_above:
        yield place, _mask(shapes[place], size, transforms)


def paint(
    drawn: Iterable[tuple[int, np.ndarray]],
    values: Sequence[int],
    size: tuple[int, int],
    *,
    background: int,
) -> np.ndarray:
    """Make one map of masks, where the later mask lies on top.

    Args:
        drawn: from :func:`draw_instances`.
        values: the value of each shape, by its place.
        size: (height, width) of the map.
        background: the value of pixels that no mask covers.

    Returns:
        (H, W) uint8, or int32 if the values need it.
    """
    is_byte = all(0 <= value <= 255 for value in (background, *values))
    dtype = np.uint8 if is_byte else np.int32
    painted = np.full(size, background, dtype)
    for place, mask in drawn:
        np.copyto(painted, dtype(values[place]), where=mask)
    return painted


def paint_classes(
    drawn: Iterable[tuple[int, np.ndarray]],
    shapes: Sequence[InstanceShape],
    size: tuple[int, int],
    *,
    num_classes: int,
) -> np.ndarray:
    """Make the map of classes from which the components of instance data are made.

    Args:
        drawn: from :func:`draw_instances`.
        shapes: the same as there, with a category each.
        size: (height, width) of the map.

    Returns:
        (H, W) uint8 or int32: the class of the instance on top; ``num_classes``, the background,
        for pixels without an instance; ``num_classes + 1``, which is ignored, for pixels of crowds
        only.
    """
    # The background is a class, so that the concept regions of things learn where things end.
    background, ignored = num_classes, num_classes + 1
    values: list[Any] = [ignored if shape.crowd else shape.category for shape in shapes]
    # One more value, so that the map can hold it even without a crowd: padding is ignored too.
    return paint(drawn, [*values, ignored], size, background=background)


def _mask(
    shape: InstanceShape, size: tuple[int, int], transforms: T.TransformList | None
) -> np.ndarray:
    """(H, W) bool mask in the image, augmented or not, of this ``size``."""
    if transforms is None:
        return _decode(shape.rle)
    if shape.polygons is None:
        mask = _decode(shape.rle).view(np.uint8)
        return transforms.apply_segmentation(mask).astype(bool)
    # Only the corners are moved: Detectron2 needs Shapely to crop polygons. Drawing them cuts off
    # the parts outside of the image.
    polygons = [
        transforms.apply_coords(polygon.reshape(-1, 2).copy()) for polygon in shape.polygons
    ]
    rle = to_rle(polygons, size)
    return np.zeros(size, bool) if rle is None else _decode(rle)  # None without a polygon


def _decode(rle: dict) -> np.ndarray:
    """(H, W) bool mask, row by row in memory.

    pycocotools draws column by column. NumPy takes ten times as long as OpenCV to copy that row by
    row, and is as slow wherever arrays of both orders meet.
    """
    columns = mask_util.decode(rle).T  # bytes of 0 and 1
    return cv2.transpose(columns).view(bool)
