"""Ending a training on a signal so that it can go on."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

# The exit code of a training that a signal ended and --resume continues: EX_TEMPFAIL of sysexits.h.
PREEMPTED = 75

_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)
)


class PreemptionHook(HookBase):
    """On SIGTERM, SIGUSR1 or Ctrl-C, finish the iteration, save a checkpoint and end.

    The process ends with the code :data:`PREEMPTED`, on which a scheduler can start it again with
    ``--resume``. A second signal ends it at once. One process that gets the signal ends all of
    them after the same iteration. An evaluation that is under way, or due after the iteration, ends
    first: a resumed training would not make up for it. In the last iteration the training ends by
    itself, with its last checkpoint and evaluation.

    The hook must come after that of the learning rate, whose state is saved, and before that of the
    evaluation.

    Args:
        eval_period: iterations between two evaluations; 0 has none before the end.
    """

    def __init__(self, eval_period: int = 0) -> None:
        self._eval_period = eval_period
        self._signal: int | None = None
        self._before: dict[int, Any] = {}

    def before_train(self):
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._signal = number
        self._restore()
        logging.getLogger(__name__).warning(
            "%s: finishing the iteration and saving; a second signal ends the training at once",
            signal.Signals(number).name,
        )

    def after_step(self):
        if not any(comm.all_gather(self._signal is not None)):
            return
        iteration = self.trainer.iter
        if iteration + 1 == self.trainer.max_iter:
            return
        name = f"model_{iteration:07d}"
        self.trainer.checkpointer.save(name, iteration=iteration)
        # The main process writes. Where others end before it, their launcher stops it on the way.
        comm.synchronize()
        if self._eval_period and (iteration + 1) % self._eval_period == 0:
            return  # the next iteration ends the training
        logging.getLogger(__name__).warning(
            "Ended after iteration %d; the checkpoint is %s/%s.pth: go on with --resume",
            iteration,
            self.trainer.checkpointer.save_dir,
            name,
        )
        raise SystemExit(PREEMPTED)

    def after_train(self):
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
