"""Mappers of datasets with annotated instances, COCO style."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as mask_util
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T

from ..segments import to_rle, valid_polygons
from .build import MAPPER_REGISTRY
from .concept_mapper import (
    ConceptMapper,
    check_category,
    labels_of_training_data,
    mask_targets,
    size_of,
)

__all__ = ["InstanceConceptMapper"]


class _Instance(NamedTuple):
    """One annotation of an image.

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


class _Targets(NamedTuple):
    """The instances of one augmented image, padded.

    Attributes:
        masks: (N, H, W) bool, without crowds.
        classes: the class of each.
        class_map: (H, W) of [0, num_classes] and, for ignored pixels, num_classes + 1.
    """

    masks: np.ndarray
    classes: list[int]
    class_map: np.ndarray


class InstanceConceptMapper(ConceptMapper):
    """Record of an image and its annotations -> image, one mask per instance, components.

    Annotations have a ``segmentation``: polygons, or a run-length code, compressed or not. Adds to
    what :class:`ConceptMapper` does ``instances``: Instances with ``gt_classes``, (N,) int64, and
    ``gt_masks``, (N, H, W) bool, in the order of the annotations, without crowds and without what
    the crop does not show. They may overlap. N may be 0.

    The components are those of a map of classes, where the smaller of two overlapping instances
    lies on top, as in :func:`sgr.evaluation.ground_truth.read_instance_map`. Pixels of crowds that
    no instance covers are ignored. All others are the background, a class of its own with the
    index ``num_classes``, so that the concept regions of things learn where things end.

    Polygons are drawn at the size of the crop; run-length codes are augmented as masks, one after
    the other.
    """

    @configurable
    def __init__(self, *, num_classes: int, **options: Any):
        """
        Args:
            num_classes: categories are in ``[0, num_classes)``.
            **options: see :class:`ConceptMapper`.
        """
        super().__init__(**options)
        self.num_classes = num_classes

    @classmethod
    def from_config(
        cls, cfg: CfgNode, is_train: bool = True, *, large_scale_jitter: bool = False
    ) -> dict[str, Any]:
        options = super().from_config(cfg, is_train, large_scale_jitter=large_scale_jitter)
        crop = cfg.INPUT.CROP
        if not large_scale_jitter and crop.ENABLED and crop.SINGLE_CATEGORY_MAX_AREA < 1:
            raise ValueError(
                f"INPUT.CROP.SINGLE_CATEGORY_MAX_AREA is {crop.SINGLE_CATEGORY_MAX_AREA}, but "
                f"instances do not give every pixel a class; {cls.__name__} needs 1.0"
            )
        num_classes, _ = labels_of_training_data(cfg, "thing_classes")
        return {**options, "num_classes": num_classes}

    def _read(self, dataset_dict: dict, *, size: tuple[int, int]) -> list[_Instance]:
        file_name = dataset_dict["file_name"]
        if "annotations" not in dataset_dict:
            raise ValueError(
                f"the record of {file_name} has no annotations: {type(self).__name__} needs a "
                "dataset for instance segmentation"
            )
        instances = []
        for index, annotation in enumerate(dataset_dict["annotations"]):
            what = f"annotation {index} of {file_name}"
            category, segmentation = annotation["category_id"], annotation.get("segmentation")
            check_category(category, self.num_classes, what)
            if segmentation is None:
                raise ValueError(
                    f"{what} has no segmentation, only {sorted(annotation)}: "
                    f"{type(self).__name__} learns from masks, boxes do not do"
                )
            rle = to_rle(segmentation, size)
            if rle is None:
                continue
            if tuple(rle["size"]) != size:
                raise ValueError(
                    f"the mask of {what} is {size_of(rle['size'])}, but the image is "
                    f"{size_of(size)} pixels"
                )
            # Polygons can be scaled without a loss.
            shape = rle if isinstance(segmentation, dict) else valid_polygons(segmentation)
            crowd = bool(annotation.get("iscrowd", 0))
            instances.append(_Instance(category, crowd, int(mask_util.area(rle)), shape))
        return instances

    def _augment(
        self, image: np.ndarray, truth: list[_Instance]
    ) -> tuple[np.ndarray, _Targets]:
        aug_input = T.AugInput(image)
        transforms = self.augmentations(aug_input)
        size = aug_input.image.shape[:2]
        background, ignored = self.num_classes, self.num_classes + 1
        class_map = np.full(size, background, np.uint8 if ignored <= 255 else np.int32)
        masks = {}
        # Crowds lie below everything, and larger instances below smaller ones.
        below_to_above = sorted(
            range(len(truth)), key=lambda index: (not truth[index].crowd, -truth[index].area)
        )
        for index in below_to_above:
            instance = truth[index]
            mask = _augmented_mask(instance.shape, transforms, size)
            if instance.crowd:
                class_map[mask] = ignored
            elif mask.any():
                class_map[mask] = instance.category
                masks[index] = mask

        class_map = self._pad(class_map, ignored)
        stack = np.zeros((len(masks), *class_map.shape), bool)
        shown = sorted(masks)
        for place, index in zip(stack, shown):
            place[: size[0], : size[1]] = masks[index]
        return aug_input.image, _Targets(stack, [truth[i].category for i in shown], class_map)

    def _add_targets(self, record: dict, truth: _Targets) -> None:
        record["instances"] = mask_targets(truth.masks, truth.classes)
        self._add_components(record, truth.class_map, self.num_classes + 1)


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
    return mask_util.decode(to_rle(polygons, size)).astype(bool)


@MAPPER_REGISTRY.register()
def mask_former_instance_concept(cfg: CfgNode) -> InstanceConceptMapper:
    """One mask per instance, and components of things and background, for mask classification."""
    return InstanceConceptMapper(cfg)


@MAPPER_REGISTRY.register()
def coco_instance_lsj_concept(cfg: CfgNode) -> InstanceConceptMapper:
    """``mask_former_instance_concept`` with large-scale jittering."""
    return InstanceConceptMapper(cfg, large_scale_jitter=True)
