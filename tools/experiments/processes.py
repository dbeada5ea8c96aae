"""Run trainings as processes, several at a time, that end together with the tool."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from .runs import Run, prepare, write_record

TRAIN_NET = Path(__file__).resolve().parents[2] / "train_net.py"
SECONDS_TO_END = 30


@dataclass(frozen=True)
class Launcher:
    """Starts trainings.

    Args:
        opts: KEY, VALUE, ...: options after those of the run.
        flags: flags of train_net.py, such as ``--allow-pickle``.
        num_gpus: number of GPUs of each training.
        threads: number of CPU threads of each training.
        gpus: the names that CUDA_VISIBLE_DEVICES has for the GPUs of this machine; none on a CPU.
        lock: a file that each training keeps open while it lives; see :func:`locked`.
    """

    opts: Sequence[str] = ()
    flags: Sequence[str] = ()
    num_gpus: int = 1
    threads: int = 1
    gpus: Sequence[str] = ()
    lock: TextIO | None = None

    def command(self, run: Run) -> list[str]:
        """The command line of a run."""
        return [
            *(sys.executable, "-W", "ignore"),
            *([str(TRAIN_NET)] if TRAIN_NET.exists() else ["-m", "sgr"]),  # no checkout
            *("--config-file", str(run.config_file)),
            *(part for mixin in run.mixins for part in ("--with", str(mixin))),
            # A free port, because the default is the same for all processes of a user.
            *("--num-gpus", str(self.num_gpus), "--dist-url", "auto"),
            *(["--resume"] if run.has_checkpoint else []),
            *self.flags,
            *run.own_opts,
            *self.opts,
        ]

    def environment(self, slot: int) -> dict[str, str]:
        """The environment of a training; each slot of the pool has its own GPUs."""
        # Without buffers, so that console.txt has all messages in their order.
        changes = {"OMP_NUM_THREADS": str(self.threads), "PYTHONUNBUFFERED": "1"}
        if self.gpus:
            first = slot * self.num_gpus
            own = [self.gpus[(first + i) % len(self.gpus)] for i in range(self.num_gpus)]
            changes["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        return {**os.environ, **changes}

    def start(self, run: Run, slot: int) -> subprocess.Popen:
        """Start a run, or resume it from its checkpoint."""
        prepare(run)
        write_record(run, "started")
        command = self.command(run)
        with run.console.open("a") as console:
            console.write(f"$ {shlex.join(command)}\n")
            console.flush()
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=self.environment(slot),
                # In a process group of its own, Ctrl-C does not reach the training and its workers.
                # The tool gets it and ends them.
                start_new_session=True,
                pass_fds=[self.lock.fileno()] if self.lock else [],
            )


class Pool:
    """Runs at most ``size`` trainings at a time, and stops them at the end of its ``with`` block.

    A training finishes its iteration and saves a checkpoint when it is stopped, and goes on from
    there when it is started again. One that takes longer than ``SECONDS_TO_END`` is killed, and so
    are all if a KeyboardInterrupt comes meanwhile; they go on from earlier checkpoints.
    """

    def __init__(self, launcher: Launcher, size: int):
        self.launcher = launcher
        self.size = size
        self._active: dict[int, tuple[Run, subprocess.Popen]] = {}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_error) -> None:
        processes = [process for _, process in self._active.values()]
        end = time.monotonic() + SECONDS_TO_END
        try:
            for process in processes:
                process.terminate()
            for process in processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(end - time.monotonic(), 0))
        finally:
            for process in processes:
                _signal_group(process, signal.SIGKILL)  # and what it has left behind
            for process in processes:
                process.wait()

    @property
    def active(self) -> list[Run]:
        """The runs that are being trained."""
        return [run for run, _ in self._active.values()]

    @property
    def has_room(self) -> bool:
        return len(self._active) < self.size

    def start(self, run: Run) -> None:
        """Start a run in a free slot."""
        slot = min(set(range(self.size)) - self._active.keys())
        self._active[slot] = run, self.launcher.start(run, slot)

    def collect(self) -> list[tuple[Run, int]]:
        """The runs that have ended since the last call, and the exit status of each.

        It notes in their records whether they finished or failed. A process has the exit status 0
        only after the evaluation of the last iteration.
        """
        ended = []
        for slot, (run, process) in list(self._active.items()):
            code = process.poll()
            if code is not None:
                del self._active[slot]
                write_record(run, "failed" if code else "finished")
                ended.append((run, code))
        return ended


def _signal_group(process: subprocess.Popen, number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass  # it has ended already


def describe_end(code: int) -> str:
    """The exit status of a process in words."""
    if code >= 0:
        return f"exit status {code}"
    name = signal.Signals(-code).name
    return f"killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")


@contextmanager
def locked(folder: Path) -> Iterator[TextIO]:
    """Lock a folder against other processes of this tool.

    Trainings inherit the file and so the lock. If the tool is killed, the lock lasts as long as the
    trainings that it left behind.

    Raises:
        ValueError: if another process has the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is at work in {folder}: this tool, or a training that it left "
                "behind; wait for its end, or name another folder by --output"
            ) from None
        yield file


@contextmanager
def interruptible() -> Iterator[None]:
    """Make SIGTERM and a closed terminal (SIGHUP) raise KeyboardInterrupt, as Ctrl-C does."""

    def interrupt(_number, _frame):
        raise KeyboardInterrupt

    old = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            old[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
