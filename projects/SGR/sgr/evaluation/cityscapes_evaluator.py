"""Evaluates semantic segmentation on Cityscapes, with the measures of its benchmark."""

from __future__ import annotations

import os

import numpy as np
import torch
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from PIL import Image
from torch import Tensor

from ..data.class_tree import ClassTree
from ..data.datasets.cityscapes import CITYSCAPES_TREE
from ..data.files import warn_unless_written
from ..data.truth.image_files import read_labels
from ..data.truth.records import apply_test_transform
from .sem_seg_evaluator import MeanIoUEvaluator

_CLASSES = sorted(CITYSCAPES_CATEGORIES, key=lambda category: category["trainId"])
_NAMES = [category["name"] for category in _CLASSES]
_LABEL_IDS = np.array([category["id"] for category in _CLASSES], np.uint8)

_CATEGORY_OF = ClassTree.parse(CITYSCAPES_TREE, _NAMES).groups[1]
# Mean size of the instances of a class, in pixels, from the benchmark.
_INSTANCE_SIZES = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}
_INSTANCE_SIZE_OF = np.array([_INSTANCE_SIZES.get(name, np.nan) for name in _NAMES])
_HAS_INSTANCES = ~np.isnan(_INSTANCE_SIZE_OF)

_LABEL_FILE, _INSTANCE_FILE = "_labelTrainIds.png", "_instanceIds.png"
_IMAGE_FILE = "_leftImg8bit"


class CityscapesMeanIoUEvaluator(MeanIoUEvaluator):
    """mIoU, and IoU and iIoU of classes and categories (``_sup``), as the benchmark defines them.

    "sem_seg" of :class:`MeanIoUEvaluator` has in addition IoU (equal to mIoU), iIoU, IoU_sup and
    iIoU_sup in percent. iIoU and iIoU_sup are absent if files of instances are missing.

    iIoU weights the pixels of an instance by the mean size of its class divided by the size of the
    instance, so small instances count as much as large ones. It needs the official
    ``*_instanceIds.png`` beside the label maps. The values are those of the official
    ``cityscapesscripts``. These are not needed: release 2.3.0 fails with NumPy 2.4.

    Predictions are written as PNG files of official labels, under names that the official scripts
    and the server of the benchmark accept. For the test split, whose labels are not public, there
    are no other results. Images that the model saw in part only (TEST.CENTER_CROP_SIZE) are not
    written. A predicted label that is no class is an error, on ignored pixels too.

    Cost, per image of 1024 x 2048 pixels, in addition to mIoU: one transfer of the labels to the
    CPU, and on one core about 80 ms for writing them and for reading and counting instances.
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
            dataset_name: a registered dataset with the 19 classes in ``stuff_classes``.
            distributed: add up the counts of all processes; False evaluates this process alone.
            output_dir: see :class:`MeanIoUEvaluator`. The predictions are written to its folder
                ``cityscapes_predictions``, which all processes must share.
            boundary_ratio: see :class:`MeanIoUEvaluator`.

        Raises:
            ValueError: see :class:`MeanIoUEvaluator`; or the classes are not these 19.
        """
        super().__init__(
            dataset_name,
            distributed=distributed,
            output_dir=output_dir,
            boundary_ratio=boundary_ratio,
        )
        if self._class_names != _NAMES:
            raise ValueError(
                f"the stuff_classes of {dataset_name} are not the 19 of Cityscapes in their order; "
                'with other classes, set its evaluator_type to "sem_seg"'
            )
        self._folder = os.path.join(output_dir, "cityscapes_predictions") if output_dir else ""

    def reset(self) -> None:
        super().reset()
        # Weighted pixels of instances by class: all pixels, those with the right predicted class,
        # and those with the right category.
        self._instances = np.zeros((3, len(_NAMES)))
        self._without_instances = 0

    def _truth_of(self, record: dict) -> dict:
        truth = super()._truth_of(record)
        label_file = truth.get("sem_seg_file_name", "")
        if label_file.endswith(_LABEL_FILE):
            truth["instance_file_name"] = label_file[: -len(_LABEL_FILE)] + _INSTANCE_FILE
        return truth

    def _process_image(self, input_: dict, output: dict, truth: np.ndarray, labels: Tensor) -> None:
        predicted = labels.to(torch.int16).cpu().numpy()
        if not ((predicted >= 0) & (predicted < len(_NAMES))).all():
            raise ValueError(
                f"sem_seg of {input_['file_name']} has labels that are no class; classes are 0 to "
                f"{len(_NAMES) - 1}"
            )
        super()._process_image(input_, output, truth, labels)
        if self._folder and "ground_truth_transform" not in input_:
            file = os.path.join(self._folder, _prediction_name(input_["file_name"]))
            with warn_unless_written(file) as draft:
                Image.fromarray(_LABEL_IDS[predicted]).save(draft, "PNG")
        if (truth < 0).all():
            return
        instance_file = self._truths[input_["file_name"]].get("instance_file_name", "")
        if os.path.isfile(instance_file):
            instances = apply_test_transform(input_, read_labels(instance_file))
            if instances.shape != predicted.shape:
                raise ValueError(
                    f"{instance_file} is {instances.shape}, but the label map beside it is "
                    f"{predicted.shape} (height, width)"
                )
            self._instances += _weighted_pixels(instances, predicted)
        else:
            self._without_instances += 1

    def _local_counts(self) -> tuple[np.ndarray, ...]:
        without = np.array(self._without_instances)
        return (*super()._local_counts(), self._instances, without)

    def _more_means(
        self, confusion: np.ndarray, instances: np.ndarray, without: np.ndarray
    ) -> dict[str, float]:
        num_categories = len(CITYSCAPES_TREE)
        to_category = np.eye(num_categories, dtype=np.int64)[_CATEGORY_OF]
        of_categories = to_category.T @ confusion @ to_category
        means = {"IoU": _mean_iou(confusion), "IoU_sup": _mean_iou(of_categories)}
        if without:
            self._logger.warning(
                f"iIoU is not measured: {without} images of {self._dataset_name} have no "
                f"*{_INSTANCE_FILE} beside their *{_LABEL_FILE}"
            )
        else:
            everything, of_class, of_category = instances
            by_category = np.stack([everything, of_category]) @ to_category
            countable = np.unique(_CATEGORY_OF[_HAS_INSTANCES])  # humans and vehicles
            means["iIoU"] = _mean_instance_iou(confusion, everything, of_class, _HAS_INSTANCES)
            means["iIoU_sup"] = _mean_instance_iou(
                of_categories, by_category[0], by_category[1], countable
            )
        order = ("IoU", "iIoU", "IoU_sup", "iIoU_sup")
        return {key: 100 * means[key] for key in order if np.isfinite(means.get(key, np.nan))}

    def _write(self, *results) -> list[str]:
        names = super()._write(*results)
        if os.path.isdir(self._folder):
            names.append(os.path.join(os.path.basename(self._folder), "*.png"))
        return names

    def _log(self, means: dict, by_class: dict[str, np.ndarray], confusion: np.ndarray) -> None:
        super()._log(means, by_class, confusion)
        if means or not self._folder or not os.path.isdir(self._folder):
            return
        mine = {_prediction_name(file_name) for file_name in self._truths}
        there = {name for name in os.listdir(self._folder) if not name.startswith(".")}
        more = len(there - mine)
        leave_out = f" (and not the {more} others there)" if more else ""
        self._logger.warning(
            f"The server of the benchmark measures it: upload a zip of the {len(there & mine)} "
            f"predictions of {self._dataset_name} in {self._folder}{leave_out} at "
            "https://www.cityscapes-dataset.com/submit"
        )


