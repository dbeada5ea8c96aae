"""The files of folders that users fill."""

from __future__ import annotations

import logging
import os
from pathlib import Path


def visible_files(folder: Path) -> list[Path]:
    """The files of a folder and of its subfolders, sorted by path, without hidden ones.

    It follows links to folders and does not enter hidden folders. It reads each folder once, by its
    own name if it has one in ``folder``. A link to a folder that is read already, or that holds
    ``folder``, is left out with a warning.

    Args:
        folder: may be missing; then there are no files.
    """
    files: list[Path] = []
    real = Path(os.path.realpath(folder))
    seen = {str(parent) for parent in real.parents}
    pending = [str(folder)]
    links: list[str] = []  # they come last
    while pending or links:
        parent = pending.pop() if pending else links.pop(0)
        real_parent = os.path.realpath(parent)
        if real_parent in seen:
            logging.getLogger(__name__).warning(
                f"{parent} is left out: it is a link to {real_parent}, which is read already, or "
                f"holds {folder}"
            )
            continue
        seen.add(real_parent)
        try:
            entries = list(os.scandir(parent))
        except OSError:  # missing, or not to be read
            continue
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                (links if entry.is_symlink() else pending).append(entry.path)
            else:
                files.append(Path(entry.path))
    return sorted(files)
