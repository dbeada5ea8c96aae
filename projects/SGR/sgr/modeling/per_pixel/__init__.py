"""Per-pixel classification: the heads of the dilated FCN, DeepLabV3 and UperNet.

A head is a decoder, a classifier and a loss, each chosen from a registry; see
:class:`PerPixelHead`.
"""

from .classifiers import PIXEL_CLASSIFIER_REGISTRY, LinearClassifier, PixelPrediction
from .deeplab_v3 import AnySizeDeepLabV3Head
from .fcn import FCNHead
from .head import PerPixelHead
from .losses import PIXEL_LOSS_REGISTRY, CrossEntropyLoss, HardPixelMiningLoss, PixelLoss
from .uper_net import PyramidPooling, UperNetHead
