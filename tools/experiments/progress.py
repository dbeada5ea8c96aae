"""How far the runs are, and how long it takes until all are done."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import timedelta

from .runs import Run

__all__ = ["Display", "Progress", "format_seconds", "iterations_done", "seconds_left"]

# More than two lines of metrics.json, even with many classes.
TAIL_BYTES = 1 << 17
SECONDS_BETWEEN_LINES = 60


class Progress:
    """How far all runs are since the tool was started.

    Args:
        todo: the runs to train, or to go on with.
        finished: number of the others, which finished earlier.
    """

    def __init__(self, todo: Sequence[Run], finished: int):
        self.total = finished + len(todo)
        self.finished = finished
        self.failed = 0
        self._start = time.monotonic()
        self._todo = {run.folder: run for run in todo}
        # A run goes on from its checkpoint, whatever its metrics.json says.
        self._done = {run.folder: run.iterations_saved for run in todo}
        self._before = sum(self._done.values())

    @property
    def elapsed(self) -> str:
        return format_seconds(time.monotonic() - self._start)

    def end(self, run: Run, *, failed: bool) -> None:
        """Note that a run has ended."""
        self._done[run.folder] = iterations_done(run)
        del self._todo[run.folder]
        self.failed += failed
        self.finished += not failed

    def describe(self, active: Sequence[Run]) -> str:
        """One line: time, runs done of all, time left, and how far the active runs are."""
        for run in active:
            self._done[run.folder] = iterations_done(run)
        text = f"{self.elapsed}  {self.finished} of {self.total} runs done"
        if self.failed:
            text += f", {self.failed} failed"
        left = seconds_left(
            time.monotonic() - self._start,
            gained=sum(self._done.values()) - self._before,
            left=sum(run.max_iter - self._done[folder] for folder, run in self._todo.items()),
        )
        if left is not None:
            text += f", about {format_seconds(left)} left"
        return " | ".join(
            [text, *(f"{run}: {self._done[run.folder]}/{run.max_iter}" for run in active)]
        )


def iterations_done(run: Run) -> int:
    """Iterations of a run's training so far; its metrics.json tells every twentieth."""
    path = run.folder / "metrics.json"
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - TAIL_BYTES, 0))
        lines = file.read().splitlines(keepends=True)
    for line in reversed(lines):
        if line.startswith(b"{") and line.endswith(b"\n"):  # a whole one
            # It counts from 0; the last evaluation stands one behind the last iteration.
            return min(json.loads(line)["iteration"] + 1, run.max_iter)
    return 0


def seconds_left(elapsed: float, *, gained: int, left: int) -> float | None:
    """The time that is left at the mean pace so far; None before there is one.

    Args:
        elapsed: seconds.
        gained: iterations done in them, of all runs.
        left: iterations to do, of all runs.
    """
    return elapsed / gained * left if gained > 0 else None


def format_seconds(seconds: float) -> str:
    """3725.4 -> "1:02:05"."""
    return str(timedelta(seconds=round(seconds)))


class Display:
    """Messages that stay, and on a terminal one line below them that changes.

    Elsewhere, say in a file, that line is repeated once a minute.
    """

    def __init__(self):
        self._on_terminal = sys.stdout.isatty()
        self._last = time.monotonic()

    def say(self, message: str) -> None:
        """Print a message that stays."""
        self._clear()
        print(message, flush=True)

    def update(self, line: str) -> None:
        """Show the line that changes."""
        if self._on_terminal:
            self._clear()
            print(line[: shutil.get_terminal_size().columns - 1], end="", flush=True)
        elif time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            print(line, flush=True)

    def _clear(self) -> None:
        if self._on_terminal:
            print("\r\033[K", end="")
