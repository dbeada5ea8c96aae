#!/usr/bin/env python
"""Take the backbone out of a trained model, as a file from which detectors (and others) start.

    python tools/extract_backbone.py output/model_final.pth backbone.pth
    python tools/extract_backbone.py output/model_final.pth backbone.pth \
        --for configs/coco/mask_rcnn_R101_FPN_sgr_bs8_270k.yaml

The file has the backbone with its reasoning modules, without heads, losses and optimizer. It is a
value for MODEL.WEIGHTS of this project's configs and of Detectron2's own. With --for, it is loaded
into the model of a config, which reports what fits and what starts anew; if nothing fits, no file
is written. Any model of Detectron2's naming will do, a detector too, and a model folder, which this
project's configs also take as it is.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from detectron2.modeling import build_model
from torch import nn

import sgr  # noqa: F401 (registers)
from sgr.checkpoints.backbone_file import (
    extract_backbone,
    read_settings,
    save_backbone,
    source_of,
)
from sgr.checkpoints.checkpointer import SafeCheckpointer, read_checkpoint
from sgr.engine import load_config
from sgr.engine.setup import add_safety_flags


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Take the backbone out of a trained model, for other models to start from."
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="of a trained model, or a model folder"
    )
    parser.add_argument("output", type=Path, metavar="OUTPUT.pth", help="the file to write")
    parser.add_argument("--force", action="store_true", help="overwrite a file that exists")
    add_safety_flags(parser)
    parser.add_argument(
        "--for",
        dest="target",
        nargs="+",
        metavar=("CONFIG", "KEY VALUE"),
        help="report how the backbone fits the model of this config, with these changes",
    )
    args = parser.parse_args(arguments)
    if args.target and len(args.target) % 2 == 0:
        parser.error(f"--for takes a config and pairs of KEY VALUE, got {' '.join(args.target)}")
    return args


def extract(args: argparse.Namespace) -> None:
    """Read, report and write.

    Raises:
        ValueError, OSError: for files and configs that cannot be what they are given for.
    """
    output = args.output
    if output.suffix != ".pth":
        raise ValueError(f"the output must be a .pth file, got {str(output)!r}")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(output.parent)!r} to write to")
    if output.is_dir() or (output.exists() and not args.force):
        raise FileExistsError(f"{str(output)!r} exists; add --force to overwrite a file")
    checkpoint = read_checkpoint(args.checkpoint, allow_pickle=args.allow_pickle)
    if output.exists() and output.samefile(args.checkpoint):
        raise ValueError("the output would overwrite the checkpoint")
    try:
        tensors = extract_backbone(checkpoint)
    except ValueError as error:
        raise ValueError(f"{args.checkpoint!r}: {error}") from error

    print(f"Taken: {len(tensors)} of {len(checkpoint['model'])} tensors:", _count_parts(tensors))
    if not any(name.startswith("reasoning.") for name in tensors):
        print("There is no reasoning module on the backbone; one in a head stays behind.")
    given = Path(args.checkpoint)
    run_config = (given if given.is_dir() else given.parent) / "config.yaml"
    settings = read_settings(run_config)
    if settings:
        print("The weights depend on:", ", ".join(f"{k} {v}" for k, v in settings.items()))
    else:
        print(
            f"{run_config} does not tell how the images were prepared: keep INPUT.FORMAT, "
            "MODEL.PIXEL_MEAN and MODEL.PIXEL_STD as they were in training."
        )
    file = {"source": source_of(args.checkpoint, checkpoint), "settings": settings}
    if args.target:
        model = _build_target(args)
        with tempfile.TemporaryDirectory() as folder:
            save_backbone(f"{folder}/backbone.pth", tensors, **file)
            SafeCheckpointer(model).load(f"{folder}/backbone.pth")
    save_backbone(output, tensors, **file)
    print(f"Wrote {output} ({output.stat().st_size / 1e6:.1f} MB): set MODEL.WEIGHTS to it.")


def _count_parts(names: Iterable[str]) -> str:
    counts = Counter(name.partition(".")[0] for name in sorted(names))
    return ", ".join(f"{part} ({count})" for part, count in counts.items())


def _build_target(args: argparse.Namespace) -> nn.Module:
    """Build the model of ``--for``."""
    config, *options = args.target
    options += ["MODEL.DEVICE", "cpu"]
    try:
        cfg = load_config(config, options, allow_unsafe=args.allow_unsafe_yaml)
        if cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 0:  # left to the data; the backbone needs none
            cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 1
        return build_model(cfg)
    except Exception as error:  # Detectron2 and yacs raise whatever a wrong value leads to
        raise ValueError(
            f"the model of {config!r} cannot be built: {type(error).__name__}: {error}"
        ) from error


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    # The checkpointer logs how the file fits.
    handler, logger = logging.StreamHandler(sys.stdout), logging.getLogger("sgr")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        extract(args)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    finally:
        logger.removeHandler(handler)


if __name__ == "__main__":
    main()
