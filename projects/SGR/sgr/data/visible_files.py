"""The files in a folder and below it."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["visible_files"]


def visible_files(folder: Path) -> list[Path]:
    """The files of a folder and those below it, hidden ones aside, in the order of their paths.

    Links to folders are followed; hidden folders are not looked into.

    Args:
        folder: need not exist.
    """
    files: list[Path] = []
    # Path.rglob does not follow links, or only from Python 3.13 on.
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(files)
