"""Faults of a dataset, told together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = ["Fault", "list_faults", "list_faults_by_kind"]


class Fault(NamedTuple):
    """What is wrong.

    Attributes:
        message: a sentence.
        kind: the same for all those of which a list need not name each.
    """

    message: str
    kind: str = ""


def list_faults(faults: Sequence[str], shown: int = 5) -> str:
    """The first faults, a line each, and how many more there are."""
    more = f"\nand {len(faults) - shown} more" if len(faults) > shown else ""
    return "\n".join(f"- {fault}" for fault in faults[:shown]) + more


def list_faults_by_kind(faults: Iterable[Fault], shown: int = 20, *, headings: bool = False) -> str:
    """Of each kind, in the order of their first: the first faults, and how many more.

    With ``headings`` their number and the kind stand above, after an empty line.
    """
    kinds: dict[str, list[str]] = {}
    for fault in faults:
        kinds.setdefault(fault.kind, []).append(fault.message)
    return "\n".join(
        (f"\n{len(messages)} x {kind}:\n" if headings else "") + list_faults(messages, shown)
        for kind, messages in kinds.items()
    )
