"""Finding a feature map in what a module puts out, and putting another one in its place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any

from torch import Tensor


def replace_feature(output: Any, keys: Sequence[str], function: Callable[[Tensor], Tensor]) -> Any:
    """Replace one feature map in the output of a module.

    Args:
        output: a tensor; a list, a tuple, a dict or an object, in each other to any depth.
        keys: the way to the feature: index, key or attribute, one per level. Where it ends before a
            tensor, it goes on with ``feature_maps`` of an object, and with the last item of a list,
            a tuple or a dict.
        function: gets the feature, and returns the one for its place.

    Returns:
        The same form of output. What lies on the way is copied, not the other features.

    Raises:
        ValueError: if there is no tensor at the end of the way.
    """
    if isinstance(output, Tensor) and not keys:
        return function(output)
    key, *rest = keys or (_default_key(output),)
    if isinstance(output, Mapping):
        name = _find(key, {str(name): name for name in output}, output)
        return _with(output, name, replace_feature(output[name], rest, function))
    if isinstance(output, (list, tuple)):
        count = len(output)
        index = _find(key, {str(i): i % count for i in range(-count, count)}, output)
        items = list(output)
        items[index] = replace_feature(items[index], rest, function)
        if isinstance(output, list):
            return items
        return type(output)(*items) if hasattr(output, "_fields") else tuple(items)
    if not hasattr(output, key):
        raise ValueError(f"a {type(output).__name__} has no {key!r}")
    value = replace_feature(getattr(output, key), rest, function)
    return _with(output, key, value)


def _default_key(output: Any) -> str:
    if isinstance(output, Mapping) and output:
        return "feature_maps" if "feature_maps" in output else str(list(output)[-1])
    if isinstance(output, (list, tuple)) and output:
        return "-1"
    if not isinstance(output, Tensor) and hasattr(output, "feature_maps"):
        return "feature_maps"
    raise ValueError(f"there is no feature map in a {type(output).__name__}")


def _with(output: Any, name: Any, value: Any) -> Any:
    """A copy of a dict, an object or both, with another value."""
    if is_dataclass(output):  # the outputs of transformers are, and dicts as well
        data_class: Any = output
        return replace(data_class, **{name: value})
    if isinstance(output, Mapping):
        items: Any = output.copy()  # type: ignore[attr-defined]
        items[name] = value
        return items
    output = copy.copy(output)
    setattr(output, name, value)
    return output


def _find(key: str, names: Mapping[str, Any], output: Any) -> Any:
    if key not in names:
        raise ValueError(
            f"a {type(output).__name__} has no {key!r}; it has: {', '.join(names) or 'nothing'}"
        )
    return names[key]
