"""ResNet-50 and ResNet-101 as "V1d" (He et al., CVPR 2019), with the names of public files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from sgr.modeling.backbone.freezing import FreezableBackbone

NUM_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
FEATURES = ("res2", "res3", "res4", "res5")


class V1dResNet(FreezableBackbone):
    """A ResNet with a stem of three 3x3 convolutions, and shortcuts that average before they halve.

    The last stages may be dilated instead of halving their maps. The first block of such a stage
    has half of its dilation. Parameters have the names of MMSegmentation's ``ResNetV1d``. ImageNet
    files of timm's ``resnet50d`` and ``resnet101d`` load, too; those were trained in this form, but
    without dilation.

    Args:
        depth: 50 or 101.
        out_features: "res2" (stride 4) and so on.
        output_stride: of "res5" and, if it is less, of the stages before: 8, 16 or 32.
        norm: see Detectron2's ``get_norm``; there must be one.
        freeze_at: 1 freezes the stem, 2 also "res2", and so on.

    Raises:
        ValueError: an argument is none of these.
    """

    first_part = "the stem"

    @configurable
    def __init__(
        self,
        depth: int = 101,
        *,
        out_features: Sequence[str] = FEATURES,
        output_stride: int = 8,
        norm: str = "SyncBN",
        freeze_at: int = 0,
        in_channels: int = 3,
    ):
        super().__init__()
        self.title = f"ResNet-{depth} V1d"
        for key, value, known in (
            ("MODEL.RESNETS.DEPTH", depth, tuple(NUM_BLOCKS)),
            ("the stride by RES4_DILATION and RES5_DILATION", output_stride, (8, 16, 32)),
        ):
            if value not in known:
                raise ValueError(f"{key} is {value}; V1dResNet has {', '.join(map(str, known))}")
        unknown = [name for name in out_features if name not in FEATURES]
        if unknown or not out_features:
            raise ValueError(
                f"MODEL.RESNETS.OUT_FEATURES is {list(out_features)}; V1dResNet has "
                f"{', '.join(FEATURES)}"
            )
        if not norm:
            raise ValueError(
                "MODEL.RESNETS.NORM is ''; V1dResNet has norms: 'BN', 'SyncBN', 'FrozenBN'..."
            )
        norm_layer = partial(get_norm, norm)
        layers: list[nn.Module] = []
        for channels, stride, out_channels in ((in_channels, 2, 32), (32, 1, 32), (32, 1, 64)):
            conv = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
            layers += [conv, norm_layer(out_channels), nn.ReLU()]
        self.stem = nn.Sequential(*layers)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels, stride, dilation = 64, 4, 1
        self._out_features = [name for name in FEATURES if name in out_features]
        self._out_feature_channels, self._out_feature_strides = {}, {}
        for number, (name, blocks) in enumerate(zip(FEATURES, NUM_BLOCKS[depth])):
            step = 1 if number == 0 else 2
            first_dilation = dilation
            if stride * step > output_stride:
                dilation, step = dilation * step, 1
            stride *= step
            width = 64 * 2**number
            shortcut = nn.Sequential(
                nn.AvgPool2d(step, step, ceil_mode=True, count_include_pad=False)
                if step > 1
                else nn.Identity(),
                nn.Conv2d(channels, 4 * width, 1, bias=False),
                norm_layer(4 * width),
            )
            stage = [
                Bottleneck(
                    *(channels, width, step, shortcut),
                    dilation=first_dilation,
                    norm_layer=norm_layer,
                )
            ]
            channels = 4 * width
            stage += [
                Bottleneck(channels, width, dilation=dilation, norm_layer=norm_layer)
                for _ in range(blocks - 1)
            ]
            self.add_module(f"layer{number + 1}", nn.Sequential(*stage))
            self._out_feature_channels[name] = channels
            self._out_feature_strides[name] = stride
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.freeze(freeze_at)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """RES4_DILATION 2 stands for stride 8, RES5_DILATION 2 alone for 16."""
        resnets = cfg.MODEL.RESNETS
        output_stride = 8 if resnets.RES4_DILATION > 1 else 16 if resnets.RES5_DILATION > 1 else 32
        return {
            "depth": resnets.DEPTH,
            "out_features": resnets.OUT_FEATURES,
            "output_stride": output_stride,
            "norm": resnets.NORM,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
            "in_channels": input_shape.channels,
        }

    def _parts(self) -> list[list[nn.Module]]:
        stages = [self.get_submodule(f"layer{number}") for number in range(1, 5)]
        return [[self.stem], *([stage] for stage in stages)]

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, in_channels, H, W) -> each of ``out_features`` (B, C, H / stride, W / stride)."""
        y = self.maxpool(self.stem(images))
        features = {}
        for number, name in enumerate(FEATURES, 1):
            y = self.get_submodule(f"layer{number}")(y)
            if name in self._out_features:
                features[name] = y
        return features

    def adapt_checkpoint(self, prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename a file of timm.

        :class:`~sgr.checkpoints.checkpointer.SafeCheckpointer` calls it.
        """
        if not {"conv1.0.weight", "bn1.weight", "layer1.0.downsample.1.weight"} <= state.keys():
            return {}
        renamed = {}
        for name, value in state.items():
            if not name.startswith("fc."):
                name = re.sub(r"^conv1\.", "stem.", re.sub(r"^bn1\.", "stem.7.", name))
                renamed[prefix + name] = value
        return renamed


@BACKBONE_REGISTRY.register()
def build_resnet_v1d_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> V1dResNet:
    """Build the ResNet that DEPTH, NORM, OUT_FEATURES and RES{4,5}_DILATION describe."""
    return V1dResNet(cfg, input_shape)
