"""The instances of one image, drawn into the augmented image and made one map of classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from .annotations import annotation_name, checked_rle
from .masks import to_rle, valid_polygons

__all__ = ["InstanceShape", "draw_instances", "paint_classes", "read_shapes"]


class InstanceShape(NamedTuple):
    """What one annotation covers.

    Attributes:
        category: its class.
        crowd: whether it stands for many.
        area: of its mask at the image's own resolution, pixels.
        shape: its polygons, each a flat array of x, y, x, y..., or its run-length code.
    """

    category: int
    crowd: bool
    area: int
    shape: list[np.ndarray] | dict


def read_shapes(
    annotations: list[dict],
    *,
    size: tuple[int, int],
    file_name: str,
    boxes_do: bool = False,
) -> list[InstanceShape]:
    """The shapes of annotations, without those that enclose nothing.

    Args:
        annotations: without the faults that
            :class:`~sgr.data.truth.annotations.AnnotationChecker` finds.
        size: (height, width) of the image.
        file_name: of the image, for the message.
        boxes_do: take the box of an annotation whose segmentation is missing or encloses nothing.

    Raises:
        ValueError: a run-length code is not of its size; the message names the annotation.
    """
    shapes = []
    for index, annotation in enumerate(annotations):
        segmentation = annotation.get("segmentation")
        rle = checked_rle(segmentation, size, annotation_name(annotation, index, file_name))
        if rle is None and boxes_do and "bbox" in annotation:
            segmentation = [_corners(annotation)]
            rle = to_rle(segmentation, size)
        if rle is None:
            continue
        # Polygons can be scaled without a loss.
        shape = rle if isinstance(segmentation, dict) else valid_polygons(segmentation)
        crowd = bool(annotation.get("iscrowd", 0))
        area = int(mask_util.area(rle))
        shapes.append(InstanceShape(annotation["category_id"], crowd, area, shape))
    return shapes


def _corners(annotation: dict) -> list[float]:
    """The box of an annotation as a polygon, which any augmentation can move."""
    # Not in place: Detectron2 converts arrays so.
    box = [float(each) for each in annotation["bbox"]]
    x0, y0, x1, y1 = BoxMode.convert(box, annotation["bbox_mode"], BoxMode.XYXY_ABS)
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def draw_instances(
    shapes: list[InstanceShape], transforms: T.TransformList, size: tuple[int, int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Draw instances into the augmented image, from below to above.

    Crowds lie below everything, and larger instances below smaller ones, by their areas in the
    whole image, as in :func:`sgr.data.truth.records.read_instance_map`.

    Polygons are drawn at the size of the crop; run-length codes are augmented as masks. Cost: one
    mask of the crop's size each, about a millisecond per million pixels.

    Args:
        shapes: of :func:`read_shapes`.
        transforms: what was done to the image.
        size: (height, width) of the augmented image.

    Yields:
        The index of each shape and its (H, W) bool mask, which may be empty.
    """
    below_to_above = sorted(
        range(len(shapes)), key=lambda index: (not shapes[index].crowd, -shapes[index].area)
    )
    for index in below_to_above:
        yield index, _augmented_mask(shapes[index].shape, transforms, size)


def paint_classes(
    drawn: Iterable[tuple[int, np.ndarray]],
    shapes: list[InstanceShape],
    size: tuple[int, int],
    *,
    num_classes: int,
) -> np.ndarray:
    """The map of classes that components of instance data are made of.

    Args:
        drawn: of :func:`draw_instances`.
        shapes: the same.
        size: (height, width) of the augmented image.
        num_classes: number of classes.

    Returns:
        (H, W) uint8 or int32: the class of the uppermost instance; ``num_classes``, the background,
        where there is none, so that the concept regions of things learn where things end; and
        ``num_classes + 1``, to be ignored, where only a crowd is.
    """
    background, ignored = num_classes, num_classes + 1
    # Column by column, as pycocotools draws masks: ten times faster than across.
    dtype = np.uint8 if ignored <= 255 else np.int32
    class_map = np.full(size, background, dtype, order="F")
    for index, mask in drawn:
        shape = shapes[index]
        np.copyto(class_map, dtype(ignored if shape.crowd else shape.category), where=mask)
    return np.ascontiguousarray(class_map)


def _augmented_mask(
    shape: list[np.ndarray] | dict, transforms: T.TransformList, size: tuple[int, int]
) -> np.ndarray:
    """(H, W) bool mask of polygons or of a run-length code in the augmented image of ``size``."""
    if isinstance(shape, dict):
        mask = np.ascontiguousarray(mask_util.decode(shape))
        return transforms.apply_segmentation(mask).astype(bool)
    # The corners alone are moved, since Detectron2's way of cropping polygons needs Shapely;
    # drawing them cuts off what lies outside.
    polygons = [transforms.apply_coords(polygon.reshape(-1, 2).copy()) for polygon in shape]
    return mask_util.decode(to_rle(polygons, size)).view(bool)  # bytes of 0 and 1
