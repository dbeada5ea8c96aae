#!/usr/bin/env python
"""Look at a dataset before training on it.

    python tools/check_dataset.py camvid_sem_seg_train camvid_sem_seg_val
    python tools/check_dataset.py --config-file configs/camvid-11/maskformer_R50_sgr.yaml
    python tools/check_dataset.py my_data_train DATASETS.FILES "['my_data.yaml']"

reads every image and its ground truth once, prints what there is of each class, connected
components and instances, and lists what would stop a training or spoil it: files that are missing
or damaged, sizes that differ, labels that are no class, annotations that cannot be used. A contact
sheet of samples goes to OUTPUT/NAME/contact_sheet.jpg.

Without a NAME, the datasets of the config's DATASETS.TRAIN and TEST are looked at; with a
--config-file, its number of classes must be theirs. The exit status is 0 if all is well, 1 if there
are errors, 2 for a wrong command line, and 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

import sgr  # noqa: F401 (registers)
from sgr.data.checking import (
    CheckOptions,
    DatasetReport,
    Fault,
    FaultKind,
    check_records,
    class_faults,
    examine_record,
    find_unpaired,
    options_for,
    spread,
    tell,
)
from sgr.data.coco_file import explain_coco_errors
from sgr.engine import load_config
from sgr.evaluation.ground_truth import read_instance_map
from sgr.evaluation.json_file import write_json
from sgr.visualization import Sample, class_colors, draw_contact_sheet, number_names

# Keys of the config, which follow the names of datasets.
_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+|OUTPUT_DIR|SEED|CUDNN_BENCHMARK|VERSION")


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line. What is no flag: ``names``, and from the first key on ``opts``."""
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
    parser.add_argument("--config-file", default="", metavar="FILE", help="default: the defaults")
    parser.add_argument("--allow-unsafe-yaml", action="store_true", help="as in train_net.py")
    parser.add_argument(
        "--limit", type=_at_least(1), metavar="N", help="N images only, spread over the dataset"
    )
    parser.add_argument(
        "--workers",
        type=_at_least(1),
        default=_available_cores(),
        metavar="N",
        help="images to work on at a time; default: the cores, here %(default)s",
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="images without a label map, and the other way round, may lie in the folders",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures and faults")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/check"),
        metavar="DIR",
        help="of the contact sheets; default: %(default)s",
    )
    parser.add_argument(
        "--num-samples",
        type=_at_least(0),
        default=12,
        metavar="N",
        help="images on the contact sheet; 0 for none; default: %(default)s",
    )
    args = parser.parse_intermixed_args(arguments)
    first_key = next(
        (index for index, word in enumerate(args.words) if _KEY.fullmatch(word)), len(args.words)
    )
    # The same name twice would be looked at twice.
    args.names, args.opts = list(dict.fromkeys(args.words[:first_key])), args.words[first_key:]
    if len(args.opts) % 2:
        parser.error(f"the config is changed by pairs of KEY VALUE, got {' '.join(args.opts)}")
    return args


def _at_least(least: int):
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {value}")
        return value

    return number


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # fewer than the machine's in a container
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_dataset(
    name: str, cfg: CfgNode, args: argparse.Namespace
) -> tuple[DatasetReport, float, Path | None]:
    """Look at one dataset, and draw its contact sheet.

    Returns:
        The report; how many seconds the reading of the records took; the picture, if there is one.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it cannot be loaded, or its records are of no kind that is known here.
    """
    records = load(name)
    metadata = MetadataCatalog.get(name)
    options = options_for(records, metadata, cfg, cfg_is_chosen=bool(args.config_file))
    report = DatasetReport(name, options, len(records))
    faults, warnings = class_faults(options, cfg if args.config_file else None)
    report.faults += faults
    report.warnings += warnings
    look_for_partners(report, records, metadata, partial=args.partial)

    if args.limit:
        records = [records[index] for index in spread(args.limit, len(records))]
    start = time.perf_counter()
    check_records(records, report, workers=args.workers)
    seconds = time.perf_counter() - start
    chosen = [report.intact[place] for place in spread(args.num_samples, len(report.intact))]
    if not chosen:
        return report, seconds, None
    picture = draw_contact_sheet(
        samples_of([records[index] for index in chosen], options),
        title=f"{name}, {len(chosen)} of {len(records)} images",
        **legend_of(options, metadata),
    )
    path = args.output / name / "contact_sheet.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, quality=88)
    return report, seconds, path


def load(name: str) -> list[dict]:
    """The records of a dataset; of errors, all but an OSError become a ValueError."""
    try:
        with explain_coco_errors([name]):
            return DatasetCatalog.get(name)
    except (OSError, ValueError):
        raise
    except Exception as error:  # whatever the dataset's own code may raise
        raise ValueError(f"{type(error).__name__}: {error}") from error


