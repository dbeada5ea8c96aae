"""Cross entropy of pixels, of all or of the hardest ones."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["PixelLoss"]

LOSS_TYPES = ("cross_entropy", "hard_pixel_mining")
# Of all pixels, ignored ones too, as in Detectron2's DeepLab.
HARD_SHARE = 0.2


class PixelLoss(nn.Module):
    """Cross entropy between upsampled logits and labels, in float32.

    * "cross_entropy": the mean over the labelled pixels of this worker's images.
    * "hard_pixel_mining": the mean over the fifth of the pixels with the largest losses, as
      Detectron2's DeepLab has it: an ignored pixel has loss 0 and counts as a pixel.

    Where all pixels are ignored the loss is 0, with gradients of 0.

    Cost: the logits are made at the images' size, in float32. At its peak, in the backward pass,
    the loss holds three arrays of B * C * H * W numbers: 0.54 GB for each 512 x 512 image with 171
    classes.
    """

    def __init__(self, loss_type: str = "cross_entropy", *, ignore_value: int = 255):
        """
        Args:
            loss_type: "cross_entropy" or "hard_pixel_mining".
            ignore_value: the label of pixels without loss.

        Raises:
            ValueError: for another ``loss_type``.
        """
        super().__init__()
        if loss_type not in LOSS_TYPES:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.LOSS_TYPE is {loss_type!r}; known: {', '.join(LOSS_TYPES)}"
            )
        self.loss_type = loss_type
        self.ignore_value = ignore_value

    def forward(self, logits: Tensor, labels: Tensor, stride: int) -> Tensor:
        """
        Args:
            logits: (B, C, h, w) for cells of ``stride`` pixels.
            labels: (B, H, W) int64 classes or ``ignore_value``; H and W are at most h and w times
                ``stride``, and what the cells cover beyond them is cut off.
            stride: pixels per cell along each side.

        Returns:
            The loss, a float32 scalar.

        Raises:
            ValueError: the cells do not cover the labels.
        """
        height, width = labels.shape[-2:]
        covered = tuple(side * stride for side in logits.shape[-2:])
        if covered[0] < height or covered[1] < width:
            raise ValueError(
                f"labels are {height} x {width} pixels, but the logits at stride {stride} cover "
                f"{covered[0]} x {covered[1]}; set INPUT.SIZE_DIVISIBILITY to a multiple of the "
                "backbone's strides"
            )
        logits = upsample(logits.float(), stride)[..., :height, :width]
        losses = F.cross_entropy(
            logits, labels, ignore_index=self.ignore_value, reduction="none"
        ).flatten()
        if self.loss_type == "hard_pixel_mining":
            return losses.topk(max(1, int(HARD_SHARE * losses.numel()))).values.mean()
        return losses.sum() / (labels != self.ignore_value).sum().clamp_min(1)


def upsample(maps: Tensor, factor: int) -> Tensor:
    """(B, C, h, w) -> (B, C, factor h, factor w), bilinear between the cells' centres."""
    return F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)
