"""The classes and keys that the records of a dataset are checked against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode

from ..data.class_tree import ClassTree
from ..data.datasets.classes import number_names
from ..data.faults import Fault, FaultKind
from ..data.mappers.settings import check_ignored

# The kinds of ground truth, by their key in a record.
TRUTH_KEYS = {
    "pan_seg_file_name": "panoptic segments",
    "sem_seg_file_name": "label maps",
    "annotations": "instances",
}

_BACKGROUND = "background"


@dataclass(frozen=True)
class CheckOptions:
    """What a record is checked for.

    Attributes:
        truth: keys of the ground truth that every record must have, see ``TRUTH_KEYS``.
        class_names: the classes whose pixels and components are counted: those of panoptic
            segments, or else of label maps, or else things and background, as in
            :class:`~sgr.data.mappers.instance.InstanceConceptMapper`.
        thing_names: the categories of ``annotations``; ``class_names`` for panoptic data without
            annotations.
        ignore_label: the label of unlabelled pixels in label maps.
        thing_ids: the categories of things, for segments without ``isthing``.
        max_active: L, the largest number of components in an image that are matched to a concept.
        class_tree: what the metadata have under this name; None if there is nothing.
        sixteen_bit: see :func:`sgr.data.truth.image_files.read_image`.
        min_area_ratio, kernel_size: see :func:`sgr.data.components.connected_components`.
    """

    truth: tuple[str, ...]
    class_names: tuple[str, ...]
    thing_names: tuple[str, ...] = ()
    ignore_label: int = 255
    thing_ids: frozenset[int] = frozenset()
    max_active: int = 64
    min_area_ratio: float = 0.05
    kernel_size: int = 3
    sixteen_bit: str = "refuse"
    class_tree: Any = None


def options_for(
    records: Sequence[dict], metadata: Any, cfg: CfgNode, *, mapper: Any = None
) -> CheckOptions:
    """Make the options for a loaded dataset.

    Args:
        records: the records of the dataset. All need the ground truth that one of them has.
        metadata: Detectron2's metadata of the dataset.
        cfg: for L, the parameters of the components, and the ignore label if the metadata have
            none.
        mapper: the mapper of a training on the dataset, if there is one. Its number of classes
            counts if the metadata name no classes, as in the training.

    Raises:
        ValueError: there is no record, none has ground truth, or the classes are not known.
    """
    if not records:
        raise ValueError("it has no record")
    odd = [record for record in records if not isinstance(record, dict)]
    if odd:
        raise ValueError(f"its records must be dicts, not {odd[0]!r}")
    found = {key for record in records for key in TRUTH_KEYS if key in record}
    truth = tuple(key for key in TRUTH_KEYS if key in found)
    if not truth:
        raise ValueError(
            f"its records have no ground truth ({', '.join(TRUTH_KEYS)}), only {sorted(records[0])}"
        )
    class_names: Sequence[str] = ()
    thing_names: Sequence[str] = ()
    if truth != ("annotations",):
        class_names = _names(metadata, "stuff_classes", mapper)
    if "annotations" in truth:
        thing_names = _names(metadata, "thing_classes", mapper)
    if not class_names:
        class_names = [*thing_names, _BACKGROUND]
    if "pan_seg_file_name" in truth and "annotations" not in truth:
        thing_names = class_names
    things = (metadata.get("thing_dataset_id_to_contiguous_id") or {}).values()
    return CheckOptions(
        truth=truth,
        class_names=tuple(class_names),
        thing_names=tuple(thing_names),
        ignore_label=metadata.get("ignore_label", cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE),
        thing_ids=frozenset(things),
        max_active=cfg.MODEL.SGR.SUPERVISION.MAX_ACTIVE,
        min_area_ratio=cfg.INPUT.COMPONENTS.MIN_AREA_RATIO,
        kernel_size=cfg.INPUT.COMPONENTS.KERNEL_SIZE,
        sixteen_bit=cfg.INPUT.SIXTEEN_BIT,
        class_tree=metadata.get("class_tree"),
    )


def class_faults(options: CheckOptions) -> list[Fault]:
    """Faults if the ignore label of a dataset is one of its classes, or its tree has others."""
    faults = []
    if "sem_seg_file_name" in options.truth:
        try:
            name = {"ignore_label in the metadata": options.ignore_label}
            check_ignored(len(options.class_names), **name)
        except ValueError as error:
            faults.append(Fault(str(error), FaultKind.CLASSES))
    if options.class_tree is not None:
        try:
            ClassTree.parse(options.class_tree, options.class_names)
        except ValueError as error:
            message = f"class_tree in the metadata: {error}"
            faults.append(Fault(message, FaultKind.CLASSES))
    return faults


def _names(metadata: Any, key: str, mapper: Any) -> list[str]:
    names = metadata.get(key)
    if names:
        return list(names)
    is_of_mapper = (getattr(mapper, "truth_key", "") == "annotations") == (key == "thing_classes")
    count = getattr(mapper, "num_classes", 0) if is_of_mapper else 0
    if count < 1:
        raise ValueError(
            f"its metadata have no {key}: set them, or give the --config-file of a training on "
            "such classes, whose NUM_CLASSES then counts"
        )
    return number_names(count)