def look_for_partners(
    report: DatasetReport, records: list[dict], metadata, *, partial: bool
) -> None:
    """Add to the report the files in the dataset's folders that have no partner."""
    roots = [metadata.get(key) for key in ("image_root", "sem_seg_root")]
    if not all(roots) or "sem_seg_file_name" not in report.options.truth:
        return
    unpaired = find_unpaired(records, *roots)
    if unpaired is None:
        return
    if unpaired.num_pairs:
        report.warnings.append(
            f"{unpaired.num_pairs} images of {roots[0]} have a label map, but are not among the "
            "records"
        )
    # A dataset that is a choice out of its folders may leave out what it likes.
    if partial or unpaired.num_pairs:
        for files, what in (
            (unpaired.images, f"images of {roots[0]} have no label map"),
            (unpaired.labels, f"label maps of {roots[1]} have no image"),
        ):
            if files:
                report.warnings.append(f"{len(files)} {what}, and are left out: {files[0]}, ...")
        return
    for files, what, folder in (
        (unpaired.images, "image without a label map", roots[1]),
        (unpaired.labels, "label map without an image", roots[0]),
    ):
        report.faults += [
            Fault(
                FaultKind.PAIRS,
                f"{what}: {file} has no partner in {folder} and is left out (--partial allows it)",
            )
            for file in files
        ]


def samples_of(records: Sequence[dict], options: CheckOptions) -> Iterator[Sample]:
    """What the contact sheet shows of records without a fault, read one by one."""
    for record in records:
        _, maps = examine_record(record, options)
        names = [options.class_names[label] for label in maps.components.classes]
        sample = Sample(
            Path(record["file_name"]).name,
            maps.image,
            maps.labels,
            maps.components.indices,
            number_names(names),
        )
        if options.thing_names:
            instances = read_instance_map(record, maps.image.shape[:2], options.thing_ids)
            # Those that can be seen, numbered anew.
            present = np.unique(instances[instances >= 0])
            key = "annotations" if "annotations" in record else "segments_info"
            names = [options.thing_names[record[key][index]["category_id"]] for index in present]
            sample.instances = np.searchsorted(present, instances)
            sample.instances[instances < 0] = -1
            sample.instance_names = number_names(names)
        yield sample


def legend_of(options: CheckOptions, metadata) -> dict[str, Sequence]:
    """Names and colours of the classes that are drawn."""
    if options.truth == ("annotations",):  # the last class, the background, shows the image
        names, key = options.thing_names, "thing_colors"
    else:
        names, key = options.class_names, "stuff_colors"
    return {"class_names": names, "class_colors": class_colors(metadata, len(names), key)}


def check_names(names: Sequence[str]) -> None:
    """
    Raises:
        ValueError: one of the names is not registered.
    """
    known = DatasetCatalog.list()
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=4)
            guess = f"; do you mean {' or '.join(close)}?" if close else "."
            raise ValueError(
                f"there is no dataset {name!r}{guess} Datasets of your own become known by a YAML "
                "file, DATASETS.FILES \"['FILE.yaml']\" at the end of the command line; "
                "datasets/README.md says how, and has the names of the others"
            )


def check_all(args: argparse.Namespace) -> int:
    """Look at all datasets; the exit status."""
    try:
        cfg = load_config(args.config_file, args.opts, allow_unsafe=args.allow_unsafe_yaml)
        names = args.names or list(dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]))
        if not names:
            raise ValueError(
                "name a dataset, or give a --config-file with DATASETS.TRAIN or DATASETS.TEST"
            )
        check_names(names)
    except (ValueError, KeyError, AssertionError, OSError) as error:
        # yacs raises the first three for wrong keys and values.
        print(f"error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 2

    figures: dict[str, dict] = {}
    failed = []
    for name in names:
        try:
            report, seconds, picture = check_dataset(name, cfg, args)
        except (OSError, ValueError) as error:
            print(f"{name}: cannot be checked: {error}\n", flush=True)
            figures[name] = {"dataset": name, "error": str(error)}
            failed.append(name)
            continue
        print(tell(report))
        per_1000 = 1000 * seconds / max(1, report.num_checked)
        print(f"\n{seconds:.1f} s, {per_1000:.1f} s per 1000 images", end="")
        print(f"; samples in {picture}\n" if picture else "\n", flush=True)
        figures[name] = {**report.figures(), "seconds": seconds}
        if report.faults:
            failed.append(name)
    if args.json:
        write_json(args.json, figures)
    if failed:
        print(f"There are errors in {', '.join(failed)}.", file=sys.stderr)
    return int(bool(failed))


def main(arguments: list[str] | None = None) -> int:
    args = parse_args(arguments)
    try:
        return check_all(args)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
