#!/usr/bin/env python
"""Export a model's semantic segmentation to one file, and compare the file with the model.

    python tools/export_model.py --config-file configs/... --weights model_final.pth \
        --size 512 512 --format onnx --output model.onnx

It prints the largest difference between the two, the classes that occur, the size of the file and
the milliseconds of both, and fails if the difference is too large. --weights "" exports random
weights. See docs/export.md.

With --int8, the file computes in int8. Then the two differ; --evaluate prints what it costs:

    python tools/export_model.py --config-file configs/... --weights model_final.pth \
        --size 512 512 --format onnx --output model.onnx --int8 photos --evaluate
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_on_dataset
from torch import Tensor, nn
from torch.nn import functional as F

from sgr.data.truth.image_files import read_image
from sgr.dataset_check import spread
from sgr.engine import Trainer
from sgr.engine.setup import at_least
from sgr.evaluation import MeanIoUEvaluator
from sgr.export import export_onnx, export_program, quantize_onnx
from sgr.inference import IMAGE_SUFFIXES, find_files, refuse_overwriting
from sgr.load import add_model_arguments, load_model

# For scores: the largest difference, relative to the largest score if that is above 1. For labels:
# the share of the pixels that differ.
TOLERANCE = 1e-3
TIMED_RUNS = 5
CALIBRATION_IMAGES = 32


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Export a model's semantic segmentation, and compare the file with the model."
    )
    parser.add_argument(
        "--size",
        type=at_least(1),
        nargs=2,
        required=True,
        metavar=("H", "W"),
        help="of images, in pixels",
    )
    parser.add_argument("--format", choices=("pt2", "onnx"), required=True)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--labels", action="store_true", help="put out classes instead of scores")
    parser.add_argument("--uint8", action="store_true", help="take uint8 images instead of float32")
    parser.add_argument(
        "--batch", type=at_least(1), metavar="B", help="images in a batch; default: any"
    )
    parser.add_argument(
        "--int8",
        metavar="PATH",
        help="compute in int8, with the ranges that activations have on "
        f"{CALIBRATION_IMAGES} images of this folder or pattern",
    )
    parser.add_argument(
        "--evaluate", action="store_true", help="print mIoU on DATASETS.TEST of file and model"
    )
    add_model_arguments(parser)
    args = parser.parse_args(arguments)
    if args.output.is_dir():
        parser.error(f"--output {args.output} is a folder; name a file in it")
    if (args.int8 or args.evaluate) and args.batch not in (None, 1):
        parser.error(f"--int8 and --evaluate take image by image: not --batch {args.batch}")
    if args.int8 and args.format != "onnx":
        parser.error("--int8 is for --format onnx")
    if args.evaluate and args.labels:
        parser.error("--evaluate needs scores: leave --labels out")
    if args.int8:
        args.int8, problems = find_files([args.int8], IMAGE_SUFFIXES)
        for name, problem in problems.items():
            parser.error(f"--int8 {name}: {problem}")
    args.dtype = torch.uint8 if args.uint8 else torch.float32
    if args.format == "onnx" and find_spec("onnxruntime") is None:
        parser.error(
            "--format onnx needs onnxruntime to check the file: "
            "pip install 'sgr-segmentation[export]'"
        )
    return args


def load(args: argparse.Namespace) -> tuple[nn.Module, CfgNode]:
    """The model, on the CPU unless an option says more, and its config."""
    if args.weights == "":
        print("exporting random weights: the check says little, for a random model hardly varies")
    return load_model(
        [args.config_file, *args.mixins],
        args.weights,
        *("MODEL.DEVICE", "cpu"),
        *args.opts,
        *("TEST.TOKENS.ENABLED", "False"),
        *("MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT", "scores"),  # to compare with
        allow_pickle=args.allow_pickle,
        allow_unsafe_yaml=args.allow_unsafe_yaml,
    )


def export(model: nn.Module, args: argparse.Namespace, calibration: list[Tensor]) -> None:
    args.output.parent.mkdir(parents=True, exist_ok=True)
    options = {"labels": args.labels, "batch": args.batch, "dtype": args.dtype}
    if args.format == "onnx":
        export_onnx(model, args.size, args.output, **options)
        if calibration:
            quantize_onnx(args.output, calibration)
    else:
        torch.export.save(export_program(model, args.size, **options), args.output)


def load_exported(args: argparse.Namespace, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Load the file as a function from images to the result."""
    if args.format == "pt2":
        module = torch.export.load(args.output).module()
        return lambda images: module(images.to(device)).cpu()

    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as many as the model uses
    session = onnxruntime.InferenceSession(args.output, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def read_images(cfg: CfgNode, args: argparse.Namespace) -> list[Tensor]:
    """Read the images of --int8, spread over all of them, as (1, 3, H, W) of the file's size."""
    files = [args.int8[index] for index in spread(CALIBRATION_IMAGES, len(args.int8))]
    arrays = (
        read_image(str(file), cfg.INPUT.FORMAT, sixteen_bit=cfg.INPUT.SIXTEEN_BIT) for file in files
    )
    return [_fit(torch.from_numpy(array.transpose(2, 0, 1).copy()), args) for array in arrays]


def _fit(image: Tensor, args: argparse.Namespace) -> Tensor:
    """Turn a (3, h, w) image into a batch that the file takes."""
    resized = F.interpolate(image[None].float(), args.size, mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(args.dtype)


def mean_iou(run: Callable[[list[dict]], list[dict]], cfg: CfgNode, dataset_name: str) -> float:
    loader = Trainer.build_test_loader(cfg, dataset_name)
    return inference_on_dataset(run, loader, MeanIoUEvaluator(dataset_name))["sem_seg"]["mIoU"]


def as_model(
    exported: Callable[[Tensor], Tensor], args: argparse.Namespace
) -> Callable[[list[dict]], list[dict]]:
    """Let the file take and give what the model does, resized to its size and back."""

    def run(inputs: list[dict]) -> list[dict]:
        outputs = []
        for one in inputs:
            scores = exported(_fit(one["image"], args))
            size = one["height"], one["width"]
            outputs.append({"sem_seg": F.interpolate(scores, size, mode="bilinear")[0]})
        return outputs

    return run


def evaluate(model: nn.Module, images: Tensor) -> Tensor:
    """Run the model itself: (B, C, H, W) scores."""
    outputs = model([{"image": image} for image in images])
    return torch.stack([output["sem_seg"] for output in outputs]).cpu()


def compare(
    model: nn.Module, exported: Callable[[Tensor], Tensor], images: Tensor, labels: bool
) -> float:
    """Run both on a batch, print the difference and the times, and return the difference."""
    expected, expected_time = _timed(evaluate, model, images)
    result, result_time = _timed(exported, images)
    best = expected.argmax(dim=1)
    if labels:
        difference = (result != best).float().mean().item()
        text = f"{100 * difference:.3f} % of the labels differ ({len(result.unique())} classes)"
    else:
        largest = (result - expected).abs().max().item()
        low, high = expected.aminmax()
        difference = largest / max(1.0, expected.abs().max().item())
        text = f"largest difference {largest:.1e} (scores {low:.3g} to {high:.3g}, "
        text += f"{len(best.unique())} classes)"
        if differ := (result.argmax(dim=1) != best).float().mean().item():
            text += f", {100 * differ:.3f} % of the labels differ"
    print(f"batch {len(images)}: {text}; {result_time:.0f} ms, the model {expected_time:.0f} ms")
    return difference


def _timed(function: Callable, *arguments) -> tuple[Tensor, float]:
    """The result of a function, and milliseconds of the fastest of a few runs after the first."""
    result = function(*arguments)
    seconds = []
    for _ in range(TIMED_RUNS):
        start = time.perf_counter()
        function(*arguments)
        seconds.append(time.perf_counter() - start)
    return result, 1000 * min(seconds)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    # Its optimiser warns about every "split" that it does not change.
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    model, cfg = load(args)
    if Path(cfg.MODEL.WEIGHTS).is_file():
        refuse_overwriting([Path(cfg.MODEL.WEIGHTS)], [args.output])
    calibration = read_images(cfg, args) if args.int8 else []
    start = time.perf_counter()
    export(model, args, calibration)
    seconds = time.perf_counter() - start
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB in {seconds:.0f} s")

    exported = load_exported(args, model.pixel_mean.device)
    check(model, exported, args, calibration)
    if args.evaluate:
        for name in cfg.DATASETS.TEST:
            runs = (as_model(exported, args), model)
            ours, models = (mean_iou(run, cfg, name) for run in runs)
            print(f"{name}: mIoU {ours:.2f}, the model {models:.2f}")


def check(
    model: nn.Module,
    exported: Callable[[Tensor], Tensor],
    args: argparse.Namespace,
    calibration: list[Tensor],
) -> None:
    """Compare both, on random images or those of the calibration.

    Raises:
        SystemExit: if they differ. In int8 they may.
    """
    generator = torch.Generator().manual_seed(0)
    differences = []
    with torch.inference_mode():
        for batch in (1, 2) if args.batch is None else (args.batch,):
            if calibration:
                images = torch.cat((calibration * batch)[:batch])
            else:
                images = torch.randint(0, 256, (batch, 3, *args.size), generator=generator)
            differences.append(compare(model, exported, images.to(args.dtype), args.labels))
    if max(differences) > TOLERANCE and not args.int8:
        raise SystemExit(
            f"{args.output} and the model differ by {max(differences):.1e}, more than {TOLERANCE}"
        )


if __name__ == "__main__":
    main()
