"""``multi-scale``: the mean over scales and flips, and the same keeping the map of each."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import SemanticSegmentor
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from sgr.modeling.mask_classification import MaskFormerSegmentor
from sgr.modeling.outputs import outputs_of
from sgr.testing import MultiScaleSemanticSegmentor

from .measure import Results, Row, compare

COMPARES = (
    "MultiScaleSemanticSegmentor beside a loop that stacks all probabilities at full size; six "
    "scales with flip, stand-ins for networks, whose own cost is small; the result is part of the "
    "memory."
)

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
STRIDE = 4


def literal_multi_scale(model: nn.Module, image: Tensor, min_size: int, logits: bool) -> Tensor:
    """Compute (C, H, W) mean probabilities or scores of a (3, H, W) image."""
    height, width = image.shape[-2:]
    pixels = image.permute(1, 2, 0).numpy()
    maps = []
    for scale in SCALES:
        side = int(min_size * scale + 0.5)
        resize = ResizeShortestEdge([side], sample_style="choice").get_transform(pixels)
        resized = np.ascontiguousarray(resize.apply_image(pixels).transpose(2, 0, 1))
        for flip in (False, True):
            view = torch.from_numpy(resized)
            view = view.flip(2) if flip else view
            with torch.no_grad():
                (output,) = model([{"image": view, "height": height, "width": width}])
            scores = output["sem_seg"].softmax(0) if logits else output["sem_seg"]
            maps.append(scores.flip(2) if flip else scores)
    return torch.stack(maps).mean(0)


def add_options(option) -> None:
    option("--size", nargs=2, metavar=("H", "W"), default=[384, 512], help="of the file, pixels")
    option("--input", default=256, help="shortest side of the network's input at scale 1, pixels")
    option("--queries", default=50, help="Q")
    option("--classes", default=40, help="C")


def run(args: argparse.Namespace) -> Iterator[Row]:
    image = torch.randint(0, 256, (3, *args.size), dtype=torch.uint8)
    about = f"{args.size[0]}x{args.size[1]}, input {args.input}, {args.classes} classes"
    for name, build, output in (
        ("per-pixel", _per_pixel, "scores"),
        ("mask classifier", _mask_classifier, "labels"),
    ):
        model = build(args).eval().to(args.device)
        logits = outputs_of(model).sem_seg == "logits"
        several = MultiScaleSemanticSegmentor(
            model, logits=logits, scales=SCALES, min_size=args.input, semantic_output=output
        )

        def run_literal() -> Results:
            scores = literal_multi_scale(model, image, args.input, logits)
            return [scores if output == "scores" else scores.argmax(0)]

        def run_sgr() -> Results:
            return [several([{"image": image}])[0]["sem_seg"]]

        yield compare(
            f"{name}, {output}, {about}", run_literal, run_sgr, args, deviation=_deviation
        )


class _Patches(Backbone):
    """One convolution, 8 channels at stride 4."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, STRIDE, STRIDE)

    def forward(self, images: Tensor) -> Tensor:
        return self.convolution(images)

    @property
    def size_divisibility(self) -> int:
        return 32


class _PerPixel(nn.Module):
    def __init__(self, classes: int):
        super().__init__()
        self.predictor = nn.Conv2d(8, classes, 1)

    def forward(self, features: Tensor, targets: None) -> tuple[Tensor, dict]:
        logits = self.predictor(features)
        return F.interpolate(logits, scale_factor=STRIDE, mode="bilinear"), {}


class _Queries(nn.Module):
    def __init__(self, queries: int, classes: int):
        super().__init__()
        self.predictor = nn.Conv2d(8, queries, 1)
        self.register_buffer("classes", torch.randn(1, queries, classes + 1).mul(3))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        return {"pred_logits": self.classes, "pred_masks": self.predictor(features)}


def _per_pixel(args: argparse.Namespace) -> nn.Module:
    return SemanticSegmentor(
        backbone=_Patches(), sem_seg_head=_PerPixel(args.classes), **_normalisation()
    )


def _mask_classifier(args: argparse.Namespace) -> nn.Module:
    return MaskFormerSegmentor(
        backbone=_Patches(),
        sem_seg_head=_Queries(args.queries, args.classes),
        criterion=nn.Identity(),
        **_normalisation(),
    )


def _normalisation() -> dict[str, list[float]]:
    return {"pixel_mean": [127.5] * 3, "pixel_std": [58.0] * 3}


def _deviation(expected: Results, actual: Results) -> float:
    """Compute the relative difference of scores, or the share of pixels with other labels."""
    (first,), (second,) = expected, actual
    if first.is_floating_point():
        return float((first - second).abs().max() / first.abs().max())
    return float((first != second).float().mean())
