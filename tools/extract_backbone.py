#!/usr/bin/env python
"""Take the backbone out of a trained model, as a file from which detectors (and others) start.

    python tools/extract_backbone.py output/model_final.pth backbone.pth
    python tools/extract_backbone.py output/model_final.pth backbone.pth \
        --for configs/coco/mask_rcnn_R101_FPN_sgr_bs8_270k.yaml

The backbone comes with its reasoning modules, and without heads, losses and optimizer. The file
loads as MODEL.WEIGHTS of this project's configs and of Detectron2's own. With --for, a report says
what that model takes of it and what of the model starts anew; nothing is written if that model
takes nothing. Any model of Detectron2's naming will do, a detector too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from detectron2.modeling import build_model
from tabulate import tabulate
from torch import Tensor

import sgr  # noqa: F401 (registers)
from sgr.checkpoints.backbone_file import (
    DILATIONS,
    ExtractedBackbone,
    check_output,
    compare_with_model,
    differing_settings,
    extract_backbone,
    part_of,
    read_settings,
    reasoning_modules,
    save_backbone,
    settings_of,
)
from sgr.checkpoints.checkpointer import read_checkpoint
from sgr.engine import load_config


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Take the backbone out of a trained model, for other models to start from."
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="of a trained model")
    parser.add_argument("output", type=Path, metavar="OUTPUT.pth", help="the file to write")
    parser.add_argument("--force", action="store_true", help="overwrite a file that exists")
    parser.add_argument("--allow-pickle", action="store_true", help="as in train_net.py")
    parser.add_argument("--allow-unsafe-yaml", action="store_true", help="as in train_net.py")
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
    check_output(args.output, overwrite=args.force)
    checkpoint = read_checkpoint(args.checkpoint, allow_pickle=args.allow_pickle)
    if args.output.exists() and args.output.samefile(args.checkpoint):
        raise ValueError("the output would overwrite the checkpoint")
    try:
        extracted = extract_backbone(checkpoint)
    except ValueError as error:
        raise ValueError(f"{args.checkpoint!r}: {error}") from error
    run_config = Path(args.checkpoint).with_name("config.yaml")
    settings = read_settings(run_config, extracted.tensors)
    entries = [key for key in checkpoint if key != "model"]
    report = [
        tell_extracted(extracted, entries),
        tell_settings(settings, run_config, extracted.tensors),
    ]
    if args.target:
        report.append(tell_fit(args, extracted.tensors, settings))
    save_backbone(
        args.output,
        extracted.tensors,
        source=describe_source(args.checkpoint, checkpoint),
        settings=settings,
        overwrite=args.force,
    )
    size = args.output.stat().st_size / 1e6
    print("\n\n".join([*report, f"Wrote {args.output} ({size:.1f} MB): set MODEL.WEIGHTS to it."]))


def tell_extracted(extracted: ExtractedBackbone, entries: Iterable[str]) -> str:
    """What is in the file, by part, and what is not."""
    parts: dict[str, list[Tensor]] = {}
    for name, tensor in extracted.tensors.items():
        parts.setdefault(part_of(name), []).append(tensor)
    parts["all"] = list(extracted.tensors.values())
    rows = [(part, len(each), sum(t.numel() for t in each)) for part, each in parts.items()]
    text = "Taken:\n" + tabulate(rows, ("part", "tensors", "values"), "pipe", intfmt=",")
    rows = [(group, len(names)) for group, names in extracted.left_out.items()]
    if rows:
        text += "\n\nLeft out:\n" + tabulate(rows, ("part", "tensors"), "pipe")
    entries = list(entries)
    if entries:
        text += f"\n\nLeft out of what belongs to the run: {', '.join(entries)}."
    if not any(part.startswith("reasoning.") for part in parts):
        text += "\n\nThere is no reasoning module on the backbone."
    for group in extracted.left_out:
        if group.endswith(".reasoning"):
            text += (
                f"\n\n{group} is left out with its head: it works on the features of the head's "
                "own convolution, for which a detector has no place. To transfer a reasoning "
                "module, train it on the backbone: MODEL.SEM_SEG_HEAD.REASONING False and "
                "MODEL.BACKBONE.NAME build_sgr_resnet_backbone (or build_sgr_backbone with "
                "MODEL.SGR.BACKBONE_NAME build_resnet_deeplab_backbone for a dilated one)."
            )
    return text


def tell_settings(settings: Mapping[str, Any], run_config: Path, names: Iterable[str]) -> str:
    """The settings on which the weights depend."""
    if not settings:
        if run_config.exists():
            found = f"{run_config} cannot be read, or does not tell"
        else:
            found = f"There is no {run_config} to tell"
        keys = [key for key in settings_of(names) if key not in DILATIONS]
        return (
            f"{found} how the model was trained: see to it that these stay as they were: "
            f"{', '.join(keys)}."
        )
    lines = [
        f"    {key}: {value}{' (may change)' if key in DILATIONS else ''}"
        for key, value in settings.items()
    ]
    return "\n".join(["Settings in training, to be kept where the file is used:", *lines])


def tell_fit(
    args: argparse.Namespace, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> str:
    """How the backbone fits the model of ``--for``."""
    config, *opts = args.target
    opts += ["MODEL.DEVICE", "cpu"]
    try:
        cfg = load_config(config, opts, allow_unsafe=args.allow_unsafe_yaml)
        if cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 0:  # left to the data, which the backbone is not
            cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 1
        model = build_model(cfg)
    except Exception as error:  # Detectron2 and yacs raise whatever a wrong value leads to
        raise ValueError(
            f"the model of {config!r} cannot be built: {type(error).__name__}: {error}"
        ) from error
    try:
        taken, table = compare_with_model(model, tensors)
    except ValueError as error:
        raise ValueError(f"{args.checkpoint!r} and the model of {config!r}: {error}") from error
    text = f"{config} takes {len(taken)} of the {len(tensors)} tensors."
    if table is not None:
        text += (
            ' Of the others, "missing" ones are new in the model, and "mismatched" ones have '
            'another shape in it: both start as without the file. "Unexpected" ones have no place '
            f"in the model:\n{table}"
        )
    third = "stem.conv3.weight"  # of the DeepLab stem
    if third in tensors and not any(name.endswith(third) for name in taken):
        text += (
            "\n\nThe file has DeepLab's stem of three convolutions, the model another one. A model "
            "without a pyramid can have it: MODEL.BACKBONE.NAME build_resnet_deeplab_backbone (or "
            "build_sgr_backbone with MODEL.SGR.BACKBONE_NAME), MODEL.RESNETS.STEM_TYPE deeplab, "
            f"MODEL.RESNETS.STEM_OUT_CHANNELS {len(tensors[third])}."
        )
    text += tell_reasoning(tensors, model.state_dict())
    different = differing_settings(settings, cfg)
    for title, rows in (
        (
            "Settings that differ, although the weights depend on them",
            [row for row in different if row[0] not in DILATIONS],
        ),
        (
            "Dilations that differ, which may be what you want",
            [row for row in different if row[0] in DILATIONS],
        ),
    ):
        if rows:
            headers = ("key", "in training", f"in {config}")
            text += f"\n\n{title}:\n" + tabulate(rows, headers, "pipe", disable_numparse=True)
    return text


def tell_reasoning(in_file: Iterable[str], in_model: Iterable[str]) -> str:
    """Why reasoning modules of the file are not those of the model, by the names of tensors."""
    old, new = reasoning_modules(in_file), reasoning_modules(in_model)
    if not old or not new:
        return ""  # one without the other is plain from the table
    if not old.keys() <= new.keys():
        return (
            f"\n\nThe file's reasoning module is on {', '.join(old)}, the model's on "
            f"{', '.join(new)}. To take it along: MODEL.SGR.IN_FEATURES '{json.dumps(list(old))}'."
        )
    features = [feature for feature in old if old[feature] != new[feature]]
    if features:
        return (
            f"\n\nThe file's reasoning module on {', '.join(features)} is of another kind than the "
            "model's: MODEL.SGR.NAME, TOKEN_MIXER and NUM_LAYERS are to be what they were in "
            "training."
        )
    return ""


def describe_source(path: str, checkpoint: Mapping[str, Any]) -> str:
    iteration = checkpoint.get("iteration")
    # Detectron2 counts from 0.
    return f"{path}, {iteration + 1} iterations" if isinstance(iteration, int) else path


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    try:
        extract(args)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
