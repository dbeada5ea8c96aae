"""Evaluates semantic segmentation on a dataset."""

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

from ..data.datasets.pairs import WITHOUT_LABELS
from ..data.files import warn_unless_written
from ..data.loading import load_dataset
from ..data.truth.records import apply_test_transform, find_image, has_classes, read_class_map
from ..modeling.outputs import predicted_labels
from ..visualization.confusion_matrix import draw_confusion_matrix
from .boundary_iou import boundary_classes
from .json_file import write_json


class MeanIoUEvaluator(DatasetEvaluator):
    """mIoU, pixel accuracy and the confusion matrix, with the names and values of Detectron2.

    The ground truth are the records of the dataset: ``sem_seg_file_name`` with ``ignore_label`` in
    the metadata, or else ``pan_seg_file_name`` and ``segments_info``, whose categories count over
    ``stuff_classes``. Crowds count as their class, as in the label maps that the public scripts
    make of panoptic data. Ignored pixels, and pixels without a segment, do not count. Wrong labels
    are an error.

    Cost, per image: the best class of scores, and two milliseconds for labels of 512 x 640 pixels,
    half of it for reading the file. The best class is found and counted on the device of the
    prediction; before the end, nothing waits for a GPU. The memory is (C + 1) x (C + 2) numbers.
    Detectron2's evaluator also makes run-length codes of every prediction for
    ``sem_seg_predictions.json``, which takes several times as long. This one does not write that
    file.

    Boundary IoU, if it is measured, is that of Cheng et al., under the names of Detectron2's
    development version: "BoundaryIoU-" and "min(IoU, B-Iou)-" and the name of a class. Their means
    over the classes are "mBoundaryIoU" and "mmin(IoU, B-Iou)". Pixels are summed over the images
    before they are divided, as for IoU. Ignored pixels belong to no mask. The values are not those
    of Detectron2, which erodes the map of labels, and not the mask of each class. It costs 6 to 12
    ms for 512 x 640 pixels on one core, and does not wait for a GPU either.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        distributed: bool = True,
        output_dir: str | None = None,
        boundary_ratio: float | None = None,
    ) -> None:
        """
        Args:
            dataset_name: a registered dataset.
            distributed: add up the counts of all processes; False evaluates this process alone.
            output_dir: the folder for ``sem_seg.json`` (means and classes),
                ``sem_seg_evaluation.pth`` (the result of :meth:`evaluate`, as in Detectron2),
                ``confusion_matrix.npz`` (``counts`` (C, C) int64, pixels by true class in rows and
                predicted class in columns, and ``class_names``) and ``confusion_matrix.png``. None
                writes nothing.
            boundary_ratio: measure boundary IoU at this distance from the contours, as a share of
                the image's diagonal; None does not.

        Raises:
            ValueError: a record has no ground truth of classes, the metadata name no classes or
                more than 10000, or an image has two different ground truths.
        """
        self._logger = logging.getLogger(__name__)
        self._dataset_name = dataset_name
        self._distributed = distributed
        self._output_dir = output_dir
        self._boundary_ratio = boundary_ratio

        records = load_dataset(dataset_name)
        # After loading, because some datasets set their metadata then.
        metadata = MetadataCatalog.get(dataset_name)
        if metadata.get("stuff_classes") is None:
            raise ValueError(f"mIoU needs stuff_classes in the metadata of {dataset_name}")
        self._class_names = list(metadata.stuff_classes)
        self._num_classes = len(self._class_names)
        if self._num_classes > 10_000:
            raise ValueError(
                f"{dataset_name} has {self._num_classes} classes, so the matrix of confusion that "
                f"mIoU needs would take {8 * self._num_classes**2 / 2**30:.0f} GiB; at most are "
                "10000 classes"
            )
        self._ignore_label = metadata.get("ignore_label")
        # The mapper of the test loader drops the ground truth from what the model gets.
        self._truths: dict[str, dict] = {}
        for record in records:
            file_name, truth = record["file_name"], self._truth_of(record)
            if self._truths.setdefault(file_name, truth) != truth:
                raise ValueError(
                    f"{file_name} is in {dataset_name} more than once, with different ground "
                    "truths: an evaluation tells predictions apart by the file name"
                )
        self.reset()

    def reset(self) -> None:
        # Rows are true classes, columns predicted ones. The first row is for ignored pixels, the
        # first and last column are for labels below and above the classes.
        self._counts = torch.zeros((self._num_classes + 1, self._num_classes + 2), dtype=torch.long)
        # Boundary pixels of ground truth, prediction and both; the first column is for the others.
        self._boundaries = torch.zeros((3, self._num_classes + 1), dtype=torch.long)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: one dict per image with "file_name", and "ground_truth_transform" if the model
                saw a part of it, see :func:`~sgr.data.truth.records.apply_test_transform`.
            outputs: one dict per image with "sem_seg", (C, H, W) scores or (H, W) integer labels,
                at the size of the ground truth.

        Raises:
            FileNotFoundError, OSError: a file of the ground truth is missing or damaged.
            ValueError: the ground truth has a label that is neither a class nor ignored; or
                "sem_seg" is missing, has another form or size, or has scores of other classes.
            KeyError: the dataset does not have an image.
        """
        for input_, output in zip(inputs, outputs):
            file_name = input_["file_name"]
            truth = read_class_map(
                find_image(self._truths, file_name, self._dataset_name),
                num_classes=self._num_classes,
                ignore_label=self._ignore_label,
            )
            truth = apply_test_transform(input_, truth)
            labels = self._prediction(file_name, output, truth.shape)
            self._process_image(input_, output, truth, labels)

    def evaluate(self) -> OrderedDict | None:
        """
        Returns:
            ``{"sem_seg": {name: percent}}`` with mIoU, fwIoU (weighted by the pixels of the
            classes), "IoU-" and the name of a class, mACC, pACC (of all pixels), and "ACC-" and the
            name of a class. A class without a pixel in the ground truth has nan; mIoU leaves it
            out, or counts it as 0 if it was predicted. Empty if no pixel is labelled. None if the
            process is not the main one. Boundary IoU of the classes stands beside their IoU, its
            means stand at the end.

        Raises:
            ValueError: the predicted label of a labelled pixel is no class.
        """
        counts = self._gather((*self._local_counts(), self._boundaries.cpu().numpy()))
        if counts is None:
            return None
        matrix, *more, boundaries = counts
        confusion = matrix[1:, 1:-1]
        strays = matrix[1:].sum() - confusion.sum()
        if strays:
            raise ValueError(
                f"{strays} labelled pixels of {self._dataset_name} have predicted labels that are "
                f"none of its classes, 0 to {self._num_classes - 1}: the model is of another "
                "dataset"
            )
        means, iou, accuracy = mean_qualities(confusion)
        by_class = {"IoU": iou, "ACC": accuracy}
        results = OrderedDict()
        if means:
            if self._boundary_ratio is not None:
                _add_boundary_iou(means, by_class, confusion, boundaries[:, 1:])
            means.update(self._more_means(confusion, *more))
            results = self._results(means, by_class)
        self._log(means, by_class, confusion)
        if self._output_dir:
            names = self._write(results, means, by_class, confusion)
            self._logger.info(
                f"Written of {self._dataset_name} to {self._output_dir}: {', '.join(names)}"
            )
        return OrderedDict(sem_seg=results)

    def _truth_of(self, record: dict) -> dict:
        """The ground truth of a record; other keys are dropped."""
        if not has_classes(record):
            raise ValueError(
                f"the dataset {self._dataset_name} has records without sem_seg_file_name, or "
                "pan_seg_file_name and segments_info: mIoU needs the class of each pixel; "
                f"{WITHOUT_LABELS}"
            )
        if "sem_seg_file_name" in record:
            return {"sem_seg_file_name": record["sem_seg_file_name"]}
        # Nobody knows the instances of a crowd, but their class is known.
        segments = [{**segment, "iscrowd": 0} for segment in record["segments_info"]]
        return {"pan_seg_file_name": record["pan_seg_file_name"], "segments_info": segments}

    def _prediction(self, file_name: str, output: dict, size: tuple[int, int]) -> Tensor:
        """(H, W) int32 labels: -1 below all classes, the number of classes above them."""
        if "sem_seg" not in output:
            raise ValueError(
                f'the model\'s output for {file_name} has no "sem_seg"; mask classifiers have one '
                "if MODEL.MASK_FORMER.TEST.SEMANTIC_ON is True"
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
            hint = "; does only one of them follow the EXIF orientation of the image?"
            raise ValueError(
                f"sem_seg of {file_name} is {tuple(labels.shape)}, but its ground truth is {size} "
                f"(height, width){hint if turned else ''}"
            )
        return labels.int().clamp(-1, self._num_classes)

    def _process_image(self, input_: dict, output: dict, truth: np.ndarray, labels: Tensor) -> None:
        """Count the pixels of an image: (H, W) classes, -1 for ignored, and predicted labels."""
        self._counts = self._counts.to(labels.device)
        self._counts += self._count(truth, labels)
        if self._boundary_ratio is not None:
            self._boundaries = self._boundaries.to(labels.device)
            classes = boundary_classes(
                _on_device_of(labels, truth), labels, self._num_classes, self._boundary_ratio
            )
            columns = self._num_classes + 1
            rows = torch.arange(0, 3 * columns, columns, device=labels.device)[:, None, None]
            self._boundaries += _histogram(rows + classes, 3 * columns).view(3, columns)

    def _count(self, truth: np.ndarray, labels: Tensor) -> Tensor:
        """(C + 1, C + 2) pixels of an image, in the order of ``self._counts``."""
        num_rows, num_columns = self._counts.shape
        places = (_on_device_of(labels, truth) + 1) * num_columns + labels + 1
        return _histogram(places, num_rows * num_columns).view(num_rows, num_columns)

    def _local_counts(self) -> tuple[np.ndarray, ...]:
        """The counts of this process; the confusion matrix comes first."""
        return (self._counts.cpu().numpy(),)

    def _gather(self, counts: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...] | None:
        """The sums over the processes; None if the process is not the main one."""
        if not self._distributed:
            return counts
        comm.synchronize()
        gathered = comm.gather(counts)
        if not comm.is_main_process():
            return None
        return tuple(np.sum(part, axis=0) for part in zip(*gathered))

    def _more_means(self, confusion: np.ndarray, *counts: np.ndarray) -> dict[str, float]:
        """For subclasses: further values in percent, from the counts of all processes."""
        return {}

    def _results(self, means: dict, by_class: dict[str, np.ndarray]) -> OrderedDict:
        """All values in the order of Detectron2: a mean comes before the values of its classes."""
        after = {"fwIoU": [key for key in by_class if key != "ACC"], "pACC": ["ACC"]}
        results = OrderedDict()
        for mean, value in means.items():
            results[mean] = value
            for i, name in enumerate(self._class_names):
                for key in after.get(mean, ()):
                    results[f"{key}-{name}"] = float(by_class[key][i])
        return results

    def _log(self, means: dict, by_class: dict[str, np.ndarray], confusion: np.ndarray) -> None:
        if not means:
            self._logger.warning(
                f"mIoU is not measured: no predicted pixel of {self._dataset_name} is labelled"
            )
            return
        options = {"floatfmt": ".3f", "tablefmt": "pipe", "missingval": "-"}
        table = tabulate([list(means.values())], headers=list(means), **options)
        share = 100 * confusion.sum(axis=1) / confusion.sum()
        per_class = tabulate(
            [
                [name, *(None if np.isnan(value) else value for value in values)]
                for name, *values in zip(self._class_names, *by_class.values(), share)
            ],
            headers=["class", *by_class, "% of pixels"],
            disable_numparse=[0],  # a name may look like a number
            **options,
        )
        self._logger.info(f"Semantic segmentation of {self._dataset_name}:\n{table}\n\n{per_class}")

    def _write(
        self,
        results: OrderedDict,
        means: dict,
        by_class: dict[str, np.ndarray],
        confusion: np.ndarray,
    ) -> list[str]:
        """Write all files, so that no older ones stay, and return their names."""
        assert self._output_dir is not None
        folder = Path(self._output_dir)
        classes = {
            name: {**{key: float(values[i]) for key, values in by_class.items()}, "pixels": pixels}
            for i, (name, pixels) in enumerate(
                zip(self._class_names, confusion.sum(axis=1).tolist())
            )
        }
        write_json(folder / "sem_seg.json", {**means, "classes": classes}, needed=False)
        with warn_unless_written(folder / "sem_seg_evaluation.pth") as draft:
            torch.save(dict(results), draft)
        matrix = folder / "confusion_matrix.npz"
        names = np.array(self._class_names, str)
        with warn_unless_written(matrix) as draft, draft.open("wb") as file:
            np.savez_compressed(file, counts=confusion, class_names=names)
        with warn_unless_written(matrix.with_suffix(".png")) as draft:
            picture = draw_confusion_matrix(confusion, self._class_names)
            Image.fromarray(picture).save(draft, "PNG")
        files = ["sem_seg.json", "sem_seg_evaluation.pth", matrix.name, f"{matrix.stem}.png"]
        return [name for name in files if (folder / name).exists()]


def _on_device_of(labels: Tensor, truth: np.ndarray) -> Tensor:
    """The ground truth as integers that can be compared with ``labels``."""
    return torch.from_numpy(truth).to(labels.device, non_blocking=True).int()


def _histogram(places: Tensor, length: int) -> Tensor:
    """(length,) how often each number from 0 on occurs, without waiting for the device."""
    places = places.flatten()
    if places.is_cpu:
        return torch.bincount(places, minlength=length)
    counts = places.new_zeros(length, dtype=torch.long)  # bincount waits to know this length
    return counts.scatter_add_(0, places.long(), counts.new_ones(()).expand(len(places)))


def mean_qualities(confusion: np.ndarray) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Means by name (none if no pixel is labelled), and IoU and accuracy by class, in percent."""
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


def _add_boundary_iou(
    means: dict[str, float],
    by_class: dict[str, np.ndarray],
    confusion: np.ndarray,
    boundaries: np.ndarray,
) -> None:
    """Add boundary IoU in percent; ``boundaries`` (3, C) are the boundary pixels by class."""
    truth, predicted, right = boundaries.astype(np.float64)
    iou, accuracy = by_class["IoU"], by_class.pop("ACC")
    present = np.isfinite(iou)  # a class with pixels has pixels near a contour
    boundary = np.full_like(iou, np.nan)
    boundary[present] = 100 * right[present] / (truth + predicted - right)[present]
    by_class.update({"BoundaryIoU": boundary, "min(IoU, B-Iou)": np.minimum(iou, boundary)})
    counted = (confusion.sum(axis=0) + confusion.sum(axis=1) > 0).sum()  # as of mIoU
    for key in ("BoundaryIoU", "min(IoU, B-Iou)"):
        means[f"m{key}"] = float(by_class[key][present].sum() / counted)
    by_class["ACC"] = accuracy
