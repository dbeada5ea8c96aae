#!/usr/bin/env python
"""Make a folder of a trained model, to keep, hand on and publish.

    python tools/package_model.py --config-file configs/... --weights output/model_final.pth \
        --output output/model --license apache-2.0

The folder has the weights (safetensors: no pickle), the full config, names and colours of the
classes, the preparation of the images, the metrics of the last evaluation, the licence and a model
card. --config-file and --weights of all tools, MODEL.WEIGHTS, sgr.load_model and sgr.Predictor.load
take it. The metrics are those of --results, or else of inference/results.json beside the
checkpoint, unless it is older than the checkpoint or may be of a later one. A model folder keeps
its own metrics, name, licence and source. With --push, it goes to the Hugging Face hub.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from detectron2.utils.logger import setup_logger

from sgr.checkpoints.backbone_file import source_of
from sgr.checkpoints.model_folder import LICENSE, folder_with, read_description
from sgr.load import add_model_arguments, load_with_checkpoint
from sgr.packaging import check_push, check_target, license_file, package_model, push_model


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make a folder of a trained model.")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--name", help="for the model card; default: the folder's name")
    parser.add_argument(
        "--license",
        metavar="ID",
        help="of the weights, such as apache-2.0, or a file with its text (default: unknown)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="results.json of an evaluation (default: inference/results.json beside the weights)",
    )
    parser.add_argument(
        "--push", metavar="OWNER/NAME", help="put it on the Hugging Face hub, private if it is new"
    )
    parser.add_argument("--public", action="store_true", help="with --push: for everybody to see")
    parser.add_argument("--force", action="store_true", help="replace a model folder")
    add_model_arguments(parser)
    args = parser.parse_args(arguments)
    if args.weights == "":
        parser.error("--weights '' means random weights, which are nothing to package")
    args.output = args.output.expanduser()
    return args


def packaged(weights: Path) -> Path | None:
    """The model folder that weights come from; None for those of a training."""
    return weights if weights.is_dir() else folder_with(weights)


def read_results(weights: Path, results: Path | None) -> dict[str, Any]:
    """The metrics of the last evaluation of a checkpoint, or of a model folder.

    None if there is no file, or it is older, or may be of a later checkpoint.

    Raises:
        OSError, ValueError: the file that is named cannot be read.
    """
    folder = packaged(weights)
    if results is None and folder is not None:
        return read_description(folder)["metrics"]
    file = results or weights.parent / "inference" / "results.json"
    if results is None:
        if not file.is_file():
            print(f"There are no metrics: no {file}. Evaluate, or name a file with --results.")
            return {}
        evaluated, written = file.stat().st_mtime, weights.stat().st_mtime
        if evaluated < written:
            print(f"{file} is older than {weights}, so left out. --results takes it all the same.")
            return {}
        for later in sorted(weights.parent.glob("model_*.pth"), reverse=True):
            if written < later.stat().st_mtime <= evaluated:
                print(f"{file} may be of {later}, so left out. --results takes it all the same.")
                return {}
    return read_file(file)


def read_file(file: Path) -> dict[str, Any]:
    """The metrics in a file; errors as of :func:`read_results`."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} holds no results of an evaluation: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no results of an evaluation")
    return content


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    setup_logger(name="sgr")
    # Before the work: what would end it.
    check_target(args.output, force=args.force)
    license_file(args.license or "unknown")
    if args.results:
        read_file(args.results)
    if args.push:
        check_push(args.push)
    model, cfg, rest = load_with_checkpoint(
        [args.config_file, *args.mixins],
        args.weights,
        *args.opts,
        allow_pickle=args.allow_pickle,
        allow_unsafe_yaml=args.allow_unsafe_yaml,
    )
    weights = Path(cfg.MODEL.WEIGHTS)
    folder = packaged(weights)
    before = {} if folder is None else read_description(folder)
    if folder is not None and (folder / LICENSE).is_file():
        before["license"] = str(folder / LICENSE)
    description = package_model(
        model,
        cfg,
        args.output,
        name=args.name or before.get("name", ""),
        license=args.license or before.get("license", "unknown"),
        metrics=read_results(weights, args.results),
        classes=rest.get("trainer", {}).get("classes"),
        source=before.get("source") or source_of(weights.name, rest),
        force=args.force,
    )
    size = sum(file.stat().st_size for file in args.output.iterdir()) / 1e6
    metrics = ", ".join(description["metrics"]) or "none"
    print(f"Wrote {args.output} ({size:.1f} MB), metrics: {metrics}, {description['license']}.")
    print(f'Use it: sgr.Predictor.load("{args.output}")')
    if args.push:
        print(f"On the hub: {push_model(args.output, args.push, private=not args.public)}")


if __name__ == "__main__":
    main()
