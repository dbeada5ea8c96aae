"""The folder of an explorer."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data.catalog import Metadata, MetadataCatalog
from PIL import Image
from tqdm import tqdm

from ..data.loading import load_dataset
from ..dataset_check import spread
from ..inspection.attention import record_attention
from ..inspection.image import InspectedImage, Inspector
from ..modeling.outputs import outputs_of
from ..visualization import class_colors
from ..visualization.overlays import HEAT
from .concepts import ConceptSummary
from .image_data import image_content, image_summary
from .models import ExplorerModel
from .packing import pack, write_script
from .palette import safe_colors

INDEX = "explorerIndex"  # the function that data/index.js calls
PAGE = ("index.html", "explorer.js", "explorer.css")
THUMBNAIL = 160
MIN_SIDE = 32  # the least that max_side may be
# Of a file or a record, or of the model's run on an image, such as too little memory.
_ERRORS = (OSError, ValueError, RuntimeError, MemoryError)


@dataclass
class ExplorerReport:
    """What :func:`write_explorer` has written.

    Attributes:
        images: number of images.
        problems: file -> why it is left out.
        seconds: the time that it took.
        size: bytes of the folder.
    """

    images: int = 0
    problems: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    size: int = 0

    def __str__(self) -> str:
        left_out = f", {len(self.problems)} left out" if self.problems else ""
        return f"{self.images} images{left_out} in {self.seconds:.0f} s, {self.size / 1e6:.1f} MB"


def write_explorer(
    folder: str | Path,
    models: Sequence[ExplorerModel],
    records: Sequence[dict[str, Any]],
    metadata: Metadata | None = None,
    *,
    title: str = "Token explorer",
    max_side: int = 512,
    progress: bool = True,
) -> ExplorerReport:
    """Write a folder whose ``index.html`` shows what the tokens of models do in images.

    It opens in a browser from the file system. An error, or an interruption from the keyboard,
    leaves an explorer of the images so far.

    Args:
        folder: a new or empty folder, or an explorer, which is replaced.
        models: at least one, under different names. Their classes are those of ``metadata``.
        records: in Detectron2's standard dataset format; those without ground truth have a
            "file_name" only.
        metadata: of the dataset; by default the classes of the first model.
        max_side: images, labels and predictions are shown with at most so many pixels along the
            longer side.
        progress: show a progress bar with the time left, on the standard error.

    Raises:
        ValueError: there is no image, a name comes twice, a model has another number of classes
            than the dataset, or ``folder`` holds something else, or one of the images.
    """
    start = time.perf_counter()
    folder = Path(folder)
    names = [model.name for model in models]
    if not models or len(set(names)) < len(names):
        raise ValueError(f"an explorer needs models under different names, got {names}")
    if not len(records):
        raise ValueError("there is no image to explore")
    if max_side < MIN_SIDE:
        raise ValueError(f"max_side must be at least {MIN_SIDE} pixels, got {max_side}")
    metadata = metadata or models[0].metadata
    inspectors = [Inspector(one.model, one.cfg, metadata) for one in models]
    class_names = inspectors[0].class_names
    for one in models:
        outputs = outputs_of(one.model)
        count = outputs.num_classes(one.model) if outputs else None
        if count not in (None, len(class_names)):
            raise ValueError(
                f"the model {one.name} has {count} classes, and the explorer {len(class_names)}; "
                "compare models of the same classes"
            )
    check_folder(folder)
    resolved = folder.resolve()
    for record in records:
        if resolved in Path(record["file_name"]).resolve().parents:
            raise ValueError(f"{record['file_name']} lies in {folder}, which would be replaced")
    _clear(folder)
    report = ExplorerReport()
    index = _Index(title, class_names, metadata, names)
    try:
        for record in tqdm(records, unit="image", disable=not progress):
            try:
                inspected, attention = _inspect(models, inspectors, record)
            except _ERRORS as error:
                reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
                report.problems[str(record["file_name"])] = reason
                continue
            shown = _write_image(folder, report.images, inspected[names[0]].image, max_side)
            content = image_content(inspected, attention, class_names, shown)
            path = folder / "data" / f"{report.images:05d}.js"
            write_script(path, "explorerImage", report.images, content)
            index.add(str(record["file_name"]), inspected, shown)
            report.images += 1
    finally:
        write_script(folder / "data" / "index.js", INDEX, index.content())
    if not report.images:
        file, reason = next(iter(report.problems.items()))
        raise ValueError(f"no image could be explored; the first one is {file}: {reason}")
    report.seconds = time.perf_counter() - start
    report.size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return report


def explore_dataset(
    folder: str | Path, models: Sequence[ExplorerModel], name: str, num_images: int, **options: Any
) -> ExplorerReport:
    """Call :func:`write_explorer` for images that are spread over a registered dataset."""
    records = load_dataset(name)
    chosen = [records[index] for index in spread(num_images, len(records))]
    return write_explorer(folder, models, chosen, MetadataCatalog.get(name), **options)


def check_folder(folder: str | Path) -> None:
    """Check that an explorer can be written to a folder: one that is new or empty, or has one.

    Raises:
        ValueError: it is no folder, or holds something else than an explorer.
    """
    folder = Path(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder for the explorer")
    if any(folder.iterdir()) and not _is_explorer(folder):
        raise ValueError(
            f"{folder} holds something else than an explorer; name another folder, or empty it"
        )


def _is_explorer(folder: Path) -> bool:
    # Other web pages may have files of the same names.
    start = f"{INDEX}(".encode("ascii")
    try:
        with open(folder / "data" / "index.js", "rb") as file:
            return file.read(len(start)) == start
    except OSError:
        return False


def _clear(folder: Path) -> None:
    """Make the folder, with the page and without data."""
    for part in ("data", "images", "thumbnails"):
        shutil.rmtree(folder / part, ignore_errors=True)
        (folder / part).mkdir(parents=True)
    page = files(__package__) / "page"
    for name in PAGE:
        (folder / name).write_bytes((page / name).read_bytes())
    # Says that this is an explorer also after an end without any clean-up.
    write_script(folder / "data" / "index.js", INDEX, None)


def _inspect(
    models: Sequence[ExplorerModel], inspectors: Sequence[Inspector], record: dict[str, Any]
) -> tuple[dict[str, InspectedImage], dict[str, Any]]:
    inspected, attention = {}, {}
    for one, inspector in zip(models, inspectors):
        with record_attention(one.model) as attention[one.name]:
            inspected[one.name] = inspector(record)
    return inspected, attention


def _write_image(folder: Path, number: int, image: np.ndarray, max_side: int) -> tuple[int, int]:
    """Write an image and its thumbnail; return the (height, width) that is shown."""
    for part, side, quality in (("thumbnails", THUMBNAIL, 75), ("images", max_side, 85)):
        scale = min(1, side / max(image.shape[:2]))
        shown = tuple(max(1, round(length * scale)) for length in image.shape[:2])
        small = cv2.resize(image, shown[::-1], interpolation=cv2.INTER_AREA)
        Image.fromarray(small).save(folder / part / f"{number:05d}.jpg", quality=quality)
    return shown


class _Index:
    """What the page needs before it shows the first image."""

    def __init__(self, title: str, class_names: list[str], metadata: Metadata, models: list[str]):
        self._head = {
            "title": title,
            "classes": class_names,
            "colors": {
                "safe": safe_colors(len(class_names)),
                "dataset": class_colors(metadata, len(class_names)),
            },
            # Segments, such as components, have colours in the order of their size.
            "segments": safe_colors(200),
            "heat": pack(np.rint(HEAT).astype(np.uint8)),
        }
        self._models = models
        self._num_classes = len(class_names)
        self._names: list[str] = []
        self._images: list[dict[str, Any]] = []
        self._summaries: list[dict[str, ConceptSummary]] = [{} for _ in models]

    def add(
        self, file_name: str, inspected: dict[str, InspectedImage], shown: tuple[int, int]
    ) -> None:
        models, differ = image_summary(inspected, self._num_classes)
        for one, summaries in zip(inspected.values(), self._summaries):
            for kind, tokens in (("tokens", one.tokens), ("queries", one.queries)):
                if tokens is not None:
                    summary = summaries.setdefault(kind, ConceptSummary(self._num_classes))
                    summary.add(len(self._images), tokens, one.input_size)
        self._names.append(file_name)
        self._images.append({"size": shown, "models": models, "differ": differ})

    def content(self) -> dict[str, Any]:
        # Files of the same name are told apart by their folders.
        stems = Counter(Path(name).name for name in self._names)
        for name, image in zip(self._names, self._images):
            image["name"] = Path(name).name if stems[Path(name).name] == 1 else name
        models = [
            {
                "name": name,
                "kinds": {kind: summary.content() for kind, summary in summaries.items()},
            }
            for name, summaries in zip(self._models, self._summaries)
        ]
        return {**self._head, "models": models, "images": self._images}
