"""The registry of training mappers, and the mapper that a config asks for."""

from __future__ import annotations

from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from fvcore.common.registry import Registry

from ...modeling.layers.checks import find_registered
from .plain import CentralSquareMapper, FileNamingMapper

MAPPER_REGISTRY = Registry("MAPPER")
MAPPER_REGISTRY.__doc__ = """
Registry of training mappers, by the name in ``INPUT.DATASET_MAPPER_NAME``. An entry is called with
the config and returns a mapper.
"""


def build_mapper(cfg: CfgNode, is_train: bool = True) -> Callable[[dict], dict]:
    """Build the mapper of a config.

    In training it is the one that ``cfg.INPUT.DATASET_MAPPER_NAME`` names, in testing Detectron2's
    own. With ``cfg.TEST.CENTER_CROP_SIZE``, the latter is a :class:`CentralSquareMapper`, and
    INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST have no effect.

    Raises:
        ValueError: no mapper has this name, or the size is negative.
    """
    if not is_train:
        if cfg.TEST.CENTER_CROP_SIZE != 0:
            return CentralSquareMapper(cfg)
        return FileNamingMapper(cfg, is_train=False)
    name = cfg.INPUT.DATASET_MAPPER_NAME
    return find_registered(MAPPER_REGISTRY, name, "INPUT.DATASET_MAPPER_NAME")(cfg)


@MAPPER_REGISTRY.register()
def detectron2_default(cfg: CfgNode) -> DatasetMapper:
    """Detectron2's mapper with our reader of images; "detection_concept" checks annotations too."""
    return FileNamingMapper(cfg, is_train=True)
