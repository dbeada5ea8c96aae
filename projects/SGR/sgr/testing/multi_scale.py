"""Testing at several scales, with and without flip."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable, get_cfg
from detectron2.data.transforms import ResizeShortestEdge, ResizeTransform
from detectron2.modeling import GeneralizedRCNN, GeneralizedRCNNWithTTA, PanopticFPN
from torch import Tensor, nn

from ..data.truth.image_files import read_image
from ..modeling.layers.strips import Strips
from ..modeling.outputs import check_semantic_output, scores_only
from .semantic_views import (
    resizes_masks,
    semantic_outputs_of,
    to_output,
    unwrapped,
)
from .sliding_window import SlidingWindowSegmentor


class MultiScaleSemanticSegmentor(nn.Module):
    """The mean of a model's segmentations of an image at several scales, with and without flip.

    This is the semantic counterpart of Detectron2's ``GeneralizedRCNNWithTTA`` (SGR paper, Sec. 5.2
    and A.1). The mean is taken at the size of the result:

    * Of a per-pixel model, which puts out logits, the softmax is averaged. The public code averages
      the logits.
    * Of a mask classifier, the scores are averaged as they are. A score is the sum over the queries
      of p(class) * p(pixel in mask), as in the public code. Scores are not normalised, so a scale
      at which no query is sure of a pixel counts for less there.

    Memory: one (C, H, W) sum, whatever the number of scales, and what the model needs for one pass.
    Time: that of the passes. Six scales from 0.5 to 1.75 with flip cost as much as 17 passes at
    scale 1.
    """

    @configurable
    def __init__(
        self,
        model: nn.Module,
        *,
        logits: bool,
        scales: Sequence[float] = (),
        min_sizes: Sequence[int] = (),
        min_size: int = 0,
        max_size: int = sys.maxsize,
        flip: bool = True,
        semantic_output: str = "scores",
        input_format: str = "RGB",
        sixteen_bit: str = "refuse",
    ):
        """
        Args:
            model: of Detectron2's interface, with ``sem_seg`` (C, H, W) in its outputs.
            logits: whether ``sem_seg`` are logits, which a softmax turns into probabilities.
            scales: relative to an image whose shortest side is ``min_size`` and whose longest side
                is at most ``max_size``. If ``min_size`` is 0, relative to the image as it comes.
            min_sizes: in place of ``scales``, lengths of the shortest side in pixels, as in
                Detectron2; the longest side is at most ``max_size``.
            flip: add the mirrored image at each scale.
            semantic_output: form of the result in "sem_seg": "scores" (C, H, W), or "labels"
                (H, W), the best class of each pixel.
            input_format: order of the channels of images that this module reads, "RGB" or "BGR".
            sixteen_bit: see :func:`~sgr.data.truth.image_files.read_image`.

        Raises:
            ValueError: if both or neither of ``scales`` and ``min_sizes`` are given, or one of them
                is not positive.
        """
        super().__init__()
        check_semantic_output(semantic_output)
        if bool(scales) == bool(min_sizes):
            raise ValueError(
                "multi-scale testing needs either scales (TEST.AUG.SCALES) or lengths of the "
                f"shortest side (TEST.AUG.MIN_SIZES), got {list(scales)} and {list(min_sizes)}"
            )
        for key, values in (("SCALES", scales), ("MIN_SIZES", min_sizes)):
            if not all(value > 0 for value in values):
                raise ValueError(f"TEST.AUG.{key} must all be above 0, got {list(values)}")
        if max_size < 1:
            raise ValueError(
                "the longest side (TEST.AUG.MAX_SIZE, or INPUT.MAX_SIZE_TEST where SCALES are "
                f"given) must be at least 1 pixel, got {max_size}"
            )
        self.model = unwrapped(model)
        self.logits = logits
        self.scales = tuple(scales)
        self.min_sizes = tuple(min_sizes)
        self.min_size = min_size
        self.max_size = max_size
        self.flip = flip
        self.semantic_output = semantic_output
        self.input_format = input_format
        self.sixteen_bit = sixteen_bit
        self.train(self.model.training)

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> dict:
        model, options = unwrapped(model), cfg.TEST.AUG
        logits = semantic_outputs_of(model).sem_seg == "logits"
        if options.SCALES and list(options.MIN_SIZES) != list(get_cfg().TEST.AUG.MIN_SIZES):
            raise ValueError(
                f"both TEST.AUG.MIN_SIZES {list(options.MIN_SIZES)} and TEST.AUG.SCALES "
                f"{list(options.SCALES)} are set; for MIN_SIZES to count, add "
                'TEST.AUG.SCALES "[]"'
            )
        if options.SCALES:
            without_resize = cfg.INPUT.MIN_SIZE_TEST == 0
            max_size = sys.maxsize if without_resize else cfg.INPUT.MAX_SIZE_TEST
        else:
            max_size = options.MAX_SIZE
        if cfg.TEST.SLIDING_WINDOW.ENABLED and not isinstance(model, SlidingWindowSegmentor):
            model = SlidingWindowSegmentor(cfg, model)
        return {
            "model": model,
            "logits": logits,
            "scales": options.SCALES,
            "min_sizes": () if options.SCALES else options.MIN_SIZES,
            "min_size": cfg.INPUT.MIN_SIZE_TEST,
            "max_size": max_size,
            "flip": options.FLIP,
            "semantic_output": cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT,
            "input_format": cfg.INPUT.FORMAT,
            "sixteen_bit": cfg.INPUT.SIXTEEN_BIT,
        }

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """
        Args:
            batched_inputs: per image a dict of

                * ``image``: (3, h, w) on the CPU, of which the scales are made. It should not be
                  resized before, since the larger scales cannot bring lost detail back;
                * ``file_name``: a file to read if there is no ``image``;
                * ``height``, ``width`` (optional): size of the result; default: that of the image.

        Returns:
            For each image a dict of ``sem_seg``, (C, height, width) or (height, width), see
            ``semantic_output``.

        Raises:
            RuntimeError: in training mode.
            ValueError: if an input has neither ``image`` nor ``file_name``.
            FileNotFoundError, OSError: if a file is missing or damaged; the message names it.
        """
        with scores_only(self.model):
            return [{"sem_seg": self._segment(inputs)} for inputs in batched_inputs]

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """(height, width) of an image at each scale, pixels, rounded as by Detectron2."""
        if self.min_sizes:
            limits = [(side, self.max_size) for side in self.min_sizes]
        else:
            side = self.min_size or min(height, width)
            limits = [
                (_scaled(side, scale), _scaled(self.max_size, scale)) for scale in self.scales
            ]
        sizes = (ResizeShortestEdge.get_output_shape(height, width, *each) for each in limits)
        return [(max(rows, 1), max(columns, 1)) for rows, columns in sizes]

    def _segment(self, inputs: dict) -> Tensor:
        image = self._image(inputs)
        own = image.shape[:2]
        size: tuple[int, int] = (inputs.get("height") or own[0], inputs.get("width") or own[1])
        total: Tensor | None = None
        passes = 0
        for scaled in self.sizes(*own):
            view = ResizeTransform(*own, *scaled).apply_image(image)
            view = torch.from_numpy(np.ascontiguousarray(view.transpose(2, 0, 1)))
            for flip in (False, True) if self.flip else (False,):
                total = self._add(total, view.flip(-1) if flip else view, size, flip)
                passes += 1
        assert total is not None  # there is a scale
        return to_output(total.div_(passes), size, self.semantic_output)

    def _add(
        self, total: Tensor | None, image: Tensor, size: tuple[int, int], flip: bool
    ) -> Tensor:
        """Add the probabilities of one view to the (C, H, W) total."""
        # Both maps give the same result; the smaller one is resized strip by strip.
        asked = min(size, tuple(image.shape[-2:]), key=lambda each: each[0] * each[1])
        height, width = size if resizes_masks(self.model) else asked
        scores = self.model([{"image": image, "height": height, "width": width}])[0]["sem_seg"]
        if total is None:
            total = scores.new_zeros((len(scores), *size), dtype=torch.float32)
        for rows, strip in Strips.of(scores).resize(*size):
            strip = strip.float()
            if self.logits:
                strip = strip.softmax(0)
            total[:, rows] += strip.flip(-1) if flip else strip
        return total

    def _image(self, inputs: dict) -> np.ndarray:
        """(h, w, 3)."""
        if "image" in inputs:
            return inputs["image"].permute(1, 2, 0).cpu().numpy()
        if "file_name" in inputs:
            return read_image(inputs["file_name"], self.input_format, sixteen_bit=self.sixteen_bit)
        raise ValueError(f"an input needs 'image' or 'file_name', got {sorted(inputs)}")


def build_multi_scale_model(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Wrap a model so that it is tested at the scales of TEST.AUG, with flip.

    Args:
        cfg: a config with the keys of ``add_sgr_config``. For a semantic model,
            TEST.AUG.{SCALES, MIN_SIZES, MAX_SIZE, FLIP} and TEST.SLIDING_WINDOW are read; for a
            detector, TEST.AUG.{MIN_SIZES, MAX_SIZE, FLIP}.
        model: a trained model, or the :class:`SlidingWindowSegmentor` around one; its parameters
            are shared, not copied.

    Returns:
        A :class:`MultiScaleSemanticSegmentor`; for a detector, Detectron2's
        ``GeneralizedRCNNWithTTA``.

    Raises:
        ValueError: if the model is of another kind, or an option is out of range.
    """
    model = unwrapped(model)
    if isinstance(model, GeneralizedRCNN) and not isinstance(model, PanopticFPN):
        if cfg.TEST.SLIDING_WINDOW.ENABLED:
            semantic_outputs_of(model)  # an error: there are no windows for detectors
        return GeneralizedRCNNWithTTA(cfg, model)
    return MultiScaleSemanticSegmentor(cfg, model)


def describe_views(model: nn.Module) -> str:
    """Describe the scales and windows of a wrapper in a few words for the log.

    Args:
        model: a :class:`SlidingWindowSegmentor`, or the result of :func:`build_multi_scale_model`.
    """
    if isinstance(model, SlidingWindowSegmentor):
        size, stride = (f"{each[0]} x {each[1]}" for each in (model.size, model.stride))
        return f"windows of {size} pixels, {stride} from one to the next"
    is_semantic = isinstance(model, MultiScaleSemanticSegmentor)
    options = model if is_semantic else model.tta_mapper
    scales = options.scales if is_semantic else ()
    views = "scales" if scales else "shortest sides of"
    views += f" {', '.join(map(str, scales or options.min_sizes))}"
    views += f", {'with' if options.flip else 'without'} flip"
    if is_semantic and isinstance(model.model, SlidingWindowSegmentor):
        views += f", by {describe_views(model.model)}"
    return views


def _scaled(pixels: int, scale: float) -> int:
    return max(int(pixels * scale + 0.5), 1)
