"""Faults of a dataset: their kinds, and messages that list many of them."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, NamedTuple


class FaultKind(Enum):
    """The kinds of faults; the value is the heading above a list of them."""

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
    # Only the scripts datasets/prepare_*.py have these:
    RELEASE = "differences from the release"
    UNREADABLE = "files that are missing or cannot be read"
    RESULT = "label maps or copies that are not as they should be"


class Fault(NamedTuple):
    """One thing that is wrong: a sentence, and its kind."""

    message: str
    kind: FaultKind


def list_faults(faults: Sequence[str], shown: int = 5) -> str:
    """The first faults, a line each, and how many more there are."""
    more = f"\nand {len(faults) - shown} more" if len(faults) > shown else ""
    return "\n".join(f"- {fault}" for fault in faults[:shown]) + more


def list_faults_by_kind(faults: Iterable[Fault], shown: int = 20, *, headings: bool = False) -> str:
    """The first faults of each kind, and how many more there are.

    The kinds come in the order of their first fault.

    Args:
        shown: faults of one kind that are listed.
        headings: write an empty line, the number and the kind above the faults of each kind.
    """
    kinds: dict[FaultKind, list[str]] = {}
    for fault in faults:
        kinds.setdefault(fault.kind, []).append(fault.message)
    return "\n".join(
        (f"\n{len(messages)} x {kind.value}:\n" if headings else "") + list_faults(messages, shown)
        for kind, messages in kinds.items()
    )


_shortener = reprlib.Repr()
_shortener.maxlevel = 3
_shortener.maxstring = _shortener.maxother = _shortener.maxlong = 200


def shorten(value: Any) -> str:
    """A value of a file as Python writes it; "..." stands for most of a long or deep one.

    The references of a small YAML file can make a value whose whole text fills any memory.
    """
    try:
        return _shortener.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"an enormous {type(value).__name__}"


def list_values(values: Any, *, count: bool = False) -> str:
    """The first ten values, separated by commas; "..." stands for the others.

    Args:
        values: a sequence, or an array of one dimension.
        count: add the number of all values where some are left out.
    """
    text = ", ".join(map(str, values[:10]))
    if len(values) > 10:
        text += ", ..." + (f" ({len(values)})" if count else "")
    return text
