#!/usr/bin/env python
"""Write a folder that shows in any browser what the tokens of models do: see docs/explorer.md.

    python tools/explore.py --config-file configs/... --weights model_final.pth \
        --input photos --output explorer
    python tools/explore.py --config-file configs/... --weights model_final.pth \
        --models glore=configs/...@glore.pth --input ade20k_sem_seg_val --output explorer

Open explorer/index.html. It needs neither a server nor the internet. --input is a registered
dataset (default: the first of DATASETS.TEST), or images, folders of images, or patterns. --models
adds models with the same classes, to be compared on the same images. The tool reports and skips
files that cannot be read; if there are any, the exit status is 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.utils.logger import setup_logger

from sgr.data.loading import load_dataset
from sgr.dataset_check import spread
from sgr.engine.console import show_any_name
from sgr.explorer import ExplorerReport, load_explorer_model, write_explorer
from sgr.inference import IMAGE_SUFFIXES, find_files
from sgr.load import add_model_arguments


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Write a folder that shows in any browser what the tokens of models do."
    )
    parser.add_argument(
        "--input",
        nargs="+",
        default=[],
        metavar="PATH",
        help="a registered dataset (default: the first of DATASETS.TEST), or images, folders of "
        "images, or patterns",
    )
    parser.add_argument("--output", type=Path, default=Path("explorer"), metavar="DIR")
    parser.add_argument(
        "--num-images",
        type=int,
        default=200,
        metavar="N",
        help="images, spread over the input (default: 200)",
    )
    parser.add_argument(
        "--max-side",
        type=int,
        default=512,
        metavar="PIXELS",
        help="the longer side of images in the explorer (default: 512)",
    )
    parser.add_argument("--name", default="", help="of the model; default: that of the config")
    parser.add_argument(
        "--models",
        nargs="+",
        type=_named_model,
        default=[],
        metavar="NAME=CONFIG[+CONFIG...][@WEIGHTS]",
        help="more models to compare; several configs are merged; a model folder needs no weights",
    )
    add_model_arguments(parser)
    args = parser.parse_args(arguments)
    if args.num_images < 1:
        parser.error("--num-images must be at least 1")
    return args


def _named_model(text: str) -> tuple[str, list[str], str | None]:
    name, equals, rest = text.partition("=")
    configs, at, weights = rest.rpartition("@") if "@" in rest else (rest, "", None)
    if not (name and equals and configs) or (at and not weights):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=CONFIG[+CONFIG...][@WEIGHTS]")
    return name, configs.split("+"), weights


def find_records(
    inputs: list[str], cfg: CfgNode, num_images: int
) -> tuple[list[dict[str, Any]], Metadata | None, dict[str, str]]:
    """The images to explore, the metadata of their dataset, and inputs without a file -> reason.

    Raises:
        ValueError: there is no image.
    """
    problems: dict[str, str] = {}
    metadata = None
    if not inputs and not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty; name images or a dataset with --input")
    names = inputs or [cfg.DATASETS.TEST[0]]
    if len(names) == 1 and names[0] in DatasetCatalog and not Path(names[0]).exists():
        records = load_dataset(names[0])
        metadata = MetadataCatalog.get(names[0])
    else:
        files, problems = find_files(names, IMAGE_SUFFIXES)
        records = [{"file_name": str(file)} for file in files]
    if not records:
        listed = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
        raise ValueError(f"there is no image to explore: {listed or names[0]}")
    return [records[i] for i in spread(num_images, len(records))], metadata, problems


def report_result(report: ExplorerReport, folder: Path) -> None:
    """Print what was written, and on the standard error what was not."""
    print(
        f"{report.images} images in {report.seconds:.0f} s, {report.size / 1e6:.1f} MB: "
        f"open {folder / 'index.html'} in a browser"
    )
    for name, problem in report.problems.items():
        print(f"left out {name}: {problem}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Run the tool and return the exit status."""
    show_any_name()
    args = parse_args(arguments)
    setup_logger(name="sgr")
    safety = {"allow_pickle": args.allow_pickle, "allow_unsafe_yaml": args.allow_unsafe_yaml}
    name = args.name or Path(args.config_file).stem
    first = load_explorer_model(
        name, [args.config_file, *args.mixins], args.weights, *args.opts, **safety
    )
    records, metadata, problems = find_records(args.input, first.cfg, args.num_images)
    others = [
        load_explorer_model(name, configs, weights, *args.opts, **safety)
        for name, configs, weights in args.models
    ]
    report = write_explorer(
        args.output, [first, *others], records, metadata, max_side=args.max_side
    )
    report.problems = {**problems, **report.problems}
    report_result(report, args.output)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
