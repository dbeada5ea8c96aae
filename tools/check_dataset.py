#!/usr/bin/env python
"""Look at a dataset before training on it.

    python tools/check_dataset.py camvid_sem_seg_train camvid_sem_seg_val
    python tools/check_dataset.py --config-file configs/camvid-11/maskformer_R50_sgr_small.yaml
    python tools/check_dataset.py my_data_train DATASETS.FILES "['my_data.yaml']"

reads every image and its ground truth once. It prints the figures of each class, of connected
components and of instances, and lists everything that would stop or spoil a training: missing or
damaged files, sizes that differ, labels that are no class, annotations that cannot be used. A
contact sheet of samples is written to OUTPUT/NAME/contact_sheet.jpg.

Without a NAME, the datasets in DATASETS.TRAIN and TEST of the config are checked. With a
--config-file, it is also checked whether the config can train on them or, for datasets in TEST
only, be evaluated on them. The exit status is 0 if all is well, 1 if there are errors, 2 for a
wrong command line, and 130 after Ctrl-C, which prints the results until then.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from PIL import Image

import sgr  # noqa: F401 (registers)
from sgr.data.datasets.missing import IncompleteDataset
from sgr.data.faults import Fault, FaultKind, list_faults
from sgr.data.loading import check_registered, load_dataset
from sgr.data.threads import available_cores
from sgr.dataset_check import (
    Report,
    check_records,
    class_faults,
    legend_of,
    options_for,
    samples_of,
    spread,
    tell,
    training_faults,
    training_mapper,
)
from sgr.engine import load_config
from sgr.engine.console import show_any_name
from sgr.engine.setup import add_mixins_flag, at_least
from sgr.evaluation.json_file import write_json
from sgr.visualization import draw_contact_sheet

# Keys of the config, which come after the names of datasets.
_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+|OUTPUT_DIR|SEED|CUDNN_BENCHMARK|VERSION")


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line. Words before the first key are ``names``, the others ``opts``."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] [NAME ...] [KEY VALUE ...]",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="NAME, KEY VALUE",
        help="registered datasets, then changes of the config",
    )
    parser.add_argument(
        "--config-file", default="", metavar="FILE", help="the config that will train on the data"
    )
    add_mixins_flag(parser)
    parser.add_argument("--allow-unsafe-yaml", action="store_true", help="as in train_net.py")
    parser.add_argument(
        "--limit", type=at_least(1), metavar="N", help="check N images, spread over the dataset"
    )
    parser.add_argument(
        "--workers",
        type=at_least(1),
        default=available_cores(),
        metavar="N",
        help="images to work on at a time; default: the cores, here %(default)s",
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="report files that are missing, or without a partner, as warnings, not as errors",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for all figures and faults")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/check"),
        metavar="DIR",
        help="folder for the contact sheets, NAME/contact_sheet.jpg; default: %(default)s",
    )
    parser.add_argument(
        "--num-samples",
        type=at_least(0),
        default=12,
        metavar="N",
        help="images on the contact sheet; 0 for none; default: %(default)s",
    )
    args = parser.parse_intermixed_args(arguments)
    first_key = next(
        (index for index, word in enumerate(args.words) if _KEY.fullmatch(word)), len(args.words)
    )
    # Without duplicates: a dataset is checked once.
    args.names, args.opts = list(dict.fromkeys(args.words[:first_key])), args.words[first_key:]
    if len(args.opts) % 2:
        parser.error(f"the config is changed by pairs of KEY VALUE, got {' '.join(args.opts)}")
    return args


def config_and_names(args: argparse.Namespace) -> tuple[CfgNode, list[str]]:
    """The config and the names of the datasets to check; checks all arguments.

    Raises:
        ValueError, KeyError, AssertionError, OSError, yaml.YAMLError: an argument is wrong. The
            config raises the first three for wrong keys and values.
    """
    files = [args.config_file, *args.mixins]
    cfg = load_config(files, args.opts, allow_unsafe=args.allow_unsafe_yaml)
    names = args.names or list(dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]))
    if not names:
        raise ValueError(
            "name a dataset, or give a --config-file with DATASETS.TRAIN or DATASETS.TEST"
        )
    for name in names:
        check_registered(name, "the dataset to check is")
    if args.json and args.json.is_dir():
        raise IsADirectoryError(f"--json {args.json} is a folder, not a file")
    for folder in ([args.output] if args.num_samples else []) + (
        [args.json.parent] if args.json else []
    ):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # an OSError now, not after the work
            pass
    return cfg, names


def load(name: str) -> tuple[list[dict], list[str]]:
    """The records of a dataset, and messages about its missing files.

    Raises:
        OSError: the dataset is not there.
        ValueError: it cannot be loaded for another reason.
    """
    try:
        return load_dataset(name), []
    except OSError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, IncompleteDataset):
            cause = cause.__cause__
        if cause is None or not cause.records:
            raise
        return cause.records, cause.faults
    except ValueError:
        raise
    except Exception as error:  # the dataset's own code may raise anything
        raise ValueError(f"{type(error).__name__}: {error}") from error


def open_dataset(name: str, cfg: CfgNode, args: argparse.Namespace) -> tuple[list[dict], Report]:
    """Load a dataset.

    Returns:
        Its records, and a report with the faults of the dataset as a whole.

    Raises:
        OSError: the dataset is not there.
        ValueError: it cannot be loaded, or its records have no known kind of ground truth.
    """
    records, missing = load(name)
    mapper, faults, warnings = None, [], []
    if args.config_file:
        try:
            mapper = training_mapper(name, cfg)
        except ValueError as error:
            faults.append(Fault(str(error), FaultKind.TRAINING))
    try:
        options = options_for(records, MetadataCatalog.get(name), cfg, mapper=mapper)
    except ValueError as error:
        others = [*(fault.message for fault in faults), *missing]
        if not others:
            raise
        raise ValueError(f"{error}\nFurthermore:\n{list_faults(others)}") from error
    faults += class_faults(options)
    if mapper is not None:
        train, test = cfg.DATASETS.TRAIN, cfg.DATASETS.TEST
        is_trained_on = name in train or (name in args.names and name not in test)
        more_faults, warnings = training_faults(
            mapper, records, options, cfg, is_trained_on=is_trained_on
        )
        faults += more_faults
    if missing and args.partial:
        warnings.append(
            f"files that are missing, or without a partner: {len(missing)}\n{list_faults(missing)}"
        )
    else:
        faults += [Fault(message, FaultKind.PAIRS) for message in missing]
    return records, Report(options, name, len(records), faults=faults, warnings=warnings)


def draw_samples(records: Sequence[dict], report: Report, num_samples: int, folder: Path) -> str:
    """Draw the contact sheet of checked records. Say where it is, or why there is none."""
    drawable = [index for index, can_be in enumerate(report.can_be_drawn) if can_be]
    chosen = [drawable[place] for place in spread(num_samples, len(drawable))]
    if not num_samples:
        return "no samples are drawn"
    if not chosen:
        return "no samples, for no image could be drawn with its ground truth"
    picture = draw_contact_sheet(
        samples_of([records[index] for index in chosen], report.options),
        title=f"{report.name}, {len(chosen)} of {report.num_records} images",
        **legend_of(report.options, MetadataCatalog.get(report.name)),
    )
    path = folder / report.name / "contact_sheet.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, quality=88)
    return f"samples in {path}"


def check(
    name: str, cfg: CfgNode, args: argparse.Namespace, keep: Callable[[str, dict], None]
) -> bool:
    """Check one dataset and tell what was found; whether all is well.

    ``keep`` gets the name of the dataset and its figures.

    Raises:
        KeyboardInterrupt: it was stopped. What was found until then has been told and kept.
    """
    try:
        records, report = open_dataset(name, cfg, args)
    except (OSError, ValueError) as error:
        print(f"{name}: cannot be checked: {error}\n", flush=True)
        keep(name, {"dataset": name, "error": str(error)})
        return False
    if args.limit:
        records = [records[index] for index in spread(args.limit, len(records))]
    start = time.perf_counter()
    try:
        check_records(records, report, workers=args.workers)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped after {report.num_checked} of the {len(records)} images of {name}"
        ) from None
    finally:
        # Before the pictures, which can fail.
        seconds = time.perf_counter() - start
        print(f"{tell(report)}\n", flush=True)
        keep(name, {**report.figures(), "seconds": seconds})
    is_well = not report.faults
    try:
        samples = draw_samples(records, report, args.num_samples, args.output)
    except OSError as error:
        samples = f"no samples, for they cannot be written: {error}"
        is_well = False
    per_1000 = 1000 * seconds / max(1, report.num_checked)
    print(f"{seconds:.1f} s, {per_1000:.1f} s per 1000 images; {samples}\n", flush=True)
    return is_well


def main(arguments: list[str] | None = None) -> int:
    """Check all datasets; the exit status."""
    show_any_name()
    args = parse_args(arguments)
    figures: dict[str, dict] = {}

    def keep(name: str, content: dict) -> None:
        figures[name] = content
        if args.json:
            write_json(args.json, figures)

    try:
        try:
            cfg, names = config_and_names(args)
        except (ValueError, KeyError, AssertionError, OSError, yaml.YAMLError) as error:
            message = error.args[0] if isinstance(error, KeyError) else error
            print(f"error: {message}", file=sys.stderr)
            return 2
        failed = [name for name in names if not check(name, cfg, args, keep)]
    except KeyboardInterrupt as stop:
        print(str(stop) or "\nstopped", file=sys.stderr)
        return 130
    if failed:
        print(f"There are errors in {', '.join(failed)}.", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
