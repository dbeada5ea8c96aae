"""Hooks and writers of a training: the use of concepts and tokens, the best model, and metrics."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn

from ..checkpoints.checkpointer import BEST, read_checkpoint
from ..modeling.reasoning import SemanticGlobalReasoning
from ..modeling.supervision import ConceptCriterion, ConceptLosses
from ..modeling.supervision.losses import pairwise_cosine
from ..visualization.metric_names import higher_is_better

_PERIOD = 20  # iterations, as between two lines of Detectron2's log


class ConceptMonitor(HookBase):
    """Log how many of the K concepts are in use, and how alike the refined tokens are.

    * ``sgr/active_concepts``: share of the regions that pass 0.5 somewhere in their image.
    * ``sgr/concepts_matched_per_epoch``, once per epoch: share of the concepts that were matched
      at least once in it. The others are not supervised, but the token metrics count them. Look
      here first if S_C stays high.
    * ``sgr/token_similarity``, every 20 iterations: mean cosine between the tokens of an image
      behind the transformer or graph, in the main process. At 1 they are all the same, and there is
      no reasoning: look here first if SGR brings nothing. It costs a pass of the transformer or
      graph. Compiled modules (MODEL.COMPILE) do not log it.

    Concepts of several reasoning modules count as concepts of one.

    Args:
        iterations_per_epoch: iterations between two logs of the second number.
    """

    def __init__(self, iterations_per_epoch: int):
        self.iterations_per_epoch = max(iterations_per_epoch, 1)
        self._matched: list[np.ndarray] = []  # of each reasoning module, (K,) bool
        self._active: list[torch.Tensor] = []
        self._similarities: list[torch.Tensor] = []

    def before_train(self):
        modules = list(self.trainer.model.modules())
        self._handles = [
            module.register_forward_hook(self._watch)
            for module in modules
            if isinstance(module, ConceptCriterion)
        ]
        if not self.trainer.cfg.MODEL.COMPILE:
            self._handles += [
                module.mixer.register_forward_hook(self._compare)
                for module in modules
                if isinstance(module, SemanticGlobalReasoning)
            ]

    def _watch(self, _criterion, _inputs, output: ConceptLosses):
        matched, module = np.asarray(output.matched.any(axis=0)), len(self._active)
        if module == len(self._matched):
            self._matched.append(matched)
        else:
            self._matched[module] = self._matched[module] | matched
        self._active.append(output.active.to("cpu", non_blocking=True))

    @torch.no_grad()
    def _compare(self, mixer: nn.Module, inputs: tuple[torch.Tensor], _refined: torch.Tensor):
        # Where it does not train, this is the pass below, or an evaluation between two steps.
        step = self.trainer.iter + 1
        if not mixer.training or (step % _PERIOD and step != self.trainer.max_iter):
            return
        mixer.eval()  # with dropout, equal tokens differ
        try:
            refined = mixer(*inputs).float()
        finally:
            mixer.train()
        batch, count, channels = refined.shape
        ones = refined.new_ones
        with torch.autocast(refined.device.type, enabled=False):
            cosines = pairwise_cosine(refined, ones(batch, channels), ones(batch, count, 1))
        self._similarities.append(cosines.mean().to("cpu", non_blocking=True))

    def after_step(self):
        if self._similarities:
            similarity = np.mean([each.item() for each in self._similarities])
            self.trainer.storage.put_scalar(
                "sgr/token_similarity", similarity, smoothing_hint=False
            )
            self._similarities.clear()
        if self._active:
            # The trainer has read the losses since, which were queued later than these copies.
            active = np.mean([share.item() for share in self._active])
            self.trainer.storage.put_scalar("sgr/active_concepts", active)
            self._active.clear()
        step = self.trainer.iter + 1
        if step % self.iterations_per_epoch and step != self.trainer.max_iter:
            return
        gathered = [masks for masks in comm.gather(self._matched) if masks]
        if gathered:
            matched = [np.logical_or.reduce(masks) for masks in zip(*gathered)]
            share = np.concatenate(matched).mean()
            self.trainer.storage.put_scalar(
                "sgr/concepts_matched_per_epoch", share, smoothing_hint=False
            )
        self._matched = []

    def after_train(self):
        for handle in self._handles:
            handle.remove()


class BestCheckpoint(HookBase):
    """Save ``model_best.pth`` after each evaluation that is better than all before.

    It comes after the hook that evaluates. Unlike Detectron2's ``BestCheckpointer``, a resumed
    training compares with the value in the file, and the file is not one to go on from.

    Args:
        period: iterations between two evaluations.
        metric: name of the metric; :func:`higher_is_better` must know it.
    """

    def __init__(self, period: int, metric: str):
        self.period, self.metric = period, metric
        self.best: float | None = None

    def before_train(self):
        # Not from the checkpoint: it is written before the evaluation of its iteration.
        file = os.path.join(self.trainer.checkpointer.save_dir, f"{BEST}.pth")
        if self.trainer.start_iter > 0 and comm.is_main_process() and os.path.isfile(file):
            kept = read_checkpoint(file).get("best", {})
            if kept.get("metric") == self.metric:  # values of another one say nothing
                self.best = kept["value"]

    def after_step(self):
        step = self.trainer.iter + 1
        if step % self.period == 0 and step != self.trainer.max_iter:
            self._compare(step)

    def after_train(self):
        # As Detectron2's EvalHook: not after an error.
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._compare(self.trainer.max_iter)

    def _compare(self, step: int) -> None:
        results = flatten_results_dict(self.trainer._last_eval_results)
        if not results:  # they are in the main process
            return
        logger, value = logging.getLogger(__name__), float(results.get(self.metric, math.nan))
        if not math.isfinite(value):
            names = ", ".join(name for name, each in results.items() if math.isfinite(each))
            logger.warning(
                "TEST.BEST_METRIC is %r, which this evaluation does not have, so it saves no "
                "model_best.pth. It has %s",
                *(self.metric, names or "no metric"),
            )
            return
        sign = 1 if higher_is_better(self.metric) else -1
        if self.best is None or sign * value > sign * self.best:
            self.best = value
            best = {"metric": self.metric, "value": value}
            self.trainer.checkpointer.save_best(iteration=step - 1, best=best)
            logger.info("The best %s so far is %.4f: saved as model_best.pth", self.metric, value)


class ForgivingWriter(EventWriter):
    """Writes metrics with another writer, and only warns where they cannot be written.

    A full disk then shows as the error of a checkpoint, which says how to go on, or not at all.
    """

    def __init__(self, writer: EventWriter):
        self._writer = writer
        self._has_warned = False

    def write(self):
        self._try(self._writer.write)

    def close(self):
        self._try(self._writer.close)

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except OSError as error:
            if not self._has_warned:
                logging.getLogger(__name__).warning(
                    "%s cannot write metrics: %s; the training goes on",
                    *(type(self._writer).__name__, error),
                )
            self._has_warned = True
