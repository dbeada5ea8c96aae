"""Detectron2's own mapper, with this project's reader of images and label maps."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T

from ..augmentations.center_crop import CentralSquare
from ..augmentations.fast import with_a_pixel
from ..truth.image_files import read_image, read_labels
from ..truth.records import check_image_size


class FileNamingMapper(DatasetMapper):
    """Detectron2's mapper, with this project's reader of images and label maps.

    Errors name a damaged file, and images of 16 bits are read as INPUT.SIXTEEN_BIT says. In testing
    it does not read label maps. Models do not need them there, and evaluators read them from the
    files. This saves 8 bytes per pixel in the worker and on the device.
    """

    @configurable
    def __init__(self, is_train: bool, *, sixteen_bit: str = "refuse", **options: Any):
        """
        Args:
            is_train: whether the result is for training.
            sixteen_bit: see :func:`~sgr.data.truth.image_files.read_image`.
            **options: other arguments of ``detectron2.data.DatasetMapper``.
        """
        super().__init__(is_train, **options)
        augmentations = vars(self)["augmentations"].augs
        self.augmentations = T.AugmentationList(with_a_pixel(augmentations))
        self.sixteen_bit = sixteen_bit

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        return {**super().from_config(cfg, is_train), "sixteen_bit": cfg.INPUT.SIXTEEN_BIT}

    def __call__(self, dataset_dict: dict) -> dict:
        """
        Raises:
            FileNotFoundError, OSError: a file is missing or damaged; the message names it.
        """
        record = copy.deepcopy(dataset_dict)
        image = read_image(record["file_name"], self.image_format, sixteen_bit=self.sixteen_bit)
        check_image_size(record, image)
        label_file = record.pop("sem_seg_file_name", None)
        labels = read_labels(label_file) if label_file and self.is_train else None
        augmented = T.AugInput(image, sem_seg=labels)
        transforms = self.augmentations(augmented)
        size = augmented.image.shape[:2]
        record["image"] = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        if labels is not None:
            record["sem_seg"] = torch.from_numpy(augmented.sem_seg.astype(np.int64))
        if self.proposal_topk is not None:
            detection_utils.transform_proposals(
                record, size, transforms, proposal_topk=self.proposal_topk
            )
        if not self.is_train:
            record.pop("annotations", None)
        elif "annotations" in record:
            self._transform_annotations(record, transforms, size)
        return record


class CentralSquareMapper(FileNamingMapper):
    """A test mapper that shows the model the central square of each image (TEST.CENTER_CROP_SIZE).

    It resizes the shorter side of the image to ``side`` pixels and cuts out the middle (SGR paper,
    Sec. A.1). ``image`` is (3, side, side). ``height`` and ``width``, the size of the results, are
    ``side``. ``ground_truth_transform`` is the transform;
    :func:`sgr.data.truth.records.apply_test_transform` applies it to the ground truth.
    """

    @configurable
    def __init__(self, *, side: int, **options: Any):
        """
        Args:
            side: in pixels.
            **options: arguments of ``detectron2.data.DatasetMapper`` except ``is_train`` and
                ``augmentations``.

        Raises:
            ValueError: the side is not positive.
        """
        self.square = CentralSquare(side)
        super().__init__(False, augmentations=[self.square], **options)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        options = super().from_config(cfg, is_train=False)
        del options["is_train"], options["augmentations"]
        return {**options, "side": cfg.TEST.CENTER_CROP_SIZE}

    def __call__(self, dataset_dict: dict) -> dict:
        record = super().__call__(dataset_dict)
        # Detectron2 has set height and width to the image's if the record had none.
        transform = self.square.transform_of((record["height"], record["width"]))
        side = self.square.side
        return {**record, "height": side, "width": side, "ground_truth_transform": transform}
