#!/usr/bin/env python
"""Export a model's semantic segmentation to one file, and compare the file with the model.

    python tools/export_model.py --config-file configs/... --weights model_final.pth \
        --size 512 512 --format onnx --output model.onnx

It prints the largest difference between the two, the classes that occur, the size of the file and
the seconds that both take, and fails if the difference is too large. --weights "" exports random
weights. See docs/export.md.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from sgr.export import export_onnx, export_program
from sgr.load import add_model_arguments, load_model

# For scores: the largest difference, relative to the largest score if that is above 1. For labels:
# the share of the pixels that differ.
TOLERANCE = 1e-3
TIMED_RUNS = 3


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Export a model's semantic segmentation, and compare the file with the model."
    )
    parser.add_argument(
        "--size", type=int, nargs=2, required=True, metavar=("H", "W"), help="of images, in pixels"
    )
    parser.add_argument("--format", choices=("pt2", "onnx"), required=True)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--labels", action="store_true", help="put out classes instead of scores")
    parser.add_argument("--uint8", action="store_true", help="take uint8 images instead of float32")
    parser.add_argument("--batch", type=int, metavar="B", help="images in a batch; default: any")
    add_model_arguments(parser)
    args = parser.parse_args(arguments)
    if min(args.size) < 1:
        parser.error("--size must be positive")
    if args.batch is not None and args.batch < 1:
        parser.error("--batch must be at least 1")
    if args.format == "onnx" and find_spec("onnxruntime") is None:
        parser.error(
            "--format onnx needs onnxruntime to check the file: "
            "pip install 'sgr-segmentation[export]'"
        )
    return args


def load(args: argparse.Namespace) -> nn.Module:
    """The model, on the CPU unless an option says more."""
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
    )[0]


def export(model: nn.Module, args: argparse.Namespace) -> None:
    args.output.parent.mkdir(parents=True, exist_ok=True)
    options = {
        "labels": args.labels,
        "batch": args.batch,
        "dtype": torch.uint8 if args.uint8 else torch.float32,
    }
    if args.format == "onnx":
        export_onnx(model, args.size, args.output, **options)
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


def evaluate(model: nn.Module, images: Tensor) -> Tensor:
    """Run the model itself: (B, C, H, W) scores."""
    outputs = model([{"image": image} for image in images])
    return torch.stack([output["sem_seg"] for output in outputs]).cpu()


def compare(
    model: nn.Module, exported: Callable[[Tensor], Tensor], images: Tensor, labels: bool
) -> float:
    """Run both on a batch, print the difference and the seconds, and return the difference."""
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
    print(f"batch {len(images)}: {text}; {result_time:.2f} s, the model {expected_time:.2f} s")
    return difference


def _timed(function: Callable, *arguments) -> tuple[Tensor, float]:
    """The result of a function, and the seconds of the fastest of a few runs after the first."""
    result = function(*arguments)
    seconds = []
    for _ in range(TIMED_RUNS):
        start = time.perf_counter()
        function(*arguments)
        seconds.append(time.perf_counter() - start)
    return result, min(seconds)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    # Its optimiser warns about every "split" that it does not change.
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    model = load(args)
    start = time.perf_counter()
    export(model, args)
    seconds = time.perf_counter() - start
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB in {seconds:.0f} s")

    exported = load_exported(args, model.pixel_mean.device)
    generator = torch.Generator().manual_seed(0)
    differences = []
    with torch.inference_mode():
        for batch in (1, 2) if args.batch is None else (args.batch,):
            images = torch.randint(0, 256, (batch, 3, *args.size), generator=generator)
            images = images.to(torch.uint8 if args.uint8 else torch.float32)
            differences.append(compare(model, exported, images, args.labels))
    if max(differences) > TOLERANCE:
        raise SystemExit(
            f"{args.output} and the model differ by {max(differences):.1e}, more than {TOLERANCE}"
        )


if __name__ == "__main__":
    main()
