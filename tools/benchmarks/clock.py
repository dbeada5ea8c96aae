"""Time of the parts of a run, measured in the functions that do them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock


class Place(NamedTuple):
    """A function that does a part of the work.

    Attributes:
        owner: module or class that has the function.
        name: its name there. Callers must look it up there at each call.
        part: the name of the part, or a function of the call's arguments that gives the name.
    """

    owner: Any
    name: str
    part: str | Callable[..., str]


@contextmanager
def clocked(places: Sequence[Place]) -> Iterator[dict[str, float]]:
    """Clock the functions while the context lasts.

    Yields:
        The seconds of each part so far. If one of the functions runs inside another, its time
        counts for the outer one. A part that did not run is not there.
    """
    seconds: dict[str, float] = {}
    inside = False

    def clock(function: Callable, part: str | Callable[..., str]) -> Callable:
        def timed(*args, **kwargs):
            nonlocal inside
            if inside:
                return function(*args, **kwargs)
            inside = True
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                inside = False
                name = part if isinstance(part, str) else part(*args, **kwargs)
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start

        return timed

    with ExitStack() as stack:
        for owner, name, part in places:
            replacement = clock(getattr(owner, name), part)
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield seconds
