"""What the per-pixel heads have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fvcore.nn.weight_init as weight_init
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.checks import check_num_classes
from .losses import PixelLoss, upsample

__all__ = ["PerPixelHead", "check_no_reasoning", "conv_norm_relu", "only_shape"]


class PerPixelHead(nn.Module):
    """Base of the heads ``features -> layers -> dropout -> 1x1 classifier -> logits``.

    It has the interface of Detectron2's semantic heads, for ``SemanticSegmentor`` and
    ``PanopticFPN``. Logits come at the stride of the finest input feature, which the backbone
    says: MODEL.SEM_SEG_HEAD.COMMON_STRIDE plays no role. A second, auxiliary classifier (3x3
    convolution, dropout, 1x1 classifier) may learn on an inner feature; it runs in training only.

    Subclasses implement :meth:`layers`.

    Attributes:
        in_features: names of the input features, from the finest to the coarsest.
        common_stride: pixels per cell of the logits.
        ignore_value: the label of pixels without loss.
    """

    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        in_features: Sequence[str],
        channels: int,
        num_classes: int,
        norm: str = "SyncBN",
        dropout: float = 0.1,
        ignore_value: int = 255,
        loss_weight: float = 1.0,
        loss_type: str = "cross_entropy",
        aux_in_feature: str = "",
        aux_channels: int = 256,
        aux_loss_weight: float = 0.4,
    ):
        """
        Args:
            input_shape: channels and stride of the backbone's features.
            in_features: the features that the head reads.
            channels: what :meth:`layers` puts out.
            num_classes: C, at least 1.
            norm: of the convolutions (see detectron2's ``get_norm``); "" leaves it out.
            dropout: share of the channels that are dropped before the classifiers.
            ignore_value: the label of pixels without loss.
            loss_weight: of ``loss_sem_seg``.
            loss_type: see :class:`PixelLoss`.
            aux_in_feature: what the auxiliary classifier reads; "" for no such classifier.
            aux_channels: of its 3x3 convolution.
            aux_loss_weight: of its ``loss_sem_seg_aux``.

        Raises:
            ValueError: for a feature that the backbone does not put out, a ``loss_type`` that does
                not exist, or no class.
        """
        super().__init__()
        check_num_classes(num_classes)
        _check_features("IN_FEATURES", in_features, input_shape)
        self.in_features = sorted(in_features, key=lambda name: input_shape[name].stride)
        self.common_stride = input_shape[self.in_features[0]].stride
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.dropout = nn.Dropout2d(dropout)
        self.predictor = _classifier(channels, num_classes)
        self.loss = PixelLoss(loss_type, ignore_value=ignore_value)

        self.aux_in_feature = aux_in_feature
        if aux_in_feature:
            _check_features("AUX_IN_FEATURE", [aux_in_feature], input_shape)
            aux_shape = input_shape[aux_in_feature]
            self.aux_stride = aux_shape.stride
            self.aux_loss_weight = aux_loss_weight
            self.aux_predictor = nn.Sequential(
                conv_norm_relu(aux_shape.channels, aux_channels, 3, norm),
                nn.Dropout2d(dropout),
                _classifier(aux_channels, num_classes),
            )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": input_shape,
            "in_features": head.IN_FEATURES,
            "num_classes": head.NUM_CLASSES,
            "norm": head.NORM,
            "dropout": head.DROPOUT,
            "ignore_value": head.IGNORE_VALUE,
            "loss_weight": head.LOSS_WEIGHT,
            "loss_type": head.LOSS_TYPE,
            "aux_in_feature": head.AUX_IN_FEATURE,
            "aux_channels": head.AUX_CHANNELS,
            "aux_loss_weight": head.AUX_LOSS_WEIGHT,
        }

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """What the classifier reads: (B, channels, h, w) at ``common_stride``."""
        raise NotImplementedError

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """
        Args:
            features: of the backbone, each (B, C_i, h_i, w_i).
            targets: (B, H, W) int64 labels; needed in training only.

        Returns:
            In training, None and the weighted losses ``loss_sem_seg`` and, of the auxiliary
            classifier, ``loss_sem_seg_aux``. In evaluation, (B, C, H', W') logits of the pixels
            that the cells cover, at least those of the image, and an empty dict.

        Raises:
            ValueError: there are no targets in training.
        """
        logits = self.predictor(self.dropout(self.layers(features)))
        if not self.training:
            return upsample(logits, self.common_stride), {}
        if targets is None:
            raise ValueError(
                "training needs labels ('sem_seg' in the inputs), which the mapper "
                "'semantic_concept' makes (INPUT.DATASET_MAPPER_NAME)"
            )
        losses = {"loss_sem_seg": self.loss_weight * self.loss(logits, targets, self.common_stride)}
        if self.aux_in_feature:
            aux_logits = self.aux_predictor(features[self.aux_in_feature])
            aux_loss = self.loss(aux_logits, targets, self.aux_stride)
            losses["loss_sem_seg_aux"] = self.aux_loss_weight * aux_loss
        return None, losses


def conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int, norm: str) -> Conv2d:
    """A convolution that keeps the size, its norm (a bias where there is none) and ReLU."""
    layer = Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=F.relu,
    )
    weight_init.c2_msra_fill(layer)
    return layer


def check_no_reasoning(cfg: CfgNode, head: str) -> None:
    """Raise a ValueError where the config asks for reasoning inside a head that has none."""
    if cfg.MODEL.SEM_SEG_HEAD.REASONING:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.REASONING is True, which only FCNHead knows; with {head}, put the "
            "reasoning module on the backbone (MODEL.BACKBONE.NAME: build_sgr_backbone)"
        )


def only_shape(input_shape: dict[str, ShapeSpec], in_features: Sequence[str]) -> ShapeSpec:
    """The shape of the feature that a head of one feature reads; a ValueError for several."""
    _check_features("IN_FEATURES", in_features, input_shape)
    if len(in_features) > 1:
        raise ValueError(
            "the head reads one feature, but MODEL.SEM_SEG_HEAD.IN_FEATURES names "
            f"{list(in_features)}"
        )
    return input_shape[in_features[0]]


def _classifier(in_channels: int, num_classes: int) -> Conv2d:
    layer = Conv2d(in_channels, num_classes, kernel_size=1)
    # Small: training starts near equal probabilities.
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


def _check_features(key: str, names: Sequence[str], input_shape: dict[str, ShapeSpec]) -> None:
    missing = [name for name in names if name not in input_shape]
    if missing or not names:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.{key} asks for {missing or 'nothing'}, but the backbone gives "
            f"{sorted(input_shape)}; set {key}, or the backbone's OUT_FEATURES"
        )
