"""The pixels that mIoU is made of, image by image."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from detectron2.utils import comm
from torch import Tensor

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

    def _process_image(self, input_: dict, truth: np.ndarray, labels: Tensor) -> None:
        rows = torch.from_numpy(truth).to(labels.device, non_blocking=True)
        labelled = rows >= 0
        right = labelled & (rows == labels)
        # The last place is for the pixels that do not count.
        places = [
            torch.where(counts, values, self._num_classes).clamp(0, self._num_classes)
            for values, counts in ((rows, right), (rows, labelled), (labels, labelled))
        ]
        counts = labels.new_zeros((3, self._num_classes + 1), dtype=torch.long)
        index = torch.stack(places).flatten(1).long()
        counts.scatter_add_(1, index, torch.ones_like(index))
        self._images[input_["file_name"]] = counts[:, :-1]

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
            file = Path(self._output_dir) / "image_iou.npz"
            np.savez_compressed(
                file,
                file_names=np.array(names, str),
                class_names=np.array(self._class_names, str),
                right=right,
                truth=truth,
                predicted=predicted,
            )
            self._logger.info(f"Written of {self._dataset_name}: {file}")
        return OrderedDict()
