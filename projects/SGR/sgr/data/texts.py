"""Text and YAML files that users write."""

from __future__ import annotations

import os
from pathlib import Path

import yaml


def read_text(path: str | os.PathLike) -> str:
    """The text of a file, without the byte order mark that some editors put at its start.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8") from error


def compose_yaml(path: str | os.PathLike) -> yaml.Node | None:
    """The nodes of a YAML file, of which no value is made yet; None if the file is empty.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is not UTF-8 or no valid YAML; or its values are nested more than 50 levels
            deep, or are more than a million with what its references repeat.
    """
    text = read_text(path)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        number = 0 if node is None else _num_values(node, {})
    except (yaml.YAMLError, RecursionError) as error:
        deep = "its values are nested too deeply"
        why = error if isinstance(error, yaml.YAMLError) else deep
        raise ValueError(f"the file is no valid YAML: {why}") from error
    if number > 1_000_000:
        raise ValueError("the file has references (*) that make millions of values; write them out")
    return node


def _num_values(node: yaml.Node, known: dict[int, int | None], depth: int = 0) -> int:
    """The number of nodes at and below a node; each reference counts as often as it is made."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = None  # until it is known
        below = node.value
        if isinstance(node, yaml.MappingNode):
            below = [one for pair in node.value for one in pair]
        if depth > 50:
            raise RecursionError
        known[id(node)] = 1 + sum(_num_values(one, known, depth + 1) for one in below)
    number = known[id(node)]
    if number is None:
        raise ValueError("the file has a reference (*) to a value that holds the reference itself")
    return number
