"""COCO AP of the things of a panoptic dataset."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.evaluation import COCOEvaluator

__all__ = ["ThingCOCOEvaluator"]


class ThingCOCOEvaluator(COCOEvaluator):
    """Detectron2's box and mask AP, for models that number things and stuff together.

    Detectron2 wants things to be the classes from 0 on, and ``thing_classes`` to name them alone.
    In panoptic datasets their numbers may have gaps (ADE20K, Cityscapes), and ``thing_classes`` may
    name all classes. Predictions of stuff are left out.
    """

    def __init__(self, dataset_name: str, *, output_dir: str | None = None) -> None:
        """
        Args:
            dataset_name: a registered dataset with ``json_file``, the annotations of instances in
                COCO's format, ``thing_dataset_id_to_contiguous_id`` and ``thing_classes`` in its
                metadata.
            output_dir: where predictions and results are written; None writes nothing.
        """
        super().__init__(dataset_name, output_dir=output_dir)
        metadata = MetadataCatalog.get(dataset_name)
        # In the order of the dataset's ids, which is that of COCO's tables.
        class_of = dict(sorted(metadata.thing_dataset_id_to_contiguous_id.items()))
        classes = list(class_of.values())
        names = metadata.thing_classes
        by_class = sorted(classes) if len(names) == len(classes) else range(len(names))
        name_of = dict(zip(by_class, names))
        self._metadata = Metadata(
            name=dataset_name,
            json_file=metadata.json_file,
            thing_classes=[name_of[each] for each in classes],
            thing_dataset_id_to_contiguous_id={id: n for n, id in enumerate(class_of)},
        )
        # Beyond the last thing there is stuff only.
        self._thing_of_class = np.full(max(classes) + 2, -1)
        self._thing_of_class[classes] = np.arange(len(classes))

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: one dict per image with "image_id".
            outputs: one dict per image with "instances" of ``pred_classes``, ``pred_boxes``,
                ``pred_masks`` and ``scores``.
        """
        numbered = []
        for output in outputs:
            instances = output["instances"].to(self._cpu_device)
            classes = instances.pred_classes.numpy().clip(max=len(self._thing_of_class) - 1)
            things = torch.from_numpy(self._thing_of_class[classes])
            instances.pred_classes = things
            numbered.append({"instances": instances[things >= 0]})
        super().process(inputs, numbered)
