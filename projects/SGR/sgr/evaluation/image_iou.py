"""The pixels that mIoU is made of, image by image."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from detectron2.utils import comm
from torch import Tensor

from ..data.files import warn_unless_written
from .sem_seg_evaluator import MeanIoUEvaluator


class ImageIoUEvaluator(MeanIoUEvaluator):
    """Counts each image's pixels by class, for tests that resample the images.

    It writes ``image_iou.npz`` to the ``output_dir``: ``file_names`` (N,), sorted, ``class_names``
    (C,), and (N, C) int64 numbers of labelled pixels by image and class. ``right`` are those that
    are predicted right, ``truth`` those of the ground truth, ``predicted`` those of the prediction.
    Their sums over the images give mIoU. ``tools/run_experiments.py --baseline`` reads the file.
    The evaluator adds no result.

    Cost: that of :class:`MeanIoUEvaluator`, and 3 N C numbers.
    """

    def reset(self) -> None:
        super().reset()
        self._images: dict[str, Tensor] = {}

    def _process_image(self, input_: dict, output: dict, truth: np.ndarray, labels: Tensor) -> None:
        counts = self._count(truth, labels)[1:]
        classes = counts[:, 1:-1]
        self._images[input_["file_name"]] = torch.stack(
            [classes.diagonal(), counts.sum(dim=1), classes.sum(dim=0)]
        )

    def evaluate(self) -> OrderedDict | None:
        """Write the file; :meth:`MeanIoUEvaluator.evaluate` gives and raises more."""
        images = {name: counts.cpu().numpy() for name, counts in self._images.items()}
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(images)
            if not comm.is_main_process():
                return None
            images = {name: counts for part in gathered for name, counts in part.items()}
        if self._output_dir and images:
            names = sorted(images)
            right, truth, predicted = np.stack([images[name] for name in names], axis=1)
            path = Path(self._output_dir) / "image_iou.npz"
            with warn_unless_written(path) as draft, draft.open("wb") as file:
                np.savez_compressed(
                    file,
                    file_names=np.array(names, str),
                    class_names=np.array(self._class_names, str),
                    right=right,
                    truth=truth,
                    predicted=predicted,
                )
            self._logger.info(f"Counts of each image of {self._dataset_name}: {path}")
        return OrderedDict()
