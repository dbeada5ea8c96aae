"""The mapper for detectors with concepts: Detectron2's own, with components."""

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
from .build import MAPPER_REGISTRY
from .plain import FileNamingMapper
from .settings import check_for_training, component_options, labels_of_training_data
from .tensors import component_tensors

_NO_SHAPELY = (
    "INPUT.CROP.ENABLED is True, but Detectron2 crops polygons with Shapely, which is not "
    "installed: pip install shapely, or set INPUT.CROP.ENABLED to False"
)


class DetectionConceptMapper(FileNamingMapper):
    """Turns an image and its annotations into the input of Detectron2's detectors, with components.

    Detectron2's ``DatasetMapper`` does everything that it does for training: augmentations, boxes,
    masks (polygons or bit masks), keypoints, proposals. Keys under INPUT that only the other
    mappers of this project have are without effect. ``instances`` does not have crowds, boxes of
    zero area and instances outside of the crop. It may be empty.

    If ``with_components``, the result has the connected components of the augmented image
    (Sec. 3.3): ``component_map``, (H, W) int16 tensor, the component of each pixel or -1, and
    ``component_classes``, (C,) int64 tensor, the class of each component.

    The components are not the single instances: supervision stays semantic, as in the paper. They
    are made of the same map of classes as in :class:`~.instance.InstanceConceptMapper`. An
    annotation without a mask covers its whole box there. This supervision is weaker, because
    everything in the box counts as the object. Masks are used for components whenever there are
    some, even with MODEL.MASK_ON False.

    :class:`~sgr.data.truth.annotations.AnnotationChecker` refuses annotations that nothing can be
    learned from. Polygons of fewer than three corners are left out and, if the detector learns
    masks, annotations without another polygon too, as in Detectron2's loader of COCO's format.
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
            head: the node under MODEL with this NUM_CLASSES, for messages.
            with_components: whether to compute components.
            max_components, min_area_ratio, kernel_size: see
                :func:`sgr.data.components.connected_components`.
            codes_needed: the reason why masks cannot be polygons, and the way out, for messages;
                "" if they can.
            **options: arguments of ``detectron2.data.DatasetMapper`` except ``is_train``.
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
            # Raised here, or when the records are checked (they may have polygons in any format),
            # and not when a worker of the loader meets the first polygon.
            if cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon":
                raise ValueError(_NO_SHAPELY)
            options["codes_needed"] = _NO_SHAPELY
        is_retina = cfg.MODEL.META_ARCHITECTURE.endswith("RetinaNet")
        head = "RETINANET" if is_retina else "ROI_HEADS"
        num_classes, _ = labels_of_training_data(cfg, "thing_classes", head)
        return {**options, **component_options(cfg), "num_classes": num_classes, "head": head}

    def check_records(self, records: Sequence[dict]) -> None:
        """Check all annotations before the training.

        See :meth:`~sgr.data.truth.annotations.AnnotationChecker.check_all`.
        """
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
        # Detectron2 calls this with a copy of the record, which has the size of the image.
        size, file_name = (dataset_dict["height"], dataset_dict["width"]), dataset_dict["file_name"]
        self._checker.check(dataset_dict, size)
        annotations = dataset_dict["annotations"]
        if self.use_instance_mask:
            for index, annotation in enumerate(annotations):
                if not annotation.get("iscrowd", 0):
                    name = annotation_name(annotation, index, file_name)
                    annotation["segmentation"] = _clean(annotation["segmentation"], size, name)
            annotations = [
                annotation
                for annotation in annotations
                if annotation.get("iscrowd", 0) or annotation["segmentation"]
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
        if any(not annotation.get("iscrowd", 0) for annotation in annotations):
            super()._transform_annotations(dataset_dict, transforms, image_shape)
        else:
            # Without an instance, Detectron2 0.6 looks for masks if it has to recompute boxes.
            del dataset_dict["annotations"]
            nothing = detection_utils.annotations_to_instances([], image_shape)
            dataset_dict["instances"] = nothing


def _clean(segmentation: dict | list, size: tuple[int, int], name: str) -> dict | list | None:
    """The segmentation in the form that Detectron2 takes; an empty list if it encloses nothing."""
    if isinstance(segmentation, dict):
        return checked_rle(segmentation, size, name)
    return [polygon for polygon in valid_polygons(segmentation, size) if len(polygon)]


@MAPPER_REGISTRY.register()
def detection_concept(cfg: CfgNode) -> DetectionConceptMapper:
    """Detectron2's own mapper, with the components of instances' masks, or of their boxes."""
    return DetectionConceptMapper(cfg)
