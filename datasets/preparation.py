"""Makes label maps for training from the official download of a dataset.

The scripts ``datasets/prepare_*.py`` share this module. Each script says where images and official
label maps are, and which class an official label means. This module reads, checks and converts the
files, several at a time. It does not touch correct results, so an interrupted run can be repeated.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from sgr.data.datasets.missing import datasets_root
from sgr.data.faults import Fault, FaultKind, list_faults_by_kind, list_values
from sgr.data.files import draft_of
from sgr.data.listing import visible_files
from sgr.data.threads import available_cores, work_in_threads
from sgr.data.truth.image_files import (
    exif_orientation,
    is_turn_unproven,
    read_image,
    read_labels,
    size_fault,
)
from sgr.engine.setup import at_least

# The label of ignored pixels in all label maps that are made.
IGNORED = 255


@dataclass(frozen=True)
class Task:
    """One image: its official files, and the files to make.

    Attributes:
        image: the official image.
        labels: its official label map; None if it has none, and no label map is made.
        target: the PNG file of classes to make.
        image_target: the second place of the image; None if training reads ``image``.
        size: (height, width) of the image in its annotations; None if they do not tell.
    """

    image: Path
    labels: Path | None
    target: Path
    image_target: Path | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Split:
    """A part of a dataset, as :func:`pair_files` finds it.

    Attributes:
        name: for messages.
        tasks: one per image to check.
        faults: missing files.
        notes: further phrases to print.
        read: reads the label maps of this split; None takes the ``read`` of the script.
    """

    name: str
    tasks: list[Task]
    faults: list[Fault]
    notes: list[str] = field(default_factory=list)
    read: Callable[[Path], np.ndarray] | None = None


@dataclass
class Report:
    """The result of a split.

    Attributes:
        written: number of images with files that were made, or made again because of damage.
        kept: number of images whose files were right already, or that need none.
        faults: the faults, which name the file.
        turned: images that their EXIF data turn, if no size proves that the ground truth is turned
            too.
    """

    written: int = 0
    kept: int = 0
    faults: list[Fault] = field(default_factory=list)
    turned: list[Path] = field(default_factory=list)


def find_files(folder: Path, *suffixes: str) -> dict[str, Path]:
    """The files of a folder and its subfolders by their path in it, see ``visible_files``.

    Args:
        folder: may be missing.
        suffixes: the ends of file names. The keys do not have them. If two files have the same key,
            the one with the earlier suffix counts.
    """
    files = visible_files(folder)
    found: dict[str, Path] = {}
    for suffix in reversed(suffixes):
        for path in files:
            if path.name.endswith(suffix):
                found[path.relative_to(folder).as_posix()[: -len(suffix)]] = path
    return found


def pair_files(
    name: str,
    images: dict[str, Path],
    labels: dict[str, Path],
    target: Callable[[str], Path],
    *,
    expected: Iterable[str] | int,
    image_target: Callable[[str], Path] | None = None,
    partial: bool = False,
) -> Split:
    """Pair images with label maps, and find missing files.

    Args:
        images, labels: files by key, see :func:`find_files`.
        target, image_target: give the path of a result for a key.
        expected: the keys of the split, or their number in the release.
        partial: whether a part of the expected images is enough. An image without a label map, or a
            label map without an image, is a fault in any case.
    """
    faults = []
    if isinstance(expected, int):
        keys = sorted(images.keys() | labels.keys())
        if len(keys) < expected and not partial:
            faults.append(
                Fault(
                    f"{name} has {len(keys)} of the {expected} images of the release; give "
                    "--partial if a part is enough",
                    FaultKind.RELEASE,
                )
            )
    else:
        keys = list(expected)
        if partial:
            keys = [key for key in keys if key in images or key in labels]
    for files, what, kind in (
        (images, "image", FaultKind.IMAGE),
        (labels, "label map", FaultKind.LABEL_MAP),
    ):
        if keys and not files:
            faults.append(Fault(f"{name} has no {what}s", FaultKind.RELEASE))
        else:
            missing = [key for key in keys if key not in files]
            faults += [Fault(f"{name} lacks the {what} of {key}", kind) for key in missing]
    tasks = [
        Task(images[key], labels[key], target(key), image_target and image_target(key))
        for key in keys
        if key in images and key in labels
    ]
    return Split(name, tasks, faults)


def to_classes(labels: np.ndarray, classes: np.ndarray, file: Path) -> np.ndarray:
    """Convert official labels to classes.

    Args:
        labels: (H, W) integers.
        classes: (N,) integers, the class of each official label, or -1 for a label that the release
            does not have.
        file: the file of the labels, for the message.

    Returns:
        (H, W) uint8.

    Raises:
        ValueError: there are labels that the release does not have; the message names up to ten.
    """
    converted = np.take(classes, labels, mode="clip")
    wrong = (converted < 0) | (labels < 0) | (labels >= len(classes))
    if wrong.any():
        values = list_values(np.unique(labels[wrong]))
        raise ValueError(
            f"label map {file} holds the label(s) {values}, which the release does not have"
        )
    return converted.astype(np.uint8)


def prepare(
    tasks: Sequence[Task],
    read: Callable[[Path], np.ndarray] | None,
    *,
    write: bool = True,
    workers: int = 1,
    name: str = "",
) -> Report:
    """Make missing results, and check the others.

    All files are read in full. An existing result is compared with what it should be. A right one
    is left as it is, a damaged one is made again, and one with other labels is a fault, because
    somebody may need it. Files get their names only when they are complete.

    For each image, this reads the image and its label map, and writes a PNG file if it is missing.
    It works in threads. For PNG and JPEG files nearly all the time is spent in Pillow and zlib,
    which let other threads run. Label maps in MATLAB files gain less.

    Args:
        tasks: the images.
        read: reads an official label map and gives (H, W) uint8 classes. It raises OSError or
            ValueError, with the file in the message. None if no task has a label map.
        write: False only checks; then missing results are faults.
        workers: number of threads.
        name: shown with the progress.

    Raises:
        OSError: a result cannot be written.
    """
    report = Report()

    def add(outcome: Report) -> None:
        report.written += outcome.written
        report.kept += outcome.kept
        report.faults += outcome.faults
        report.turned += outcome.turned

    work_in_threads(
        partial(_process, read=read, write=write), tasks, add, workers=workers, name=name
    )
    return report


class _State(Enum):
    """How a result on the disk compares with what it should be."""

    RIGHT = auto()
    MISSING = auto()
    DAMAGED = auto()
    OTHER = auto()


_FAULTS = {
    _State.MISSING: "is missing",
    _State.DAMAGED: "is damaged",
    _State.OTHER: "is there already, and has another content; remove it to have it made anew",
}


def _process(task: Task, *, read: Callable[[Path], np.ndarray] | None, write: bool) -> Report:
    """Check one image and make its results."""
    states: dict[Path, _State] = {}
    make: dict[Path, Callable[[Path], None]] = {}
    try:
        size = read_image(str(task.image), "RGB").shape[:2]  # decodes all of it
        orientation = exif_orientation(str(task.image))
        if task.size is not None:
            _check_size(task, size, "its annotations say", task.size)
        if task.labels is not None:
            labels = read(task.labels)
            _check_size(task, size, f"its label map {task.labels} is", labels.shape)
            states[task.target] = _state_of_labels(task.target, labels)
            make[task.target] = partial(Image.fromarray(labels).save, format="PNG")
        if task.image_target is not None:
            states[task.image_target] = _state_of_copy(task.image_target, task.image)
            make[task.image_target] = partial(_link_or_copy, task.image)
    except OSError as error:
        return Report(faults=[Fault(str(error), FaultKind.UNREADABLE)])
    except ValueError as error:
        return Report(faults=[Fault(str(error), FaultKind.LABELS)])
    is_compared = task.size is not None or task.labels is not None
    turned = [task.image] if is_turn_unproven(orientation, size, is_compared) else []

    # Files with another content are left to the user; the others are made if we may write.
    for_users = {_State.OTHER} if write else _FAULTS.keys()
    faults = [
        Fault(f"{file} {_FAULTS[state]}", FaultKind.RESULT)
        for file, state in states.items()
        if state in for_users
    ]
    if faults:
        return Report(faults=faults, turned=turned)
    to_make = [file for file, state in states.items() if state is not _State.RIGHT]
    for file in to_make:
        file.parent.mkdir(parents=True, exist_ok=True)
        with draft_of(file) as draft:
            make[file](draft)
    return Report(written=int(bool(to_make)), kept=int(not to_make), turned=turned)


def _check_size(
    task: Task, size: tuple[int, int], its_truth_is: str, other: tuple[int, int]
) -> None:
    fault = size_fault(str(task.image), size, its_truth_is, other)
    if fault:
        raise ValueError(fault)


def _is_missing(file: Path) -> bool:
    """Whether the file is missing. Raises OSError if its bytes cannot be read."""
    try:
        with open(file, "rb") as opened:
            opened.read()
    except FileNotFoundError:
        return True
    except OSError as error:
        raise OSError(f"{file} is there already, and cannot be read: {error}") from error
    return False


def _state_of_labels(file: Path, labels: np.ndarray) -> _State:
    if _is_missing(file):
        return _State.MISSING
    try:
        found = read_labels(str(file))
    except ValueError:  # a picture in colours
        return _State.OTHER
    except OSError:
        return _State.DAMAGED
    return _State.RIGHT if np.array_equal(found, labels) else _State.OTHER


def _state_of_copy(file: Path, image: Path) -> _State:
    if _is_missing(file):
        return _State.MISSING
    if os.path.samefile(file, image) or filecmp.cmp(file, image, shallow=False):
        return _State.RIGHT
    try:
        read_image(str(file), "RGB")
    except OSError:
        return _State.DAMAGED
    return _State.OTHER


def _link_or_copy(source: Path, target: Path) -> None:
    # The real path: a hard link to a symbolic link would be a symbolic link, which leads elsewhere.
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def main(
    find_splits: Callable[..., Iterable[Split]],
    read: Callable[[Path], np.ndarray] | None = None,
    *,
    description: str,
    arguments: Sequence[str] | None = None,
) -> int:
    """The command line of a script that prepares a dataset.

    Args:
        find_splits: called as ``find_splits(root, partial=...)``; gives the splits. A generator
            finds each split only when the one before it is done.
        read: see :func:`prepare`; for splits without a ``read`` of their own.
        description: shown by ``--help``.
        arguments: the command line; None takes that of the process.

    Returns:
        The exit status: 0 if all is well, 1 if something is missing, damaged or cannot be written,
        130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root",
        type=lambda text: Path(os.path.expanduser(text)),  # no shell does it in --root=~/data
        default=datasets_root(),
        help="folder of all datasets; default: $DETECTRON2_DATASETS, or datasets",
    )
    parser.add_argument(
        "--workers",
        type=at_least(1),
        default=available_cores(),
        help="images to work on at a time; default: the cores, here %(default)s",
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing, only list what is missing or wrong"
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="a part of the dataset is enough: do not expect every image of the release",
    )
    options = parser.parse_args(arguments)
    try:
        return _prepare_all(find_splits, read, options)
    except KeyboardInterrupt:
        print("\nstopped; what is done is kept, run this again to go on", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1


def _prepare_all(
    find_splits: Callable[..., Iterable[Split]],
    read: Callable[[Path], np.ndarray] | None,
    options: argparse.Namespace,
) -> int:
    num_faults = good = 0
    listed = []
    for split in find_splits(options.root, partial=options.partial):
        for note in split.notes:
            print(f"{split.name}: {note}", flush=True)
        if not split.tasks and not split.faults:
            continue
        report = prepare(
            split.tasks,
            split.read or read,
            write=not options.check,
            workers=options.workers,
            name=split.name,
        )
        done = report.written + report.kept
        wrong = split.faults + report.faults
        made = f"{report.written} made, {report.kept} were there"
        print(f"{split.name}: {done} images ready ({made}); faults: {len(wrong)}", flush=True)
        if report.turned:
            print(
                f"{split.name}: {len(report.turned)} images are turned when read, by the "
                f"orientation in their EXIF data, and no size tells whether their ground truth is "
                f"turned alike: {', '.join(map(str, report.turned[:5]))}",
                flush=True,
            )
        good += done
        num_faults += len(wrong)
        if wrong:
            listed.append(list_faults_by_kind(wrong))
    if num_faults:
        print(f"\nfaults: {num_faults}", *listed, sep="\n", file=sys.stderr)
        return 1
    if not good:
        print(f"there is nothing to prepare under {options.root}", file=sys.stderr)
        return 1
    return 0
