"""The config keys of a file such as ``sgr/config.py``, with the comments above them.

The file is read as text and never run, so that the documentation needs neither torch nor
Detectron2.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Key:
    """A config key.

    Attributes:
        name: in full, such as ``MODEL.SGR.NUM_CONCEPTS``.
        default: as it stands in the file; None of a node that holds other keys.
        comment: what stands above it; "" where nothing does.
    """

    name: str
    default: str | None
    comment: str


def read_keys(file: Path) -> list[Key]:
    """The keys that ``cfg.A.B = value`` and ``_set_defaults(cfg.A, {"B": value})`` set.

    Returns:
        The keys in the order of the file, each with the comment between it and the key before it.

    Raises:
        ValueError: the file sets no key in one of these two ways.
    """
    source = file.read_text(encoding="utf-8")
    found: list[tuple[int, str, str | None]] = []
    aliases = {"cfg": ""}
    for node in sorted(_statements(ast.parse(source)), key=lambda node: node.lineno):
        if isinstance(node, ast.Call):
            parent = _name(node.args[0], aliases)
            if parent is not None:
                found += _of_dict(parent, node.args[1])
            continue
        names = [name for target in node.targets if (name := _name(target, aliases))]
        if not names:  # node = cfg.MODEL
            other = _name(node.value, aliases)
            if other is not None and isinstance(node.targets[0], ast.Name):
                aliases[node.targets[0].id] = other
            continue
        for target in node.targets:
            if isinstance(target, ast.Name):  # node = cfg.MODEL.SEMASK = CfgNode()
                aliases[target.id] = names[0]
        found += _of_value(names[0], node.value, node.lineno)
    if not found:
        raise ValueError(f"{file} sets no config key that can be read")
    comments = _comments(source)
    keys, last = [], 0
    for line, name, default in found:
        above = [comments[number] for number in range(last, line) if number in comments]
        keys.append(Key(name, default, " ".join(above)))
        last = line
    return keys


def _statements(tree: ast.Module) -> list[ast.Call | ast.Assign]:
    """The assignments, and the calls with a dict as the second argument."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        or (
            isinstance(node, ast.Call)
            and len(node.args) == 2
            and isinstance(node.args[1], ast.Dict)
        )
    ]


def _name(node: ast.expr, aliases: dict[str, str]) -> str | None:
    """``MODEL.SGR`` of ``cfg.MODEL.SGR``, "" of ``cfg``, None of what is no part of the config."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id) if not isinstance(node.ctx, ast.Store) else None
    if not isinstance(node, ast.Attribute):
        return None
    parent = _name(node.value, aliases)
    return None if parent is None else f"{parent}.{node.attr}".lstrip(".")


def _of_dict(parent: str, values: ast.Dict) -> list[tuple[int, str, str | None]]:
    found = []
    for key, value in zip(values.keys, values.values, strict=True):
        assert isinstance(key, ast.Constant)
        found += _of_value(f"{parent}.{key.value}".lstrip("."), value, key.lineno)
    return found


def _of_value(name: str, value: ast.expr, line: int) -> list[tuple[int, str, str | None]]:
    """A key with its default, or a node with its keys."""
    if isinstance(value, ast.Call):  # CfgNode(), CfgNode({...}), CfgNode(new_allowed=True)
        if value.keywords:
            return [(line, name, "{}")]
        value = value.args[0] if value.args else ast.Dict([], [])
    if isinstance(value, ast.Dict):
        return [(line, name, None), *_of_dict(name, value)]
    return [(line, name, ast.unparse(value))]


def _comments(source: str) -> dict[int, str]:
    """Line -> the comment that stands there alone."""
    return {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#")
    }


def as_markdown(keys: list[Key], level: int = 3) -> str:
    """A section for each node that holds keys, and in it a list.

    Args:
        level: of the headings.
    """
    nodes = {key.name: _escaped(key.comment) for key in keys if key.default is None}
    sections: dict[str, list[Key]] = {}
    for key in keys:
        if key.default is not None:
            sections.setdefault(key.name.rpartition(".")[0], []).append(key)
    lines = []
    for node, members in sections.items():
        lines += [f"{'#' * level} `{node}`", "", *([nodes[node], ""] if nodes.get(node) else [])]
        for key in members:
            lines.append(f'- <span id="{key.name}"></span>`{key.name}` = `{key.default}`')
            lines += [f"  <br>{_escaped(key.comment)}"] if key.comment else []
        lines.append("")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([*_`\\\[\]])", r"\\\1", text).replace("<", "&lt;")
