"""Precomputed proposals of boxes (MODEL.LOAD_PROPOSALS), read without running code of the file.

Detectron2 unpickles these files, which can run any code of their author. They hold nothing but
arrays, so this reader makes arrays and refuses everything else.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import BoxMode

# All that a pickled dict of arrays needs. BoxMode is read as its number. An array's own functions
# have other modules in NumPy 1 and 2.
_KNOWN = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("detectron2.structures.boxes", "BoxMode"): int,
}
_ARRAY_MODULES = re.compile(r"numpy\._?core\.(multiarray|numeric)")
_OLD_KEYS = {"indexes": "ids", "scores": "objectness_logits"}  # of Detectron 1
# NumPy makes no array of objects from bytes.
_ARRAY_FUNCTIONS = {
    "_reconstruct": np.empty(0).__reduce__()[0],
    "scalar": lambda dtype, value: np.frombuffer(value, dtype)[0],
    "_frombuffer": lambda value, dtype, shape, order: np.frombuffer(value, dtype).reshape(
        shape, order=order
    ),
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if (module, name) == ("_codecs", "encode"):  # the bytes of an array, in old protocols
            return lambda text, _latin1: text.encode("latin1")
        if _ARRAY_MODULES.fullmatch(module) and name in _ARRAY_FUNCTIONS:
            return _ARRAY_FUNCTIONS[name]
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


def proposal_files(cfg: CfgNode, split: str) -> Iterator[tuple[str, str]]:
    """The datasets of DATASETS.TRAIN or TEST, each with its file of proposals.

    Args:
        split: "TRAIN" or "TEST".

    Raises:
        ValueError: there are not as many files as datasets.
    """
    names, key = cfg.DATASETS[split], f"PROPOSAL_FILES_{split}"
    files = cfg.DATASETS[key]
    if len(names) != len(files):
        raise ValueError(
            f"MODEL.LOAD_PROPOSALS is True, and DATASETS.{key} names {len(files)} file(s) for "
            f"{len(names)} dataset(s) in DATASETS.{split}: name one for each"
        )
    return zip(names, files)


def read_proposals(file: str) -> dict[str, Any]:
    """Read a file of proposals as those of Detectron2's model zoo.

    Returns:
        ``ids``; ``boxes``, an (N, 4) array for each id; ``objectness_logits``, an (N,) array for
        each id; and ``bbox_mode``, which is XYXY_ABS if the file does not say.

    Raises:
        FileNotFoundError: there is no such file on this machine. Addresses are not fetched.
        ValueError: it is no such file, or holds anything but arrays.
    """
    if not os.path.isfile(file):
        raise FileNotFoundError(
            f"there is no file of proposals {file!r} (DATASETS.PROPOSAL_FILES_TRAIN or _TEST); "
            "addresses are not fetched: download the file and name it"
        )
    try:
        with open(file, "rb") as stream:
            content = _ArrayUnpickler(stream, encoding="latin1").load()
        content = {_OLD_KEYS.get(key, key): value for key, value in content.items()}
        content["bbox_mode"] = BoxMode(content.get("bbox_mode", BoxMode.XYXY_ABS))
        ids, boxes, scores = (content[key] for key in ("ids", "boxes", "objectness_logits"))
        for box, score in zip(boxes, scores, strict=True):
            if box.shape != (len(score), 4) or score.ndim != 1:
                raise ValueError(f"boxes of shape {box.shape} have scores of shape {score.shape}")
        if len(ids) != len(boxes):
            raise ValueError(f"{len(boxes)} arrays of boxes belong to {len(ids)} ids")
    except OSError:
        raise
    except Exception as error:  # the content may have any form
        raise ValueError(
            f"{file!r} is no file of proposals (a pickled dict of ids, boxes, objectness_logits "
            f"and bbox_mode, with nothing but arrays): {type(error).__name__}: {error}"
        ) from error
    return content


def add_proposals(records: Sequence[dict], file: str) -> list[dict]:
    """Copies of the records with the proposals of a file, the best ones first.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_proposals`; or an image has no proposals.
    """
    content = read_proposals(file)
    place_of = {str(id): place for place, id in enumerate(content["ids"])}
    with_proposals = []
    for record in records:
        place = place_of.get(str(record.get("image_id")))
        if place is None:
            raise ValueError(
                f"{file!r} has no proposals for the image_id {record.get('image_id')!r} "
                f"({record.get('file_name')})"
            )
        scores = content["objectness_logits"][place]
        order = scores.argsort()[::-1]
        with_proposals.append(
            {
                **record,
                "proposal_boxes": content["boxes"][place][order],
                "proposal_objectness_logits": scores[order],
                "proposal_bbox_mode": content["bbox_mode"],
            }
        )
    return with_proposals
