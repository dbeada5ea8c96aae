"""COCO AP of the things of a panoptic dataset."""

from __future__ import annotations

import torch

from .coco_evaluator import FastCOCOEvaluator


class ThingCOCOEvaluator(FastCOCOEvaluator):
    """Box and mask AP for models that number things and stuff together.

    The things are the values of ``thing_dataset_id_to_contiguous_id``. Their numbers may have gaps
    (ADE20K, Cityscapes). ``thing_classes`` may name only the things, or all classes. Predictions of
    stuff are left out.
    """

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: one dict per image with "image_id".
            outputs: one dict per image with "instances" of ``pred_classes``, ``pred_boxes``,
                ``pred_masks`` and ``scores``.
        """
        things = torch.tensor(list(self._metadata.thing_dataset_id_to_contiguous_id.values()))
        kept = []
        for output in outputs:
            instances = output["instances"].to(self._cpu_device)
            kept.append({"instances": instances[torch.isin(instances.pred_classes, things)]})
        super().process(inputs, kept)
