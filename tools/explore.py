#!/usr/bin/env python
"""Write a folder that shows in any browser what the tokens of models do: see docs/explorer.md.

    python tools/explore.py --config-file configs/... --weights model_final.pth \
        --input photos --output output/explorer
    python tools/explore.py --config-file configs/... --weights model_final.pth \
        --models glore=configs/...@glore.pth --input ade20k_sem_seg_val --output output/explorer

Open output/explorer/index.html. It needs neither a server nor the internet. --input is a registered
dataset (default: the first of DATASETS.TEST), or images, folders of images, or patterns. --models
adds models with the same classes, to be compared on the same images. The tool reports and skips
files that cannot be read; if there are any, the exit status is 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from detectron2.data import DatasetCatalog
from detectron2.utils.logger import setup_logger

from sgr.dataset_check import spread
from sgr.engine.console import show_any_name
from sgr.engine.setup import at_least
from sgr.explorer import (
    MIN_SIDE,
    ExplorerModel,
    ExplorerReport,
    add_models_arguments,
    check_folder,
    explore_dataset,
    load_models,
    write_explorer,
)
from sgr.inference import IMAGE_SUFFIXES, find_files, looks_like_key


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
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/explorer"),
        metavar="DIR",
        help="a new folder, or an explorer, which is replaced (default: %(default)s)",
    )
    parser.add_argument(
        "--num-images",
        type=at_least(1),
        default=200,
        metavar="N",
        help="images, spread over the input (default: 200)",
    )
    parser.add_argument(
        "--max-side",
        type=at_least(MIN_SIDE),
        default=512,
        metavar="PIXELS",
        help="the longer side of images in the explorer (default: 512)",
    )
    add_models_arguments(parser)
    args = parser.parse_args(arguments)
    for name in filter(looks_like_key, args.input):
        parser.error(f"{name} looks like a key of the config; put another option before it")
    try:  # before the models are loaded
        check_folder(args.output)
    except ValueError as error:
        parser.error(str(error))
    return args


def explore(args: argparse.Namespace, models: list[ExplorerModel]) -> ExplorerReport:
    """Write the explorer of a dataset, or of files.

    Raises:
        ValueError: there is no image; see also :func:`sgr.explorer.write_explorer`.
    """
    test_sets = models[0].cfg.DATASETS.TEST
    if not args.input and not test_sets:
        raise ValueError("DATASETS.TEST is empty; name images or a dataset with --input")
    names = args.input or [test_sets[0]]
    options = {"max_side": args.max_side}
    if len(names) == 1 and names[0] in DatasetCatalog and not Path(names[0]).exists():
        return explore_dataset(args.output, models, names[0], args.num_images, **options)
    files, problems = find_files(names, IMAGE_SUFFIXES)
    if not files:
        listed = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
        raise ValueError(f"there is no image to explore: {listed}")
    chosen = [{"file_name": str(files[i])} for i in spread(args.num_images, len(files))]
    report = write_explorer(args.output, models, chosen, **options)
    report.problems = {**problems, **report.problems}
    return report


def main(arguments: list[str] | None = None) -> int:
    """Run the tool and return the exit status."""
    show_any_name()
    args = parse_args(arguments)
    setup_logger(name="sgr")
    report = explore(args, load_models(args))
    print(f"{report}: open {args.output / 'index.html'} in a browser")
    for name, problem in report.problems.items():
        print(f"left out {name}: {problem}", file=sys.stderr)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
