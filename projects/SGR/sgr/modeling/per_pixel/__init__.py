"""Per-pixel classification: the heads of the dilated FCN, DeepLabV3 and UperNet, and their loss."""

from .deeplab_v3 import AnySizeDeepLabV3Head
from .fcn import FCNHead
from .head import PerPixelHead
from .losses import PixelLoss
from .uper_net import PyramidPooling, UperNetHead

__all__ = [
    "AnySizeDeepLabV3Head",
    "FCNHead",
    "PerPixelHead",
    "PixelLoss",
    "PyramidPooling",
    "UperNetHead",
]
