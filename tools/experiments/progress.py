"""Show how far the runs are, and how long all of them will take."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tqdm import tqdm

from sgr.visualization.curves import metrics_entry

from .runs import Run

# More than two lines of metrics.json, even with many classes.
TAIL_BYTES = 1 << 17
SECONDS_BETWEEN_LINES = 60


class Progress:
    """A progress bar over the iterations of all runs, with messages above it.

    Args:
        todo: the runs to start or to resume.
        finished: number of the other runs, which finished earlier.
    """

    def __init__(self, todo: Sequence[Run], finished: int):
        self.num_runs = finished + len(todo)
        self.finished = finished
        self.failed = 0
        # A run goes on from its checkpoint, even if its metrics.json has later iterations.
        self._done = {run.folder: run.iterations_saved for run in todo}
        self._bar = tqdm(
            total=sum(run.max_iter for run in todo),
            initial=sum(self._done.values()),
            unit="it",
            smoothing=0,  # estimates the time left by the mean pace
            miniters=0,
            mininterval=0.1 if sys.stdout.isatty() else SECONDS_BETWEEN_LINES,
            file=sys.stdout,
            dynamic_ncols=True,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_error) -> None:
        self._bar.close()

    def say(self, message: str) -> None:
        """Print a message above the bar, with the time since the start."""
        elapsed = tqdm.format_interval(self._bar.format_dict["elapsed"])
        tqdm.write(f"{elapsed}  {message}", file=sys.stdout)

    def end(self, run: Run, *, failed: bool) -> None:
        """Count a run that has ended."""
        self._count(run)
        self.failed += failed
        self.finished += not failed
        self._bar.total -= run.max_iter - self._done[run.folder]  # it will not do the rest

    def update(self, active: Sequence[Run]) -> None:
        """Show how many runs are done, and how far the active runs are."""
        for run in active:
            self._count(run)
        failed = f", {self.failed} failed" if self.failed else ""
        self._bar.set_description_str(
            f"{self.finished} of {self.num_runs} runs done{failed}", False
        )
        states = [f"{run}: {self._done[run.folder]}/{run.max_iter}" for run in active]
        self._bar.set_postfix_str(" | ".join(states), refresh=False)
        self._bar.update(sum(self._done.values()) - self._bar.n)

    def _count(self, run: Run) -> None:
        self._done[run.folder] = iterations_done(run)


def iterations_done(run: Run) -> int:
    """Number of iterations that a run has done; its metrics.json has every twentieth."""
    path = run.folder / "metrics.json"
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - TAIL_BYTES, 0))
        lines = file.read().splitlines(keepends=True)
    for line in reversed(lines):
        entry = metrics_entry(line)
        if entry and line.endswith(b"\n"):  # complete
            # Iterations count from 0; that of the last evaluation is one after the last iteration.
            return min(entry["iteration"] + 1, run.max_iter)
    return 0
