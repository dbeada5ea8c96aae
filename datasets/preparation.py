"""From the official download of a dataset to the label maps that training reads.

What the scripts ``datasets/prepare_*.py`` share. Each of them says where images and official label
maps lie, and what class each official label stands for. Here the files are read, checked and
converted, several at a time; good results are left alone, so a run that was broken off goes on
where it stopped.
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
from sgr.data.files import draft_of, visible_files
from sgr.data.threads import available_cores, work_in_threads
from sgr.data.truth.image_files import (
    exif_orientation,
    is_turn_unproven,
    read_image,
    read_labels,
    size_fault,
)

__all__ = [
    "IGNORED",
    "Report",
    "Split",
    "Task",
    "find_files",
    "main",
    "pair_files",
    "prepare",
    "to_classes",
]

# What training ignores, in all label maps made.
IGNORED = 255


@dataclass(frozen=True)
class Task:
    """One image: what there is of it, and what is to be made.

    Attributes:
        image: the official image.
        labels: its official label map; None where there is none to make anything of.
        target: the PNG file of classes to make of it.
        image_target: where the image is wanted as well; None where training reads ``image``.
        size: (height, width) of the image by its annotations; None where they say nothing.
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
        tasks: one per image that is to be looked at.
        faults: what is missing.
        notes: what else to say of it, a phrase each.
        read: reads the label maps of this split, in the place of the script's ``read``.
    """

    name: str
    tasks: list[Task]
    faults: list[Fault]
    notes: list[str] = field(default_factory=list)
    read: Callable[[Path], np.ndarray] | None = None


@dataclass
class Report:
    """What became of a split.

    Attributes:
        written: images whose files were made, or made anew where they were damaged.
        kept: images whose files were there, and right, or that need none.
        faults: what is wrong, with the file.
        turned: images that are turned when they are read, by the orientation in their EXIF data,
            where no size tells whether their ground truth is, too.
    """

    written: int = 0
    kept: int = 0
    faults: list[Fault] = field(default_factory=list)
    turned: list[Path] = field(default_factory=list)


def find_files(folder: Path, *suffixes: str) -> dict[str, Path]:
    """The files of a folder and those below it, hidden ones aside, by their path in it.

    Links to folders are followed; hidden folders are not looked into.

    Args:
        folder: need not exist.
        suffixes: ends of file names, which the keys lack. Of files with the same key that of the
            first suffix counts.
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
    """Pair images with label maps, and say what is missing.

    Args:
        name: the split's, for messages.
        images, labels: files by key, see :func:`find_files`.
        target, image_target: key -> where the results belong.
        expected: the keys that the split has, or their number in the release.
        partial: whether a part of what is expected is enough. An image without a label map, or a
            label map without an image, is a fault all the same.
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
    """Official labels -> classes.

    Args:
        labels: (H, W) integers.
        classes: (N,) integers, the class of each official label; -1 where there is none such.
        file: where the labels come from, for the message.

    Returns:
        (H, W) uint8.

    Raises:
        ValueError: there are labels that no class stands for; the message names up to ten.
    """
    converted = np.take(classes, labels, mode="clip")
    wrong = (converted < 0) | (labels < 0) | (labels >= len(classes))
    if wrong.any():
        values = list_values(np.unique(labels[wrong]))
        raise ValueError(f"label map {file} holds the label(s) {values}, which the release has not")
    return converted.astype(np.uint8)


def prepare(
    tasks: Sequence[Task],
    read: Callable[[Path], np.ndarray] | None,
    *,
    write: bool = True,
    workers: int = 1,
    name: str = "",
) -> Report:
    """Make what is missing, and check everything else.

    All files are read in full. A result that is there already is compared with what it should be:
    the right one is left alone, a damaged one made anew, and one with other labels is a fault, for
    somebody may want it. Files get their names only when they are complete.

    Costs one reading of image and label map per image, and one writing of a PNG file where there
    is none. The work is done in threads: with PNG and JPEG files nearly all of it is Pillow's and
    zlib's, which let other threads run. Label maps in MATLAB files gain less.

    Args:
        tasks: what to do.
        read: official label map -> (H, W) uint8 classes; raises OSError or ValueError, with the
            file in the message, where that is not possible. None where no task has a label map.
        write: False checks only; then what is missing is a fault.
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
    """What becomes of one image."""
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
    """Raises OSError where the bytes cannot be read, which says nothing about what they are."""
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
    # The true path, for a link to a symbolic link would be one too, and lead elsewhere.
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
        find_splits: ``find_splits(root, partial=...)``, which says what there is. Splits may come
            one at a time, each when the one before it is done.
        read: see :func:`prepare`; of the splits that have no ``read`` of their own.
        description: shown by ``--help``.
        arguments: of the command line; None for this process's.

    Returns:
        The exit status: 0 if all is well, 1 if something is missing, damaged or cannot be written,
        130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root",
        type=_folder,
        default=datasets_root(),
        help="folder of all datasets; default: $DETECTRON2_DATASETS, or datasets",
    )
    parser.add_argument(
        "--workers",
        type=_positive,
        default=available_cores(),
        help="how many images to work on at a time; default: the cores, here %(default)s",
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing, only say what is missing or wrong"
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


def _folder(text: str) -> Path:
    # No shell does it in --root=~/data.
    return Path(os.path.expanduser(text))


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value
