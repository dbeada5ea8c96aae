"""Work on many files in threads, and what the worker processes of data loaders do."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
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


def outlive_signals(_worker: int) -> None:
    """Let this worker process of a data loader live on when all processes of a run get a signal.

    Launchers and terminals signal all of them. The main process can save a checkpoint only while
    its workers live: PyTorch's end on SIGTERM, which is an error in the main process. With this
    ``worker_init_fn``, SIGINT and SIGUSR1 do nothing, and neither does SIGTERM, unless the main
    process has sent it to end a worker. macOS and Windows cannot tell who sent SIGTERM, so there it
    ends the worker as before.
    """
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):  # SIGUSR1 is not on Windows
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    main = multiprocessing.parent_process()  # os.getppid() may be a server that forks
    if main is not None and hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_await_sigterm, args=(main.pid,), daemon=True).start()


def _await_sigterm(sender: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != sender:
        pass
    os._exit(0)


@contextmanager
def one_opencv_thread() -> Iterator[None]:
    """Let OpenCV use one thread while several threads of this process call it."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
