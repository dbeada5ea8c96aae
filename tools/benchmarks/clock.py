"""Where the time of a run goes: the parts of it, by the functions that they are done by."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

__all__ = ["Place", "clocked"]


class Place(NamedTuple):
    """A function that does a part of the work.

    Attributes:
        owner: module or class that has it.
        name: its name there; it must be looked up there at each call.
        part: what the part is called, or a function of the call's arguments that says so.
    """

    owner: Any
    name: str
    part: str | Callable[..., str]


@contextmanager
def clocked(places: Sequence[Place]) -> Iterator[dict[str, float]]:
    """Clock the functions while the context lasts.

    Yields:
        The seconds of each part so far. What one of the functions calls within another counts for
        the outer one. A part that was not met is not there.
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
