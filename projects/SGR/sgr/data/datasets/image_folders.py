"""The images and the ground truth of a dataset of your own, in folders."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from detectron2.data.datasets.coco import load_coco_json

from ..texts import read_text
from ..truth.image_files import IMAGE_SUFFIXES
from .missing import IncompleteDataset
from .pairs import WITHOUT_LABELS, load_sem_seg_pairs


@dataclass(frozen=True)
class Folders:
    """The places of the images and the ground truth of one dataset.

    Attributes:
        image_dir: the folder of images, which may have subfolders.
        label_dir: the folder of label maps, a PNG for each image, in the same subfolders.
        label_suffix: the end of a label map's name, after the name of the image. It is "_mask" if
            the label map of NAME.jpg is NAME_mask.png.
        list_file: a text file with the names of the images to take, one per line, with or without
            ".jpg" etc. In subfolders, names are paths in ``image_dir``. None takes all images.
        share: (from, to) in [0, 1], the part of the images to take. The place of an image in this
            range is a hash of its name, so it does not depend on the other images.
        instances_json: annotations of things in COCO's format, or None. Images that it does not
            list have no instances.
    """

    image_dir: Path
    label_dir: Path
    label_suffix: str = ""
    list_file: Path | None = None
    share: tuple[float, float] = (0.0, 1.0)
    instances_json: Path | None = None

    @property
    def takes_all(self) -> bool:
        """Whether the dataset takes all files in the folders."""
        return self.list_file is None and self.share == (0.0, 1.0)

    def load_pairs(self) -> list[dict]:
        """Load the records without annotations, see :func:`~.pairs.load_sem_seg_pairs`.

        Raises:
            FileNotFoundError: a folder or the list does not exist.
            IncompleteDataset: an image or a label map does not exist.
            ValueError: the list, or the share, has no image; the list is not UTF-8; or images and
                label maps are in one folder without a ``label_suffix``.
        """
        for folder, what in ((self.image_dir, "images"), (self.label_dir, "label maps")):
            if not folder.is_dir():
                hint = f"; {WITHOUT_LABELS}" if folder == self.label_dir else ""
                raise FileNotFoundError(f"the folder of {what} {folder} does not exist{hint}")
        if not self.label_suffix and self.image_dir.samefile(self.label_dir):
            raise ValueError(
                f"images and label maps lie in one folder, {self.image_dir}: set a label_suffix, "
                "such as _mask if the label map of NAME.png is NAME_mask.png"
            )
        listed = None if self.list_file is None else _read_list(self.list_file)
        records = load_sem_seg_pairs(
            self.image_dir,
            self.label_dir,
            label_suffix=self.label_suffix,
            subfolders=True,
            keep=partial(self._is_taken, listed=listed),
        )
        missing = sorted((listed or set()) - {record["image_id"] for record in records})
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            where = f"of which {self.image_dir} has no image"
            raise IncompleteDataset(
                f"{self.list_file} lists {missing[0]}{more}, {where}",
                faults=[f"{self.list_file} lists {stem}, {where}" for stem in missing],
                records=records,
            )
        if not records:
            low, high = self.share
            raise ValueError(
                f"none of the images in {self.image_dir} falls into the share {low:g} to {high:g}: "
                "there are too few; take a larger share, or lists"
            )
        return records

    def _is_taken(self, stem: str, listed: Collection[str] | None) -> bool:
        if listed is not None and stem not in listed:
            return False
        digest = hashlib.blake2b(stem.encode(errors="surrogateescape"), digest_size=8).digest()
        return self.share[0] <= int.from_bytes(digest, "big") / 2**64 < self.share[1]


def add_annotations(name: str, folders: Folders, records: list[dict]) -> None:
    """Add sizes and instances from ``folders.instances_json`` to the records, in place."""
    if folders.instances_json is None or not folders.instances_json.is_file():
        raise FileNotFoundError(f"there is no file of instances {folders.instances_json}")
    # With the name, Detectron2 numbers the categories from 0, and sets them in the metadata.
    of_file: dict[str, dict] = {}
    for record in load_coco_json(str(folders.instances_json), str(folders.image_dir), name):
        known = of_file.setdefault(_normal(record["file_name"]), record)
        if known is not record:  # files that were merged may list an image several times
            known["annotations"] += record["annotations"]
    listed = 0
    for record in records:
        annotated = of_file.get(_normal(record["file_name"]))
        record["annotations"] = []
        if annotated is not None:
            listed += 1
            record.update({key: annotated[key] for key in ("annotations", "height", "width")})
    if not listed:
        theirs, ours = (
            repr(os.path.relpath(files[0], folders.image_dir)) if files else "nothing"
            for files in (list(of_file), [record["file_name"] for record in records])
        )
        raise ValueError(
            f"{folders.instances_json} lists none of the {len(records)} images of {name}: a "
            f"file_name in it is {theirs}, but an image of the dataset is {ours}"
        )


def _normal(path: str) -> str:
    """A path in its shortest form, with accents in one of the ways in which they are stored."""
    return unicodedata.normalize("NFC", os.path.normpath(path))


def _read_list(file: Path) -> set[str]:
    """The stems in a list of images."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no list of images {file}")
    stems = set()
    for line in read_text(file).splitlines():
        name = line.strip().replace("\\", "/").removeprefix("./")
        if name:
            suffix = Path(name).suffix
            stem = name.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else name
            stems.add(unicodedata.normalize("NFC", stem))
    if not stems:
        raise ValueError(f"the list of images {file} is empty")
    return stems
