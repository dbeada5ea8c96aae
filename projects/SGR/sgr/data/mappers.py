"""Dataset mappers: from a record of a semantic dataset to what a model trains on.

Both read an image and its label map, augment them together and compute the connected components
of the crop. :class:`SemanticConceptMapper` serves per-pixel heads,
:class:`MaskFormerSemanticConceptMapper` adds the masks that mask classification learns from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper, MetadataCatalog, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Instances
from fvcore.common.registry import Registry

from .components import connected_components
from .image_files import check_labels, read_image, read_labels

__all__ = [
    "MAPPER_REGISTRY",
    "MaskFormerSemanticConceptMapper",
    "SemanticConceptMapper",
    "build_mapper",
]

MAPPER_REGISTRY = Registry("MAPPER")
MAPPER_REGISTRY.__doc__ = """
Registry of training mappers, by the name in ``INPUT.DATASET_MAPPER_NAME``. An entry is called with
the config and returns a mapper.
"""

# What images are padded with; close to the mean that the models subtract.
_IMAGE_PADDING = 128


def build_mapper(cfg: CfgNode, is_train: bool = True) -> Callable[[dict], dict]:
    """The mapper of ``cfg.INPUT.DATASET_MAPPER_NAME``; for testing always Detectron2's own.

    Raises:
        ValueError: no mapper has this name.
    """
    if not is_train:
        return DatasetMapper(cfg, is_train=False)
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if name not in MAPPER_REGISTRY:
        known = ", ".join(sorted(known for known, _ in MAPPER_REGISTRY))
        raise ValueError(f"INPUT.DATASET_MAPPER_NAME is {name!r}; known mappers: {known}")
    return MAPPER_REGISTRY.get(name)(cfg)


class SemanticConceptMapper:
    """Record of an image and its label map -> augmented image, labels and components.

    Adds to a copy of the record:

    - ``image``: (3, H, W) uint8 tensor;
    - ``sem_seg``: (H, W) int64 tensor of labels, ``ignore_value`` where there is none;
    - ``height``, ``width``: size of the image file;
    - if ``with_components``, the connected components of the crop (Sec. 3.3):
      ``component_map``, (H, W) int16 tensor, each pixel's component or -1, and
      ``component_classes``, (C,) int64 tensor, each component's class. C may be 0.

    ``sem_seg_file_name`` and ``annotations`` are left out of it.

    All randomness is drawn from NumPy's and Python's global generators, which
    ``detectron2.utils.env.seed_all_rng`` seeds, in the loader's workers too.
    """

    @configurable
    def __init__(
        self,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        num_classes: int,
        ignore_label: int = 255,
        ignore_value: int = 255,
        size_divisibility: int = -1,
        with_components: bool = True,
        max_components: int = 64,
        min_area_ratio: float = 0.05,
        kernel_size: int = 3,
    ):
        """
        Args:
            augmentations: applied to image and labels together. They see labels in which ignored
                pixels have the value ``ignore_value``.
            image_format: see :func:`sgr.data.image_files.read_image`.
            num_classes: labels are in ``[0, num_classes)``.
            ignore_label: the label of unlabelled pixels in the files.
            ignore_value: their label in the result, which is what the models' losses leave out.
            size_divisibility: pad to a multiple of this many pixels, at the right and the bottom;
                0 or less leaves the size.
            with_components: whether to compute components.
            max_components, min_area_ratio, kernel_size: see
                :func:`sgr.data.components.connected_components`.

        Raises:
            ValueError: ``ignore_label`` or ``ignore_value`` is the label of a class.
        """
        for name, value in [("ignore_label", ignore_label), ("ignore_value", ignore_value)]:
            if 0 <= value < num_classes:
                raise ValueError(
                    f"{name} is {value}, which is one of the {num_classes} classes; it must be "
                    f"negative or at least {num_classes}"
                )
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.ignore_value = ignore_value
        self.size_divisibility = size_divisibility
        self.with_components = with_components
        self.max_components = max_components
        self.min_area_ratio = min_area_ratio
        self.kernel_size = kernel_size

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        if not is_train:
            raise ValueError(
                f"{cls.__name__} is for training; for testing use "
                "detectron2.data.DatasetMapper(cfg, is_train=False)"
            )
        num_classes, ignore_label = _labels_of_training_data(cfg)
        return {
            "augmentations": _build_augmentations(cfg),
            "image_format": cfg.INPUT.FORMAT,
            "num_classes": num_classes,
            "ignore_label": ignore_label,
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "size_divisibility": cfg.INPUT.SIZE_DIVISIBILITY,
            "with_components": cfg.MODEL.SGR.SUPERVISION.WEIGHT > 0,
            "max_components": cfg.MODEL.SGR.SUPERVISION.MAX_ACTIVE,
            "min_area_ratio": cfg.INPUT.COMPONENTS.MIN_AREA_RATIO,
            "kernel_size": cfg.INPUT.COMPONENTS.KERNEL_SIZE,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """
        Args:
            dataset_dict: a record with ``file_name`` and ``sem_seg_file_name``, left unchanged.

        Raises:
            FileNotFoundError, OSError: a file is missing or damaged.
            ValueError: image and labels differ in size, or the label map holds a label that is
                neither a class nor ``ignore_label``.
        """
        if torch.utils.data.get_worker_info() is not None:
            # Each worker is a process of its own: threads of theirs would only fight for cores.
            cv2.setNumThreads(0)
        # Annotations can be long, and nothing here uses them.
        record = {key: value for key, value in dataset_dict.items() if key != "annotations"}
        image, labels = self._read(record)

        aug_input = T.AugInput(image, sem_seg=labels)
        self.augmentations(aug_input)
        image, labels = self._pad(aug_input.image, aug_input.sem_seg)

        record["image"] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        record["sem_seg"] = torch.from_numpy(labels.astype(np.int64))
        if self.with_components:
            components = connected_components(
                labels,
                ignore_label=self.ignore_value,
                min_area_ratio=self.min_area_ratio,
                max_components=self.max_components,
                kernel_size=self.kernel_size,
            )
            record["component_map"] = torch.from_numpy(components.indices)
            record["component_classes"] = torch.from_numpy(components.classes)
        self._add_targets(record, labels)
        return record

    def _add_targets(self, record: dict, labels: np.ndarray) -> None:
        """Add what a kind of head needs beyond ``sem_seg``. ``labels`` is (H, W), padded."""

    def _read(self, record: dict) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 3) image and (H, W) labels, in which ignored pixels have ``ignore_value``."""
        if "sem_seg_file_name" not in record:
            raise ValueError(
                f"the record of {record['file_name']} has no sem_seg_file_name: "
                f"{type(self).__name__} needs a dataset for semantic segmentation"
            )
        label_file = record.pop("sem_seg_file_name")
        image = read_image(record["file_name"], self.image_format)
        detection_utils.check_image_size(record, image)
        labels = read_labels(label_file)
        if labels.shape != image.shape[:2]:
            raise ValueError(
                f"image {record['file_name']} is {_size(image)} pixels, "
                f"but its label map {label_file} is {_size(labels)}"
            )

        check_labels(
            labels, label_file, num_classes=self.num_classes, ignore_label=self.ignore_label
        )
        ignored = labels == self.ignore_label

        # Pillow resizes bytes only; other integers must be floats for Detectron2 to resize them.
        bytes_do = self.num_classes <= 256 and 0 <= self.ignore_value <= 255
        labels = labels.astype(np.uint8 if bytes_do else np.float32)
        if self.ignore_value != self.ignore_label:
            labels[ignored] = self.ignore_value
        return image, labels

    def _pad(self, image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if labels.dtype != np.uint8:
            labels = labels.astype(np.int32)
        if self.size_divisibility > 0:
            height, width = (
                -(-size // self.size_divisibility) * self.size_divisibility
                for size in labels.shape
            )
            if (height, width) != labels.shape:
                image = _pad_to(image, height, width, _IMAGE_PADDING)
                labels = _pad_to(labels, height, width, self.ignore_value)
        return image, labels


class MaskFormerSemanticConceptMapper(SemanticConceptMapper):
    """:class:`SemanticConceptMapper` with one mask for each class present, for mask classification.

    Adds ``instances``: Instances with ``gt_classes``, (N,) int64, and ``gt_masks``, (N, H, W)
    bool, which is the form that the public MaskFormer and Mask2Former read. N may be 0.
    """

    def _add_targets(self, record: dict, labels: np.ndarray) -> None:
        classes = np.flatnonzero(np.bincount(labels[labels != self.ignore_value]))
        instances = Instances(labels.shape)
        instances.gt_classes = torch.from_numpy(classes)
        instances.gt_masks = torch.from_numpy(
            labels == classes.astype(labels.dtype)[:, None, None]
        )
        record["instances"] = instances


@MAPPER_REGISTRY.register()
def semantic_concept(cfg: CfgNode) -> SemanticConceptMapper:
    """Labels and components, for per-pixel heads."""
    return SemanticConceptMapper(cfg)


@MAPPER_REGISTRY.register()
def mask_former_semantic_concept(cfg: CfgNode) -> MaskFormerSemanticConceptMapper:
    """Labels, components and one mask per class, for mask classification and per-pixel heads."""
    return MaskFormerSemanticConceptMapper(cfg)


@MAPPER_REGISTRY.register()
def detectron2_default(cfg: CfgNode) -> DatasetMapper:
    """Detectron2's own, for detection and instance segmentation (the paper's transfer)."""
    return DatasetMapper(cfg, is_train=True)


def _labels_of_training_data(cfg: CfgNode) -> tuple[int, int]:
    """Number of classes and ignore label of ``cfg.DATASETS.TRAIN``, from the metadata."""
    head = cfg.MODEL.SEM_SEG_HEAD
    labels: dict[str, tuple[int, int]] = {}
    for name in cfg.DATASETS.TRAIN:
        metadata = MetadataCatalog.get(name)
        classes = metadata.get("stuff_classes")
        num_classes = head.NUM_CLASSES if classes is None else len(classes)
        if num_classes > head.NUM_CLASSES:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {head.NUM_CLASSES}, but the dataset {name} "
                f"has {num_classes} classes"
            )
        labels[name] = (num_classes, metadata.get("ignore_label", head.IGNORE_VALUE))
    if len(set(labels.values())) > 1:
        raise ValueError(
            "the datasets of DATASETS.TRAIN differ in (number of classes, ignore label), so one "
            f"mapper cannot serve them all: {labels}"
        )
    return next(iter(labels.values()), (head.NUM_CLASSES, head.IGNORE_VALUE))


def _build_augmentations(cfg: CfgNode) -> list[T.Augmentation | T.Transform]:
    augmentations: list[T.Augmentation | T.Transform] = [
        T.ResizeShortestEdge(
            cfg.INPUT.MIN_SIZE_TRAIN,
            cfg.INPUT.MAX_SIZE_TRAIN,
            cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
        )
    ]
    if cfg.INPUT.CROP.ENABLED:
        augmentations.append(
            T.RandomCrop_CategoryAreaConstraint(
                cfg.INPUT.CROP.TYPE,
                cfg.INPUT.CROP.SIZE,
                cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA,
                cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            )
        )
    if cfg.INPUT.COLOR_AUG_SSD:
        # Imported only where wanted: it comes with all of PointRend.
        from detectron2.projects.point_rend import ColorAugSSDTransform

        augmentations.append(ColorAugSSDTransform(img_format=cfg.INPUT.FORMAT))
    if cfg.INPUT.RANDOM_FLIP != "none":
        augmentations.append(
            T.RandomFlip(
                horizontal=cfg.INPUT.RANDOM_FLIP == "horizontal",
                vertical=cfg.INPUT.RANDOM_FLIP == "vertical",
            )
        )
    return augmentations


def _pad_to(array: np.ndarray, height: int, width: int, value: int) -> np.ndarray:
    padded = np.full((height, width, *array.shape[2:]), value, array.dtype)
    padded[: array.shape[0], : array.shape[1]] = array
    return padded


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"
