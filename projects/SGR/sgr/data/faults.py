"""Faults of a dataset, told together."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["list_faults"]

# Faults that a message names one by one.
_SHOWN = 5


def list_faults(faults: Sequence[str]) -> str:
    """The first faults, a line each, and how many more there are."""
    more = f"\nand {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    return "\n".join(f"- {fault}" for fault in faults[:_SHOWN]) + more
