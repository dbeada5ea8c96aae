"""The registry of mappers, and Detectron2's own mapper, for training and for testing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from fvcore.common.registry import Registry

from ..augmentations.center_crop import CentralSquare
from ..truth.image_files import read_image

__all__ = ["MAPPER_REGISTRY", "CentralSquareMapper", "FileNamingMapper", "build_mapper"]

MAPPER_REGISTRY = Registry("MAPPER")
MAPPER_REGISTRY.__doc__ = """
Registry of training mappers, by the name in ``INPUT.DATASET_MAPPER_NAME``. An entry is called with
the config and returns a mapper.
"""


class FileNamingMapper(DatasetMapper):
    """Detectron2's mapper, whose errors about damaged images name the file as well.

    For testing it leaves label maps alone. No model needs them then; evaluators, which read them
    from the files, do without another 8 bytes per pixel from the worker and on the device.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        """
        Raises:
            FileNotFoundError, OSError: the image is missing or damaged; the message names it.
        """
        if not self.is_train:
            dataset_dict = {**dataset_dict}
            dataset_dict.pop("sem_seg_file_name", None)
        try:
            return super().__call__(dataset_dict)
        except Exception:
            # Read it once more: if it is the image, with an error that says so.
            read_image(dataset_dict["file_name"], self.image_format)
            raise


class CentralSquareMapper(FileNamingMapper):
    """Detectron2's mapper for testing, of one square out of each image (TEST.CENTER_CROP_SIZE).

    The image's shorter side is resized to ``side`` pixels and the middle cut out (SGR paper,
    Sec. A.1). That is all there is: ``image`` is (3, side, side), ``height`` and ``width``, the
    size of the results, are ``side``, and ``ground_truth_transform`` is the transform, by which
    :func:`sgr.data.truth.records.apply_test_transform` brings the ground truth in register.
    """

    @configurable
    def __init__(self, *, side: int, **options: Any):
        """
        Args:
            side: of the square, pixels; a ValueError if it is not positive.
            **options: of ``detectron2.data.DatasetMapper``, but for ``is_train`` and
                ``augmentations``.
        """
        self.square = CentralSquare(side)
        super().__init__(False, augmentations=[self.square], **options)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        options = super().from_config(cfg, is_train=False)
        del options["is_train"], options["augmentations"]
        return {**options, "side": cfg.TEST.CENTER_CROP_SIZE}

    def __call__(self, dataset_dict: dict) -> dict:
        """
        Args:
            dataset_dict: a record with ``file_name``, left unchanged.

        Raises:
            FileNotFoundError, OSError: the image is missing or damaged; the message names it.
        """
        record = super().__call__(dataset_dict)
        # Where the record did not have them, Detectron2 sets them to the image's.
        transform = self.square.transform_of((record["height"], record["width"]))
        side = self.square.side
        return {**record, "height": side, "width": side, "ground_truth_transform": transform}


def build_mapper(cfg: CfgNode, is_train: bool = True) -> Callable[[dict], dict]:
    """The mapper of ``cfg.INPUT.DATASET_MAPPER_NAME``; for testing always Detectron2's own.

    With ``cfg.TEST.CENTER_CROP_SIZE`` the latter sees a square of each image, see
    :class:`CentralSquareMapper`; INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST are then of no effect.

    Raises:
        ValueError: no mapper has this name, or the size is negative.
    """
    if not is_train:
        if cfg.TEST.CENTER_CROP_SIZE != 0:
            return CentralSquareMapper(cfg)
        return FileNamingMapper(cfg, is_train=False)
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if name not in MAPPER_REGISTRY:
        known = ", ".join(sorted(known for known, _ in MAPPER_REGISTRY))
        raise ValueError(f"INPUT.DATASET_MAPPER_NAME is {name!r}; known mappers: {known}")
    return MAPPER_REGISTRY.get(name)(cfg)


@MAPPER_REGISTRY.register()
def detectron2_default(cfg: CfgNode) -> DatasetMapper:
    """Detectron2's own, unchanged; "detection_concept" does the same, and checks annotations."""
    return DatasetMapper(cfg, is_train=True)
