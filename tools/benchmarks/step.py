"""``step``: a training step, or inference, of two configs."""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product, repeat
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import nn
from torch.profiler import ProfilerActivity, profile

from sgr.engine import Trainer, load_config
from sgr.engine.amp import AutocastTrainer, half_precision
from sgr.engine.speed import compile_for_training
from sgr.modeling.reasoning import ReasoningModule

from .label_maps import patches
from .measure import Results, Row, compare, synchronize

COMPARES = (
    "The first config beside the second one, on the same made-up images and label maps. With a "
    "ratio above 1, the first one needs more. The parts were clocked in a step of their own, with "
    "a synchronisation at each border."
)
VERSIONS = ("first", "second")
WAIT = re.compile("cuda(Stream|Device|Event)Synchronize")


def add_options(option) -> None:
    option(
        "--configs",
        type=str,
        nargs=2,
        metavar="FILE[+MIXIN...][+KEY=VALUE...]",
        required=True,
        help="two configs of semantic models, each with the mixins and options merged over it",
    )
    option("--size", default=512, help="side of an image in pixels, a multiple of 32")
    option("--images", default=2, help="images of a step")
    option("--options", type=str, nargs="*", default=[], help="KEY VALUE ... for both configs")
    option("--work", type=str, nargs="+", choices=WORK, default=["training"], help="what is done")
    option(
        "--precision",
        type=str,
        nargs="+",
        choices=("float32", "autocast"),
        default=["float32"],
        help="in which numbers",
    )


def run(args: argparse.Namespace) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        cfgs = [step_config(config, folder, args) for config in args.configs]
        cases = list(product(args.work, args.precision))
        compiled = any(cfg.MODEL.COMPILE for cfg in cfgs)
        if compiled and len(cases) > 1 and args.device == "cpu":
            # After it has compiled, PyTorch runs no backward pass in a forked process.
            raise ValueError(
                f"memory cannot be measured in {len(cases)} cases with MODEL.COMPILE: give one "
                "--work and one --precision"
            )
        for work, precision in cases:
            first, second = (WORK[work](cfg, precision == "autocast") for cfg in cfgs)
            yield _row(f"{work}, {precision}", first, second, args)


def _row(case: str, first: Work, second: Work, args: argparse.Namespace) -> Row:
    case = f"{case}, {args.images}x{args.size}x{args.size}"
    # The two are different models, whose results may differ.
    row = compare(case, first.run, second.run, args, deviation=lambda *_: 0.0)
    for version, work, seconds in zip(VERSIONS, (first, second), row.seconds):
        low, middle, high = np.percentile(seconds, (25, 50, 75))
        row.extra[f"{version} quartiles ms"] = f"{1000 * low:.1f} to {1000 * high:.1f}"
        row.extra[f"{version} images/s"] = f"{args.images / middle:.2f}"
        if args.device == "cuda":
            row.extra[f"{version} waits"] = str(_count_waits(work.run))
    parts = [work.parts(args.device) for work in (first, second)]
    names = dict.fromkeys((*parts[0], *parts[1]))  # in their order
    row.parts = {name: tuple(one.get(name, 0.0) for one in parts) for name in names}
    return row