def _prediction_name(file_name: str) -> str:
    """CITY_NUMBER_FRAME_pred.png; the benchmark asks for the first three parts."""
    stem = os.path.splitext(os.path.basename(file_name))[0]
    return f"{stem[: -len(_IMAGE_FILE)] if stem.endswith(_IMAGE_FILE) else stem}_pred.png"


def _weighted_pixels(instances: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """(3, classes) sums of the weights of pixels in instances, by true class.

    They are of all pixels, of those with the right class, and of those with the right category. In
    ``instances``, a value is 1000 times an official label, plus a number.
    """
    class_of_label = np.full(256, -1)
    class_of_label[_LABEL_IDS] = np.arange(len(_NAMES))
    labelled = np.flatnonzero(instances.ravel() > 1000)
    ids, predicted = instances.ravel()[labelled].astype(np.int64), predicted.ravel()[labelled]
    truth = class_of_label[np.minimum(ids // 1000, 255)]
    kept = truth >= 0  # caravans and trailers are not evaluated
    ids, predicted, truth = ids[kept], predicted[kept], truth[kept]
    sizes = np.bincount(ids)
    weights = _INSTANCE_SIZE_OF[truth] / sizes[ids]
    chosen = [
        np.ones(len(ids), bool),
        predicted == truth,
        _CATEGORY_OF[predicted] == _CATEGORY_OF[truth],
    ]
    return np.stack(
        [np.bincount(truth[pixels], weights[pixels], minlength=len(_NAMES)) for pixels in chosen]
    )


def _mean_iou(confusion: np.ndarray) -> float:
    """Mean IoU over the classes that occur in the ground truth or in a prediction."""
    right = np.diagonal(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - right
    return float((right[union > 0] / union[union > 0]).mean())


def _mean_instance_iou(
    confusion: np.ndarray, everything: np.ndarray, right: np.ndarray, chosen: np.ndarray
) -> float:
    """Mean iIoU: the pixels of instances are weighted, but false positives are not."""
    wrong = confusion.sum(axis=0) - np.diagonal(confusion)
    right, union = right[chosen], (everything + wrong)[chosen]
    return float((right[union > 0] / union[union > 0]).mean()) if union.any() else float("nan")
