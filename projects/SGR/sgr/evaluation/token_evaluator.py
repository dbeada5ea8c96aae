"""Evaluates the semantics and diversity of tokens on a dataset (Sec. 4 of the paper)."""

from __future__ import annotations

import logging
import math
import os
from collections import OrderedDict, defaultdict

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table
from torch import Tensor

from ..data.loading import load_dataset
from ..data.truth.records import (
    apply_test_transform,
    count_without_mask,
    file_size,
    find_image,
    has_classes,
    has_instances,
    read_class_map,
    read_instance_map,
)
from ..modeling.outputs import REGIONS, regions_of
from ..modeling.reasoning.concept_regions import ConceptRegions
from .json_file import write_json
from .token_metrics import cell_label_counts, measure_tokens, present_bins, share_on_labels

# Means over the dataset, in the order of the report; "active": over the active tokens of an image.
_METRICS = (
    *("S_C", "D_C", "S_I", "D_I", "S_C_active", "D_C_active", "S_I_active", "D_I_active"),
    "share_I",
)


class TokenSemanticsEvaluator(DatasetEvaluator):
    """S_C, D_C over classes and S_I, D_I over instances of things, for any model with tokens.

    :mod:`sgr.evaluation.token_metrics` defines the values of an image. The value of a dataset is
    the mean over the images that have it. An image without a labelled pixel has no S_C and D_C, an
    image without a thing has no S_I and D_I, and an image without an active token has no
    ``_active`` values. A token is active if its region passes ``active_threshold`` somewhere in the
    image. If the output also has ``query_regions``, the masks of the queries of a mask classifier,
    they are measured as a second set of tokens.

    The ground truth are the records of the dataset, at their own resolution. Classes come from
    ``sem_seg_file_name`` with ``ignore_label`` in the metadata, instances from ``annotations``, and
    either from ``pan_seg_file_name`` if there is no other.
    :func:`~sgr.data.truth.records.read_instance_map` leaves out crowds and instances without a
    mask; a warning has the number of the latter. The classes of the model do not matter, so a model
    of one dataset can be measured on the instances of another. The network must see the whole
    image, resized to any size, or the part that the mapper cuts out (TEST.CENTER_CROP_SIZE) of the
    ground truth, too.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        distributed: bool = True,
        output_dir: str | None = None,
        active_threshold: float = 0.5,
    ) -> None:
        """
        Args:
            dataset_name: a registered dataset.
            distributed: gather the results of all processes; False evaluates this process alone.
            output_dir: the folder for ``tokens.json`` with the results and, if queries are
                measured, ``queries.json``; None writes nothing.
            active_threshold: a probability in [0, 1).
        """
        self._logger = logging.getLogger(__name__)
        self._dataset_name = dataset_name
        self._distributed = distributed
        self._output_dir = output_dir
        self._active_threshold = active_threshold

        # The test mapper drops the ground truth from the input of the model.
        self._records = {record["file_name"]: record for record in load_dataset(dataset_name)}
        # After loading, because some datasets set their metadata then.
        metadata = MetadataCatalog.get(dataset_name)
        self._ignore_label = metadata.get("ignore_label")
        classes = metadata.get("stuff_classes")
        self._num_classes = None if classes is None else len(classes)
        self._thing_ids = set(metadata.get("thing_dataset_id_to_contiguous_id", {}).values())
        self.reset()

    def reset(self) -> None:
        # By block and name of the value.
        self._sums: dict[tuple[str, str], float] = defaultdict(float)
        self._counts: dict[tuple[str, str], int] = defaultdict(int)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: one dict per image with "file_name", the network's "image" (C, H, W) and, if
                this is not the whole image, "ground_truth_transform", see
                :func:`~sgr.data.truth.records.apply_test_transform`.
            outputs: one dict per image with "concept_regions", a ``ConceptRegions`` of batch size 1
                that covers the image without padding, and possibly "query_regions" of the same
                type.

        Raises:
            ValueError: an output has no regions, or they do not fit the image; the ground truth has
                a class that is neither one of the dataset nor ignored; or its size differs from the
                image's.
            FileNotFoundError, OSError: a file of the ground truth is missing or damaged.
            KeyError: the dataset does not have an image.
        """
        for input_, output in zip(inputs, outputs):
            measured = {
                block: regions_of(output, key)
                for block, key in REGIONS.items()
                if block == "tokens" or key in output
            }
            values = self._measure(input_, measured)
            # One transfer from the device per image.
            for name, value in zip(values, torch.stack(list(values.values())).tolist()):
                if not math.isnan(value):  # NaN: this image does not have the value
                    self._sums[name] += value
                    self._counts[name] += 1

    def evaluate(self) -> OrderedDict | None:
        """
        Returns:
            ``{"tokens": {name: value}}`` with S_C, D_C, S_I, D_I, the same over active tokens
            (S_C_active, ...), share_I (the mean share of a token's weight that lies on
            instances), active_tokens (the mean number per image), and images_C and images_I
            (the number of measured images). Values that no image has are absent. If outputs have
            ``query_regions``, ``"queries"`` has the same for them. None if the process is not the
            main one.
        """
        sums, counts = dict(self._sums), dict(self._counts)
        if self._distributed:
            comm.synchronize()
            gathered = comm.all_gather((sums, counts))
            if not comm.is_main_process():
                return None
            sums, counts = (_add_up(part) for part in zip(*gathered))

        blocks = OrderedDict((block, _means(block, sums, counts)) for block in REGIONS)
        results = OrderedDict((block, values) for block, values in blocks.items() if values)
        results.setdefault("tokens", OrderedDict())
        if "images_C" not in results["tokens"] and "images_I" not in results["tokens"]:
            self._logger.warning(
                f"Tokens are not measured, because no image of {self._dataset_name} has ground "
                "truth for it: sem_seg_file_name or pan_seg_file_name with labelled pixels, or "
                "annotations with masks."
            )
        without_mask = sum(map(count_without_mask, self._records.values()))
        if without_mask:
            self._logger.warning(
                f"{without_mask} annotated instance(s) of {self._dataset_name} have no mask, only "
                "a box: S_I and D_I leave them out."
            )
        for block, values in results.items():
            if values:
                share = ""
                if "share_I" in values:
                    share = ", and the share of their weight that lies on instances (share_I),"
                what = "queries, one for each mask," if block == "queries" else block
                self._logger.info(
                    "Semantics (S, lower is better) and diversity (D, higher is better), by class "
                    f"(C) and instance (I){share} of the {what} on {self._dataset_name}:\n"
                    f"{create_small_table(values)}"
                )
            if self._output_dir:
                path = os.path.join(self._output_dir, f"{block}.json")
                write_json(path, values, needed=False)
        return results

    def _measure(
        self, input_: dict, measured: dict[str, ConceptRegions]
    ) -> dict[tuple[str, str], Tensor]:
        """The values of one image by block and name, as scalars; NaN where it has none."""
        record = find_image(self._records, input_["file_name"], self._dataset_name)
        input_size = tuple(input_["image"].shape[-2:])
        values = {}
        probabilities, active = {}, {}
        for block, regions in measured.items():
            probabilities[block] = regions.probabilities[0]
            active[block] = probabilities[block].flatten(1).amax(dim=1) > self._active_threshold
            values[block, "active_tokens"] = active[block].sum().float()

        def add(kind: str, labels: np.ndarray) -> None:
            names = (f"S_{kind}", f"D_{kind}", f"S_{kind}_active", f"D_{kind}_active")
            # Counted where the labels are, so that a GPU neither gets them nor is waited for.
            bins, present = present_bins(torch.from_numpy(apply_test_transform(input_, labels)))
            for block, regions in measured.items():
                assert regions.stride is not None  # the model's recorder asks for it
                counts = cell_label_counts(
                    bins,
                    tuple(probabilities[block].shape[-2:]),
                    regions.stride,
                    input_size=input_size,
                    num_bins=len(present),
                )
                results = measure_tokens(probabilities[block], counts, active[block])
                values.update(((block, name), value) for name, value in zip(names, results))
                if kind == "I" and len(present):
                    shares = share_on_labels(
                        probabilities[block], bins, regions.stride, input_size=input_size
                    )
                    values[block, "share_I"] = shares.mean()

        if has_classes(record):
            labels = read_class_map(
                record, num_classes=self._num_classes, ignore_label=self._ignore_label
            )
            add("C", labels)
        if has_instances(record):
            instances = read_instance_map(record, file_size(record, input_), self._thing_ids)
            add("I", instances)
        return values


def _means(block: str, sums: dict, counts: dict) -> OrderedDict:
    """The values of one block over the dataset."""
    results = OrderedDict(
        (name, sums[block, name] / counts[block, name])
        for name in _METRICS
        if (block, name) in counts
    )
    for kind in ("C", "I"):
        if (block, f"S_{kind}") in counts:
            results[f"images_{kind}"] = counts[block, f"S_{kind}"]
    if (block, "active_tokens") in counts:
        results["active_tokens"] = sums[block, "active_tokens"] / counts[block, "active_tokens"]
    return results


def _add_up(parts: tuple[dict, ...]) -> dict:
    total: dict = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0) + value
    return total
