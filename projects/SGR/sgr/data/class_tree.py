"""Trees of classes: the superclasses of a dataset's classes.

A dataset may have a tree in its metadata, ``class_tree``: superclass -> its classes, nested to any
depth. A description of one's own data has it under ``tree``.

    tree:
      thing:
        animal: [cat, dog]
        vehicle: [car]
      sky:            # a class without a superclass
"""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .faults import list_values, shorten


@dataclass(frozen=True)
class ClassTree:
    """Classes, their superclasses, those of the latter, and so on.

    All classes have the same depth. A node without a parent in the next level is continued there,
    by a node of its own name with a single child. So every level has one node for each class.

    Nodes are numbered level by level. The classes come first, in the order of their labels. A
    higher level has its nodes in the order of their smallest labels.

    Attributes:
        names: of the V nodes. Only a node and the one that continues it share a name.
        sizes: the number of nodes of each level, that of the classes first.
        ancestors: for each level, the number of the node that each class belongs to.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    ancestors: tuple[tuple[int, ...], ...]

    @classmethod
    def parse(cls, tree: Any, class_names: Sequence[str]) -> ClassTree:
        """Read a tree.

        Args:
            tree: a mapping superclass -> children, or a list of children. Children are a mapping
                or a list again, or one name. A node without children is a class. A superclass may
                have the name of a class if this class is its only child.
            class_names: names of the labels 0, 1, 2...

        Raises:
            ValueError: a name is no class, or is used twice; a node is inside of itself; a class
                has children, or is missing in the tree; or the tree has another form. The message
                names the node.
        """
        nodes: list[tuple[str, int]] = []  # name, and the place of the parent in this list
        leaves: dict[str, int] = {}
        superclasses: set[str] = set()
        labels = {name: label for label, name in enumerate(class_names)}
        pending: deque[tuple[str, Any, int, tuple[str, ...]]]
        pending = deque((*child, -1, ()) for child in _children(tree, ()))
        while pending:
            name, content, parent, path = pending.popleft()
            children = list(_children(content, (*path, name)))
            if not children:
                _check_class(name, path, labels, leaves, nodes)
                leaves[name] = len(nodes)
            else:
                _check_superclass(name, path, children, labels, superclasses)
                superclasses.add(name)
            nodes.append((name, parent))
            pending.extendleft(
                (*child, len(nodes) - 1, (*path, name)) for child in reversed(children)
            )
        missing = [name for name in class_names if name not in leaves]
        if missing:
            raise ValueError(
                f"classes that the tree does not have: {list_values(missing, count=True)}; put "
                "each of them under its superclass, or beside the superclasses"
            )
        return cls._number([leaves[name] for name in class_names], nodes)

    @classmethod
    def _number(cls, leaves: Sequence[int], nodes: Sequence[tuple[str, int]]) -> ClassTree:
        """Number the nodes level by level. A node's level is its largest distance to a class."""
        levels = [0] * len(nodes)
        for place in reversed(range(len(nodes))):  # parents come before their children
            parent = nodes[place][1]
            if parent >= 0:
                levels[parent] = max(levels[parent], levels[place] + 1)
        names: list[str] = []
        sizes, ancestors = [], []
        current = list(leaves)
        for level in range(max(levels, default=0) + 1):
            for label, place in enumerate(current):
                parent = nodes[place][1]
                if parent >= 0 and levels[parent] <= level:
                    current[label] = parent
            numbers = {place: len(names) + i for i, place in enumerate(dict.fromkeys(current))}
            ancestors.append(tuple(numbers[place] for place in current))
            sizes.append(len(numbers))
            names += [nodes[place][0] for place in numbers]
        return cls(tuple(names), tuple(sizes), tuple(ancestors))

    @property
    def num_classes(self) -> int:
        return self.sizes[0]

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The number of the first node of each level."""
        return tuple(sum(self.sizes[:level]) for level in range(len(self.sizes)))

    @cached_property
    def groups(self) -> np.ndarray:
        """(levels, C) int64: for each level, the place in it of the node of each class."""
        return np.array(self.ancestors, np.int64) - np.array(self.starts, np.int64)[:, None]

    @cached_property
    def parents(self) -> tuple[np.ndarray, ...]:
        """For each level but the highest, the place in the next level of each node's parent."""
        found = []
        for lower, upper, size in zip(self.groups, self.groups[1:], self.sizes):
            places = np.zeros(size, np.int64)
            places[lower] = upper
            found.append(places)
        return tuple(found)

    @cached_property
    def distances(self) -> np.ndarray:
        """(C, C) int64: the edges between two classes. Nodes without a parent have a common one."""
        shared = self.groups[:, :, None] == self.groups[:, None]
        return 2 * (len(self.sizes) - shared.sum(axis=0))

    @property
    def height(self) -> int:
        """The edges between a class and the root. Several nodes without a parent have a root."""
        return max(len(self.sizes) - (self.sizes[-1] == 1), 1)

    def draw(self) -> str:
        """The tree as lines of text. Classes have their label before their name."""
        children: dict[int, list[int]] = {}
        for path in zip(*self.ancestors):
            for child, parent in zip(path, path[1:]):
                if child not in children.setdefault(parent, []):
                    children[parent].append(child)

        def lines(nodes: Sequence[int], indent: str, is_root: bool) -> Iterator[str]:
            for node in nodes:
                is_last = node == nodes[-1]
                branch = "" if is_root else "└── " if is_last else "├── "
                below = "" if is_root else "    " if is_last else "│   "
                # What only continues a node of the same name is not drawn.
                while len(more := children.get(node, [])) == 1 and self._continues(node, more[0]):
                    (node,) = more
                label = f"{node} " if node < self.num_classes else ""
                yield f"{indent}{branch}{label}{self.names[node]}"
                yield from lines(children.get(node, ()), indent + below, False)

        top = range(self.starts[-1], len(self.names))
        return "\n".join(lines(list(top), "", True))

    def _continues(self, node: int, child: int) -> bool:
        return self.names[node] == self.names[child]


