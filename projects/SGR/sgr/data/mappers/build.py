"""The registry of mappers, and Detectron2's own mapper in it."""

from __future__ import annotations

from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from fvcore.common.registry import Registry

__all__ = ["MAPPER_REGISTRY", "build_mapper"]

MAPPER_REGISTRY = Registry("MAPPER")
MAPPER_REGISTRY.__doc__ = """
Registry of training mappers, by the name in ``INPUT.DATASET_MAPPER_NAME``. An entry is called with
the config and returns a mapper.
"""


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


@MAPPER_REGISTRY.register()
def detectron2_default(cfg: CfgNode) -> DatasetMapper:
    """Detectron2's own, for detection and instance segmentation (the paper's transfer)."""
    return DatasetMapper(cfg, is_train=True)
