"""From an image to its results in one call."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice, repeat
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from detectron2.config import CfgNode
from PIL import Image, ImageOps
from torch import nn
from tqdm import tqdm

from .data.truth.image_files import read_image
from .inference import (
    IMAGE_SUFFIXES,
    BatchPredictor,
    Result,
    find_files,
    output_stems,
    puts_out_regions,
    read_ahead,
)
from .load import load_model
from .modeling.outputs import outputs_of

# A file, an image of Pillow, or (H, W, 3) or (H, W) uint8, in RGB or grey.
ImageLike: TypeAlias = "str | PathLike | Image.Image | np.ndarray"
OnError: TypeAlias = Callable[[ImageLike, Exception], None]

# Errors that one image can cause: too little memory, an image too small for the model, and from
# Detectron2's Visualizer an image two pixels wide.
RUN_ERRORS = (RuntimeError, MemoryError, AssertionError)


class Predictor:
    """A trained model that takes images as they come.

        predictor = sgr.Predictor.load("output/model")
        result = predictor("street.jpg")
        result.save("predictions")

    An image is a path, an image of Pillow, or an array (H, W, 3) uint8 **in the order RGB** (of
    OpenCV's images take ``image[..., ::-1]``), or (H, W) uint8 in grey. The config's INPUT.FORMAT
    says what the model gets; it does not matter here. Images are turned as their EXIF data say.

    Args:
        model: in evaluation mode, with its weights.
        cfg: the config that it was built from. TEST.TOKENS.ENABLED gives the results concept
            regions, where the model has any and sees one view of an image.
        score_threshold: instances with a lower score are left out of the results, from 0 to 1.

    Attributes:
        batch_predictor: what runs the model.

    Raises:
        ValueError: for another threshold; see also :class:`~sgr.inference.BatchPredictor`.
    """

    def __init__(self, model: nn.Module, cfg: CfgNode, *, score_threshold: float = 0.5):
        if not 0 <= score_threshold <= 1:
            raise ValueError(f"score_threshold must be from 0 to 1, got {score_threshold}")
        if cfg.TEST.TOKENS.ENABLED and not puts_out_regions(cfg, model):
            cfg = cfg.clone()
            cfg.defrost()
            cfg.TEST.TOKENS.ENABLED = False
            # Several views of an image never have them. A model without any would look for them,
            # and fail.
            several = cfg.TEST.AUG.ENABLED or cfg.TEST.SLIDING_WINDOW.ENABLED
            if hasattr(model, "concepts_in_output") and not several:
                model.concepts_in_output = False
        self.batch_predictor = BatchPredictor(model, cfg)
        self.score_threshold = score_threshold
        outputs = outputs_of(model)
        # The average of several scales is one of probabilities.
        self._logits = (
            outputs is not None and outputs.sem_seg == "logits" and not cfg.TEST.AUG.ENABLED
        )

    @classmethod
    def load(
        cls,
        config: str | PathLike | Sequence[str] | CfgNode,
        weights: str | PathLike | None = None,
        *options: Any,
        score_threshold: float = 0.5,
        allow_pickle: bool = False,
        allow_unsafe_yaml: bool = False,
    ) -> Predictor:
        """Load a model.

        Args:
            config, weights, options, allow_pickle, allow_unsafe_yaml: see :func:`sgr.load_model`. A
                model folder needs no more than its path.
            score_threshold: see the class.

        Raises: as :func:`sgr.load_model` and the class.
        """
        model, cfg = load_model(
            config,
            weights,
            *options,
            allow_pickle=allow_pickle,
            allow_unsafe_yaml=allow_unsafe_yaml,
        )
        return cls(model, cfg, score_threshold=score_threshold)

    def __call__(
        self, images: ImageLike | Iterable[ImageLike], *, batch_size: int = 1
    ) -> Result | list[Result]:
        """Predict one image, or several.

        Args:
            images: an image; or several; or a folder of images, or a pattern such as
                ``photos/*.jpg``.
            batch_size: see :meth:`stream`.

        Returns:
            The result of the image; a list of several, also of a folder with one image. Of many
            images, :meth:`stream` holds one batch at a time.

        Raises: as :meth:`stream`.
        """
        if _is_one(images):
            return next(self.stream(images, progress=False))
        return list(self.stream(images, batch_size=batch_size))

    def stream(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        batch_size: int = 1,
        progress: bool = True,
        on_error: OnError | None = None,
    ) -> Iterator[Result]:
        """Predict images one after the other; a second thread reads the next ones meanwhile.

        Args:
            images: as of a call.
            batch_size: images that the model gets at a time; they are padded to the largest.
            progress: show a progress bar, on the standard error.
            on_error: called with the image and the error where one cannot be read or predicted;
                then the others go on. By default the error is raised.

        Yields:
            The result of each image, in their order. Its name is that of the file; arrays are
            called image_0, image_1, ... In a list of files, a folder or a pattern, all results have
            different stems: :meth:`Result.save` writes none over another.

        Raises:
            FileNotFoundError: there is no such file, or no image in a folder or pattern.
            OSError: a file cannot be read.
            TypeError, ValueError: what is given is no image, or ``batch_size`` is below 1.
            RuntimeError, MemoryError: the model cannot take an image.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        one = _is_one(images)
        items: Iterable[Any] = [images] if one else _expand(images)
        # So that the files of several arrays do not overwrite one another.
        names = repeat("image") if one else (f"image_{i}" for i in count())
        total = len(items) if isinstance(items, Sequence) else None
        stems = _stems(items)
        with tqdm(total=total, unit="image", disable=not progress) as bar:
            for batch in read_ahead(batches(map(self._read, items, names), batch_size)):
                for (item, outcome), stem in zip(self._predict(batch), stems):
                    if not isinstance(outcome, Exception):
                        outcome.stem = stem
                        yield outcome
                    elif on_error is None:
                        raise outcome
                    else:
                        on_error(item, outcome)
                bar.update(len(batch))

    def _read(
        self, item: ImageLike, name: str
    ) -> tuple[ImageLike, str, np.ndarray, dict | Exception]:
        """The image, its name, its pixels in RGB, and the model's input, or an error."""
        try:
            own_name, image = _as_rgb(item, self.batch_predictor.sixteen_bit)
            return item, own_name or name, image, self.batch_predictor.prepare(image)
        except Exception as error:  # Pillow's plugins raise all kinds of them
            return item, "", np.empty(0), error

    def _predict(self, batch: list[tuple]) -> Iterator[tuple[ImageLike, Result | Exception]]:
        inputs = [input_ for *_, input_ in batch if not isinstance(input_, Exception)]
        outputs = iter(predict_each(self.batch_predictor, inputs) if inputs else [])
        for item, name, image, input_ in batch:
            output = input_ if isinstance(input_, Exception) else next(outputs)
            if isinstance(output, Exception):
                yield item, output
                continue
            yield (
                item,
                Result(
                    image,
                    output,
                    self.batch_predictor.metadata,
                    input_size=tuple(input_["image"].shape[-2:]),
                    name=name,
                    source=item if _is_path(item) else getattr(item, "filename", None),
                    logits=self._logits,
                    score_threshold=self.score_threshold,
                ),
            )


def predict_each(predictor: BatchPredictor, inputs: list[dict]) -> list[dict | Exception]:
    """Run a model on a batch, or on its images one by one if that fails.

    Returns:
        For each image its output, or the error.
    """
    try:
        return list(predictor.predict(inputs))
    except RUN_ERRORS as error:
        if len(inputs) == 1:
            return [error]
    return [predict_each(predictor, [input_])[0] for input_ in inputs]


def batches(items: Iterator, size: int) -> Iterator[list]:
    """Lists of ``size`` items; the last one may be shorter."""
    while batch := list(islice(items, size)):
        yield batch


def _is_one(images: Any) -> bool:
    """Whether this is one image, and not a folder, a pattern or several images."""
    if isinstance(images, (str, PathLike)):
        path = Path(images).expanduser()
        return not path.is_dir() and (path.is_file() or not glob.has_magic(fspath(images)))
    if isinstance(images, (Image.Image, np.ndarray)):
        return True
    if not isinstance(images, Iterable):
        raise TypeError(_no_image(images))
    return False


def _expand(images: Any) -> Iterable[ImageLike]:
    """The files of a folder or a pattern; several images as they are."""
    if not isinstance(images, (str, PathLike)):
        return images
    files, problems = find_files([fspath(images)], IMAGE_SUFFIXES)
    for name, problem in problems.items():
        raise FileNotFoundError(f"{name!r}: {problem}")
    return files


def _stems(items: Iterable[Any]) -> Iterator[str]:
    """Stems for the results of a list of files, "" where that of the name will do."""
    if not (isinstance(items, Sequence) and items and all(map(_is_path, items))):
        return repeat("")
    stems = output_stems(items)
    return ("" if stem == Path(item).stem else stem for item, stem in zip(items, stems))


def _is_path(image: Any) -> bool:
    return isinstance(image, (str, PathLike))


def _as_rgb(image: ImageLike, sixteen_bit: str) -> tuple[str, np.ndarray]:
    """The name of an image, "" for none, and its pixels: (H, W, 3) uint8, RGB."""
    if isinstance(image, (str, PathLike)):
        path = Path(image).expanduser()
        return path.name, read_image(str(path), "RGB", sixteen_bit=sixteen_bit)
    if isinstance(image, Image.Image):
        if image.mode.startswith("I") or image.mode == "F":
            raise ValueError(
                f"the image has more than 8 bits per value (mode {image.mode}): give its path, "
                "which is read as INPUT.SIXTEEN_BIT says, or convert it to 8 bits"
            )
        name = Path(getattr(image, "filename", "")).name
        return name, np.array(ImageOps.exif_transpose(image).convert("RGB"))
    if not isinstance(image, np.ndarray):
        raise TypeError(_no_image(image))
    if image.dtype != np.uint8:
        raise ValueError(f"an image is an array of uint8, from 0 to 255, not of {image.dtype}")
    if image.ndim == 2:
        image = image[..., None].repeat(3, axis=-1)
    if image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
        raise ValueError(f"an image is (H, W, 3) in RGB or (H, W) in grey, not {image.shape}")
    return "", image


def _no_image(value: Any) -> str:
    return (
        "an image is a path, an image of Pillow or an array (H, W, 3) uint8 in RGB, not a "
        f"{type(value).__name__}"
    )
