"""Semantic-FPN as SeMask has it: the head of Panoptic FPN on a backbone, without a pyramid."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from sgr.modeling.per_pixel.head import PerPixelHead, conv_norm_relu
from sgr.modeling.per_pixel.losses import PIXEL_LOSS_REGISTRY, PixelLoss, resize

from .semantic_decoder import cross_entropy

PUBLIC = "decode_head."  # what the names of a public head begin with


@SEM_SEG_HEADS_REGISTRY.register()
class SemanticFPNHead(PerPixelHead):
    """Each feature goes through 3x3 convolutions and doublings to the finest stride; all are added.

    Detectron2's ``SemSegFPNHead`` is the same without dropout, and takes only maps whose sides are
    multiples of each other.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        in_features: Sequence[str],
        conv_dim: int = 256,
        norm: str = "SyncBN",
        **options: Any,
    ):
        """
        Args:
            input_shape, in_features, norm: see :class:`PerPixelHead`.
            conv_dim: channels of every convolution.
            **options: see :class:`PerPixelHead`; ``num_classes`` is needed.
        """
        super().__init__(
            input_shape, in_features=in_features, channels=conv_dim, norm=norm, **options
        )
        self.scale_heads = nn.ModuleList()
        for name in self.in_features:
            shape = input_shape[name]
            doublings = int(math.log2(shape.stride / self.common_stride))
            channels, branch = shape.channels, nn.Sequential()
            for _ in range(max(1, doublings)):
                branch.append(conv_norm_relu(channels, conv_dim, 3, norm))
                if doublings:
                    branch.append(nn.Upsample(scale_factor=2, mode="bilinear"))
                channels = conv_dim
            self.scale_heads.append(branch)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return {
            **super().from_config(cfg, input_shape),
            "conv_dim": cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM,
        }

    def decode(self, features: dict[str, Tensor]) -> Tensor:
        size = features[self.in_features[0]].shape[-2:]
        maps = [branch(features[name]) for name, branch in zip(self.in_features, self.scale_heads)]
        total = maps[0]
        for level in maps[1:]:
            total = total + resize(level, size)
        return total

    def adapt_checkpoint(self, prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the head of a public file of MMSegmentation; other names stay as they are.

        :class:`~sgr.checkpoints.checkpointer.SafeCheckpointer` calls it.
        """
        if not any(name.startswith(PUBLIC) for name in state):
            return {}
        own = {prefix + name for name in self.state_dict()}
        renamed = {_rename(name, prefix): value for name, value in state.items()}
        # Not all norms count their batches.
        return {
            name: value
            for name, value in renamed.items()
            if name in own or not name.startswith(prefix) or not name.endswith("_batches_tracked")
        }


def _rename(name: str, prefix: str) -> str:
    if not name.startswith(PUBLIC):
        return name
    name = re.sub(r"^conv_seg\.", "predictor.", name.removeprefix(PUBLIC))
    name = re.sub(r"^(scale_heads\.\d+\.\d+)\.conv\.", r"\1.", name)
    return prefix + re.sub(r"^(scale_heads\.\d+\.\d+)\.bn\.", r"\1.norm.", name)


class SeMaskCrossEntropy(PixelLoss):
    """``loss_sem_seg``: cross entropy over the number of all pixels, ignored ones too.

    Logits are resized to the labels.

    Args:
        num_classes, ignore_value: see :class:`PixelLoss`.
        hard_pixels: learn from this many labelled pixels per image only, those with the largest
            loss in the batch (OHEM). The divisor stays. 0 takes all.

    Raises:
        ValueError: ``hard_pixels`` is negative.
    """

    def __init__(self, num_classes: int, *, hard_pixels: int = 0, **options: Any):
        super().__init__(num_classes, **options)
        if hard_pixels < 0:
            raise ValueError(
                f"hard_pixels (MODEL.SEMASK.HARD_PIXELS) is {hard_pixels}; it must be at least 0"
            )
        self.hard_pixels = hard_pixels

    def forward(
        self, logits: Tensor, labels: Tensor, stride: int, features: Tensor | None = None
    ) -> dict[str, Tensor]:
        """See :meth:`PixelLoss.forward`."""
        logits = resize(logits.float(), labels.shape[-2:])
        if not self.hard_pixels:
            return {"loss_sem_seg": cross_entropy(logits, labels, ignore_value=self.ignore_value)}
        losses = F.cross_entropy(
            logits, labels, ignore_index=self.ignore_value, reduction="none"
        ).flatten()
        # Ignored pixels have a loss of 0: they add nothing where there are fewer labelled ones.
        kept = losses.topk(min(self.hard_pixels * len(labels), len(losses))).values
        return {"loss_sem_seg": kept.sum() / len(losses)}


@PIXEL_LOSS_REGISTRY.register()
def semask_cross_entropy(cfg: CfgNode, num_classes: int, **options: Any) -> SeMaskCrossEntropy:
    return SeMaskCrossEntropy(num_classes, hard_pixels=cfg.MODEL.SEMASK.HARD_PIXELS, **options)
