"""Cases in processes of their own, each with a limit of time and memory."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

_CASES_OF_A_PROCESS = 200  # then a new one takes its place, so that nothing piles up


class Outcome(NamedTuple):
    """What became of a case.

    Attributes:
        case: as it was given.
        fault: a crash, a hang, too much memory or an error that is not ours; None if all is well.
        told: the messages of our own errors.
        memory: the most that the process has had resident until then, in MiB.
        seconds: that it took.
    """

    case: Any
    fault: str | None
    told: list[str]
    memory: float
    seconds: float


def run_cases(
    run: Callable[[Any], list[str]],
    cases: Iterable[Any],
    *,
    jobs: int,
    seconds: float,
    memory: int,
) -> Iterator[Outcome]:
    """Run cases in forked processes. A case that ends or blocks its process does not end the rest.

    Args:
        run: case -> messages of our own errors; it raises whatever else happens.
        jobs: cases at a time.
        seconds: of the processor that a case may use; ten times as long, if it waits.
        memory: bytes that a process may ask for beyond what it has at its start.
    """
    left = iter(cases)
    workers = [_Worker(run, memory) for _ in range(jobs)]
    try:
        for worker in workers:
            worker.begin(next(left, None))
        while busy := [worker for worker in workers if worker.case is not None]:
            ready = wait([one.pipe for one in busy], timeout=1)
            for worker in busy:
                if worker.pipe in ready or worker.is_late(seconds):
                    yield worker.end(worker.pipe in ready, seconds)
                    worker.begin(next(left, None))
    finally:
        for worker in workers:
            worker.stop()


@dataclass
class _Worker:
    run: Callable[[Any], list[str]]
    memory: int
    case: Any = None
    started: float = 0.0
    used: float = 0.0
    done: int = 0
    process: Any = None
    pipe: Any = None
    log: Any = field(default_factory=tempfile.TemporaryFile)

    def begin(self, case: Any) -> None:
        """Start with a case; None leaves the worker idle."""
        if self.process is not None and self.done == _CASES_OF_A_PROCESS:
            self.stop()
        if self.process is None:
            self.pipe, theirs = multiprocessing.Pipe()
            self.process = multiprocessing.get_context("fork").Process(
                target=_serve, args=(theirs, self.run, self.memory, self.log), daemon=True
            )
            self.process.start()
            theirs.close()
            self.done = 0
        self.case, self.started, self.used = case, time.monotonic(), self._processor_time()
        if case is not None:
            self.pipe.send(case)

    def is_late(self, seconds: float) -> bool:
        """Whether the case has used its time. On a busy machine, others take some of it."""
        waited = time.monotonic() - self.started
        return self._processor_time() - self.used > seconds or waited > 10 * seconds

    def _processor_time(self) -> float:
        try:
            numbers = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has crashed
            return 0.0
        return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")

    def end(self, has_answered: bool, limit: float) -> Outcome:
        """What became of the case."""
        case, seconds = self.case, time.monotonic() - self.started
        self.done += 1
        fault: str | None = f"hang: no end after {limit:g} s"
        told: list[str] = []
        memory = 0.0
        if has_answered:
            try:
                fault, told, memory = self.pipe.recv()
            except EOFError:
                self.process.join(10)
                code = self.process.exitcode or 0
                name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                fault = f"crash: {name}"
        if fault and (not has_answered or fault.startswith("crash")):
            if not has_answered:
                self.process.kill()
                self.process.join()
            self.log.seek(0)
            tail = self.log.read().decode(errors="replace").splitlines()[-12:]
            fault = "\n  ".join([fault, *tail])
            self.stop()
        return Outcome(case, fault, told, memory, seconds)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
        self.process = None


def _serve(pipe: Connection, run: Callable[[Any], list[str]], memory: int, log: Any) -> None:
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(log.fileno(), 2)
    sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    faulthandler.enable(log)
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + memory, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            case = pipe.recv()
        except EOFError:
            return
        log.seek(0)
        log.truncate()
        fault, told = None, []
        try:
            told = run(case)
        except MemoryError:
            fault = f"memory: above {memory / 2**20:.0f} MiB\n{_last_lines()}"
        except BaseException:
            fault = f"error that is not ours\n{_last_lines()}"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        pipe.send((fault, told, peak))


def _last_lines() -> str:
    return "".join(traceback.format_exc(limit=-6, chain=False))[-3000:]
