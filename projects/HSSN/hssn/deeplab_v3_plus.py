"""The DeepLabV3+ head (Chen et al., ECCV 2018) that public checkpoints fit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import DepthwiseSeparableConv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from sgr.modeling.per_pixel.head import PerPixelHead, check_batch_statistics, conv_norm_relu
from sgr.modeling.per_pixel.losses import resize

# What the names of a public file begin with.
_HEAD, _AUX = "decode_head.", "auxiliary_head."
# Parts of the public head that are no part of this one: the state of a schedule, and the projection
# of TreeTripletSupervision.
_NOT_OF_THE_HEAD = ("step", "proj_head.")


def separable_conv(
    in_channels: int, out_channels: int, norm: str, dilation: int = 1
) -> DepthwiseSeparableConv2d:
    """A depthwise 3x3 convolution and a 1x1 convolution, each with norm and ReLU."""
    return DepthwiseSeparableConv2d(
        in_channels,
        out_channels,
        padding=dilation,
        dilation=dilation,
        norm1=norm,
        activation1=F.relu,
        norm2=norm,
        activation2=F.relu,
    )


@SEM_SEG_HEADS_REGISTRY.register()
class AnySizeDeepLabV3PlusHead(PerPixelHead):
    """Separable atrous pyramid pooling of a coarse feature, refined by a fine one.

    Modules have the names of MMSegmentation's ``DepthwiseSeparableASPPHead``, but for the
    classifier (``predictor``) and the parts of separable convolutions.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        in_features: Sequence[str],
        aspp_channels: int = 512,
        aspp_dilations: Sequence[int] = (12, 24, 36),
        fine_channels: int = 48,
        norm: str = "SyncBN",
        **options: Any,
    ):
        """
        Args:
            input_shape, norm: see :class:`PerPixelHead`.
            in_features: names of two features, a fine and a coarse one.
            aspp_channels: channels of each branch of the pyramid pooling, and of the output.
            aspp_dilations: dilations of its 3x3 convolutions, cells.
            fine_channels: channels that the fine feature is projected to.
            **options: see :class:`PerPixelHead`; ``num_classes`` is needed.

        Raises:
            ValueError: there are not two features. See :class:`PerPixelHead` for others.
        """
        super().__init__(
            input_shape, in_features=in_features, channels=aspp_channels, norm=norm, **options
        )
        if len(self.in_features) != 2:
            raise ValueError(
                "AnySizeDeepLabV3PlusHead reads two features, but MODEL.SEM_SEG_HEAD.IN_FEATURES "
                f"names {list(in_features)}"
            )
        fine, coarse = (input_shape[name].channels for name in self.in_features)
        self.image_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), conv_norm_relu(coarse, aspp_channels, 1, norm)
        )
        self.aspp_modules = nn.ModuleList(
            [conv_norm_relu(coarse, aspp_channels, 1, norm)]
            + [separable_conv(coarse, aspp_channels, norm, each) for each in aspp_dilations]
        )
        branches = 1 + len(self.aspp_modules)
        self.bottleneck = conv_norm_relu(branches * aspp_channels, aspp_channels, 3, norm)
        self.c1_bottleneck = conv_norm_relu(fine, fine_channels, 1, norm)
        self.sep_bottleneck = nn.Sequential(
            separable_conv(aspp_channels + fine_channels, aspp_channels, norm),
            separable_conv(aspp_channels, aspp_channels, norm),
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "aspp_channels": head.ASPP_CHANNELS,
            "aspp_dilations": head.ASPP_DILATIONS,
            "fine_channels": head.PROJECT_CHANNELS[0],
            "dropout": head.ASPP_DROPOUT,
        }

    def decode(self, features: dict[str, Tensor]) -> Tensor:
        fine, coarse = (features[name] for name in self.in_features)
        pool, project = self.image_pool
        pooled = pool(coarse)
        check_batch_statistics(pooled, project.norm)
        pooled = project(pooled).expand(-1, -1, *coarse.shape[-2:])
        branches = [pooled, *(branch(coarse) for branch in self.aspp_modules)]
        fine = self.c1_bottleneck(fine)
        coarse = resize(self.bottleneck(torch.cat(branches, dim=1)), fine.shape[-2:])
        return self.sep_bottleneck(torch.cat([coarse, fine], dim=1))

    def adapt_checkpoint(self, prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename a public file of MMSegmentation; the names of its backbone stay as they are.

        :class:`~sgr.checkpoints.checkpointer.SafeCheckpointer` calls it.
        """
        if f"{_HEAD}c1_bottleneck.conv.weight" not in state:
            return {}
        own = {prefix + name for name in self.state_dict()}
        renamed = {
            _rename(name, prefix): value
            for name, value in state.items()
            if not name.startswith(tuple(_HEAD + part for part in _NOT_OF_THE_HEAD))
            and (self.aux_in_feature or not name.startswith(_AUX))
        }
        # Not all norms count their batches.
        return {
            name: value
            for name, value in renamed.items()
            if name in own or not name.startswith(prefix) or not name.endswith("_batches_tracked")
        }


def _rename(name: str, prefix: str) -> str:
    for public, own in (
        (f"{_HEAD}conv_seg.", f"{_HEAD}predictor."),
        (f"{_AUX}convs.0.", f"{_HEAD}aux_predictor.0."),
        (f"{_AUX}conv_seg.", f"{_HEAD}aux_predictor.2."),
    ):
        if name.startswith(public):
            name = own + name.removeprefix(public)
    if not name.startswith(_HEAD):
        return name
    name = name.removeprefix(_HEAD)
    name = re.sub(r"\.(depthwise|pointwise)_conv\.", r".\1.", name)
    return prefix + re.sub(r"\.bn\.", ".norm.", re.sub(r"\.conv\.", ".", name))
