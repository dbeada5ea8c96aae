"""Run a trained model on images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar, cast

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from torch import nn

from ..data.augmentations.fast import with_a_pixel
from ..modeling.recording import check_has_regions
from ..testing import SlidingWindowSegmentor, build_multi_scale_model
from .metadata import model_metadata

Item = TypeVar("Item")
Done = TypeVar("Done")


class BatchPredictor:
    """Detectron2's ``DefaultPredictor`` for several images at a time.

        predictor = BatchPredictor(*sgr.load_model("config.yaml", "model_final.pth"))
        outputs = predictor([image])

    It resizes images and orders their channels as an evaluation does. It pads the images of a batch
    to the largest one. This costs time where sizes differ, and may change results a little, because
    convolutions and tokens see the padding. With TEST.AUG or TEST.SLIDING_WINDOW enabled, the model
    gets one image at a time, at several scales or window by window.

    Args:
        model: in evaluation mode, with its weights.
        cfg: the config that it was built from.

    Attributes:
        model: the same.
        metadata: names and colours of the classes in the model's outputs, from the first dataset of
            ``DATASETS.TEST``; see :func:`~sgr.inference.metadata.model_metadata`.

    Raises:
        ValueError: if ``INPUT.FORMAT`` is neither "RGB" nor "BGR", or ``TEST.TOKENS.ENABLED`` asks
            for concept regions and the model puts out none, or several views are enabled; see also
            :func:`~sgr.testing.build_multi_scale_model`.
    """

    def __init__(self, model: nn.Module, cfg: CfgNode):
        if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT must be 'RGB' or 'BGR', got {cfg.INPUT.FORMAT!r}")
        self._is_bgr = cfg.INPUT.FORMAT == "BGR"
        self.sixteen_bit = cfg.INPUT.SIXTEEN_BIT
        self.model = model
        if cfg.TEST.TOKENS.ENABLED:
            _check_regions(cfg, model)
        self._run: nn.Module = model
        resize = cfg.clone()
        if cfg.TEST.AUG.ENABLED:
            self._run = build_multi_scale_model(cfg, model)
            resize.defrost()
            resize.INPUT.MIN_SIZE_TEST = 0  # the scales are made of the image as it is
        elif cfg.TEST.SLIDING_WINDOW.ENABLED:
            self._run = SlidingWindowSegmentor(cfg, model)
        augmentations = detection_utils.build_augmentation(resize, is_train=False)
        self._resize = T.AugmentationList(with_a_pixel(augmentations))
        self.metadata = model_metadata(model, cfg)

    def prepare(self, image: np.ndarray) -> dict[str, Any]:
        """Make the model's input from one image.

        Args:
            image: (H, W, 3) uint8, RGB.

        Returns:
            A dict with ``image``, (3, h, w) uint8, resized and with the channels in the order of
            INPUT.FORMAT, and ``height`` and ``width``, the size of the given image.
        """
        size = {"height": image.shape[0], "width": image.shape[1]}
        resized = T.AugInput(image)
        self._resize(resized)
        image = resized.image[..., ::-1] if self._is_bgr else resized.image
        return {"image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), **size}

    def predict(self, inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Run the model on inputs from :meth:`prepare`; outputs have the sizes of the images."""
        with torch.inference_mode():
            return self._run(list(inputs))

    def __call__(self, images: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """Run the model on (H, W, 3) uint8 images, RGB, of any sizes."""
        return self.predict([self.prepare(image) for image in images])


def read_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items; a second thread makes each one while the previous one is in use.

    An error in the second thread is raised here.
    """
    iterator, end = iter(items), cast(Item, object())
    with ThreadPoolExecutor(max_workers=1) as executor:
        coming = executor.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = executor.submit(next, iterator, end)
            yield item


def work_behind(function: Callable[[Item], Done], items: Iterable[Item]) -> Iterator[Done]:
    """Yield what a function makes of the items; a second thread runs it while the next item comes.

    An error of the function is raised here.
    """
    with ThreadPoolExecutor(max_workers=1) as executor:
        at_work: Future[Done] | None = None
        for item in items:
            coming = executor.submit(function, item)
            if at_work is not None:
                yield at_work.result()
            at_work = coming
        if at_work is not None:
            yield at_work.result()


def puts_out_regions(cfg: CfgNode, model: nn.Module) -> bool:
    """Whether the model, tested as the config says, can put out its concept regions."""
    try:
        _check_regions(cfg, model)
    except ValueError:
        return False
    return True


def _check_regions(cfg: CfgNode, model: nn.Module) -> None:
    for key in ("AUG", "SLIDING_WINDOW"):
        if cfg.TEST[key].ENABLED:
            raise ValueError(
                "concept regions are those of one view of an image: show none, or set "
                f"TEST.{key}.ENABLED to False"
            )
    name = type(model).__name__
    if not hasattr(model, "concepts_in_output"):
        raise ValueError(
            f"{name} does not put out its concept regions; set MODEL.META_ARCHITECTURE to "
            f"Concept{name} (see sgr.supervise)"
        )
    check_has_regions(model)
