"""Images without a label map, and label maps without an image, that no record names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..datasets.registration import IMAGE_SUFFIXES
from ..preparation import find_files

__all__ = ["Unpaired", "find_unpaired"]


@dataclass
class Unpaired:
    """What lies in a dataset's folders and in none of its records.

    Attributes:
        images: without a label map of their name.
        labels: label maps without an image of their name.
        num_pairs: images that have a label map, and no record all the same: where there are any,
            the dataset is a choice out of its folders.
    """

    images: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    num_pairs: int = 0


def find_unpaired(records: Sequence[dict], image_root: str, sem_seg_root: str) -> Unpaired | None:
    """Look for files without a partner. Loaders that pair files by name, as Detectron2's
    ``load_sem_seg`` does, leave them out without an error.

    A label map's name is that of its image and a suffix, taken from the records. Lists both
    folders, and reads no file.

    Args:
        records: with ``file_name`` and ``sem_seg_file_name``.
        image_root, sem_seg_root: the folders.

    Returns:
        None where nothing can be said, as the names of the records do not go together.
    """
    images = _Folder(image_root)
    labels = _Folder(sem_seg_root)
    suffix = _label_suffix(records, images, labels)
    if suffix is None:
        return None
    of_records = {images.key(record["file_name"]) for record in records}
    label_files = labels.files((".png",))
    label_paths = set(label_files.values())
    # They may lie among the images.
    image_keys = {
        key: path for key, path in images.files(IMAGE_SUFFIXES).items() if path not in label_paths
    }
    label_keys = {
        key.removesuffix(suffix): path for key, path in label_files.items() if key.endswith(suffix)
    }
    if image_root == sem_seg_root and not suffix:
        return None
    unpaired = Unpaired()
    for key, path in image_keys.items():
        if key in of_records:
            continue
        if key in label_keys:
            unpaired.num_pairs += 1
        else:
            unpaired.images.append(path)
    unpaired.labels = [
        path
        for key, path in label_keys.items()
        if key not in of_records and key not in image_keys
    ]
    return unpaired


class _Folder:
    """Files by their paths in a folder, without what their names end in."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)

    def key(self, file: str) -> str | None:
        """None of a file that does not lie in the folder."""
        path = Path(os.path.abspath(file))
        if not path.is_relative_to(self.root):
            return None
        return path.relative_to(self.root).with_suffix("").as_posix()

    def files(self, suffixes: Iterable[str]) -> dict[str, str]:
        both = [case for each in suffixes for case in (each, each.upper())]
        found = find_files(Path(self.root), *both)
        return {key: str(path) for key, path in found.items()}


def _label_suffix(records: Sequence[dict], images: _Folder, labels: _Folder) -> str | None:
    """What the names of all label maps have behind those of their images; None if they differ."""
    suffixes = set()
    for record in records:
        image = images.key(record.get("file_name", ""))
        label = labels.key(record.get("sem_seg_file_name", ""))
        if image is None or label is None or not label.startswith(image):
            return None
        suffixes.add(label[len(image) :])
    return suffixes.pop() if len(suffixes) == 1 else None
