"""COCO AP of boxes and masks, also of the things of a panoptic dataset."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import _evaluate_predictions_on_coco
from detectron2.utils import comm
from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO

from ..data.faults import shorten
from ..data.files import warn_unless_written
from ..data.truth.annotations import checked_rle, segmentation_fault
from ..data.truth.masks import clip_polygon


def evaluate_coco(
    ground_truth: COCO,
    results: list[dict],
    task: str,
    *,
    img_ids: list[int] | None = None,
    log: Callable[[str], Any] | None = None,
) -> COCOeval_faster:
    """COCO's evaluation of boxes or masks: 100 detections per image and class, IoU 0.5 to 0.95.

    It takes about a second for 20 000 detections, a third to a fifth of the time of pycocotools.

    Args:
        ground_truth: annotations, as pycocotools reads them.
        results: at least one detection, in COCO's format of results; not changed.
        task: "bbox" or "segm".
        img_ids: the images to measure; None for all images of the ground truth.
        log: called with each line of the summary, which has COCO's twelve values, and AR at IoU 0.5
            and 0.75. None logs nothing.

    Returns:
        The same as from pycocotools: the twelve ``stats``, and ``eval["precision"]`` of shape (IoU
        thresholds, recalls, categories, ranges of area, limits of detections), -1 for categories
        without an instance.
    """
    # Copies, because loadRes adds keys. Masks go without boxes, because the area of a box would
    # decide whether a detection is small, medium or large.
    unused = "bbox" if task == "segm" else "segmentation"
    results = [{key: result[key] for key in result if key != unused} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = ground_truth.loadRes(results)
    evaluation = COCOeval_faster(ground_truth, loaded, task)
    if img_ids is not None:
        evaluation.params.imgIds = img_ids
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.print_function = log or (lambda _line: None)
    evaluation.summarize()
    return evaluation


class FastCOCOEvaluator(COCOEvaluator):
    """Detectron2's evaluator of instances, computed by the package faster-coco-eval.

    Tables, results and files are Detectron2's. Detectron2 has a fast implementation in its compiled
    extension, and is as slow as pycocotools without it. This class uses faster-coco-eval in any
    case, so that figures do not depend on the machine. They are those of pycocotools up to
    rounding. Detectron2 itself measures keypoints, which no model of this project has.

    Masks are measured if every instance has one; otherwise a warning names the first without. The
    mask of a crowd without one is its box. Annotations of the ground truth must not have the id 0,
    which means "none" in COCO's evaluation (in pycocotools, too).
    """

    def __init__(self, dataset_name: str, *, output_dir: str | None = None) -> None:
        """
        Args:
            dataset_name: a registered dataset. Its metadata have ``json_file``, the file of
                annotations in COCO's format; if not, the records are converted to such a file in
                ``output_dir``.
            output_dir: the folder for ``coco_instances_results.json`` and
                ``instances_predictions.pth``; None writes nothing.

        Raises:
            ValueError: an annotation has no area or no box, or they are not numbers; or another
                value in the file is one that COCO's evaluation cannot read.
        """
        # Newer versions would warn that their fast implementation is missing.
        super().__init__(dataset_name, output_dir=output_dir, use_fast_impl=False)
        self._dataset_name = dataset_name
        file = self._metadata.json_file
        for kind in ("imgs", "cats", "anns"):
            for id in getattr(self._coco_api, kind):
                if not (isinstance(id, int) and 0 <= id < 2**63):
                    raise ValueError(
                        f"{file} has the id {shorten(id)}; COCO's evaluation needs integers of at "
                        "least 0"
                    )
        for id, annotation in self._coco_api.anns.items():
            # Without an area, the package would count an instance as small.
            area, box = annotation.get("area"), annotation.get("bbox")
            faults = [
                f"no {key}" if value is None else f"the {key} {shorten(value)}"
                for key, value, fine in (
                    ("area", area, _are_numbers([area], 1)),
                    ("bbox", box, _are_numbers(box, 4)),
                )
                if not fine
            ]
            if faults:
                raise ValueError(
                    f"annotation {id} in {file} has {' and '.join(faults)}: COCO's evaluation "
                    "needs both, a number and four numbers"
                )
            for key in ("iscrowd", "ignore"):
                if annotation.get(key, 0) not in (0, 1):
                    raise ValueError(
                        f"annotation {id} in {file} has the {key} {shorten(annotation[key])}; it "
                        "must be 0 or 1"
                    )
            if annotation.get("iscrowd", 0) and not annotation.get("segmentation"):
                x, y, w, h = box
                annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            if annotation.get("segmentation"):
                annotation["segmentation"] = self._drawable(annotation)
        if 0 in self._coco_api.anns:
            self._logger.warning(
                f"An annotation in {self._metadata.json_file} has the id 0. In COCO's evaluation, "
                "nothing matches it; number annotations from 1 on"
            )

    def _drawable(self, annotation: dict) -> dict | list:
        """The segmentation without what would end the process when COCO's evaluation draws it."""
        file, segmentation = self._metadata.json_file, annotation["segmentation"]
        image = self._coco_api.imgs.get(annotation["image_id"], {})
        size = image.get("height"), image.get("width")
        name = f"annotation {annotation['id']} in {file}"
        if size == (None, None):  # an error before anything is drawn
            return segmentation
        if not (_are_numbers([*size], 2) and all(1 <= side <= 1_000_000 for side in size)):
            raise ValueError(f"the image of {name} has the height and width {size}")
        fault = segmentation_fault(segmentation, size)
        if fault:
            raise ValueError(f"{name} {fault}")
        if isinstance(segmentation, dict):
            checked_rle(segmentation, size, name)
            counts = segmentation["counts"]
            # JSON may have 30.0 for 30.
            whole = list(map(int, counts)) if isinstance(counts, list) else counts
            return {**segmentation, "counts": whole}
        drawable = []
        for polygon in segmentation:
            # pycocotools takes two numbers at a time.
            corners = np.ravel(np.asarray(polygon, np.float64))
            corners = corners[: len(corners) // 2 * 2]
            clipped = clip_polygon(corners, size)
            unchanged = clipped is corners and np.ndim(polygon) == 1  # and not pairs
            drawable.append(polygon if unchanged else clipped.tolist() or [0.0] * 6)
        return drawable

    def evaluate(self, img_ids: list[int] | None = None) -> OrderedDict | dict:
        """Measure what :meth:`process` has seen, as Detectron2 does.

        Args:
            img_ids: the images to measure; None for all.

        Returns:
            {"bbox": {name: percent}, "segm": ...}; empty if the process is not the main one, or
            without an image.
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(predictions, dst=0)
            if not comm.is_main_process():
                return {}
            predictions = list(itertools.chain(*gathered))
        if not predictions:
            self._logger.warning(f"No image of {self._dataset_name} was processed")
            return {}
        if self._output_dir:
            path = os.path.join(self._output_dir, "instances_predictions.pth")
            with warn_unless_written(path) as draft:
                torch.save(predictions, draft)
        self._results: OrderedDict[str, Any] = OrderedDict()
        if "proposals" in predictions[0]:
            self._eval_box_proposals(predictions)
        if "instances" in predictions[0]:
            self._eval_predictions(predictions, img_ids)
        return copy.deepcopy(self._results)

    def _eval_predictions(self, predictions: list[dict], img_ids: list[int] | None = None) -> None:
        """Write the predictions to a file, and their AP by task to ``self._results``.

        ``predictions`` are in COCO's format of results, but with classes as ``category_id``.
        """
        results = self._with_category_ids(
            itertools.chain.from_iterable(prediction["instances"] for prediction in predictions)
        )
        self._check_images(predictions)
        if self._output_dir:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            self._logger.info(f"Saving results to {path}")
            with warn_unless_written(path) as draft, draft.open("w", encoding="utf-8") as file:
                json.dump(results, file)
        if not self._do_evaluation:
            self._logger.info("Annotations are not available for evaluation.")
            return
        names = self._class_names()
        # Without a prediction, the only task is "bbox", and its values are NaN.
        for task in self._tasks_from_predictions(results):
            if task == "segm" and not self._has_masks():
                continue
            measured = self._measure(task, results, img_ids) if results else None
            self._results[task] = self._derive_coco_results(measured, task, class_names=names)

    def _measure(self, task: str, results: list[dict], img_ids: list[int] | None) -> Any:
        """COCO's evaluation of one task, with its summary."""
        if task == "keypoints":
            return _evaluate_predictions_on_coco(
                self._coco_api, results, task, kpt_oks_sigmas=self._kpt_oks_sigmas, img_ids=img_ids
            )
        return evaluate_coco(self._coco_api, results, task, img_ids=img_ids, log=self._logger.info)

    def _has_masks(self) -> bool:
        """Whether all annotations have masks; logs a warning if not."""
        annotations = self._coco_api.anns.items()
        missing = [id for id, annotation in annotations if not annotation.get("segmentation")]
        if missing:
            self._logger.warning(
                f"AP of masks is not measured: {len(missing)} annotation(s) in "
                f"{self._metadata.json_file} have no segmentation, the first one has the id "
                f"{missing[0]}"
            )
        return not missing

    def _with_category_ids(self, results: Iterable[dict]) -> list[dict]:
        """Copies of the results, with the category ids of the dataset instead of classes."""
        ids = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if ids is None:  # the classes are the ids
            return list(results)
        id_of = {number: id for id, number in ids.items()}
        converted = []
        for result in results:
            number = result["category_id"]
            if number not in id_of:
                raise ValueError(
                    f"the model predicted class {number}, but the {len(id_of)} classes of "
                    f"{self._dataset_name} are {min(id_of)} to {max(id_of)}: the model is one of "
                    "another dataset, or its number of classes (MODEL.ROI_HEADS.NUM_CLASSES, "
                    "MODEL.SEM_SEG_HEAD.NUM_CLASSES) is wrong"
                )
            converted.append({**result, "category_id": id_of[number]})
        return converted

    def _check_images(self, predictions: list[dict]) -> None:
        for prediction in predictions:
            if prediction["image_id"] not in self._coco_api.imgs:
                raise ValueError(
                    f"there is no image with the id {prediction['image_id']} in "
                    f"{self._metadata.json_file}: the loader and the evaluator must be of the "
                    "same dataset"
                )

    def _class_names(self) -> list[str] | None:
        """The names of the classes in the order of the category ids, as COCO's tables have them."""
        names = self._metadata.get("thing_classes")
        ids = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if names is None or ids is None:
            return names
        annotated = set(self._coco_api.getCatIds())
        if annotated != ids.keys():
            raise ValueError(
                f"the category id(s) {sorted(annotated ^ ids.keys())} must be both in "
                f"{self._metadata.json_file} and in the metadata of {self._dataset_name} "
                "(thing_dataset_id_to_contiguous_id), but are only in one of them"
            )
        numbers = [ids[id] for id in sorted(ids)]
        # The names of the things alone, or of all classes.
        named = sorted(numbers) if len(names) == len(numbers) else range(len(names))
        name_of = dict(zip(named, names))
        return [name_of[number] for number in numbers]


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


def _are_numbers(values: Any, count: int) -> bool:
    """Whether ``values`` is a list of ``count`` finite numbers."""
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)
    )
