"""The head of the dilated FCN, with or without a reasoning module inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor

from ..reasoning import ReasoningModule, build_reasoning
from .head import PerPixelHead, conv_norm_relu, only_shape


@SEM_SEG_HEADS_REGISTRY.register()
class FCNHead(PerPixelHead):
    """3x3 convolution, reasoning module, dropout and 1x1 classifier on one feature.

    On a ResNet dilated to stride 8 this is the paper's Dil-FCN (Table 1). The convolution leaves a
    quarter of the backbone's channels (2048 -> 512). The paper's costs (Table a: 224 -> 236 GFLOPs)
    say that the module is behind it.
    """

    takes_reasoning = True

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        in_features: Sequence[str],
        conv_dim: int = 512,
        norm: str = "SyncBN",
        reasoning: ReasoningModule | None = None,
        **options: Any,
    ):
        """
        Args:
            input_shape, norm: see :class:`PerPixelHead`.
            in_features: name of the one feature that the head reads.
            conv_dim: channels of the convolution.
            reasoning: a module for ``conv_dim`` channels at the feature's stride, or None.
            **options: see :class:`PerPixelHead`; ``num_classes`` is needed.

        Raises:
            ValueError: there is more than one feature, or ``reasoning`` takes another number of
                channels. See :class:`PerPixelHead` for others.
        """
        super().__init__(
            input_shape, in_features=in_features, channels=conv_dim, norm=norm, **options
        )
        shape = only_shape(input_shape, in_features)
        self.conv = conv_norm_relu(shape.channels, conv_dim, 3, norm)
        if reasoning is not None and reasoning.in_channels != conv_dim:
            raise ValueError(
                f"the reasoning module takes {reasoning.in_channels} channels, but the head's "
                f"convolution makes {conv_dim} (conv_dim, MODEL.SEM_SEG_HEAD.CONVS_DIM)"
            )
        self.reasoning = reasoning

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        options = super().from_config(cfg, input_shape)
        conv_dim = cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM
        reasoning = None
        if cfg.MODEL.SEM_SEG_HEAD.REASONING:
            shape = only_shape(input_shape, options["in_features"])
            reasoning = build_reasoning(cfg, conv_dim, stride=shape.stride)
        return {**options, "conv_dim": conv_dim, "reasoning": reasoning}

    def decode(self, features: dict[str, Tensor]) -> Tensor:
        y = self.conv(features[self.in_features[0]])
        if self.reasoning is not None:
            y, _ = self.reasoning(y)
        return y
