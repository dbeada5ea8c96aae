"""What can be wrong with a dataset."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

__all__ = ["Fault", "FaultKind"]


class FaultKind(Enum):
    """Kinds of faults; the value is the heading that a list of them has."""

    CLASSES = "classes that do not fit"
    PAIRS = "files without a partner"
    RECORD = "records that lack something"
    IMAGE = "images that are missing or cannot be read"
    LABEL_MAP = "label maps that are missing or cannot be read"
    SIZE = "sizes that differ"
    LABELS = "labels that are no class"
    SEGMENTS = "segments that are wrong"
    ANNOTATIONS = "annotations that nothing can be learned from"


class Fault(NamedTuple):
    """Something that stops a training or spoils it.

    Attributes:
        kind: what it is about.
        message: a sentence that names the file.
    """

    kind: FaultKind
    message: str
