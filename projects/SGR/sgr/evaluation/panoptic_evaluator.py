"""Evaluates panoptic quality on a dataset."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tabulate import tabulate

from ..data.loading import load_dataset
from ..data.truth.records import find_image
from ..data.truth.segments import find_segments, read_segment_map, segment_faults
from .json_file import write_json
from .panoptic_quality import PanopticCounts, match_segments

_NAMES = ("PQ", "SQ", "RQ")


class PanopticQualityEvaluator(DatasetEvaluator):
    """PQ, SQ and RQ in percent: means over all classes, things and stuff, and of each class.

    :func:`sgr.evaluation.panoptic_quality.match_segments` has the definition. The means leave out
    classes that are neither in the ground truth nor in a prediction.

    The ground truth are the records of the dataset, with ``pan_seg_file_name`` and
    ``segments_info`` in Detectron2's standard form. Their categories count over ``stuff_classes``,
    which include the things; the values of ``thing_dataset_id_to_contiguous_id`` are the things.
    The evaluator only keeps the counts of an image.
    """

    def __init__(
        self, dataset_name: str, *, distributed: bool = True, output_dir: str | None = None
    ) -> None:
        """
        Args:
            dataset_name: a registered dataset.
            distributed: add up the counts of all processes; False evaluates this process alone.
            output_dir: the folder for ``panoptic.json`` with the results; None writes nothing.

        Raises:
            ValueError: the records or the metadata are not those of a panoptic dataset, or a
                segment has no id or category, or a category that does not exist.
        """
        self._logger = logging.getLogger(__name__)
        self._dataset_name = dataset_name
        self._distributed = distributed
        self._output_dir = output_dir

        metadata = MetadataCatalog.get(dataset_name)
        for key in ("stuff_classes", "thing_dataset_id_to_contiguous_id"):
            if metadata.get(key) is None:
                raise ValueError(f"panoptic quality needs {key} in the metadata of {dataset_name}")
        self._class_names = list(metadata.stuff_classes)
        things = sorted(set(metadata.thing_dataset_id_to_contiguous_id.values()))
        self._is_thing = np.isin(np.arange(len(self._class_names)), things)
        # The mapper of the test loader drops the ground truth from what the model gets.
        self._records = {record["file_name"]: record for record in load_dataset(dataset_name)}
        for file_name, record in self._records.items():
            if not {"pan_seg_file_name", "segments_info"} <= record.keys():
                raise ValueError(
                    f"the record of {file_name} in {dataset_name} has no pan_seg_file_name and "
                    "segments_info: panoptic quality needs a panoptic dataset in its standard, not "
                    "its separated form"
                )
            for _, fault in segment_faults(record, len(self._class_names)):
                raise ValueError(fault)
        self.reset()

    def reset(self) -> None:
        self._counts = PanopticCounts.zeros(len(self._class_names))

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: one dict per image with "file_name".
            outputs: one dict per image with "panoptic_seg": an (H, W) integer tensor of segment
                ids at the size of the ground truth, with 0 or less for pixels without a segment,
                and a list of dicts with "id", 1 or more, and "category_id".

        Raises:
            FileNotFoundError, OSError: a picture of the ground truth is missing or damaged.
            ValueError: an output has no segments, missing or wrong ids or categories, or another
                size than the ground truth; or the ground truth has ids without a segment.
            KeyError: the dataset does not have an image.
        """
        for input_, output in zip(inputs, outputs):
            file_name = input_["file_name"]
            record = find_image(self._records, file_name, self._dataset_name)
            # Of equal ids the last one counts, as in COCO's script; the others have no pixels.
            by_id = {segment["id"]: segment for segment in record["segments_info"]}
            segments = list(by_id.values())
            truth = read_segment_map({**record, "segments_info": segments})
            predicted, predicted_classes = self._prediction(file_name, output)
            if predicted.shape != truth.shape:
                raise ValueError(
                    f"panoptic_seg of {file_name} is {predicted.shape}, but its ground truth "
                    f"{record['pan_seg_file_name']} is {truth.shape} (height, width)"
                )
            counts = match_segments(
                predicted,
                predicted_classes,
                truth,
                np.array([segment["category_id"] for segment in segments], np.int64),
                truth_is_crowd=np.array([segment.get("iscrowd", 0) for segment in segments], bool),
                num_classes=len(self._class_names),
            )
            self._counts = self._counts.plus(counts)

    def evaluate(self) -> OrderedDict | None:
        """
        Returns:
            ``{"panoptic_seg": {name: percent}}`` with PQ, SQ, RQ over all classes, PQ_th, SQ_th,
            RQ_th over things, PQ_st, SQ_st, RQ_st over stuff, and "PQ-" and the name of a class.
            Values that were not measured are absent. None if the process is not the main one.
        """
        counts = self._counts
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(counts)
            if not comm.is_main_process():
                return None
            counts = PanopticCounts(*(np.sum(part, axis=0) for part in zip(*gathered)))

        measured, qualities = counts.measured, 100 * counts.qualities()
        groups = {"": measured, "_th": measured & self._is_thing, "_st": measured & ~self._is_thing}
        means: OrderedDict[str, float] = OrderedDict()
        rows = []
        for (suffix, chosen), title in zip(groups.items(), ("all", "things", "stuff")):
            if chosen.any():
                values = qualities[chosen].mean(axis=0).tolist()
                means.update((name + suffix, value) for name, value in zip(_NAMES, values))
                rows.append([title, *values, int(chosen.sum())])
        classes = self._table_of_classes(counts, qualities)
        self._log(rows, classes)
        if self._output_dir:
            path = os.path.join(self._output_dir, "panoptic.json")
            write_json(path, {**means, "classes": classes}, needed=False)
        means.update((f"PQ-{name}", row["PQ"]) for name, row in classes.items())
        return OrderedDict(panoptic_seg=means)

    def _prediction(self, file_name: str, output: dict) -> tuple[np.ndarray, np.ndarray]:
        """(H, W) places in the list of segments, -1 for none, and the classes of the segments."""
        if "panoptic_seg" not in output:
            raise ValueError(
                f'the model\'s output for {file_name} has no "panoptic_seg"; mask classifiers have '
                "one if MODEL.MASK_FORMER.TEST.PANOPTIC_ON is True"
            )
        id_map, segments = output["panoptic_seg"]
        what = f"panoptic_seg of {file_name}"
        needed = "panoptic quality needs a dict with id and category_id for each segment"
        if segments is None:  # In Detectron2, the evaluator must then know the meaning of ids.
            raise ValueError(
                f"{what} has no list of its segments (Panoptic-DeepLab gives none): {needed}"
            )
        for key in ("id", "category_id"):
            if not all(key in segment for segment in segments):
                raise ValueError(f"{what} has a segment without {key}: {needed}")
        classes = self._categories(segments, what)
        ids = [segment["id"] for segment in segments]
        if min(ids, default=1) <= 0:
            raise ValueError(
                f"{what} has a segment of id {min(ids)}; ids must be 1 or more, because 0 and less "
                "mean no segment"
            )
        id_map = id_map.cpu().numpy()
        predicted = find_segments(id_map, ids)
        unknown = np.unique(id_map[(predicted < 0) & (id_map > 0)])
        if len(unknown):
            raise ValueError(f"{what} holds the ids {unknown[:10].tolist()} without a segment")
        return predicted, classes

    def _categories(self, segments: list[dict], what: str) -> np.ndarray:
        categories = np.array([segment["category_id"] for segment in segments], np.int64)
        wrong = categories[(categories < 0) | (categories >= len(self._class_names))]
        if len(wrong):
            raise ValueError(
                f"{what} has a segment of category_id {wrong[0]}; expected are 0 to "
                f"{len(self._class_names) - 1}"
            )
        return categories

    def _table_of_classes(
        self, counts: PanopticCounts, qualities: np.ndarray
    ) -> dict[str, dict[str, float | int | bool]]:
        """The qualities and counts of each measured class, by its name."""
        return {
            self._class_names[index]: {
                **dict(zip(_NAMES, qualities[index].tolist())),
                "TP": int(counts.true_positives[index]),
                "FP": int(counts.false_positives[index]),
                "FN": int(counts.false_negatives[index]),
                "isthing": bool(self._is_thing[index]),
            }
            for index in np.flatnonzero(counts.measured)
        }

    def _log(self, rows: list[list], classes: dict[str, dict]) -> None:
        if not rows:
            self._logger.warning(
                f"No image of {self._dataset_name} has a segment, true or predicted"
            )
            return
        options = {"floatfmt": ".3f", "tablefmt": "pipe"}
        table = tabulate(rows, headers=["", *_NAMES, "classes"], **options)
        per_class = tabulate(
            [[name, *list(row.values())[:-1]] for name, row in classes.items()],
            headers=["class", *_NAMES, "TP", "FP", "FN"],
            disable_numparse=[0],  # a name may look like a number
            **options,
        )
        self._logger.info(f"Panoptic quality on {self._dataset_name}:\n{table}\n\n{per_class}")
