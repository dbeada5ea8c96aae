"""The registry of mappers, and Detectron2's own mapper, for training and for testing."""

from __future__ import annotations

from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from fvcore.common.registry import Registry

from ..image_files import read_image

__all__ = ["MAPPER_REGISTRY", "FileNamingMapper", "build_mapper"]

MAPPER_REGISTRY = Registry("MAPPER")
MAPPER_REGISTRY.__doc__ = """
Registry of training mappers, by the name in ``INPUT.DATASET_MAPPER_NAME``. An entry is called with
the config and returns a mapper.
"""


class FileNamingMapper(DatasetMapper):
    """Detectron2's mapper, whose errors about damaged images name the file as well."""

    def __call__(self, dataset_dict: dict) -> dict:
        """
        Raises:
            FileNotFoundError, OSError: the image is missing or damaged; the message names it.
        """
        try:
            return super().__call__(dataset_dict)
        except Exception:
            # Read it once more: if it is the image, with an error that says so.
            read_image(dataset_dict["file_name"], self.image_format)
            raise


def build_mapper(cfg: CfgNode, is_train: bool = True) -> Callable[[dict], dict]:
    """The mapper of ``cfg.INPUT.DATASET_MAPPER_NAME``; for testing always Detectron2's own.

    Raises:
        ValueError: no mapper has this name.
    """
    if not is_train:
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
