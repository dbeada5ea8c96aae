"""The base class of the mappers: it reads the image, augments, pads and adds components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from ..augmentations.build import build_augmentations
from ..augmentations.fast import accelerated, with_a_pixel
from ..threads import limit_opencv_threads
from ..truth.image_files import read_image
from ..truth.records import check_image_size
from .settings import check_for_training, component_options
from .tensors import component_tensors

# The value of padding in images; it is close to the mean that the models subtract.
_IMAGE_PADDING = 128

# Keys that the result does not have: they can be long, and a model only needs the targets.
_GROUND_TRUTH = ("annotations", "pan_seg_file_name", "segments_info", "sem_seg_file_name")


class ConceptMapper:
    """Base class: turns the record of an image and its ground truth into the input of a model.

    The result is a copy of the record without the ground truth. It has in addition

    - ``image``: (3, H, W) uint8 tensor;
    - ``height``, ``width``: size of the image file;
    - if ``with_components``, the connected components of the crop (Sec. 3.3):
      ``component_map``, (H, W) int16 tensor, the component of each pixel or -1, and
      ``component_classes``, (C,) int64 tensor, the class of each component. C may be 0;
    - the targets of the subclass.

    Random numbers come from the global generators of NumPy and Python, which
    ``detectron2.utils.env.seed_all_rng`` seeds, also in the workers of the loader.

    Attributes:
        truth_key: the key of the ground truth that every record must have.
        head: the node under MODEL whose NUM_CLASSES counts.
    """

    truth_key: str
    head = "SEM_SEG_HEAD"

    def __init__(
        self,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        sixteen_bit: str = "refuse",
        min_side: int = 0,
        size_divisibility: int = -1,
        with_components: bool = True,
        max_components: int = 64,
        min_area_ratio: float = 0.05,
        kernel_size: int = 3,
    ):
        """
        Args:
            augmentations: applied to image and ground truth together. Some are replaced by faster
                ones with the same results, see
                :func:`~sgr.data.augmentations.fast.accelerated`.
            image_format, sixteen_bit: see :func:`sgr.data.truth.image_files.read_image`.
            min_side: pad the right and the bottom so that each side has at least this many pixels.
                Padding is ignored ground truth, and part of no mask.
            size_divisibility: pad each side to a multiple of this many pixels; 0 or less does not.
            with_components: whether to compute components.
            max_components, min_area_ratio, kernel_size: see
                :func:`sgr.data.components.connected_components`.
        """
        self.augmentations = T.AugmentationList(with_a_pixel(accelerated(augmentations)))
        self.image_format = image_format
        self.sixteen_bit = sixteen_bit
        self.min_side = min_side
        self.size_divisibility = size_divisibility
        self.with_components = with_components
        self.max_components = max_components
        self.min_area_ratio = min_area_ratio
        self.kernel_size = kernel_size

    @classmethod
    def from_config(
        cls, cfg: CfgNode, is_train: bool = True, *, large_scale_jitter: bool = False
    ) -> dict[str, Any]:
        check_for_training(cls, is_train)
        return {
            "augmentations": build_augmentations(cfg, large_scale_jitter=large_scale_jitter),
            "image_format": cfg.INPUT.FORMAT,
            "sixteen_bit": cfg.INPUT.SIXTEEN_BIT,
            "min_side": cfg.INPUT.IMAGE_SIZE if large_scale_jitter else 0,
            "size_divisibility": cfg.INPUT.SIZE_DIVISIBILITY,
            **component_options(cfg),
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """
        Args:
            dataset_dict: a record with ``file_name`` and ground truth, left unchanged.

        Raises:
            FileNotFoundError, OSError: a file is missing or damaged.
            ValueError: the ground truth is not of the mapper's kind, differs from the image in
                size, or has a class that does not exist. The message names the file.
        """
        limit_opencv_threads()
        record = {key: value for key, value in dataset_dict.items() if key not in _GROUND_TRUTH}
        image = read_image(record["file_name"], self.image_format, sixteen_bit=self.sixteen_bit)
        check_image_size(record, image)
        truth = self._read(dataset_dict, size=image.shape[:2])

        image, truth = self._augment(image, truth)
        image = self._pad(image, _IMAGE_PADDING)
        record["image"] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        self._add_targets(record, truth)
        return record

    def _read(self, dataset_dict: dict, *, size: tuple[int, int]) -> Any:
        """Read the ground truth of an image of this (height, width), for :meth:`_augment`."""
        raise NotImplementedError

    def _augment(self, image: np.ndarray, truth: Any) -> tuple[np.ndarray, Any]:
        """Augment image and ground truth together. Return the image, and the padded truth."""
        raise NotImplementedError

    def _add_targets(self, record: dict, truth: Any) -> None:
        """Make the targets of the augmented ground truth, and add them to the record."""
        raise NotImplementedError

    def _add_components(self, record: dict, labels: np.ndarray, ignore_label: int) -> None:
        """Add the components of (H, W) labels if ``with_components``."""
        if self.with_components:
            targets = component_tensors(
                labels,
                ignore_label=ignore_label,
                min_area_ratio=self.min_area_ratio,
                max_components=self.max_components,
                kernel_size=self.kernel_size,
            )
            record.update(targets)

    def _pad(self, array: np.ndarray, value: int) -> np.ndarray:
        """Pad an (H, W, ...) image or map; returns it unchanged if no padding is needed."""
        height, width = (max(side, self.min_side) for side in array.shape[:2])
        if self.size_divisibility > 0:
            height, width = (
                -(-side // self.size_divisibility) * self.size_divisibility
                for side in (height, width)
            )
        if (height, width) == array.shape[:2]:
            return array
        padded = np.full((height, width, *array.shape[2:]), value, array.dtype)
        padded[: array.shape[0], : array.shape[1]] = array
        return padded
