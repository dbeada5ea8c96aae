"""Pictures of a training for TensorBoard: of its batches, and of validation images."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.engine import HookBase
from detectron2.evaluation import inference_context
from detectron2.utils.events import get_event_storage

from ..data.colors import class_colors, distinct_colors
from ..dataset_check import spread
from ..inspection.image import Inspector
from ..inspection.pictures import draw_inspected
from ..modeling.mask_classification.inference import semantic_inference
from ..modeling.mask_classification.segmentor import MaskFormerSegmentor
from ..testing import PlannedTest
from ..testing.semantic_views import unwrapped
from ..visualization.overlays import overlay_labels


def put_evaluation_pictures(test: PlannedTest, num_images: int, *, num_regions: int = 4) -> None:
    """Show TensorBoard some images of each test set, the same ones at each evaluation.

    A picture has the image, its labels, the prediction, its errors and the most used regions, as
    far as model and dataset have them. It takes about a second of one core. A picture that cannot
    be drawn is a warning.

    Args:
        test: its model is in training mode or not, and stays so.
        num_images: images of each dataset, evenly spread over it.
        num_regions: regions of each image.
    """
    storage = get_event_storage()
    with inference_context(test.model):
        for dataset, records in test.datasets.items():
            if not isinstance(records, list):
                continue
            metadata = MetadataCatalog.get(dataset)
            inspector = Inspector(test.model, test.cfg, metadata)
            names = inspector.class_names
            colors = class_colors(metadata, len(names))
            for index in spread(num_images, len(records)):
                path = records[index]["file_name"]
                try:
                    picture = draw_inspected(
                        inspector(records[index]),
                        names,
                        colors,
                        num_regions=num_regions,
                        errors=True,
                    )
                except Exception as error:  # no picture is worth a training
                    logging.getLogger(__name__).warning(
                        "there is no picture of %s in TensorBoard: %s: %s; TEST.PICTURES 0 draws "
                        "none",
                        *(path, type(error).__name__, error),
                    )
                    continue
                storage.put_image(f"{dataset}/{Path(path).stem}", picture.transpose(2, 0, 1))


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
        try:
            picture = self._draw(unwrapped(self.trainer.model))
        except Exception as error:  # no picture is worth a training
            logging.getLogger(__name__).warning(
                "there is no picture of iteration %d in TensorBoard: %s: %s; VIS_PERIOD 0 draws "
                "none",
                *(self.trainer.iter, type(error).__name__, error),
            )
        else:
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
        masks = instances.gt_masks if instances.has("gt_masks") else []  # none: no instances
        masks = getattr(masks, "tensor", masks)
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
