"""DeepLabV3 (Chen et al., 2017) for images of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ASPP, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from .head import PerPixelHead, only_shape


@SEM_SEG_HEADS_REGISTRY.register()
class AnySizeDeepLabV3Head(PerPixelHead):
    """Detectron2's ``DeepLabV3Head`` with an image pooling that takes the mean of the whole map.

    With INPUT.CROP.ENABLED the pooling of Detectron2's head has windows of the crop's size and
    refuses maps that are no multiple of it. A model that was trained on crops of 768 pixels then
    refuses images of 1024 x 2048. Otherwise the two heads compute the same, and their parameters
    have the same names. But dropout (ASPP_DROPOUT, not DROPOUT) drops whole channels, as in our
    other heads. CONVS_DIM plays no role.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        in_features: Sequence[str],
        aspp_channels: int = 256,
        aspp_dilations: Sequence[int] = (6, 12, 18),
        use_depthwise_separable_conv: bool = False,
        norm: str = "SyncBN",
        **options: Any,
    ):
        """
        Args:
            input_shape: see :class:`PerPixelHead`.
            in_features: name of the one feature that the head reads.
            aspp_channels: channels of each branch of the atrous spatial pyramid pooling (ASPP), and
                of its output.
            aspp_dilations: dilations of its three 3x3 convolutions, cells; (12, 24, 36) at stride
                8.
            use_depthwise_separable_conv: whether the 3x3 convolutions are depthwise separable.
            norm: norm of the convolutions. The image pooling has none.
            **options: see :class:`PerPixelHead`; ``num_classes`` is needed.

        Raises:
            ValueError: there is more than one feature, or there are not three dilations. See
                :class:`PerPixelHead` for others.
        """
        super().__init__(
            input_shape, in_features=in_features, channels=aspp_channels, norm=norm, **options
        )
        if len(aspp_dilations) != 3:
            raise ValueError(
                "aspp_dilations (MODEL.SEM_SEG_HEAD.ASPP_DILATIONS) must be three, got "
                f"{list(aspp_dilations)}"
            )
        self.aspp = ASPP(
            only_shape(input_shape, in_features).channels,
            aspp_channels,
            aspp_dilations,
            norm=norm,
            activation=F.relu,
            use_depthwise_separable_conv=use_depthwise_separable_conv,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "aspp_channels": head.ASPP_CHANNELS,
            "aspp_dilations": head.ASPP_DILATIONS,
            "dropout": head.ASPP_DROPOUT,
            "use_depthwise_separable_conv": head.USE_DEPTHWISE_SEPARABLE_CONV,
        }

    def decode(self, features: dict[str, Tensor]) -> Tensor:
        return self.aspp(features[self.in_features[0]])
