"""What the datasets share: where they lie, and how they get into Detectron2's catalogs."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin

from ..faults import list_faults
from ..visible_files import visible_files

__all__ = [
    "IncompleteDataset",
    "add_metadata",
    "check_present",
    "datasets_root",
    "distinct_label_colors",
    "incomplete_dataset",
    "load_sem_seg_pairs",
    "register",
    "replace_builtin",
    "set_paths",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


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


def register(name: str, load: Callable[[], list[dict]], **metadata: Any) -> None:
    """Put a dataset into the catalogs, unless one of this name is there already."""
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(**metadata)


def replace_builtin(name: str, load: Callable[[], list[dict]], **paths: str) -> None:
    """Put another loader of the same data in the place of Detectron2's own; its metadata stay.

    A dataset that somebody else has registered under this name is left as it is.

    Args:
        paths: paths in the metadata, under the root of all datasets; for kinds of datasets that
            users register by the function that Detectron2 registers its own by.
    """
    loader = DatasetCatalog.data.get(name)
    if not (getattr(loader, "__module__", None) or "").startswith("detectron2.data.datasets."):
        return
    # The root as it was when Detectron2 was imported; in some versions with "~" expanded.
    root = getattr(builtin, "_root", os.getenv("DETECTRON2_DATASETS", "datasets"))
    metadata = MetadataCatalog.get(name)
    if all(metadata.get(key) == os.path.join(root, path) for key, path in paths.items()):
        DatasetCatalog.remove(name)
        DatasetCatalog.register(name, load)


def add_metadata(name: str, **metadata: Any) -> None:
    """Set those of the metadata that a dataset does not have yet."""
    known = MetadataCatalog.get(name)
    known.set(**{key: value for key, value in metadata.items() if key not in known.as_dict()})


def distinct_label_colors(count: int) -> list[tuple[int, int, int]]:
    """Colours for datasets that come without: up to 255 different ones, none of them black.

    The bits of a label's number, from the lowest, go in turn to red, green and blue, and there
    from the highest bit down; so are the colours of Pascal VOC made.

    Returns:
        ``count`` colours, RGB.
    """
    colors = np.zeros((count, 3), np.uint8)
    numbers = np.arange(1, count + 1)
    for bit in range(8):
        colors[:, bit % 3] |= ((numbers >> bit & 1) << 7 - bit // 3).astype(np.uint8)
    return [tuple(color) for color in colors.tolist()]


def set_paths(name: str, **paths: Path) -> None:
    """Set paths in a dataset's metadata, anew each time it is loaded.

    Metadata do not let a value change, but ``$DETECTRON2_DATASETS`` may have changed since the
    import of this package.
    """
    vars(MetadataCatalog.get(name)).update({key: str(path) for key, path in paths.items()})


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


def load_sem_seg_pairs(
    image_dir: Path,
    label_dir: Path,
    *,
    label_suffix: str = "",
    subfolders: bool = False,
    keep: Callable[[str], bool] | None = None,
) -> list[dict]:
    """Pair the images of a folder with the label maps of another by their stems.

    Detectron2's ``load_sem_seg`` takes images of one suffix only, and leaves out what has no
    partner; here an incomplete dataset is an error.

    Args:
        image_dir: holds images (``IMAGE_SUFFIXES``); hidden files are left out.
        label_dir: holds one PNG for each image.
        label_suffix: what the stem of a label map has behind that of its image; files without it
            are left out.
        subfolders: take those of subfolders too, links to folders among them, hidden ones aside; a
            stem is then the path in the folder, as in "city/0001".
        keep: whether the image of a stem, and its label map, are taken; None takes all.

    Returns:
        Records with ``file_name``, ``sem_seg_file_name`` and ``image_id``, the stem, in the order
        of stems. None where ``keep`` takes none.

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
    """Files by their stems without ``ending``."""
    files: dict[str, Path] = {}
    for path in visible_files(folder) if subfolders else sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if not path.stem.endswith(ending) or path in leave_out:
            continue
        stem = path.relative_to(folder).with_suffix("").as_posix().removesuffix(ending)
        if stem in files:
            raise ValueError(f"{path} and {files[stem]} have the same stem")
        files[stem] = path
    return files
