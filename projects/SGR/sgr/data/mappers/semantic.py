"""Mappers of datasets for semantic segmentation, with an image and a label map per record."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable

from ..augmentations.labelled_image import LabelledImage, compact
from ..truth.records import read_label_map
from .build import MAPPER_REGISTRY
from .concept_mapper import ConceptMapper
from .settings import check_ignored, labels_of_training_data
from .tensors import mask_instances


class SemanticConceptMapper(ConceptMapper):
    """Turns an image and its label map into an augmented image, labels and components.

    In addition to :class:`ConceptMapper`, the result has ``sem_seg``: (H, W) int64 tensor of
    labels, ``ignore_value`` for unlabelled pixels. The components are those of the labels.
    """

    truth_key = "sem_seg_file_name"

    @configurable
    def __init__(
        self, *, num_classes: int, ignore_label: int = 255, ignore_value: int = 255, **options: Any
    ):
        """
        Args:
            num_classes: labels are in ``[0, num_classes)``.
            ignore_label: the label of unlabelled pixels in the files.
            ignore_value: the label of these pixels in the result, and in the augmentations. The
                losses of the models ignore it.
            **options: see :class:`ConceptMapper`.

        Raises:
            ValueError: ``ignore_label`` or ``ignore_value`` is the label of a class.
        """
        super().__init__(**options)
        check_ignored(num_classes, ignore_label=ignore_label, ignore_value=ignore_value)
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.ignore_value = ignore_value

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        options = super().from_config(cfg, is_train)
        num_classes, ignore_label = labels_of_training_data(cfg)
        return {
            **options,
            "num_classes": num_classes,
            "ignore_label": ignore_label,
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        }

    def _read(self, dataset_dict: dict, *, size: tuple[int, int]) -> np.ndarray:
        """(H, W) labels; ignored pixels have ``ignore_value``."""
        if "sem_seg_file_name" not in dataset_dict:
            raise ValueError(
                f"the record of {dataset_dict['file_name']} has no sem_seg_file_name: "
                f"{type(self).__name__} needs a dataset for semantic segmentation"
            )
        labels = read_label_map(
            dataset_dict, num_classes=self.num_classes, ignore_label=self.ignore_label, size=size
        )
        compacted = compact(labels, self.num_classes - 1, self.ignore_value)
        if self.ignore_value == self.ignore_label:
            return compacted
        # A new map, because the compacted one may be the file's, which is read-only.
        return np.where(labels == self.ignore_label, self.ignore_value, compacted)

    def _augment(self, image: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        labelled = LabelledImage(image, truth)
        self.augmentations(labelled)
        return labelled.image, self._pad(labelled.indices, self.ignore_value)

    def _add_targets(self, record: dict, truth: np.ndarray) -> None:
        record["sem_seg"] = torch.from_numpy(truth.astype(np.int64))
        self._add_components(record, truth, self.ignore_value)


class MaskFormerSemanticConceptMapper(SemanticConceptMapper):
    """:class:`SemanticConceptMapper` with one mask for each class present, for mask classification.

    In addition, the result has ``instances``: Instances with ``gt_classes``, (N,) int64, and
    ``gt_masks``, (N, H, W) bool. N may be 0.
    """

    def _add_targets(self, record: dict, truth: np.ndarray) -> None:
        super()._add_targets(record, truth)
        if truth.dtype == np.uint8:  # the table of counts is short: no pixel need be left out
            counts = np.bincount(truth.ravel(), minlength=256)
            counts[self.ignore_value] = 0
        else:
            counts = np.bincount(truth[truth != self.ignore_value])
        classes = np.flatnonzero(counts)
        masks = truth == classes.astype(truth.dtype)[:, None, None]
        record["instances"] = mask_instances(masks, classes)


@MAPPER_REGISTRY.register()
def semantic_concept(cfg: CfgNode) -> SemanticConceptMapper:
    """Labels and components, for per-pixel heads."""
    return SemanticConceptMapper(cfg)


@MAPPER_REGISTRY.register()
def mask_former_semantic_concept(cfg: CfgNode) -> MaskFormerSemanticConceptMapper:
    """Labels, components and one mask per class, for mask classification and per-pixel heads."""
    return MaskFormerSemanticConceptMapper(cfg)


# The mappers whose labels are the ``stuff_classes``: the head must have as many classes.
SEMANTIC_MAPPERS = (semantic_concept.__name__, mask_former_semantic_concept.__name__)
