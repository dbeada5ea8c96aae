"""Hooks and writers of a training: the use of concepts, pictures of mask classifiers, metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from ..data.colors import distinct_colors
from ..modeling.mask_classification.inference import semantic_inference
from ..modeling.mask_classification.segmentor import MaskFormerSegmentor
from ..modeling.supervision import ConceptCriterion, ConceptLosses
from ..testing.semantic_views import unwrapped
from ..visualization.overlays import overlay_labels


class ConceptMonitor(HookBase):
    """Log how many of the K concepts are in use.

    * ``sgr/active_concepts``: share of the regions that pass 0.5 somewhere in their image.
    * ``sgr/concepts_matched_per_epoch``, once per epoch: share of the concepts that were matched
      at least once in it. The others are not supervised, but the token metrics count them. Look
      here first if S_C stays high.

    It counts several reasoning modules together.

    Args:
        iterations_per_epoch: iterations between two logs of the second number.
    """

    def __init__(self, iterations_per_epoch: int):
        self.iterations_per_epoch = max(iterations_per_epoch, 1)
        self._matched: Any = None  # (K,) bool, after the first step
        self._active: list[torch.Tensor] = []

    def before_train(self):
        self._handles = [
            module.register_forward_hook(self._watch)
            for module in self.trainer.model.modules()
            if isinstance(module, ConceptCriterion)
        ]

    def _watch(self, _criterion, _inputs, output: ConceptLosses):
        matched = output.matched.any(axis=0)
        self._matched = matched if self._matched is None else self._matched | matched
        self._active.append(output.active)

    def after_step(self):
        if self._active:
            # The trainer has read the losses by now, so nothing waits for the device here.
            active = np.mean([share.item() for share in self._active])
            self.trainer.storage.put_scalar("sgr/active_concepts", active)
            self._active.clear()
        step = self.trainer.iter + 1
        if step % self.iterations_per_epoch and step != self.trainer.max_iter:
            return
        matched = [mask for mask in comm.gather(self._matched) if mask is not None]
        if matched:
            share = np.logical_or.reduce(matched).mean()
            self.trainer.storage.put_scalar(
                "sgr/concepts_matched_per_epoch", share, smoothing_hint=False
            )
        self._matched = None

    def after_train(self):
        for handle in self._handles:
            handle.remove()


class ForgivingWriter(EventWriter):
    """Writes metrics with another writer, and only warns where they cannot be written.

    A full disk then shows as the error of a checkpoint, which says how to go on, or not at all.
    """

    def __init__(self, writer: EventWriter):
        self._writer = writer
        self._has_warned = False

    def write(self):
        self._try(self._writer.write)

    def close(self):
        self._try(self._writer.close)

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except OSError as error:
            if not self._has_warned:
                logging.getLogger(__name__).warning(
                    "%s cannot write metrics: %s; the training goes on",
                    *(type(self._writer).__name__, error),
                )
            self._has_warned = True


class TrainingPictures(HookBase):
    """Show the first image of a batch with its labels and with the prediction, for TensorBoard.

    It is for mask classifiers; Detectron2's detectors make pictures of their own with VIS_PERIOD.

    Args:
        period: iterations between two pictures.
        image_format: INPUT.FORMAT.
    """

    def __init__(self, period: int, image_format: str):
        self.period = period
        self.image_format = image_format
        self._inputs: list[dict] = []
        self._outputs: dict[str, torch.Tensor] = {}
        self._handles: list[Any] = []

    def before_step(self):
        model = unwrapped(self.trainer.model)
        if self.trainer.iter % self.period or not isinstance(model, MaskFormerSegmentor):
            return
        self._handles = [
            model.register_forward_pre_hook(self._watch_inputs),
            model.sem_seg_head.register_forward_hook(self._watch_outputs),
        ]

    def _watch_inputs(self, _model, arguments):
        (self._inputs,) = arguments

    def _watch_outputs(self, _head, _arguments, outputs):
        self._outputs = outputs

    def after_step(self):
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        model = unwrapped(self.trainer.model)
        picture = self._draw(model)
        self.trainer.storage.put_image("image, labels, prediction", picture.transpose(2, 0, 1))
        self._handles, self._inputs, self._outputs = [], [], {}

    @torch.no_grad()
    def _draw(self, model: MaskFormerSegmentor) -> np.ndarray:
        """(H, 3 W, 3) uint8, RGB: the image, its labels and the prediction side by side."""
        first = self._inputs[0]
        height, width = first["image"].shape[-2:]
        image = convert_image_to_rgb(first["image"].permute(1, 2, 0), self.image_format)
        image = image.astype(np.uint8)
        truth = np.full((height, width), -1)
        instances = first["instances"]
        masks = getattr(instances.gt_masks, "tensor", instances.gt_masks)
        for category, mask in zip(instances.gt_classes.tolist(), masks):
            truth[mask.cpu().numpy().astype(bool)] = category
        # The network has seen the image in the corner of the padded batch.
        divisor = max(model.size_divisibility, 1)
        sides = zip(*(inputs["image"].shape[-2:] for inputs in self._inputs))
        padded = tuple(-(-max(side) // divisor) * divisor for side in sides)
        predicted = semantic_inference(
            self._outputs["pred_logits"][0].float(),
            self._outputs["pred_masks"][0].float(),
            size=padded,
            labels=True,
        )
        predicted = predicted[:height, :width].cpu().numpy()
        colors = distinct_colors(self._outputs["pred_logits"].shape[-1] - 1)
        pictures = [overlay_labels(image, labels, colors) for labels in (truth, predicted)]
        return np.concatenate([image, *pictures], axis=1)
