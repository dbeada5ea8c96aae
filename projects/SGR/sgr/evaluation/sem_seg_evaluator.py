"""Evaluator of semantic segmentation over a dataset."""

from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from PIL import Image
from tabulate import tabulate
from torch import Tensor

from ..data.loading import load_dataset
from ..data.truth.records import apply_test_transform, find_image, has_classes, read_class_map
from ..modeling.outputs import predicted_labels
from ..visualization.confusion_matrix import draw_confusion_matrix
from .json_file import write_json

__all__ = ["MeanIoUEvaluator"]


class MeanIoUEvaluator(DatasetEvaluator):
    """mIoU, pixel accuracy and the confusion matrix. Names and values are those of Detectron2.

    The ground truth is that of the dataset's catalog, with its wrong labels an error:
    ``sem_seg_file_name`` with the metadata's ``ignore_label``, or else ``pan_seg_file_name`` and
    ``segments_info``, whose categories count over ``stuff_classes``. Crowds count as their class,
    as in the label maps that the public scripts make of panoptic data. Ignored pixels, and those
    without a segment, count for nothing.

    Cost, per image: the best class of scores, and two milliseconds for labels of 512 x 640 pixels,
    half of them for reading the file. The best class is taken and counted on the prediction's
    device, to which the ground truth goes; a GPU is not waited for before the evaluation. Kept are
    (C + 1) x (C + 2) numbers. Detectron2's own also makes run-length codes of every prediction,
    for ``sem_seg_predictions.json``, which takes several times as long as all of this; here there
    is no such file.
    """

    def __init__(
        self, dataset_name: str, *, distributed: bool = True, output_dir: str | None = None
    ) -> None:
        """
        Args:
            dataset_name: a registered dataset.
            distributed: add up the counts of all processes; if False, evaluate this one's.
            output_dir: where results are written: ``sem_seg.json`` (means and classes),
                ``sem_seg_evaluation.pth`` (what :meth:`evaluate` returns, as Detectron2 has it),
                ``confusion_matrix.npz`` (``counts`` (C, C) int64, pixels by true class in rows and
                predicted class in columns, and ``class_names``) and ``confusion_matrix.png``. None
                writes nothing.

        Raises:
            ValueError: if a record has no ground truth of classes, or the metadata name none; or
                if an image has two of them.
        """
        self._logger = logging.getLogger(__name__)
        self._dataset_name = dataset_name
        self._distributed = distributed
        self._output_dir = output_dir

        records = load_dataset(dataset_name)
        # After the records: some fill the metadata as they are loaded.
        metadata = MetadataCatalog.get(dataset_name)
        if metadata.get("stuff_classes") is None:
            raise ValueError(f"mIoU needs stuff_classes in the metadata of {dataset_name}")
        self._class_names = list(metadata.stuff_classes)
        self._num_classes = len(self._class_names)
        self._ignore_label = metadata.get("ignore_label")
        # The mapper of the test loader drops the ground truth from what the model gets.
        self._truths: dict[str, dict] = {}
        for record in records:
            file_name, truth = record["file_name"], self._truth_of(record)
            if self._truths.setdefault(file_name, truth) != truth:
                raise ValueError(
                    f"{file_name} is in {dataset_name} more than once, with ground truths that "
                    "differ: predictions are told apart by the file's name"
                )
        self.reset()

    def reset(self) -> None:
        # By true class (rows) and predicted one; the first row is that of ignored pixels, the first
        # and last column are those of labels below and above the classes.
        self._counts = torch.zeros((self._num_classes + 1, self._num_classes + 2), dtype=torch.long)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: one dict per image with "file_name", and "ground_truth_transform" where the
                model saw a part of it, see :func:`~sgr.data.truth.records.apply_test_transform`.
            outputs: one dict per image with "sem_seg", (C, H, W) scores or (H, W) integer labels,
                at the size of the ground truth.

        Raises:
            FileNotFoundError, OSError: if a file of the ground truth is missing or damaged.
            ValueError: if it holds a label that is neither a class nor the ignored one; or if
                "sem_seg" is missing, of another form or size, or has scores of other classes.
            KeyError: if an image is not in the dataset.
        """
        for input_, output in zip(inputs, outputs):
            file_name = input_["file_name"]
            truth = read_class_map(
                find_image(self._truths, file_name, self._dataset_name),
                num_classes=self._num_classes,
                ignore_label=self._ignore_label,
            )
            truth = apply_test_transform(input_, truth)
            self._process_image(input_, truth, self._prediction(file_name, output, truth.shape))

    def evaluate(self) -> OrderedDict | None:
        """
        Returns:
            ``{"sem_seg": {name: percent}}`` with mIoU, fwIoU (weighted by the classes' pixels),
            "IoU-" and the name of a class, mACC, pACC (of all pixels), and "ACC-" and the name of a
            class. A class without a pixel in the ground truth has nan; in mIoU it is left out, or
            0 where it was predicted. Empty where no pixel is labelled. None where the process is
            not the main one.

        Raises:
            ValueError: if a labelled pixel got a label that is no class.
        """
        counts = self._gather(self._local_counts())
        if counts is None:
            return None
        confusion = counts[0][1:, 1:-1]
        strays = counts[0][1:].sum() - confusion.sum()
        if strays:
            raise ValueError(
                f"{strays} labelled pixels of {self._dataset_name} got labels that are none of "
                f"its classes, 0 to {self._num_classes - 1}: the model is of another dataset"
            )
        means, iou, accuracy = _qualities(confusion)
        results = OrderedDict()
        if means:
            means.update(self._more_means(confusion, *counts[1:]))
            results = self._results(means, iou, accuracy)
        self._log(means, iou, accuracy, confusion)
        if self._output_dir:
            names = self._write(results, means, iou, accuracy, confusion)
            self._logger.info(
                f"Written of {self._dataset_name} to {self._output_dir}: {', '.join(names)}"
            )
        return OrderedDict(sem_seg=results)

    def _truth_of(self, record: dict) -> dict:
        """What is needed of a record."""
        if not has_classes(record):
            raise ValueError(
                f"the dataset {self._dataset_name} has records without sem_seg_file_name, or "
                "pan_seg_file_name and segments_info: mIoU needs the class of each pixel"
            )
        if "sem_seg_file_name" in record:
            return {"sem_seg_file_name": record["sem_seg_file_name"]}
        # Instances in a crowd cannot be told apart, but their class is known.
        segments = [{**each, "iscrowd": 0} for each in record["segments_info"]]
        return {"pan_seg_file_name": record["pan_seg_file_name"], "segments_info": segments}

    def _prediction(self, file_name: str, output: dict, size: tuple[int, int]) -> Tensor:
        """(H, W) int32 labels: -1 below all classes, the number of classes above them."""
        if "sem_seg" not in output:
            raise ValueError(
                f'the model\'s output for {file_name} has no "sem_seg"; mask classifiers put it '
                "out where MODEL.MASK_FORMER.TEST.SEMANTIC_ON is True"
            )
        sem_seg = output["sem_seg"]
        labels = predicted_labels(sem_seg)
        if sem_seg.dim() == 3 and len(sem_seg) != self._num_classes:
            raise ValueError(
                f"sem_seg of {file_name} has scores of {len(sem_seg)} classes, but "
                f"{self._dataset_name} has {self._num_classes}"
            )
        if tuple(labels.shape) != size:
            turned = tuple(labels.shape) == size[::-1]
            hint = "; is it the image's EXIF orientation, which only one of them follows?"
            raise ValueError(
                f"sem_seg of {file_name} is {tuple(labels.shape)}, but its ground truth is {size} "
                f"(height, width){hint if turned else ''}"
            )
        return labels.int().clamp(-1, self._num_classes)

    def _process_image(self, input_: dict, truth: np.ndarray, labels: Tensor) -> None:
        """
        Args:
            input_: of :meth:`process`.
            truth: (H, W), -1 where the pixel is ignored.
            labels: of :meth:`_prediction`, on any device.
        """
        self._counts = self._counts.to(labels.device)
        num_rows, num_columns = self._counts.shape
        rows = torch.from_numpy(truth).to(labels.device, non_blocking=True).int() + 1
        places = (rows * num_columns + labels + 1).flatten()
        if places.is_cpu:
            counted = torch.bincount(places, minlength=num_rows * num_columns)
            self._counts += counted.view(num_rows, num_columns)
        else:  # bincount would wait for the device to learn how long its result is
            one = self._counts.new_ones(()).expand(len(places))
            self._counts.view(-1).scatter_add_(0, places.long(), one)

    def _local_counts(self) -> tuple[np.ndarray, ...]:
        """What this process has counted, the confusion matrix first."""
        return (self._counts.cpu().numpy(),)

    def _gather(self, counts: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...] | None:
        """Their sums over the processes; None where the process is not the main one."""
        if not self._distributed:
            return counts
        comm.synchronize()
        gathered = comm.gather(counts)
        if not comm.is_main_process():
            return None
        return tuple(np.sum(part, axis=0) for part in zip(*gathered))

    def _more_means(self, confusion: np.ndarray, *counts: np.ndarray) -> dict[str, float]:
        """For subclasses: other values in percent, made of all processes' counts."""
        return {}

    def _results(self, means: dict, iou: np.ndarray, accuracy: np.ndarray) -> OrderedDict:
        """In the order of Detectron2, whose means stand before their classes."""
        results = OrderedDict()
        for name, value in means.items():
            results[name] = value
            if name == "fwIoU":
                results.update((f"IoU-{name}", each) for name, each in self._by_class(iou))
            if name == "pACC":
                results.update((f"ACC-{name}", each) for name, each in self._by_class(accuracy))
        return results

    def _by_class(self, values: np.ndarray) -> zip:
        return zip(self._class_names, values.tolist())

    def _log(
        self, means: dict, iou: np.ndarray, accuracy: np.ndarray, confusion: np.ndarray
    ) -> None:
        if not means:
            self._logger.warning(f"No predicted pixel of {self._dataset_name} is labelled: no mIoU")
            return
        options = {"floatfmt": ".3f", "tablefmt": "pipe", "missingval": "-"}
        table = tabulate([list(means.values())], headers=list(means), **options)
        share = 100 * confusion.sum(axis=1) / confusion.sum()
        per_class = tabulate(
            [
                [name, *(None if np.isnan(value) else value for value in values)]
                for name, *values in zip(self._class_names, iou, accuracy, share)
            ],
            headers=["class", "IoU", "ACC", "% of pixels"],
            **options,
        )
        self._logger.info(f"Semantic segmentation of {self._dataset_name}:\n{table}\n\n{per_class}")

    def _write(
        self,
        results: OrderedDict,
        means: dict,
        iou: np.ndarray,
        accuracy: np.ndarray,
        confusion: np.ndarray,
    ) -> list[str]:
        """Where no pixel is labelled as well, so that no older results stay beside the new ones.

        Returns:
            The names of what was written.
        """
        assert self._output_dir is not None
        folder = Path(self._output_dir)
        classes = {
            name: {"IoU": float(iou[i]), "ACC": float(accuracy[i]), "pixels": int(pixels)}
            for i, (name, pixels) in enumerate(self._by_class(confusion.sum(axis=1)))
        }
        write_json(folder / "sem_seg.json", {**means, "classes": classes})
        torch.save(dict(results), folder / "sem_seg_evaluation.pth")
        matrix = folder / "confusion_matrix.npz"
        np.savez_compressed(matrix, counts=confusion, class_names=np.array(self._class_names, str))
        picture = draw_confusion_matrix(confusion, self._class_names)
        Image.fromarray(picture).save(matrix.with_suffix(".png"))
        return ["sem_seg.json", "sem_seg_evaluation.pth", matrix.name, f"{matrix.stem}.png"]


def _qualities(confusion: np.ndarray) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Means by name, none where no pixel is labelled; IoU and accuracy by class, in percent."""
    right = np.diagonal(confusion).astype(np.float64)
    truth, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    present = truth > 0
    iou, accuracy = np.full((2, len(confusion)), np.nan)
    iou[present] = 100 * right[present] / (truth + predicted - right)[present]
    accuracy[present] = 100 * right[present] / truth[present]
    if not present.any():
        return {}, iou, accuracy
    means = {
        "mIoU": iou[present].sum() / ((truth + predicted) > 0).sum(),
        "fwIoU": (iou[present] * truth[present] / truth.sum()).sum(),
        "mACC": accuracy[present].mean(),
        "pACC": 100 * right.sum() / truth.sum(),
    }
    return {name: float(value) for name, value in means.items()}, iou, accuracy
