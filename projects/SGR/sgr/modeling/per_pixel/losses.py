"""Losses of per-pixel heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fvcore.common.registry import Registry
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.losses import mean_over_workers

PIXEL_LOSS_REGISTRY = Registry("PIXEL_LOSS")
PIXEL_LOSS_REGISTRY.__doc__ = """
Losses of per-pixel heads, chosen by ``cfg.MODEL.SEM_SEG_HEAD.LOSS_TYPE``. A registered class or
function is called as ``(cfg, num_classes, in_channels=..., ignore_value=...)`` and gives a
:class:`PixelLoss`.
"""


class PixelLoss(nn.Module):
    """Base of the losses of per-pixel heads. Subclasses implement :meth:`forward`.

    A loss may learn from other logits than one per class, for example from those of the nodes of a
    tree of classes. It then sets ``num_outputs`` and overrides :meth:`class_logits`.

    Args:
        num_classes: C, at least 1.
        in_channels: channels of the features that the classifier reads.
        ignore_value: the label of pixels without loss.

    Attributes:
        num_outputs: channels of the logits; here C.
        num_aux_outputs: channels of the logits of the auxiliary classifier; 0 for as many.
        levels: in a tree of classes, the number of outputs of each level, from the classes upwards.
            The outputs of a level stand together. () without a tree.
    """

    num_aux_outputs = 0
    levels: Sequence[int] = ()

    def __init__(self, num_classes: int, *, in_channels: int = 0, ignore_value: int = 255):
        super().__init__()
        self.num_outputs = num_classes
        self.ignore_value = ignore_value

    def forward(
        self, logits: Tensor, labels: Tensor, stride: int, features: Tensor | None = None
    ) -> dict[str, Tensor]:
        """
        Args:
            logits: (B, num_outputs, h, w) for cells of ``stride`` pixels.
            labels: (B, H, W) int64 classes or ``ignore_value``; H and W are at most h and w times
                ``stride``.
            stride: pixels per cell along each side.
            features: (B, in_channels, h, w), what the classifier read; None for the auxiliary
                classifier.

        Returns:
            Float32 scalars by name. Names start with "loss_". The head multiplies those of the
            classifier by MODEL.SEM_SEG_HEAD.LOSS_WEIGHT, and those of the auxiliary classifier by
            AUX_LOSS_WEIGHT.
        """
        raise NotImplementedError

    def class_logits(self, logits: Tensor) -> Tensor:
        """Turn (B, num_outputs, h, w) logits into (B, C, h, w) logits of classes, in evaluation."""
        return logits

    def level_labels(self, labels: Tensor) -> Tensor:
        """Say to which outputs cells belong; only asked of losses with :attr:`levels`.

        Args:
            labels: (B, h, w) classes or ``ignore_value``.

        Returns:
            (levels, B, h, w) int64 outputs in [0, num_outputs), one of each level, or -1 for
            ignored cells.
        """
        raise NotImplementedError


class CrossEntropyLoss(PixelLoss):
    """``loss_sem_seg``: mean cross entropy over the labelled pixels of the batch of all workers.

    It upsamples the logits to the labels and computes in float32. Where all pixels are ignored the
    loss is 0, with gradients of 0.

    At its peak, in the backward pass, it holds three float32 arrays of B * C * H * W numbers:
    0.54 GB for each 512 x 512 image with 171 classes.

    Args: as for :class:`PixelLoss`.
    """

    def forward(
        self, logits: Tensor, labels: Tensor, stride: int, features: Tensor | None = None
    ) -> dict[str, Tensor]:
        """See :meth:`PixelLoss.forward`. Cells that do not cover the labels raise a ValueError."""
        logits = upsample_to_labels(logits.float(), labels, stride)
        losses = F.cross_entropy(logits, labels, ignore_index=self.ignore_value, reduction="none")
        return {"loss_sem_seg": self._mean(losses, labels)}

    def _mean(self, losses: Tensor, labels: Tensor) -> Tensor:
        """The mean of (B, H, W) losses, which are 0 where a pixel is ignored."""
        return mean_over_labelled(losses, labels, self.ignore_value)


class HardPixelMiningLoss(CrossEntropyLoss):
    """``loss_sem_seg``: mean over the fifth of the pixels with the largest cross entropy.

    The fifth is that of this worker's images. As in Detectron2's DeepLab an ignored pixel has
    loss 0 and counts as a pixel.
    """

    hard_share = 0.2

    def _mean(self, losses: Tensor, labels: Tensor) -> Tensor:
        number = max(1, int(self.hard_share * losses.numel()))
        return losses.flatten().topk(number).values.mean()


@PIXEL_LOSS_REGISTRY.register()
def cross_entropy(cfg, num_classes: int, **options: Any) -> CrossEntropyLoss:
    return CrossEntropyLoss(num_classes, **options)


@PIXEL_LOSS_REGISTRY.register()
def hard_pixel_mining(cfg, num_classes: int, **options: Any) -> HardPixelMiningLoss:
    return HardPixelMiningLoss(num_classes, **options)


def mean_over_labelled(losses: Tensor, labels: Tensor, ignore_value: int) -> Tensor:
    """The sum of (B, H, W) losses, 0 where ignored, by the labelled pixels of a worker's mean.

    So the mean over the workers is the mean over the labelled pixels of all of them. All workers
    must call it.
    """
    labelled = mean_over_workers((labels != ignore_value).sum(), losses.device)
    return losses.sum() / labelled


def resize(maps: Tensor, size: Sequence[int], *, align_corners: bool = False) -> Tensor:
    """Resize (B, C, h, w) bilinearly to a size; nothing happens to maps that have it."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=align_corners)


def upsample(maps: Tensor, factor: int) -> Tensor:
    """Resize (B, C, h, w) to (B, C, factor h, factor w), bilinearly between cell centres."""
    return F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)


def upsample_to_labels(maps: Tensor, labels: Tensor, stride: int) -> Tensor:
    """Upsample (B, C, h, w) maps by ``stride`` and cut them to the size of (B, H, W) labels.

    Cells that do not cover the labels raise a ValueError.
    """
    height, width = labels.shape[-2:]
    covered = tuple(side * stride for side in maps.shape[-2:])
    if covered[0] < height or covered[1] < width:
        raise ValueError(
            f"labels are {height} x {width} pixels, but the logits at stride {stride} cover "
            f"{covered[0]} x {covered[1]}; pad training images to a multiple of the backbone's "
            "strides (INPUT.SIZE_DIVISIBILITY)"
        )
    return upsample(maps, stride)[..., :height, :width]


def labels_of_cells(labels: Tensor, maps: Tensor, stride: int, ignore_value: int = 255) -> Tensor:
    """Take the label of the pixel in the middle of each cell.

    Args:
        labels: (B, H, W) of pixels.
        maps: (B, C, h, w); only the size matters.
        stride: pixels per cell along each side.
        ignore_value: the label of cells whose middle lies outside of the image.

    Returns:
        (B, h, w) labels.
    """
    middle = labels[:, stride // 2 :: stride, stride // 2 :: stride]
    below, right = (cells - read for cells, read in zip(maps.shape[-2:], middle.shape[-2:]))
    return F.pad(middle, (0, right, 0, below), value=ignore_value)
