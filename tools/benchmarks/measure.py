"""Time and peak memory of two functions that compute the same."""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import torch

Results = Sequence[Any]  # numbers, tensors or arrays


@dataclass
class Row:
    """One comparison. In every pair the literal version comes first.

    Attributes:
        case: what was computed, and its size.
        seconds: times of the runs.
        mib: peak memory of a run beyond its inputs, or None if it cannot be measured.
        deviation: largest difference of the results, relative to the largest value.
        extra: more columns, as they are printed.
        parts: seconds of a run that its parts take, in both versions; printed as a second table.
    """

    case: str
    seconds: tuple[list[float], list[float]]
    mib: tuple[float | None, float | None]
    deviation: float
    extra: dict[str, str] = field(default_factory=dict)
    parts: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def time_ratio(self) -> float:
        first, second = map(median, self.seconds)
        return first / second

    @property
    def memory_ratio(self) -> float | None:
        """A lower bound where the second version needs less than 1 MiB; None if the first does."""
        first, second = self.mib
        if first is None or second is None or first < 1:
            return None
        return first / max(second, 1)  # pages and heaps blur less than 1 MiB


def largest_deviation(expected: Results, actual: Results) -> float:
    """Find the largest difference among all results, relative to the largest expected value."""
    worst = 0.0
    for first, second in zip(expected, actual, strict=True):
        first, second = (torch.as_tensor(result).detach().double() for result in (first, second))
        scale = first.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        worst = max(worst, float((first - second).abs().max() / scale))
    return worst


def compare(
    case: str,
    run_literal: Callable[[], Results],
    run_sgr: Callable[[], Results],
    args: argparse.Namespace,
    *,
    deviation: Callable[[Results, Results], float] = largest_deviation,
) -> Row:
    """Measure the memory of both functions, compare their results, then time them in turns.

    Args:
        case: what they compute.
        run_literal, run_sgr: called without arguments. Both return results in the same order.
        args: with ``device``, ``threads``, ``repeat`` and ``clock``, "wall" or "processor".
        deviation: computes how much the results of the second differ from those of the first.
    """
    print(f"{case} ...", file=sys.stderr, flush=True)
    runs = run_literal, run_sgr
    # On one thread: a forked process has no threads of its parent and must not wait for them.
    with use_threads(1):
        mib = (_peak_mib(run_literal, args.device), _peak_mib(run_sgr, args.device))
    with use_threads(args.threads):
        difference = deviation(run_literal(), run_sgr())
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(args.repeat):
            for run, times in zip(runs, seconds):
                times.append(_seconds(run, args))
    return Row(case, seconds, mib, difference)


def _seconds(run: Callable[[], Results], args: argparse.Namespace) -> float:
    clock = time.process_time if args.clock == "processor" else time.perf_counter
    synchronize(args.device)
    start = clock()
    run()
    synchronize(args.device)
    return clock() - start


def synchronize(device: str) -> None:
    """Wait until a GPU has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def _peak_mib(run: Callable[[], Results], device: str) -> float | None:
    """Measure the peak memory of a run in MiB, beyond the memory before it."""
    if device == "cuda":
        run()  # libraries keep their workspaces from the first run
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if platform.system() != "Linux":
        return None
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=_report_peak, args=(run, queue))
    _return_free_memory()  # so that the new process does not start with free memory that counts
    with warnings.catch_warnings():
        # Python warns of threads that the new process lacks; it runs on one.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(
            f"the process that measures memory ended with status {process.exitcode}; "
            "if memory ran out, choose smaller sizes"
        )
    return queue.get()


def _report_peak(run: Callable[[], Results], queue: multiprocessing.SimpleQueue) -> None:
    """In the forked process: the peak of resident memory less what stays after the run.

    None if PyTorch refuses a backward pass there. It does so once it has started threads for other
    devices in the parent, as a backward pass does where it sees a GPU.
    """
    import resource  # not on Windows

    try:
        run()
    except RuntimeError as error:
        if "fork-based multiprocessing" not in str(error):
            raise
        queue.put(None)
        return
    _return_free_memory()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    queue.put(max(peak - resident, 0) / 2**20)


def _return_free_memory() -> None:
    """Make malloc return free memory, so that resident memory is memory in use."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


@contextmanager
def use_threads(number: int) -> Iterator[None]:
    """Let torch and OpenCV use so many threads."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(number)
    cv2.setNumThreads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
