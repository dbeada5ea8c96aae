"""Mappers of datasets with annotated instances (COCO style), for mask classification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T

from ..truth.annotations import AnnotationChecker
from ..truth.instances import InstanceShape, draw_instances, paint_classes, read_shapes
from .build import MAPPER_REGISTRY
from .concept_mapper import ConceptMapper
from .settings import labels_of_training_data
from .tensors import mask_instances


class _Targets(NamedTuple):
    """The instances of one augmented image, padded.

    Attributes:
        masks: (N, H, W) bool, without crowds.
        classes: the class of each mask.
        class_map: (H, W) in [0, num_classes], or num_classes + 1 for ignored pixels.
    """

    masks: np.ndarray
    classes: np.ndarray
    class_map: np.ndarray


class InstanceConceptMapper(ConceptMapper):
    """Turns an image and its annotations into an image, one mask per instance, and components.

    Annotations have a ``segmentation``: polygons, or a run-length code, compressed or not. In
    addition to :class:`ConceptMapper`, the result has ``instances``: Instances with ``gt_classes``,
    (N,) int64, and ``gt_masks``, (N, H, W) bool, in the order of the annotations. Crowds, and
    instances outside of the crop, are left out. Masks may overlap. N may be 0.

    The components are those of the map of classes that
    :func:`sgr.data.truth.instances.paint_classes` makes: the smaller of two overlapping instances
    lies on top, pixels of crowds only are ignored, and the background is a class with the index
    ``num_classes``.
    """

    truth_key = "annotations"

    @configurable
    def __init__(self, *, num_classes: int, **options: Any):
        """
        Args:
            num_classes: categories are in ``[0, num_classes)``.
            **options: see :class:`ConceptMapper`.
        """
        super().__init__(**options)
        self.num_classes = num_classes
        self._checker = AnnotationChecker(
            num_classes=num_classes,
            refused={"none": f"{type(self).__name__} learns from masks, boxes do not do"},
        )

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

    def check_records(self, records: Sequence[dict]) -> None:
        """Check all annotations before the training.

        See :meth:`~sgr.data.truth.annotations.AnnotationChecker.check_all`.
        """
        self._checker.check_all(records)

    def _read(self, dataset_dict: dict, *, size: tuple[int, int]) -> list[InstanceShape]:
        self._checker.check(dataset_dict, size)
        return read_shapes(
            dataset_dict["annotations"], size=size, file_name=dataset_dict["file_name"]
        )

    def _augment(
        self, image: np.ndarray, truth: list[InstanceShape]
    ) -> tuple[np.ndarray, _Targets]:
        aug_input = T.AugInput(image)
        transforms = self.augmentations(aug_input)
        size = aug_input.image.shape[:2]
        drawn = dict(draw_instances(truth, size, transforms))
        class_map = paint_classes(drawn.items(), truth, size, num_classes=self.num_classes)
        class_map = self._pad(class_map, self.num_classes + 1)
        shown = [index for index in sorted(drawn) if not truth[index].crowd and drawn[index].any()]
        stack = np.zeros((len(shown), *class_map.shape), bool)
        for place, index in zip(stack, shown):
            place[: size[0], : size[1]] = drawn[index]
        return aug_input.image, _Targets(
            stack, np.array([truth[i].category for i in shown], int), class_map
        )

    def _add_targets(self, record: dict, truth: _Targets) -> None:
        record["instances"] = mask_instances(truth.masks, truth.classes)
        self._add_components(record, truth.class_map, self.num_classes + 1)


@MAPPER_REGISTRY.register()
def mask_former_instance_concept(cfg: CfgNode) -> InstanceConceptMapper:
    """One mask per instance, and components of things and background, for mask classification."""
    return InstanceConceptMapper(cfg)


@MAPPER_REGISTRY.register()
def coco_instance_lsj_concept(cfg: CfgNode) -> InstanceConceptMapper:
    """``mask_former_instance_concept`` with large-scale jittering."""
    return InstanceConceptMapper(cfg, large_scale_jitter=True)
