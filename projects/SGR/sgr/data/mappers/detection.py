"""The mapper of detectors that learn concepts: Detectron2's own, with components."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils
from detectron2.data import transforms as T

from ..threads import limit_opencv_threads
from ..truth.annotations import AnnotationChecker, annotation_name, checked_rle
from ..truth.instances import draw_instances, paint_classes, read_shapes
from ..truth.masks import valid_polygons
from .build import MAPPER_REGISTRY, FileNamingMapper
from .settings import check_for_training, component_options, labels_of_training_data
from .tensors import component_tensors

__all__ = ["DetectionConceptMapper"]

_NO_SHAPELY = (
    "INPUT.CROP.ENABLED is True, but Detectron2 crops polygons by Shapely, which is not installed: "
    "pip install shapely, or set INPUT.CROP.ENABLED to False"
)


class DetectionConceptMapper(FileNamingMapper):
    """Record of an image and its annotations -> what Detectron2's detectors train on, components.

    All that Detectron2's ``DatasetMapper`` does for training is done by it: augmentations, boxes,
    masks (polygons or bit masks), keypoints, proposals. Of the keys under INPUT, those that only
    this project's other mappers have are of no effect. ``instances`` are without crowds, without
    boxes of zero area and without what the crop does not show; there may be none.

    If ``with_components``, adds the connected components of the augmented image (Sec. 3.3):
    ``component_map``, (H, W) int16 tensor, each pixel's component or -1, and
    ``component_classes``, (C,) int64 tensor, each component's class.

    They are not the instances, one by one: supervision stays semantic, as in the paper. They are
    the components of the same map of classes as :class:`InstanceConceptMapper` has, where the
    smaller of two instances lies on top, crowds are ignored, and the background is a class of its
    own with the index ``num_classes``. An annotation without a mask stands there as its whole box,
    which is weaker: what the box has of other things and of the background counts as the object.
    Masks are used for components wherever there are any, with MODEL.MASK_ON False too.

    Annotations that nothing could be learned from are refused, see
    :class:`~sgr.data.truth.annotations.AnnotationChecker`; polygons of fewer than three corners
    are left out, and with masks also the annotations that have no other, as Detectron2's loader
    of COCO's format does.
    """

    truth_key = "annotations"

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        head: str = "ROI_HEADS",
        with_components: bool = True,
        max_components: int = 64,
        min_area_ratio: float = 0.05,
        kernel_size: int = 3,
        codes_needed: str = "",
        **options: Any,
    ):
        """
        Args:
            num_classes: categories are in ``[0, num_classes)``.
            head: the node under MODEL whose NUM_CLASSES that is, for messages.
            with_components: whether to compute components.
            max_components, min_area_ratio, kernel_size: see
                :func:`sgr.data.components.connected_components`.
            codes_needed: why masks must be run-length codes, and the way out, for messages; ""
                where polygons do.
            **options: of ``detectron2.data.DatasetMapper``, but for ``is_train``.
        """
        super().__init__(True, **options)
        self.num_classes = num_classes
        self.head = head
        self.with_components = with_components
        self._component_options = {
            "max_components": max_components,
            "min_area_ratio": min_area_ratio,
            "kernel_size": kernel_size,
        }
        refused = {}
        if self.use_instance_mask:
            refused["none"] = "to learn from boxes alone, set MODEL.MASK_ON to False"
            if self.instance_mask_format == "polygon":
                refused["code"] = "set INPUT.MASK_FORMAT to bitmask"
            if codes_needed:
                refused["polygons"] = codes_needed
        self._checker = AnnotationChecker(
            num_classes=num_classes,
            head=head,
            boxes_needed=True,
            masks_used=self.use_instance_mask or with_components,
            refused=refused,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        check_for_training(cls, is_train)
        options = super().from_config(cfg, is_train)
        del options["is_train"]
        if cfg.INPUT.CROP.ENABLED and importlib.util.find_spec("shapely") is None:
            # Found out here, or by the look at the records, which can be polygons where the format
            # is not, and not where a worker meets the first polygon.
            if cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon":
                raise ValueError(_NO_SHAPELY)
            options["codes_needed"] = _NO_SHAPELY
        is_retina = cfg.MODEL.META_ARCHITECTURE.endswith("RetinaNet")
        head = "RETINANET" if is_retina else "ROI_HEADS"
        num_classes, _ = labels_of_training_data(cfg, "thing_classes", head)
        return {**options, **component_options(cfg), "num_classes": num_classes, "head": head}

    def check_records(self, records: Sequence[dict]) -> None:
        """See :meth:`~sgr.data.truth.annotations.AnnotationChecker.check_all`."""
        self._checker.check_all(records)

    def __call__(self, dataset_dict: dict) -> dict:
        """
        Args:
            dataset_dict: a record with ``file_name`` and ``annotations``, left unchanged.

        Raises:
            FileNotFoundError, OSError: the image is missing or damaged.
            ValueError: it differs from its record in size, or its annotations have a fault. The
                message names the file.
        """
        limit_opencv_threads()
        if "annotations" not in dataset_dict:
            self._checker.check(dataset_dict)
        return super().__call__(dataset_dict)

    def _transform_annotations(
        self, dataset_dict: dict, transforms: T.TransformList, image_shape: tuple[int, int]
    ) -> None:
        # A copy of the record, which by now has the size of the image.
        size, file_name = (dataset_dict["height"], dataset_dict["width"]), dataset_dict["file_name"]
        self._checker.check(dataset_dict, size)
        annotations = dataset_dict["annotations"]
        if self.use_instance_mask:
            for index, annotation in enumerate(annotations):
                if not annotation.get("iscrowd", 0):
                    name = annotation_name(annotation, index, file_name)
                    annotation["segmentation"] = _clean(annotation["segmentation"], size, name)
            annotations = [
                each for each in annotations if each.get("iscrowd", 0) or each["segmentation"]
            ]
            dataset_dict["annotations"] = annotations
        if self.with_components:
            shapes = read_shapes(annotations, size=size, file_name=file_name, boxes_do=True)
            drawn = draw_instances(shapes, image_shape, transforms)
            labels = paint_classes(drawn, shapes, image_shape, num_classes=self.num_classes)
            targets = component_tensors(
                labels, ignore_label=self.num_classes + 1, **self._component_options
            )
            dataset_dict.update(targets)
        if any(not each.get("iscrowd", 0) for each in annotations):
            super()._transform_annotations(dataset_dict, transforms, image_shape)
        else:
            # Detectron2 0.6 would look for masks here if it has to recompute boxes.
            del dataset_dict["annotations"]
            nothing = detection_utils.annotations_to_instances([], image_shape)
            dataset_dict["instances"] = nothing


def _clean(segmentation: dict | list, size: tuple[int, int], name: str) -> dict | list | None:
    """A segmentation in the form that Detectron2 takes; an empty list if it encloses nothing."""
    if isinstance(segmentation, dict):
        return checked_rle(segmentation, size, name)
    return valid_polygons(segmentation)


@MAPPER_REGISTRY.register()
def detection_concept(cfg: CfgNode) -> DetectionConceptMapper:
    """Detectron2's own for detectors, with components of instances' masks, or of their boxes."""
    return DetectionConceptMapper(cfg)
