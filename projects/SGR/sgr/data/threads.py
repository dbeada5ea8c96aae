"""Work on many files, several at a time, and the threads of OpenCV."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import cv2
import torch
from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")


def work_in_threads(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    add: Callable[[Result], None],
    *,
    workers: int = 1,
    name: str = "",
) -> None:
    """Call ``add(work(item))`` for each item in order, and show a progress bar.

    ``work`` runs in threads, which is enough if it mostly decodes files: decoding lets other
    threads run. ``add`` runs in this thread only. After an error or Ctrl-C, no further item is
    begun.

    Args:
        workers: number of threads.
        name: shown with the progress.
    """
    with ThreadPoolExecutor(workers) as executor:
        try:
            results = executor.map(work, items)
            # disable=None: no bar if the output is not a terminal.
            for result in tqdm(results, name, len(items), unit="image", disable=None):
                add(result)
        finally:
            executor.shutdown(cancel_futures=True)


def available_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # in a container, fewer than the machine has
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit_opencv_threads() -> None:
    """Let OpenCV use one thread if this is a worker process of a data loader.

    The workers already use all cores; more threads would only compete for them.
    """
    if torch.utils.data.get_worker_info() is not None:
        cv2.setNumThreads(0)


@contextmanager
def one_opencv_thread() -> Iterator[None]:
    """Let OpenCV use one thread while several threads of this process call it."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
