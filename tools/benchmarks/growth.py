"""``growth``: how processor time grows with regions, cells, components, images, classes, pixels."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sgr.evaluation import MeanIoUEvaluator, TokenSemanticsEvaluator
from sgr.modeling.reasoning import ConceptRegions, SemanticGlobalReasoning
from sgr.modeling.supervision import ConceptCriterion, ConceptMatcher
from sgr.visualization.figure import new_figure, render

from .label_maps import IGNORE_LABEL, patches
from .matcher import every_patch
from .measure import use_threads

COMPARES = (
    "SemanticGlobalReasoning and ConceptCriterion, forward and backward, and the evaluation of "
    "scores by mIoU and of regions by S and D, at sizes that double. Of each step the median time "
    "of the processor on one thread counts. A line through the logarithms of times and sizes has "
    "the exponent as its slope: 1 where a doubled size doubles the time. Fixed costs lower it; the "
    "last step, from the second largest size to the largest, has the least of them."
)
Step = Callable[[], None]


@dataclass
class Curve:
    """Times of one part at several sizes.

    Attributes:
        part: what was measured.
        axis: what grows.
        sizes, seconds: one of each for a point.
    """

    part: str
    axis: str
    sizes: list[int]
    seconds: list[float]

    @property
    def exponent(self) -> float:
        """The slope of the line that fits logarithms of times and sizes best."""
        return float(np.polyfit(np.log(self.sizes), np.log(self.seconds), 1)[0])

    @property
    def last_exponent(self) -> float:
        """The slope between the two largest sizes, where fixed costs weigh least."""
        return float(np.log2(self.seconds[-1] / self.seconds[-2]))


@contextmanager
def module(*, concepts: int = 256, cells: int = 256) -> Iterator[Step]:
    """The module at its default width, forward and backward, on an image with 256 channels."""
    reasoning = SemanticGlobalReasoning(256, num_concepts=concepts).train()
    x = torch.randn(1, 256, *_sides(cells), requires_grad=True)

    def step() -> None:
        features, _ = reasoning(x)
        torch.autograd.grad(features.square().mean(), [x, *reasoning.parameters()])

    yield step


@contextmanager
def criterion(
    *, concepts: int = 256, cells: int = 256, components: int = 16, stride: int = 16
) -> Iterator[Step]:
    """Matching and losses, forward and backward, of two images and 64 active concepts."""
    height, width = _sides(cells)
    rng = np.random.default_rng(0)
    found = [every_patch(rng, (height * stride, width * stride), components) for _ in range(2)]
    maps = [torch.from_numpy(one.indices) for one in found]
    counts = [len(one.classes) for one in found]
    logits = torch.randn(2, concepts, height, width).mul(1.5).sub(2).requires_grad_()
    losses = ConceptCriterion(ConceptMatcher(max_active=64), weight=1.0)

    def step() -> None:
        output = losses(ConceptRegions(logits, stride=stride), maps, counts)
        torch.autograd.grad(sum(output.losses.values()), logits)

    yield step


@contextmanager
def evaluation(
    *, images: int = 16, classes: int = 20, pixels: int = 256**2, stride: int = 8
) -> Iterator[Step]:
    """mIoU of scores, S and D of 100 regions, from label files to results."""
    height, width = _sides(pixels)
    scores = torch.rand(classes, height, width)
    regions = ConceptRegions(torch.randn(1, 100, height // stride, width // stride), stride=stride)
    with TemporaryDirectory() as folder:
        labels = Path(folder) / "labels.png"
        Image.fromarray(patches(np.random.default_rng(0), (height, width), classes)).save(labels)
        names = [f"{folder}/{number}.jpg" for number in range(images)]
        records = [{"file_name": name, "sem_seg_file_name": str(labels)} for name in names]
        DatasetCatalog.register(folder, lambda: records)
        stuff_classes = [f"class {number}" for number in range(classes)]
        MetadataCatalog.get(folder).set(stuff_classes=stuff_classes, ignore_label=IGNORE_LABEL)
        try:
            evaluators = [each(folder) for each in (MeanIoUEvaluator, TokenSemanticsEvaluator)]
        finally:
            DatasetCatalog.remove(folder)
            MetadataCatalog.remove(folder)
        image = torch.zeros(3, height, width, dtype=torch.uint8)
        inputs = [
            {"file_name": name, "image": image, "height": height, "width": width} for name in names
        ]

        def step() -> None:
            for evaluator in evaluators:
                evaluator.reset()
                for input_ in inputs:
                    evaluator.process([input_], [{"sem_seg": scores, "concept_regions": regions}])
                evaluator.evaluate()

        yield step


# Part, what grows, and the smallest size.
CURVES = (
    (module, "concepts", 64),
    (module, "cells", 256),
    (criterion, "concepts", 64),
    (criterion, "cells", 256),
    (criterion, "components", 4),
    (evaluation, "images", 8),
    (evaluation, "classes", 8),
    (evaluation, "pixels", 128**2),
)


def add_options(option) -> None:
    option("--points", type=int, choices=range(2, 7), default=5, help="sizes of a curve")
    option("--repeat", default=7, help="timed runs of each size")
    option("--output", type=Path, default=Path("output/growth.png"), help="the picture")


def run(args: argparse.Namespace) -> Iterator[Curve]:
    with use_threads(1):
        for part, axis, smallest in CURVES:
            print(f"{part.__name__}: {axis} ...", file=sys.stderr, flush=True)
            sizes = [smallest << double for double in range(args.points)]
            with ExitStack() as stack:
                steps = [stack.enter_context(part(**{axis: size})) for size in sizes]
                times = [
                    [_processor_seconds(step) for step in steps] for _ in range(args.repeat + 1)
                ]
            # The first runs do not count.
            yield Curve(part.__name__, axis, sizes, np.median(times[1:], axis=0).tolist())


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Draw a small plot of each curve, both axes logarithmic, with the fitted line.

    The axes have the same lengths in all plots, so that slopes can be compared by eye.
    """
    figure = new_figure(11, 5)
    figure.set_layout_engine("constrained")
    half = 1.2 * max(max(curve.seconds) / min(curve.seconds) for curve in curves) ** 0.5
    for axes, curve in zip(figure.subplots(2, -(-len(curves) // 2)).flat, curves):
        sizes, milliseconds = np.array(curve.sizes), 1000 * np.array(curve.seconds)
        slope, offset = np.polyfit(np.log(sizes), np.log(milliseconds), 1)
        axes.loglog(sizes, np.exp(offset) * sizes**slope, color="0.7")
        axes.loglog(sizes, milliseconds, "o", color="C0", markersize=4)
        axes.set_title(f"{curve.part}: {curve.axis}, exponent {curve.exponent:.2f}", fontsize=8.5)
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=7)
        ends = milliseconds[[0, -1]]
        axes.set_yticks(ends, [f"{end:,.{1 if end < 100 else 0}f} ms" for end in ends], fontsize=7)
        middle = (milliseconds.min() * milliseconds.max()) ** 0.5
        axes.set_ylim(middle / half, middle * half)
        axes.minorticks_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(render(figure)).save(path)


def _sides(area: int) -> tuple[int, int]:
    """Height and width of a power of two: a square, or twice as wide as high."""
    height = 1 << (area.bit_length() - 1) // 2
    return height, area // height


def _processor_seconds(step: Step) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start