def _count_waits(run: Callable[[], Results]) -> int:
    """Count how often the processor waits for the GPU in a run."""
    activities = (ProfilerActivity.CPU, ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        run()
    return sum(
        event.count for event in profiler.key_averages() if WAIT.fullmatch(event.key) is not None
    )


def step_config(config: str, folder: str | Path, args: argparse.Namespace) -> CfgNode:
    """Load a config and let it train on ``args.images`` made-up images.

    Args:
        config: ``FILE[+MIXIN...][+KEY=VALUE...]``.
        folder: gets the images, label maps of as many classes as the config has, and their
            description.
        args: with ``size``, ``images``, ``options`` and ``device``.
    """
    files = [part for part in config.split("+") if "=" not in part]
    own = [side for part in config.split("+") if "=" in part for side in part.split("=", 1)]
    options = [*args.options, *own]
    cfg = load_config(files, options)
    classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    # Datasets stay registered: the folder's name makes theirs unique.
    description = Path(folder) / f"{Path(folder).name}_{classes}.yaml"
    if not description.exists():
        _write_dataset(description, classes, args, _tree_of(cfg, classes))
    settings = {
        "MODEL.DEVICE": args.device,
        "MODEL.WEIGHTS": "",
        "DATASETS.FILES": [str(description)],
        "DATASETS.TRAIN": (f"{description.stem}_train",),
        "DATASETS.TEST": (),
        "INPUT.MIN_SIZE_TRAIN": (args.size,),
        "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",  # a range would be of two sizes
        "INPUT.CROP.SIZE": [args.size, args.size],
        "INPUT.SIZE_DIVISIBILITY": 32,  # some configs pad to the size of their crops
        "SOLVER.IMS_PER_BATCH": args.images,
        "DATALOADER.NUM_WORKERS": 0,
        "SEED": 0,
    }
    return load_config(files, [*options, *(one for pair in settings.items() for one in pair)])


class TrainingStep:
    """A training step as train_net.py does it, always with the same images.

    Args:
        cfg: of :func:`step_config`.
        amp: whether in mixed precision.
    """

    def __init__(self, cfg: CfgNode, amp: bool):
        torch.manual_seed(0)
        self.model = Trainer.build_model(cfg)
        self.compiled = compile_for_training(self.model, cfg)
        self.optimizer = Trainer.build_optimizer(cfg, self.model)
        self.inputs = next(iter(Trainer.build_train_loader(cfg)))
        trainer = AutocastTrainer if amp else SimpleTrainer
        self.trainer = trainer(self.model.train(), repeat(self.inputs), self.optimizer)

    def run(self) -> Results:
        with EventStorage() as self.trainer.storage:
            self.trainer.run_step()
        return []

    def parts(self, device: str) -> dict[str, float]:
        """Seconds that the parts of a step take, the time in a smaller part not counted twice.

        Of a compiled model, none: the clocks inside would have it compiled anew.
        """
        if self.compiled:
            return {}
        with clocked_parts(self.model, device) as clock, ExitStack() as stack:
            for owner, name, part in (
                (torch.Tensor, "backward", "backward pass"),
                (self.optimizer, "step", "optimizer"),
            ):
                timed = clock.timed(getattr(owner, name), part)
                stack.enter_context(mock.patch.object(owner, name, timed))
            with clock.part("rest"):
                self.run()
        return clock.seconds


class Inference:
    """Inference of a batch, to the maps of scores and whatever else the model puts out.

    Args:
        cfg: of :func:`step_config`.
        amp: whether in mixed precision.
    """

    def __init__(self, cfg: CfgNode, amp: bool):
        torch.manual_seed(0)
        self.model = Trainer.build_model(cfg).eval()
        self.inputs = [
            {"image": one["image"], "height": one["image"].shape[1], "width": one["image"].shape[2]}
            for one in next(iter(Trainer.build_train_loader(cfg)))
        ]
        half = half_precision(cfg.MODEL.DEVICE)
        self.autocast = partial(torch.autocast, cfg.MODEL.DEVICE, dtype=half, enabled=amp)

    def run(self) -> Results:
        with torch.no_grad(), self.autocast():
            self.model(self.inputs)
        return []

    def parts(self, device: str) -> dict[str, float]:
        """As :meth:`TrainingStep.parts`."""
        with clocked_parts(self.model, device) as clock, clock.part("rest"):
            self.run()
        return clock.seconds


Work = TrainingStep | Inference
WORK: dict[str, type[Work]] = {"training": TrainingStep, "inference": Inference}


class Clock:
    """Seconds of parts that may lie inside one another; a part inside another stops its clock."""

    def __init__(self, device: str):
        self.device = device
        self.seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = 0.0

    def start(self, part: str) -> None:
        self._book()
        self._running.append(part)
        self.seconds.setdefault(part, 0.0)

    def stop(self) -> None:
        self._book()
        self._running.pop()

    def _book(self) -> None:
        synchronize(self.device)
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.start(name)
        try:
            yield
        finally:
            self.stop()

    def timed(self, function: Callable, part: str) -> Callable:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self.part(part):
                return function(*args, **kwargs)

        return wrapper


@contextmanager
def clocked_parts(model: nn.Module, device: str) -> Iterator[Clock]:
    """Clock the parts of the model's forward pass while the context lasts."""
    clock = Clock(device)
    with ExitStack() as stack:
        for name, module in _parts_of(model):
            for handle in (
                module.register_forward_pre_hook(lambda *_, part=name: clock.start(part)),
                module.register_forward_hook(lambda *_: clock.stop(), always_call=True),
            ):
                stack.callback(handle.remove)
        yield clock


def _parts_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    paths = {
        "backbone": "backbone",
        "head": "sem_seg_head",
        "pixel decoder": "sem_seg_head.pixel_decoder",
        "predictor": "sem_seg_head.predictor",
        "criterion": "criterion",
        "matching": "criterion.matcher",
    }
    modules = dict(model.named_modules())
    for name, path in paths.items():
        if path in modules:
            yield name, modules[path]
    for module in modules.values():
        if isinstance(module, ReasoningModule):
            yield "reasoning", module
    for name, criterion in getattr(model, "side_criteria", {}).items():
        yield name, criterion


def _tree_of(cfg: CfgNode, classes: int) -> dict[str, Any]:
    """Names and tree of so many classes, for a description, if the config's data have them."""
    for name in cfg.DATASETS.TRAIN:
        metadata = MetadataCatalog.get(name)
        names = metadata.get("stuff_classes", ())
        if metadata.get("class_tree") is not None and len(names) == classes:
            return {"classes": list(names), "tree": metadata.class_tree}
    return {}


def _write_dataset(
    description: Path, classes: int, args: argparse.Namespace, more: dict[str, Any]
) -> None:
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (description.parent / description.stem / kind).mkdir(parents=True)
    for number in range(args.images):
        labels = patches(rng, args.size, min(classes, 20))
        image = cv2.resize(
            rng.integers(0, 256, (args.size // 8, args.size // 8, 3), np.uint8),
            (args.size, args.size),
        )
        for kind, array in (("images", image), ("labels", labels)):
            file = description.parent / description.stem / kind / f"{number}.png"
            cv2.imwrite(str(file), array)
    content = {
        "name": description.stem,
        "classes": classes,
        "splits": {"train": {kind: f"{description.stem}/{kind}" for kind in ("images", "labels")}},
        **more,
    }
    description.write_text(yaml.safe_dump(content))