def _children(content: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """The (name, content) of the children that the content of a node names."""
    where = f"the children of {path[-1]!r}" if path else "the tree"
    if content is None:
        return
    if isinstance(content, str):
        content = [content]
    for entry in [content] if isinstance(content, Mapping) else _as_list(content, where):
        pairs = entry.items() if isinstance(entry, Mapping) else [(entry, None)]
        for name, below in pairs:
            if not isinstance(name, str) or not name.strip():
                raise ValueError(
                    f"a name in {where} is {shorten(name)}, which is no text; put it in quotes"
                )
            name = name.strip()
            # A node may continue a class of its own name, which is its only child.
            if name in path and (below or path[-1] != name or path.count(name) > 1):
                raise ValueError(
                    f"{name!r} is inside of itself in the tree: {' > '.join((*path, name))}"
                )
            yield name, below


def _as_list(content: Any, where: str) -> Sequence[Any]:
    if isinstance(content, (list, tuple)):
        return content
    raise ValueError(
        f"{where} must be a mapping of superclasses, or a list of names, not {shorten(content)}"
    )


def _check_class(
    name: str,
    path: tuple[str, ...],
    labels: Mapping[str, int],
    leaves: Mapping[str, int],
    nodes: Sequence[tuple[str, int]],
) -> None:
    if name not in labels:
        close = difflib.get_close_matches(name, labels, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{name!r} in the tree is no class, and has no children{hint}")
    if name in leaves:
        parent = nodes[leaves[name]][1]
        first = repr(nodes[parent][0]) if parent >= 0 else "the top"
        second = repr(path[-1]) if path else "the top"
        raise ValueError(f"the class {name!r} is in the tree twice, under {first} and {second}")


def _check_superclass(
    name: str,
    path: tuple[str, ...],
    children: Sequence[tuple[str, Any]],
    labels: Mapping[str, int],
    superclasses: set[str],
) -> None:
    if name in labels and [child for child, _ in children] != [name]:
        raise ValueError(
            f"the class {name!r} has children in the tree: {list_values([c for c, _ in children])};"
            " a class is a leaf, so give the superclass another name"
        )
    if name in superclasses:
        raise ValueError(f"the tree has two superclasses {name!r}; give one another name")
