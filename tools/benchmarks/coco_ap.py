"""``coco-ap``: AP of boxes and masks, and the same with pycocotools."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Iterator

import numpy as np
import pycocotools.mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sgr.evaluation import evaluate_coco

from .measure import Row, compare

COMPARES = (
    "evaluate_coco (faster-coco-eval, which uses up to 8 CPU threads for masks) beside "
    "pycocotools, from results to the twelve values; deviation: over these and all precisions."
)

SIZE = (480, 640)  # height, width of an image


def literal_evaluation(ground_truth: COCO, results: list[dict], task: str) -> COCOeval:
    """Evaluate as the examples of pycocotools do, with the arguments of :func:`evaluate_coco`."""
    unused = "bbox" if task == "segm" else "segmentation"
    results = [{key: result[key] for key in result if key != unused} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(results), task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def add_options(option) -> None:
    option("--images", default=500, help="images of 480x640 pixels; COCO val2017 has 5000")
    option("--classes", default=80, help="categories")
    option("--instances", default=7, help="annotations per image, on average")
    option("--detections", default=50, help="results per image")


def run(args: argparse.Namespace) -> Iterator[Row]:
    rng = np.random.default_rng(0)
    ground_truth, results = _random_data(rng, args)
    for task, what in (("bbox", "boxes"), ("segm", "masks")):
        yield compare(
            f"{what}, {args.images} images, {args.classes} classes, {len(ground_truth.anns)} "
            f"instances, {len(results)} detections",
            lambda: _values(literal_evaluation(ground_truth, results, task)),
            lambda: _values(evaluate_coco(ground_truth, results, task)),
            args,
        )


def _values(evaluation) -> list[np.ndarray]:
    return [evaluation.stats, evaluation.eval["precision"]]


def _random_data(rng: np.random.Generator, args: argparse.Namespace) -> tuple[COCO, list[dict]]:
    """Make ground truth with few crowds, and detections, two thirds of them near an instance."""
    images, annotations, results = [], [], []
    for image_id in range(1, args.images + 1):
        images.append({"id": image_id, "height": SIZE[0], "width": SIZE[1]})
        instances = [_shape(rng) for _ in range(rng.poisson(args.instances))]
        classes = rng.integers(1, args.classes + 1, len(instances)).tolist()
        for shape, category in zip(instances, classes):
            crowd = int(rng.random() < 0.01)
            rle = _rle(shape)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": mask_util.toBbox(rle).tolist(),
                    "area": float(mask_util.area(rle)),
                    "iscrowd": crowd,
                    "segmentation": rle if crowd else [shape.ravel().tolist()],
                }
            )
        for score in rng.random(args.detections).tolist():
            if instances and rng.random() < 2 / 3:
                near = rng.integers(len(instances))
                shape, category = _moved(rng, instances[near]), classes[near]
            else:
                shape, category = _shape(rng), int(rng.integers(1, args.classes + 1))
            rle = _rle(shape)
            results.append(
                {
                    "image_id": image_id,
                    "category_id": category,
                    "score": score,
                    "bbox": mask_util.toBbox(rle).tolist(),
                    "segmentation": rle,
                }
            )
    ground_truth = COCO()
    categories = [{"id": n, "name": str(n)} for n in range(1, args.classes + 1)]
    ground_truth.dataset = {
        "info": {},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth.createIndex()
    return ground_truth, results


def _shape(rng: np.random.Generator) -> np.ndarray:
    """Make a round polygon of 24 corners (x, y). It may be small or fill the image."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    radii = np.exp(rng.uniform(np.log(6), np.log(SIZE[0] / 2))) * rng.uniform(0.7, 1, len(angles))
    centre = rng.random(2) * SIZE[::-1]
    corners = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return corners.clip(0, np.array(SIZE[::-1]))


def _moved(rng: np.random.Generator, shape: np.ndarray) -> np.ndarray:
    """Shift a polygon by about a twentieth of its size."""
    shift = rng.normal(0, 0.05, 2) * np.ptp(shape, axis=0)
    return (shape + shift).clip(0, np.array(SIZE[::-1]))


def _rle(shape: np.ndarray) -> dict:
    return mask_util.merge(mask_util.frPyObjects([shape.ravel().tolist()], *SIZE))
