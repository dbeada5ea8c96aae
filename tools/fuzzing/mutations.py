"""Random changes of the content of a file, and of its text."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

_STRINGS = (
    "",
    "x",
    "0",
    "None",
    "..",
    "../../x",
    "/etc/hostname",
    "a b",
    "\x00",
    "é" * 3,
    "\ud800",
)
_NUMBERS = (0, 1, -1, 2, 3, 255, 256, 65535, 65536, 10**5, 10**9, 2**31, 2**63, 10**30, -(10**9))
_REALS = (0.0, 0.5, -0.5, 1.5, 1e9, 1e308, -1e308, math.nan, math.inf, -math.inf)


@contextmanager
def deep_calls() -> Iterator[None]:
    """Copy and write lists that are nested more deeply than Python's calls may be."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, 10000))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def mutated(content: Any, rng: Random) -> Any:
    """A deep copy of a content of dicts, lists and values, with one to three random changes."""
    root = {"": copy.deepcopy(content)}
    with deep_calls():
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            root = root or {"": None}
            holder, key = _choose(root, rng)
            _change(holder, key, root, rng)
    return root.get("")


def mutated_text(text: bytes, rng: Random) -> bytes:
    """A text with one to four random changes of bytes or lines."""
    text = bytearray(text)
    for _ in range(rng.randint(1, 4)):
        start, end = sorted(rng.randint(0, len(text)) for _ in range(2))
        end = min(end, start + rng.choice((1, 4, 40, len(text))))
        change = rng.randrange(5)
        if change == 0:
            del text[start:end]
        elif change == 1:
            text[start:start] = text[start:end]
        elif change == 2:
            text[start:start] = bytes(rng.choices(range(256), k=rng.choice((1, 3, 30))))
        elif change == 3:
            text[start:start] = rng.choices(b"[]{}:,-\"'\n\t &*!#0", k=rng.choice((1, 3, 30)))
        else:
            del text[start:]
    return bytes(text)


def _choose(root: Any, rng: Random) -> tuple[Any, Any]:
    """A random place: a dict or list, and a key or index of it."""
    places = []
    pending = [root]
    while pending and len(places) < 20000:
        node = pending.pop()
        keys = node if isinstance(node, dict) else range(len(node))
        for key in keys:
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                pending.append(node[key])
    # The content as a whole now and then only.
    return rng.choice(places[1:] or places) if rng.random() > 0.02 else places[0]


def _change(holder: Any, key: Any, root: Any, rng: Random) -> None:
    value = holder[key]
    change = rng.randrange(8)
    if change == 0:
        del holder[key]
    elif change == 1:
        other, place = _choose(root, rng)
        holder[key] = copy.deepcopy(other[place])
    elif change == 2 and isinstance(holder, dict):
        holder[rng.choice((*_STRINGS, *map(str, holder), f"{key}x"))] = holder.pop(key)
    elif change == 2:
        holder[key:key] = [copy.deepcopy(value) for _ in range(rng.choice((1, 3, 100)))]
    elif change <= 4 and isinstance(value, (int, float)):
        factor = rng.choice((0.5, 2, -1, 10, 1e3, 1e6, 1e9))
        holder[key] = type(value)(value * factor) if math.isfinite(value) else 0
    elif change <= 4 and isinstance(value, str):
        place = rng.randint(0, len(value))
        text = "".join(chr(rng.choice((rng.randrange(33, 127), 48, 200))) for _ in range(3))
        holder[key] = value[:place] + text + value[place + rng.randint(0, 3) :]
    elif change <= 4 and isinstance(value, list) and value:
        if rng.random() < 0.5:
            rng.shuffle(value)
        else:
            holder[key] = value * rng.choice((0, 2, 50))
    else:
        holder[key] = _strange(rng)


def _strange(rng: Random) -> Any:
    """A value that hardly fits anywhere."""
    kind = rng.randrange(8)
    if kind <= 1:
        return rng.choice(_NUMBERS)
    if kind == 2:
        return rng.choice(_REALS)
    if kind <= 4:
        return rng.choice((*_STRINGS, "y" * 5000))
    if kind == 5:
        return rng.choice((None, True, False))
    if kind == 6:
        # A polygon far outside, a zigzag, and lists that are long or deep.
        reach = rng.choice((100, 1e5, 1e9))
        zigzag = [reach * (n % 2) if n % 4 < 2 else n for n in range(rng.choice((6, 400, 4000)))]
        deep: list = []
        for _ in range(rng.choice((3, 60, 500))):
            deep = [deep]
        return rng.choice(([zigzag], zigzag, deep, [0] * 5000, [], [[]], [1, "a", None]))
    size = [rng.choice(_NUMBERS), rng.choice(_NUMBERS)]
    return rng.choice(({}, {"a": 1}, {"size": size, "counts": "04"}, {"size": size, "counts": [5]}))
