"""Segmentation of large images window by window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ..modeling.outputs import Outputs, check_semantic_output, outputs_of, scores_only
from .semantic_views import (
    resizes_masks,
    semantic_outputs_of,
    to_output,
    unwrapped,
)

# The coarsest stride of the backbones here: a smaller window would be less than one cell.
_MIN_SIDE = 32


class SlidingWindowSegmentor(nn.Module):
    """A model for semantic segmentation that sees one window of the image at a time.

    It takes the place of a model, with the same inputs and ``sem_seg``. Where windows overlap, the
    result is the mean over the windows: of logits for per-pixel models, of scores for mask
    classifiers. The mean is taken at the size of the network's input, then resized to the size of
    the result, so a window as large as the image changes nothing. Windows that would pass the
    border are shifted inside. A window is never larger than the image.

    Time: one pass of the model for each window. Memory: one pass, and a (C, h, w) sum.
    """

    @configurable
    def __init__(
        self,
        model: nn.Module,
        *,
        size: Sequence[int],
        stride: Sequence[int],
        semantic_output: str = "scores",
    ):
        """
        Args:
            model: of Detectron2's interface, with ``sem_seg`` (C, H, W) in its outputs.
            size: (height, width) of a window, pixels of the network's input.
            stride: (rows, columns) from one window to the next, pixels; the overlap is the rest.
            semantic_output: form of the result in "sem_seg": "scores" (C, H, W), which are logits
                if the model puts out logits, or "labels" (H, W), the best class of each pixel.

        Raises:
            ValueError: if a window is smaller than 32 pixels or than what the model pads images
                to, if windows overlap by their whole size, or if they leave gaps.
        """
        super().__init__()
        check_semantic_output(semantic_output)
        _check_windows(size, stride, _divisibility(unwrapped(model)))
        self.model = unwrapped(model)
        self.size = tuple(size)
        self.stride = tuple(stride)
        self.semantic_output = semantic_output
        inner = outputs_of(self.model)
        self.outputs = Outputs(
            results=("semantic",),
            sem_seg="scores" if inner is None else inner.sem_seg,
            resizes_masks="resizes_masks",
        )
        self.resizes_masks = resizes_masks(self.model)
        self.train(self.model.training)

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> dict:
        semantic_outputs_of(unwrapped(model))  # an error where there are none
        return {
            "model": model,
            "size": cfg.TEST.SLIDING_WINDOW.SIZE,
            "stride": cfg.TEST.SLIDING_WINDOW.STRIDE,
            "semantic_output": cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT,
        }

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """
        Args:
            batched_inputs: per image a dict with ``image`` (3, h, w) and, optional, ``height`` and
                ``width`` of the result.

        Returns:
            Per image a dict of ``sem_seg``, see ``semantic_output``.

        Raises:
            RuntimeError: in training mode.
        """
        with scores_only(self.model):
            return [{"sem_seg": self._segment(inputs)} for inputs in batched_inputs]

    def _segment(self, inputs: dict) -> Tensor:
        image = inputs["image"]
        own = tuple(image.shape[-2:])
        size = (inputs.get("height", own[0]), inputs.get("width", own[1]))
        if own[0] <= self.size[0] and own[1] <= self.size[1]:
            whole = {"image": image, "height": size[0], "width": size[1]}
            scores = self.model([whole])[0]["sem_seg"]
        else:
            scores = self._mean_of_windows(image)
        return to_output(scores, size, self.semantic_output)

    def _mean_of_windows(self, image: Tensor) -> Tensor:
        """(3, h, w) -> (C, h, w)."""
        total: Any = None
        rows, columns = (
            [slice(start, start + window) for start in window_starts(side, window, stride)]
            for side, window, stride in zip(image.shape[-2:], self.size, self.stride)
        )
        for row in rows:
            for column in columns:
                scores = self.model([{"image": image[:, row, column]}])[0]["sem_seg"]
                if total is None:
                    total = scores.new_zeros((len(scores), *image.shape[-2:]), dtype=torch.float32)
                total[:, row, column] += scores
        # A pixel is in as many windows as its row times as its column is.
        total /= _counts(rows, image.shape[-2]).to(total.device, non_blocking=True)[:, None]
        total /= _counts(columns, image.shape[-1]).to(total.device, non_blocking=True)
        return total


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """The starts of the windows along a side: every ``stride`` pixels, and one at the end.

    Args:
        side, window, stride: pixels, with 0 < stride <= window.

    Returns:
        Ascending starts. The windows cover the side; they lie inside it if it is at least as long
        as a window.
    """
    last = max(side - window, 0)
    return [*range(0, last, stride), last]


def _counts(slices: list[slice], side: int) -> Tensor:
    """(side,) the number of slices that contain each place."""
    counts = torch.zeros(side)
    for covered in slices:
        counts[covered] += 1
    return counts


def _divisibility(model: nn.Module) -> int:
    """The model pads images to a multiple of this many pixels; 0 if that is unknown."""
    backbone = getattr(model, "backbone", None)
    return max(getattr(part, "size_divisibility", 0) for part in (model, backbone))


def _check_windows(size: Sequence[int], stride: Sequence[int], divisibility: int) -> None:
    keys = {"SIZE": size, "STRIDE": stride}
    for key, value in keys.items():
        if len(value) != 2 or not all(isinstance(each, int) for each in value):
            raise ValueError(
                f"TEST.SLIDING_WINDOW.{key} must be two integers, height and width in pixels, got "
                f"{list(value)}"
            )
    smallest = max(_MIN_SIDE, divisibility)
    for window, step in zip(size, stride):
        if window < smallest:
            raise ValueError(
                f"TEST.SLIDING_WINDOW.SIZE must be at least {smallest} pixels with this model, got "
                f"{list(size)}"
            )
        if step < 1:
            raise ValueError(
                f"with TEST.SLIDING_WINDOW.STRIDE {list(stride)} windows would overlap by their "
                "whole size or more; a stride must be at least 1"
            )
        if step > window:
            raise ValueError(
                f"TEST.SLIDING_WINDOW.STRIDE {list(stride)} is larger than SIZE {list(size)}: "
                "there would be pixels in no window"
            )
