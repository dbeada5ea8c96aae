"""Datasets with images in one folder and their label maps in another."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Container, Mapping
from pathlib import Path

from ..listing import visible_files
from ..truth.image_files import IMAGE_SUFFIXES
from .missing import IncompleteDataset, check_present

WITHOUT_LABELS = (
    "to see what a model predicts on images without labels, such as a test split, use tools/demo.py"
)


def load_sem_seg_dataset(paths: Mapping[str, Path], how_to_get: str) -> list[dict]:
    """Load a dataset that consists of a folder of images and one of label maps.

    Args:
        paths: ``image_root`` and ``sem_seg_root``.
        how_to_get: what to download or run, and the expected tree, for messages.

    Returns:
        Records, see :func:`load_sem_seg_pairs`.

    Raises:
        FileNotFoundError: a folder is not there, or an image has no label map.
    """
    check_present(paths.values(), how_to_get)
    try:
        return load_sem_seg_pairs(paths["image_root"], paths["sem_seg_root"])
    except IncompleteDataset as error:
        message = f"{error}.\n{how_to_get.strip()}"
        raise IncompleteDataset(message, faults=error.faults, records=error.records) from error


def load_sem_seg_pairs(
    image_dir: Path,
    label_dir: Path,
    *,
    label_suffix: str = "",
    subfolders: bool = False,
    keep: Callable[[str], bool] | None = None,
) -> list[dict]:
    """Pair the images of a folder with the label maps of another by their stems.

    Detectron2's ``load_sem_seg`` takes images of one suffix only, and leaves out files without a
    partner. Here an incomplete dataset is an error.

    Args:
        image_dir: the folder of images (``IMAGE_SUFFIXES``). Hidden files are left out.
        label_dir: the folder of label maps, a PNG for each image.
        label_suffix: the end of the stems of label maps, after the stem of the image. Files without
            it are left out.
        subfolders: also take files of subfolders, and of links to folders, but not of hidden ones.
            A stem is then the path in the folder, such as "city/0001".
        keep: tells for a stem whether to take its image and label map; None takes all.

    Returns:
        Records with ``file_name``, ``sem_seg_file_name`` and ``image_id``, which is the stem in
        Unicode's NFC, sorted by stem. The list is empty if ``keep`` takes no image.

    Raises:
        IncompleteDataset: there is no image, or an image or label map has no partner.
        ValueError: two files have the same stem.
    """
    labels = _by_stem(label_dir, (".png",), subfolders, label_suffix)
    label_files = set(labels.values())  # they may lie among the images
    images = _by_stem(image_dir, IMAGE_SUFFIXES, subfolders, leave_out=label_files)
    if not images:
        raise IncompleteDataset(f"{image_dir} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    if keep is not None:
        images, labels = (
            {stem: path for stem, path in files.items() if keep(stem)} for files in (images, labels)
        )
    message, faults = "", []
    for have, lack, folder, ending, what in [
        (images, labels, label_dir, f"{label_suffix}.png", "image without a label map"),
        (labels, images, image_dir, ".*", "label map without an image"),
    ]:
        told = [
            f"{what}: {have[stem]} has no partner {folder / stem}{ending}"
            for stem in sorted(have.keys() - lack.keys())
        ]
        if told and not message:
            message = told[0] + (f" (and {len(told) - 1} more)" if len(told) > 1 else "")
        faults += told
    if images and not labels and not label_suffix:
        message += f"; {WITHOUT_LABELS}"
    records = [
        {"file_name": str(images[stem]), "sem_seg_file_name": str(labels[stem]), "image_id": stem}
        for stem in sorted(images.keys() & labels.keys())
    ]
    if faults:
        raise IncompleteDataset(message, faults=faults, records=records)
    return records


def _by_stem(
    folder: Path,
    suffixes: tuple[str, ...],
    subfolders: bool = False,
    ending: str = "",
    leave_out: Container[Path] = (),
) -> dict[str, Path]:
    """The files of a folder by their stems, without ``ending``."""
    files: dict[str, Path] = {}
    ending = unicodedata.normalize("NFC", ending)
    for path in visible_files(folder) if subfolders else sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        # macOS and others store an accent in different ways, and a dataset may have both.
        stem = unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())
        if not stem.endswith(ending) or path in leave_out:
            continue
        stem = stem.removesuffix(ending)
        if stem in files:
            raise ValueError(f"{path} and {files[stem]} have the same stem")
        files[stem] = path
    return files
