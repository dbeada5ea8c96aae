"""``input-path``: images per second of the mapper, and of Detectron2's for the same files."""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest import mock

import cv2
import numpy as np
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, detection_utils
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from PIL import Image

import sgr  # noqa: F401  registers datasets
from sgr.config import add_sgr_config
from sgr.data.augmentations.build import build_augmentations
from sgr.data.augmentations.color_jitter import ColorJitterTransform
from sgr.data.augmentations.fast import ConstrainedCrop
from sgr.data.augmentations.resized_crop import ResizedCropTransform
from sgr.data.mappers import SemanticConceptMapper, concept_mapper
from sgr.data.truth import records as truth_records

from .label_maps import patches
from .measure import Results, Row, compare, use_threads

COMPARES = (
    "SemanticConceptMapper beside Detectron2's plain mapper on the same files, with the same "
    "augmentations and random numbers, from file to tensors; without components the two do the "
    "same. Deviation: of images, and of the labels that are not ignored."
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
COCO_STUFF = "coco-stuff-10k-171/Base-COCOStuff10K-171.yaml"
CITYSCAPES = "cityscapes-19/Base-Cityscapes-19.yaml"


class Place(NamedTuple):
    """A function that does a part of the work.

    Attributes:
        owner: module or class that has the function.
        name: its name there. Callers must look it up there at each call.
        part: the name of the part, or a function of the call's arguments that gives the name.
    """

    owner: Any
    name: str
    part: str | Callable[..., str]


@contextmanager
def clocked(places: Sequence[Place]) -> Iterator[dict[str, float]]:
    """Clock the functions while the context lasts.

    Yields:
        The seconds of each part so far. If one of the functions runs inside another, its time
        counts for the outer one. A part that did not run is not there.
    """
    seconds: dict[str, float] = {}
    inside = False

    def clock(function: Callable, part: str | Callable[..., str]) -> Callable:
        def timed(*args, **kwargs):
            nonlocal inside
            if inside:
                return function(*args, **kwargs)
            inside = True
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                inside = False
                name = part if isinstance(part, str) else part(*args, **kwargs)
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start

        return timed

    with ExitStack() as stack:
        for owner, name, part in places:
            replacement = clock(getattr(owner, name), part)
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield seconds


# Who does what, in either version.
PLACES = (
    Place(
        detection_utils,
        "read_image",
        lambda _, format: "decode labels" if format in (None, "L") else "decode image",
    ),
    Place(concept_mapper, "read_image", "decode image"),
    Place(truth_records, "read_labels", "decode labels"),
    Place(truth_records, "check_labels", "check labels"),
    Place(T.RandomCrop_CategoryAreaConstraint, "get_transform", "draw the crop"),
    Place(ConstrainedCrop, "get_transform", "draw the crop"),
    Place(T.ResizeTransform, "apply_image", "resize, crop"),
    Place(T.CropTransform, "apply_image", "resize, crop"),
    Place(ResizedCropTransform, "apply_image", "resize, crop"),
    Place(ResizedCropTransform, "apply_segmentation", "resize, crop"),
    Place(ColorAugSSDTransform, "apply_image", "colours"),
    Place(ColorJitterTransform, "apply_image", "colours"),
    Place(T.HFlipTransform, "apply_image", "flip"),
    Place(concept_mapper, "component_tensors", "components"),
)
REST = "padding, tensors, rest"


def add_options(option) -> None:
    option("--images", default=4, help="files of each kind, or of the dataset")
    option("--draws", default=4, help="augmentations of each image in a run")
    option("--shrink", default=1, help="divides the sizes of made-up images and of the configs")
    option("--dataset", type=str, help="a registered dataset instead of made-up files")
    option(
        "--config-file",
        type=str,
        default=str(CONFIGS / COCO_STUFF),
        help="whose INPUT counts for the dataset",
    )


def run(args: argparse.Namespace) -> Iterator[Row]:
    if args.dataset:
        records = _records_of(args.dataset, args.images)
        cfg = _config(Path(args.config_file), args.shrink, args.dataset)
        yield from _compare(args.dataset, cfg, records, args)
        return
    rng = np.random.default_rng(0)
    for name, config, size, suffix in (
        ("COCO-Stuff", COCO_STUFF, (480, 640), "jpg"),
        ("Cityscapes", CITYSCAPES, (1024, 2048), "png"),
    ):
        height, width = (side // args.shrink for side in size)
        cfg = _config(CONFIGS / config, args.shrink)
        with tempfile.TemporaryDirectory() as folder:
            records = [
                _write(rng, Path(folder) / f"{index}", (height, width), suffix)
                for index in range(args.images)
            ]
            about = f"{name}-like, {height}x{width} {suffix}, crop {cfg.INPUT.CROP.SIZE[0]}"
            yield from _compare(about, cfg, records, args)


def _compare(
    name: str, cfg: CfgNode, records: list[dict], args: argparse.Namespace
) -> Iterator[Row]:
    for what, weight, share in (
        ("components", 0.25, 1.0),
        ("no components", 0.0, 1.0),
        ("components, no class over 75 %", 0.25, 0.75),
    ):
        cfg.MODEL.SGR.SUPERVISION.WEIGHT = weight
        cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = share
        literal = DatasetMapper(
            True, augmentations=build_augmentations(cfg), image_format=cfg.INPUT.FORMAT
        )
        ours = SemanticConceptMapper(cfg)
        for record in records:
            ours(record)  # says what is wrong with it; and then the files are in memory

        def run_literal() -> Results:
            return _map_all(literal, records, args.draws)

        def run_sgr() -> Results:
            return _map_all(ours, records, args.draws)

        row = compare(
            f"{name}, {what}",
            run_literal,
            run_sgr,
            args,
            deviation=partial(_deviation, ignored=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE),
        )
        for who, seconds in zip(("literal", "SGR"), row.seconds):
            row.extra[f"{who} images/s"] = f"{len(records) * args.draws / median(seconds):.1f}"
        if ours.with_components:
            row.parts = _parts(run_literal, run_sgr, args)
        yield row


def _map_all(mapper: Callable[[dict], dict], records: list[dict], draws: int) -> Results:
    """Map each record with a few draws of augmentations, the same in every call."""
    outputs = []
    for index, record in enumerate(records):
        for draw in range(draws):
            random.seed(index * draws + draw)
            np.random.seed(index * draws + draw)
            outputs.append(mapper(record))
    return outputs


def _deviation(expected: Results, actual: Results, *, ignored: int) -> float:
    """Find the largest difference of images or share of other labels among all pairs."""
    worst = 0.0
    for theirs, ours in zip(expected, actual, strict=True):
        height, width = theirs["image"].shape[1:]  # ours may be padded
        image, labels = ours["image"][:, :height, :width], ours["sem_seg"][:height, :width]
        difference = (theirs["image"].int() - image.int()).abs().max() / 255
        wrong = (theirs["sem_seg"] != labels) & (labels != ignored)
        worst = max(worst, float(difference), float(wrong.float().mean()))
    return worst


def _parts(
    run_literal: Callable[[], Results], run_sgr: Callable[[], Results], args: argparse.Namespace
) -> dict[str, tuple[float, float]]:
    """Measure the seconds of each part of a run for both versions.

    It needs runs of its own, because the clocks cost time. So the sum is not that of the row.
    """
    spent: list[dict[str, float]] = [{}, {}]
    with use_threads(args.threads):
        for _ in range(args.repeat):
            for run, total in zip((run_literal, run_sgr), spent):
                start = time.perf_counter()
                with clocked(PLACES) as seconds:
                    run()
                seconds[REST] = time.perf_counter() - start - sum(seconds.values())
                for part in seconds:
                    total[part] = total.get(part, 0.0) + seconds[part] / args.repeat
    literal, ours = spent
    # In the order in which ours meets them, which is that of the work.
    return {part: (literal.get(part, 0.0), ours.get(part, 0.0)) for part in {**ours, **literal}}


def _records_of(name: str, count: int) -> list[dict]:
    """Take at most ``count`` records, spread over the whole dataset."""
    try:
        records = DatasetCatalog.get(name)
    except KeyError as error:
        raise ValueError(f"no dataset {name} is registered") from error
    return records[:: max(1, len(records) // count)][:count]


def _config(path: Path, shrink: int, dataset: str = "") -> CfgNode:
    cfg = get_cfg()
    add_sgr_config(cfg)
    cfg.merge_from_file(str(path))
    cfg.DATASETS.TRAIN = (dataset,) if dataset else ()
    classes = MetadataCatalog.get(dataset).get("stuff_classes") if dataset else None
    if classes:
        # The head of another dataset's config may have fewer.
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(classes)
    sizes = cfg.INPUT
    sizes.MIN_SIZE_TRAIN = [side // shrink for side in sizes.MIN_SIZE_TRAIN]
    if sizes.CROP.TYPE.startswith("absolute"):
        sizes.CROP.SIZE = [side // shrink for side in sizes.CROP.SIZE]
    sizes.SIZE_DIVISIBILITY //= shrink
    return cfg


def _write(rng: np.random.Generator, stem: Path, size: tuple[int, int], suffix: str) -> dict:
    """Write a generated image and its labels, and give their record."""
    labels = patches(rng, size, 19)
    image, label_map = stem.with_suffix(f".{suffix}"), stem.with_suffix(".labels.png")
    # About 190 KB as JPEG and 2.5 MB as PNG, like the images of the datasets.
    grain, options = (22, {"quality": 95}) if suffix == "jpg" else (14, {})
    Image.fromarray(_photograph(rng, labels, grain)).save(image, **options)
    Image.fromarray(labels).save(label_map)
    return {"file_name": str(image), "sem_seg_file_name": str(label_map)}


def _photograph(rng: np.random.Generator, labels: np.ndarray, grain: float) -> np.ndarray:
    """Paint (H, W, 3) uint8: a colour for each label, and noise of all wavelengths."""
    height, width = labels.shape
    values = rng.uniform(40, 216, (256, 3)).astype(np.float32)[labels]
    cells = 4
    while cells < width:
        noise = rng.normal(0, grain, (max(1, cells * height // width), cells, 3))
        noise = cv2.resize(noise.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        values += noise
        grain *= 0.8
        cells *= 2
    values += rng.normal(0, grain, values.shape)
    return values.clip(0, 255).astype(np.uint8)
