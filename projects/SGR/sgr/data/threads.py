"""Work on many files, several at a time, with a progress bar."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import cv2
import torch
from tqdm import tqdm

__all__ = ["available_cores", "limit_opencv_threads", "work_in_threads"]

Item = TypeVar("Item")
Result = TypeVar("Result")

# Items per worker that wait, or whose results do: enough for none to be idle.
_AHEAD = 4


def work_in_threads(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    add: Callable[[Result], None],
    *,
    workers: int = 1,
    name: str = "",
) -> None:
    """Call ``add(work(item))`` for each item, in their order; ``add`` in this thread alone.

    Threads do where nearly all of the work lets other threads run, as decoding does. After an
    error or Ctrl-C, what has begun is finished and the rest is not begun.

    Args:
        workers: number of threads.
        name: shown with the progress.
    """
    executor = ThreadPoolExecutor(workers)
    pending: deque[Future] = deque()
    # None: no bar where nobody looks, as in a file.
    with tqdm(desc=name, total=len(items), unit="image", disable=None) as bar:

        def take() -> None:
            add(pending.popleft().result())
            bar.update()

        try:
            for item in items:
                pending.append(executor.submit(work, item))
                if len(pending) > _AHEAD * workers:
                    take()
            while pending:
                take()
        finally:
            executor.shutdown(cancel_futures=True)


def available_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # fewer than the machine's in a container
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit_opencv_threads() -> None:
    """In a worker of a loader, keep OpenCV to one thread.

    Each worker is a process of its own: threads of theirs would only fight for cores.
    """
    if torch.utils.data.get_worker_info() is not None:
        cv2.setNumThreads(0)
