"""Checks of the options of modules. Errors name the argument, and the config's key for it."""

from __future__ import annotations

import difflib
from typing import Any

from fvcore.common.registry import Registry


def find_registered(registry: Registry, name: str, key: str) -> Any:
    """What ``registry`` has under ``name``, the value of the config's ``key``.

    An unknown name raises a ValueError that lists the known ones, and says the closest.
    """
    if name not in registry:
        known = sorted(known for known, _ in registry)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"{key} is {name!r}; registered: {', '.join(known) or 'none'}{hint}")
    return registry.get(name)


def check_at_least_one(key: str, value: float) -> None:
    """Raise a ValueError if ``value`` is below 1; ``key`` is "argument (CONFIG.KEY)"."""
    if value < 1:
        raise ValueError(f"{key} must be at least 1, got {value}")


def check_drop_path_rate(rate: float, key: str) -> None:
    """Raise a ValueError unless ``rate``, the value of the config's ``key``, is in [0, 1)."""
    if not 0 <= rate < 1:
        raise ValueError(f"drop_path_rate ({key}) is {rate}; it must be in [0, 1)")


def check_num_classes(num_classes: int) -> None:
    """Raise a ValueError if a head has no class.

    A config may have 0 classes to take their number from the data.
    """
    if num_classes < 0:
        raise ValueError(
            f"num_classes (MODEL.SEM_SEG_HEAD.NUM_CLASSES) is {num_classes}; it must be at least "
            "1, or in a config 0, to take the number from the data"
        )
    if num_classes == 0:
        raise ValueError(
            "num_classes (MODEL.SEM_SEG_HEAD.NUM_CLASSES) is 0. In a config this takes the number "
            "from the data, but DATASETS.TRAIN and TEST name no dataset that has classes: name "
            "yours there (see docs/your_data.md), or set the number"
        )


def check_heads(
    num_heads: int, embed_dim: int, heads_key: str = "num_heads", dim_key: str = "embed_dim"
) -> None:
    """Raise a ValueError that names both keys unless ``num_heads`` divides ``embed_dim``."""
    if num_heads < 1 or embed_dim % num_heads:
        raise ValueError(
            f"{num_heads} heads ({heads_key}) do not divide {embed_dim} channels ({dim_key}) evenly"
        )
