"""Errors about datasets of which files are missing; they say how to get the files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..faults import list_faults

__all__ = ["IncompleteDataset", "check_present", "datasets_root", "incomplete_dataset"]


class IncompleteDataset(FileNotFoundError):
    """Files of a dataset are missing.

    Attributes:
        faults: a sentence for each file that is missing, or lacks its partner.
        records: those whose files are all there.
    """

    def __init__(
        self, message: str, *, faults: Sequence[str] = (), records: Sequence[dict] = ()
    ) -> None:
        super().__init__(message)
        self.faults = list(faults)
        self.records = list(records)


def datasets_root() -> Path:
    """The folder of all datasets: ``$DETECTRON2_DATASETS``, or ``datasets``, as in Detectron2."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()


def check_present(paths: Iterable[Path], how_to_get: str) -> None:
    """Raise unless the folders and files of a dataset are there.

    Args:
        paths: what is looked for; files have a suffix, folders none.
        how_to_get: what to download or run, and the expected tree.

    Raises:
        FileNotFoundError: the first of them that is not there, or is a file instead of a folder or
            the other way round.
    """
    for path in paths:
        if not (path.is_file() if path.suffix else path.is_dir()):
            raise _missing(path, how_to_get)


def _missing(path: Path, how_to_get: str) -> FileNotFoundError:
    root = datasets_root()
    if "DETECTRON2_DATASETS" in os.environ:
        where = f"DETECTRON2_DATASETS sets the root of all datasets to {root.absolute()}."
    else:
        where = (
            f"The root of all datasets is {root.absolute()}; set the environment variable "
            "DETECTRON2_DATASETS to have it elsewhere."
        )
    fault = "does not exist"
    if path.exists():
        fault = "is a folder, not a file" if path.is_dir() else "is a file, not a folder"
    return FileNotFoundError(f"{path} {fault}.\n{how_to_get.strip()}\n{where}")


def incomplete_dataset(
    missing: list[str], records: list[dict], how_to_get: str
) -> IncompleteDataset:
    """The error for a dataset of which files are missing.

    Args:
        missing: these files.
        records: those that lack none.
        how_to_get: what to download or run, and the expected tree.
    """
    return IncompleteDataset(
        f"files are missing:\n{list_faults(missing)}\n{how_to_get.strip()}",
        faults=[f"missing: {file}" for file in missing],
        records=records,
    )
