"""What can be wrong with a dataset."""

from __future__ import annotations

from enum import Enum

__all__ = ["FaultKind"]


class FaultKind(str, Enum):
    """Kinds of :class:`sgr.data.faults.Fault`; the value is the heading that a list of them has."""

    CLASSES = "classes that do not fit"
    TRAINING = "what the training would refuse"
    PAIRS = "files that are missing, or without a partner"
    EMPTY = "nothing to learn from"
    RECORD = "records that lack something, or cannot be used"
    IMAGE = "images that are missing or cannot be read"
    LABEL_MAP = "label maps that are missing or cannot be read"
    SIZE = "sizes that differ"
    LABELS = "labels that are no class"
    SEGMENTS = "segments that are wrong"
    ANNOTATIONS = "annotations that nothing can be learned from"

    def __str__(self) -> str:
        return self.value
