"""Errors about missing files of datasets; they say how to get the files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..faults import list_faults


class IncompleteDataset(FileNotFoundError):
    """Files of a dataset are missing.

    Attributes:
        faults: a sentence for each file that is missing, or has no partner.
        records: the records without missing files.
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
    """Check that the folders and files of a dataset exist.

    Args:
        paths: a path with a suffix is a file, one without is a folder.
        how_to_get: what to download or run, and the expected tree.

    Raises:
        FileNotFoundError: a path does not exist, or is a file instead of a folder, or a folder
            instead of a file. The message names the first one.
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
            f"The root of all datasets is {root.absolute()}; to change it, set the environment "
            "variable DETECTRON2_DATASETS."
        )
    fault = "does not exist"
    if path.exists():
        fault = "is a folder, not a file" if path.is_dir() else "is a file, not a folder"
    return FileNotFoundError(f"{path} {fault}.\n{how_to_get.strip()}\n{where}")


def incomplete_dataset(
    missing: list[str], records: list[dict], how_to_get: str
) -> IncompleteDataset:
    """The error for a dataset with these missing files; ``records`` are those without."""
    return IncompleteDataset(
        f"files are missing:\n{list_faults(missing)}\n{how_to_get.strip()}",
        faults=[f"missing: {file}" for file in missing],
        records=records,
    )
