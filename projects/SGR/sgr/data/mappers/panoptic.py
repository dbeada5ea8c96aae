"""Mappers of panoptic datasets, with an image, a picture of segments and their categories."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode, configurable

from ..augmentations.labelled_image import LabelledImage, compact
from ..truth.records import read_segments
from ..truth.segments import segment_labels
from .build import MAPPER_REGISTRY
from .concept_mapper import ConceptMapper
from .settings import check_ignored, labels_of_training_data
from .tensors import mask_instances


class _Segments(NamedTuple):
    """The segments of one image.

    Attributes:
        indices: (H, W) map: the segment of each pixel in [0, N), or N for none.
        labels: (N + 1,) int64: the class of each segment. Crowds, and the last entry, for pixels
            without a segment, have the value of ignored pixels.
    """

    indices: np.ndarray
    labels: np.ndarray


class PanopticConceptMapper(ConceptMapper):
    """Turns an image and its panoptic segments into an image, one mask per segment, and components.

    It takes the records of Detectron2's panoptic datasets in their standard form, with
    ``pan_seg_file_name`` and ``segments_info``: dicts of ``id``, ``category_id`` (contiguous, over
    things and stuff alike) and ``iscrowd``. In addition to :class:`ConceptMapper`, the result has

    - ``instances``: Instances with ``gt_classes``, (N,) int64, and ``gt_masks``, (N, H, W) bool:
      the segments in the crop, in the order of ``segments_info``, without crowds. N may be 0;
    - ``sem_seg``: (H, W) int64 tensor, the classes of the segments, ``ignore_value`` for unlabelled
      pixels and crowds. It is never read from a label map, because the label maps of Detectron2's
      "separated" datasets count their classes in another way.

    The components are those of ``sem_seg``. The map of segments is augmented, and masks are made of
    the crop.
    """

    truth_key = "pan_seg_file_name"

    @configurable
    def __init__(self, *, num_classes: int, ignore_value: int = 255, **options: Any):
        """
        Args:
            num_classes: categories are in ``[0, num_classes)``.
            ignore_value: label of ignored pixels in ``sem_seg``.
            **options: see :class:`ConceptMapper`.

        Raises:
            ValueError: ``ignore_value`` is the label of a class.
        """
        super().__init__(**options)
        check_ignored(num_classes, ignore_value=ignore_value)
        self.num_classes = num_classes
        self.ignore_value = ignore_value

    @classmethod
    def from_config(
        cls, cfg: CfgNode, is_train: bool = True, *, large_scale_jitter: bool = False
    ) -> dict[str, Any]:
        options = super().from_config(cfg, is_train, large_scale_jitter=large_scale_jitter)
        num_classes, _ = labels_of_training_data(cfg)
        return {
            **options,
            "num_classes": num_classes,
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        }

    def _read(self, dataset_dict: dict, *, size: tuple[int, int]) -> _Segments:
        file_name = dataset_dict["file_name"]
        missing = [key for key in ("pan_seg_file_name", "segments_info") if key not in dataset_dict]
        if missing:
            raise ValueError(
                f"the record of {file_name} has no {missing[0]}: {type(self).__name__} needs a "
                "panoptic dataset in its standard, not its separated form"
            )
        indices = read_segments(dataset_dict, num_classes=self.num_classes, size=size)
        segments = dataset_dict["segments_info"]
        indices[indices < 0] = len(segments)
        labels = segment_labels(segments, ignore_value=self.ignore_value)
        return _Segments(compact(indices, len(segments)), labels)

    def _augment(self, image: np.ndarray, truth: _Segments) -> tuple[np.ndarray, _Segments]:
        # The map of segments is augmented. The labels are for crops that look at the classes.
        labels = compact(truth.labels, self.num_classes - 1, self.ignore_value)
        labelled = LabelledImage(image, truth.indices, labels)
        self.augmentations(labelled)
        nothing = len(truth.labels) - 1
        return labelled.image, truth._replace(indices=self._pad(labelled.indices, nothing))

    def _add_targets(self, record: dict, truth: _Segments) -> None:
        labels = truth.labels[truth.indices]
        record["sem_seg"] = torch.from_numpy(labels)
        self._add_components(record, labels, self.ignore_value)
        areas = np.bincount(truth.indices.ravel(), minlength=len(truth.labels))
        # Pixels without a segment have the label of ignored pixels, too.
        shown = np.flatnonzero((areas > 0) & (truth.labels != self.ignore_value))
        masks = truth.indices == shown.astype(truth.indices.dtype)[:, None, None]
        record["instances"] = mask_instances(masks, truth.labels[shown])


@MAPPER_REGISTRY.register()
def mask_former_panoptic_concept(cfg: CfgNode) -> PanopticConceptMapper:
    """One mask per segment, labels and components, for mask classification."""
    return PanopticConceptMapper(cfg)


@MAPPER_REGISTRY.register()
def coco_panoptic_lsj_concept(cfg: CfgNode) -> PanopticConceptMapper:
    """``mask_former_panoptic_concept`` with large-scale jittering."""
    return PanopticConceptMapper(cfg, large_scale_jitter=True)
