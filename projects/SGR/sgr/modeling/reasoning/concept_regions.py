"""The regions and tokens of a reasoning module."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..layers.precision import at_least_float32


class ConceptRegions(NamedTuple):
    """K soft masks over the cells of a feature map, and the tokens pooled through them.

    It is a tuple, so that a module that returns it can be traced and exported.

    Attributes:
        logits: (B, K, h, w) regions before the sigmoid (the paper's P is :attr:`probabilities`).
        tokens: (B, K, D) tokens before the reasoning, or None.
        centroids: (B, K, 2) centroids (x, y) of the regions, in cells counted from 1 (Eq. 4), or
            None.
        stride: pixels of the padded input image that a cell covers along each side. Cell (y, x)
            covers rows ``[y * stride, (y + 1) * stride)`` and columns
            ``[x * stride, (x + 1) * stride)``. None until a recorder asks the module, and if the
            module does not know its place.
    """

    logits: Tensor
    tokens: Tensor | None = None
    centroids: Tensor | None = None
    stride: int | None = None

    @property
    def probabilities(self) -> Tensor:
        """(B, K, h, w) regions in [0, 1], in float32 at least (Eq. 2)."""
        return at_least_float32(self.logits).sigmoid()

    def crop(self, index: int, height: int, width: int) -> ConceptRegions:
        """Cut out the regions of one image, without the cells that lie wholly in the padding.

        Tokens and centroids stay those of the whole map, padding included: the module has pooled
        them so. The regions of GloRe stay relative to the largest weight of that map, too.

        Args:
            index: the image in the batch.
            height, width: size in pixels of the unpadded image.

        Returns:
            Regions of batch size 1 whose grid is the smallest that covers the image.

        Raises:
            ValueError: if the regions have no stride.
        """
        if self.stride is None:
            raise ValueError("regions without a stride cannot be cropped to an image")
        rows, columns = -(-height // self.stride), -(-width // self.stride)
        return ConceptRegions(
            logits=self.logits[index : index + 1, :, :rows, :columns],
            tokens=None if self.tokens is None else self.tokens[index : index + 1],
            centroids=None if self.centroids is None else self.centroids[index : index + 1],
            stride=self.stride,
        )
