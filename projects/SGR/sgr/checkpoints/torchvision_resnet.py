"""Torchvision's ImageNet files of ResNets (``resnet50-*.pth``) for Detectron2's ResNet."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import Tensor, nn

from .backbone_file import backbone_content

# How torchvision prepares images.
SETTINGS = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
}
NAMES = {"conv1.weight", "bn1.weight", *(f"layer{stage}.0.conv1.weight" for stage in range(1, 5))}


def as_backbone_file(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Turn a ResNet classifier of torchvision's naming into the content of a backbone file.

    It warns where the model has the strides of its bottlenecks in their 1x1 convolutions, because
    torchvision has them in the 3x3 ones.

    Args:
        model: the model to load into.
        state: name -> tensor, as in the file.

    Returns:
        Content as :func:`~sgr.checkpoints.backbone_file.save_backbone` writes it, in Detectron2's
        names, without the classifier; None if the model has no ResNet of Detectron2, or the file
        is not of this kind.
    """
    has_resnet = any(isinstance(module, ResNet) for module in model.modules())
    if not has_resnet or not NAMES <= state.keys():
        return None
    logger = logging.getLogger(__name__)
    logger.info(
        "Recognised ImageNet weights of a ResNet, named as by torchvision. They want %s, and "
        "MODEL.RESNETS.STRIDE_IN_1X1 False",
        ", ".join(f"{key} {value}" for key, value in SETTINGS.items()),
    )
    bottlenecks = [module for module in model.modules() if isinstance(module, BottleneckBlock)]
    if any(block.conv1.stride[0] > 1 for block in bottlenecks):
        logger.warning(
            "MODEL.RESNETS.STRIDE_IN_1X1 is True; torchvision's weights were trained with False: "
            "set it to False"
        )
    tensors = {_rename(name): value for name, value in state.items() if _is_kept(name)}
    return backbone_content(tensors, source="a ResNet classifier", settings=SETTINGS)


def _is_kept(name: str) -> bool:
    return not name.startswith("fc.") and not name.endswith(".num_batches_tracked")


def _rename(name: str) -> str:
    """ "layer1.0.bn2.bias" -> "res2.0.conv2.norm.bias"."""
    name = re.sub(r"^(conv1|bn1)\.", r"stem.\1.", name)
    name = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
    name = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", name)
    return name.replace(".downsample.0.", ".shortcut.").replace(".downsample.1.", ".shortcut.norm.")
