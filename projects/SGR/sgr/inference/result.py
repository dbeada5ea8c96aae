"""What a model finds in one image, as arrays, as files and as a picture."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pycocotools import mask as coco_mask

from ..data.files import draft_of
from ..evaluation.json_file import write_json
from ..inspection import Tokens
from ..modeling.outputs import REGIONS, RESULTS, predicted_labels
from ..visualization import draw_beside
from .drawing import (
    choose_concepts,
    draw_output,
    draw_output_regions,
    inspect_output,
    shown_instances,
)
from .files import refuse_overwriting

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")
_JPEG_SIDE = 65500  # the most pixels that Pillow writes along a side


@dataclass(frozen=True)
class PredictedInstances:
    """N instances of one image, the surest first as far as the model sorts them.

    Attributes:
        labels: (N,) int64, the class of each, an index into ``Result.thing_classes``.
        scores: (N,) float32 in [0, 1]; ones where the model gives none.
        boxes: (N, 4) float32, left, top, right and bottom in pixels of the image.
        masks: (N, H, W) bool; None of models that find boxes only.
    """

    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray | None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class PredictedSegments:
    """The panoptic segments of one image.

    Attributes:
        ids: (H, W) int32, the segment of each pixel; 0 where there is none.
        segments: a dict for each segment: its ``id`` in ``ids``, ``isthing``, ``category_id`` (an
            index into ``Result.thing_classes`` or ``stuff_classes``), the ``name`` of this class,
            and its ``area`` in pixels.
    """

    ids: np.ndarray
    segments: list[dict[str, Any]]


class Result:
    """What a model finds in one image. What it does not put out is None.

    Arrays are made when they are asked for, and kept.

    Args:
        image: (H, W, 3) uint8, RGB.
        output: of the model for this image, at its size; see ``BatchPredictor``.
        metadata: names and colours of the classes; see ``BatchPredictor.metadata``.
        input_size: (height, width) of the network's input, without padding.
        name: of the image, such as ``street.jpg``.
        source: the file that the image was read from; :meth:`save` does not write over it.
        logits: whether ``output["sem_seg"]`` are logits, which a softmax turns into scores.
        score_threshold: instances with a lower score are left out.

    Attributes:
        image, output, metadata, name: the same.
        stem: of the files that :meth:`save` writes; "" for that of the name.
        stuff_classes, thing_classes: names of the classes. They are the same list if the model has
            one numbering for both.
    """

    def __init__(
        self,
        image: np.ndarray,
        output: dict[str, Any],
        metadata: Metadata,
        *,
        input_size: tuple[int, int],
        name: str = "image",
        source: str | PathLike | None = None,
        logits: bool = False,
        score_threshold: float = 0.5,
    ):
        self.image = image
        self.output = output
        self.metadata = metadata
        self.name = name
        self.stem = ""
        self._source = Path(source).expanduser().absolute() if source else None
        self.stuff_classes: list[str] = list(metadata.stuff_classes)
        self.thing_classes: list[str] = list(metadata.thing_classes)
        self._input_size = input_size
        self._logits = logits
        self._threshold = score_threshold

    @cached_property
    def labels(self) -> np.ndarray | None:
        """(H, W) int32, the class of each pixel, an index into ``stuff_classes``."""
        if RESULTS["semantic"] not in self.output:
            return None
        return predicted_labels(self.output["sem_seg"]).int().cpu().numpy()

    @cached_property
    def scores(self) -> np.ndarray | None:
        """(C, H, W) float32, the score of each class at each pixel.

        Those of per-pixel models are probabilities. Those of mask classifiers are sums over the
        queries, between 0 and the number of queries. None also where the model puts out labels
        instead (MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT).
        """
        sem_seg = self.output.get(RESULTS["semantic"])
        if sem_seg is None or sem_seg.dim() != 3:
            return None
        sem_seg = sem_seg.float()
        return (sem_seg.softmax(dim=0) if self._logits else sem_seg).cpu().numpy()

    @cached_property
    def instances(self) -> PredictedInstances | None:
        """The instances whose score is at least the threshold."""
        if RESULTS["instance"] not in self.output:
            return None
        found = shown_instances(self.output["instances"], self._threshold)
        number = len(found)
        scores = found.scores.numpy() if found.has("scores") else np.ones(number)
        return PredictedInstances(
            labels=found.pred_classes.numpy().astype(np.int64),
            scores=scores.astype(np.float32),
            boxes=found.pred_boxes.tensor.numpy().astype(np.float32),
            masks=found.pred_masks.numpy() > 0.5 if found.has("pred_masks") else None,
        )

    @cached_property
    def segments(self) -> PredictedSegments | None:
        """The panoptic segments."""
        if RESULTS["panoptic"] not in self.output:
            return None
        ids, found = self.output["panoptic_seg"]
        ids = ids.int().cpu().numpy()
        areas = np.bincount(ids.ravel(), minlength=max((s["id"] for s in found), default=0) + 1)
        segments = []
        for segment in found:
            classes = self.thing_classes if segment["isthing"] else self.stuff_classes
            segments.append(
                {
                    "id": int(segment["id"]),
                    "category_id": int(segment["category_id"]),
                    "name": classes[segment["category_id"]],
                    "isthing": bool(segment["isthing"]),
                    "area": int(areas[segment["id"]]),
                }
            )
        return PredictedSegments(ids, segments)

    @cached_property
    def tokens(self) -> Tokens | None:
        """The tokens of the reasoning module, with their histograms over the predicted classes."""
        if REGIONS["tokens"] not in self.output:
            return None
        return inspect_output(self.output, self.metadata, self._input_size)[0]

    @property
    def regions(self) -> np.ndarray | None:
        """(K, h, w) float32 in [0, 1], the concept regions on the cells of the feature map."""
        return None if self.tokens is None else self.tokens.probabilities

    def picture(self, regions: int = 0, *, beside: bool = True) -> np.ndarray:
        """Draw the result over the image.

        Args:
            regions: the number of concept regions to draw beside it.
            beside: draw the image beside it too. With ``regions`` it is always there.

        Returns:
            (height, width, 3) uint8, RGB.

        Raises:
            ValueError: the output has nothing to draw, or no regions.
        """
        over = draw_output(self.image, self.output, self.metadata, score_threshold=self._threshold)
        if not regions:
            return draw_beside(self.image, over) if beside else over
        return draw_output_regions(
            over,
            self.image,
            self.output,
            self.metadata,
            input_size=self._input_size,
            concepts=choose_concepts(self.output, regions),
        )

    def show(self, regions: int = 0) -> None:
        """Show the picture in a notebook; elsewhere in the image viewer of the system."""
        image = Image.fromarray(self.picture(regions))
        shell = sys.modules.get("IPython")
        if shell is not None and shell.get_ipython() is not None:
            shell.display.display(image)
        else:
            image.show()

    def _repr_png_(self) -> bytes:
        """The picture, as notebooks ask for it."""
        with io.BytesIO() as file:
            Image.fromarray(self.picture()).save(file, "png")
            return file.getvalue()

    def save(self, path: str | PathLike, *, regions: int = 0) -> list[Path]:
        """Write the picture, and the results as files that other programs read.

        Args:
            path: a file ``.png`` or ``.jpg`` for the picture alone; or a folder, which is made if
                it is not there. In it, the files of an image ``street.jpg`` are

                * ``street.jpg``: the picture (``.png`` for images that are neither JPEG nor PNG);
                * ``labels/street.png``: the class of each pixel, in one channel of 8 or 16 bits, as
                  :func:`~sgr.register_sem_seg` reads it. The largest number stands for no class;
                * ``instances/street.json``: the instances in COCO's format, masks as run lengths;
                * ``panoptic/street.png`` and ``street.json``: the segments in COCO's panoptic
                  format.

                The class numbers are those of the model, from 0. The files have their names.
            regions: concept regions in the picture.

        Returns:
            The files that it wrote.

        Raises:
            ValueError: a file would overwrite the image that was predicted. Nothing is written.
        """
        path = Path(path).expanduser()
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.is_dir():
            self._keep_source([path])
            write_picture(path, Image.fromarray(self.picture(regions)))
            return [path]
        name = Path(self.name)
        stem = self.stem or str(name.with_suffix(""))
        suffix = name.suffix if name.suffix.lower() in PICTURE_SUFFIXES else ".png"
        picture = path / f"{stem}{suffix}"
        self._keep_source([picture])
        data = self.save_data(path, stem)  # first: some images cannot be drawn
        write_picture(picture, Image.fromarray(self.picture(regions)))
        return [picture, *data]

    def save_data(self, folder: Path, stem: str) -> list[Path]:
        """Write the results of :meth:`save` without the picture.

        Args:
            folder: for the folders ``labels``, ``instances`` and ``panoptic``.
            stem: the path of the files in these folders, without a suffix.

        Returns:
            The files that it wrote.

        Raises:
            ValueError: as :meth:`save`.
        """
        files = [folder / file for file in data_files(stem)]
        contents = (
            self._label_image(),
            self._coco_instances(),
            self._panoptic_image(),
            self._coco_segments(f"{Path(stem).name}.png"),
        )
        made = {file: one for file, one in zip(files, contents, strict=True) if one is not None}
        self._keep_source(made)
        for file, content in made.items():
            if isinstance(content, dict):
                write_json(file, content)
            else:
                write_picture(file, content)
        return list(made)

    def _keep_source(self, files: Iterable[Path]) -> None:
        if self._source is not None and self._source.exists():
            refuse_overwriting([self._source], files)

    def _label_image(self) -> Image.Image | None:
        if self.labels is None:
            return None
        dtype = np.uint8 if len(self.stuff_classes) < 256 else np.uint16
        known = (self.labels >= 0) & (self.labels < len(self.stuff_classes))
        return Image.fromarray(np.where(known, self.labels, np.iinfo(dtype).max).astype(dtype))

    def _panoptic_image(self) -> Image.Image | None:
        if self.segments is None:
            return None
        ids = self.segments.ids
        # COCO: id = R + 256 G + 65536 B.
        return Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids >> 16], -1).astype("u1"))

    def _coco_file(self, categories: list[dict], annotations: list[dict]) -> dict[str, Any]:
        height, width = self.image.shape[:2]
        image = {"id": 1, "file_name": self.name, "height": height, "width": width}
        return {"images": [image], "categories": categories, "annotations": annotations}

    def _coco_instances(self) -> dict[str, Any] | None:
        if self.instances is None:
            return None
        found = self.instances
        annotations = []
        for index in range(len(found)):
            left, top, right, bottom = found.boxes[index].tolist()
            annotation = {
                "id": index + 1,
                "image_id": 1,
                "category_id": found.labels[index],
                "score": found.scores[index],
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "iscrowd": 0,
            }
            if found.masks is not None:
                code = coco_mask.encode(np.asfortranarray(found.masks[index], dtype=np.uint8))
                annotation["segmentation"] = {**code, "counts": code["counts"].decode("ascii")}
                annotation["area"] = coco_mask.area(code)
            annotations.append(annotation)
        names = [{"id": number, "name": name} for number, name in enumerate(self.thing_classes)]
        return self._coco_file(names, annotations)

    def _coco_segments(self, file_name: str) -> dict[str, Any] | None:
        if self.segments is None:
            return None
        # Things and stuff may have numbers of their own: here the things come after the stuff.
        joint = self.stuff_classes == self.thing_classes
        first_thing = 0 if joint else len(self.stuff_classes)
        isthing = {}
        infos = []
        for segment in self.segments.segments:
            number = segment["category_id"] + first_thing * segment["isthing"]
            isthing[number] = segment["isthing"]
            info = {"id": segment["id"], "category_id": number, "area": segment["area"]}
            infos.append({**info, "iscrowd": 0})
        names = self.stuff_classes if joint else [*self.stuff_classes, *self.thing_classes]
        things = set(_thing_numbers(self.metadata) if joint else range(first_thing, len(names)))
        categories = [
            {"id": number, "name": name, "isthing": int(isthing.get(number, number in things))}
            for number, name in enumerate(names)
        ]
        annotation = {"image_id": 1, "file_name": file_name, "segments_info": infos}
        return self._coco_file(categories, [annotation])


def write_picture(file: Path, picture: Image.Image, comment: str = "") -> None:
    """Write a PNG or JPEG. A file of this name is whole, also where the program was killed.

    A picture with more pixels along a side than JPEG can have becomes smaller.

    Args:
        comment: in ASCII, for :func:`read_comment`.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    kind = "png" if file.suffix.lower() == ".png" else "jpeg"
    if kind == "jpeg" and max(picture.size) > _JPEG_SIDE:
        picture = picture.copy()
        picture.thumbnail((_JPEG_SIDE, _JPEG_SIDE))
    texts = PngInfo()  # PNG has them, and JPEG a comment
    if comment:
        texts.add_text("comment", comment)
    with draft_of(file) as draft:
        picture.save(draft, kind, quality=92, comment=comment, pnginfo=texts)


def read_comment(file: Path) -> str:
    """The comment of a picture; "" where there is none, or the file cannot be read."""
    try:
        with Image.open(file) as picture:
            comment = picture.info.get("comment", "")
    except Exception:  # Pillow's plugins raise all kinds of them
        return ""
    return comment.decode("ascii", "replace") if isinstance(comment, bytes) else comment


def data_files(stem: str) -> list[Path]:
    """What :meth:`Result.save_data` may write: labels, instances, panoptic map and segments."""
    files = ("labels/{}.png", "instances/{}.json", "panoptic/{}.png", "panoptic/{}.json")
    return [Path(file.format(stem)) for file in files]


def _thing_numbers(metadata: Metadata) -> list[int]:
    """The classes that are things, where things and stuff share one numbering."""
    return list((metadata.get("thing_dataset_id_to_contiguous_id") or {}).values())
