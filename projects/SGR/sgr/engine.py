"""From the command line to a trained and evaluated model."""

from __future__ import annotations

import argparse
import logging
import os
import time
import weakref
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import build_detection_train_loader, get_detection_dataset_dicts
from detectron2.engine import (
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    create_ddp_model,
    default_argument_parser,
)
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from .checkpoint import SafeCheckpointer
from .config import add_sgr_config
from .data.mappers import SemanticConceptMapper, build_mapper
from .evaluation import build_evaluator
from .modeling.supervision import ConceptCriterion, ConceptLosses
from .solver import build_lr_scheduler, build_optimizer

__all__ = ["Trainer", "argument_parser", "evaluate", "load_config", "setup_config"]


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's arguments, and the two that let a file of a stranger run code."""
    parser = default_argument_parser()
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read checkpoints that need unpickling, such as Detectron2's R-101.pkl; they can run "
        "any code, so trust their source",
    )
    parser.add_argument(
        "--allow-unsafe-yaml",
        action="store_true",
        help="read configs with !!python tags; they can run any code, so trust their source",
    )
    return parser


def load_config(
    config_file: str, opts: list[str] | None = None, *, allow_unsafe: bool = False
) -> CfgNode:
    """Detectron2's defaults, ours, a file's, and the command line's.

    Args:
        config_file: YAML; "" for the defaults.
        opts: key, value, key, value...
        allow_unsafe: accept ``!!python`` tags.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file has tags that are not allowed.
        KeyError: for a key that does not exist.
    """
    cfg = get_cfg()
    add_sgr_config(cfg)
    if config_file:
        if not os.path.isfile(config_file):
            raise FileNotFoundError(f"there is no config file {config_file!r}")
        try:
            cfg.merge_from_file(config_file, allow_unsafe=allow_unsafe)
        except yaml.constructor.ConstructorError as error:
            raise ValueError(
                f"{config_file!r} or a base of it has a tag that can run code ({error.problem}); "
                "if you trust where it comes from, add --allow-unsafe-yaml"
            ) from error
    cfg.merge_from_list(opts or [])
    return cfg


def setup_config(args: argparse.Namespace) -> CfgNode:
    """The frozen config of a run, fitted to the machine.

    Without a GPU, MODEL.DEVICE becomes "cpu". Synchronised batch norms, which only several GPUs
    can have, become ordinary ones elsewhere. Both are logged.
    """
    cfg = load_config(args.config_file, args.opts, allow_unsafe=args.allow_unsafe_yaml)
    logger = setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="sgr")
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("There is no GPU: running in one process on the CPU")
        cfg.MODEL.DEVICE = "cpu"
    if comm.get_world_size() == 1 or cfg.MODEL.DEVICE == "cpu":
        for node in (cfg.MODEL.RESNETS, cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.FPN):
            if node.NORM == "SyncBN":
                logger.info("One process: SyncBN becomes BN")
                node.NORM = "BN"
    cfg.freeze()
    return cfg


class AutocastTrainer(SimpleTrainer):
    """Mixed precision: bfloat16 where the device has it, else float16 with scaled losses."""

    def __init__(self, model, data_loader, optimizer):
        super().__init__(model, data_loader, optimizer)
        self.device_type = next(model.parameters()).device.type
        bfloat16 = self.device_type == "cpu" or torch.cuda.is_bf16_supported()
        self.dtype = torch.bfloat16 if bfloat16 else torch.float16
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=not bfloat16)
        logging.getLogger(__name__).info("Mixed precision in %s", self.dtype)

    def run_step(self):
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast(self.device_type, dtype=self.dtype):
            losses = self.model(data)
        self.optimizer.zero_grad()
        self.grad_scaler.scale(sum(losses.values())).backward()
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


class ConceptCoverage(HookBase):
    """Log once per epoch the share of concepts that were matched at least once in it.

    Concepts that no image ever matches are never supervised, yet the token metrics count them:
    the first thing to look at where S_C stays high.

    Args:
        iterations_per_epoch: how often to log, as ``sgr/concepts_matched_per_epoch``.
    """

    def __init__(self, iterations_per_epoch: int):
        self.iterations_per_epoch = max(iterations_per_epoch, 1)
        self.seen: np.ndarray | None = None

    def before_train(self):
        self._handles = [
            module.register_forward_hook(self._see)
            for module in self.trainer.model.modules()
            if isinstance(module, ConceptCriterion)
        ]

    def _see(self, _criterion, _inputs, output: ConceptLosses):
        matched = output.matched.any(axis=0)
        self.seen = matched if self.seen is None else self.seen | matched

    def after_step(self):
        last = self.trainer.iter + 1 == self.trainer.max_iter
        if not last and (self.trainer.iter + 1) % self.iterations_per_epoch:
            return
        seen = [each for each in comm.gather(self.seen) if each is not None]
        if seen:
            share = np.logical_or.reduce(seen).mean()
            self.trainer.storage.put_scalar(
                "sgr/concepts_matched_per_epoch", share, smoothing_hint=False
            )
        self.seen = None

    def after_train(self):
        for handle in self._handles:
            handle.remove()


class Trainer(DefaultTrainer):
    """Detectron2's trainer with this project's data, optimisers, schedules and evaluators.

    Args:
        cfg: a frozen config, as :func:`setup_config` makes it.
        allow_pickle: see :class:`~sgr.checkpoint.SafeCheckpointer`.
    """

    def __init__(self, cfg: CfgNode, *, allow_pickle: bool = False):
        # Past DefaultTrainer's own, which leaves no choice of inner trainer and checkpointer.
        super(DefaultTrainer, self).__init__()
        self.cfg = cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        model = create_ddp_model(model, broadcast_buffers=False)
        inner = AutocastTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = inner(model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SafeCheckpointer(
            model, cfg.OUTPUT_DIR, allow_pickle=allow_pickle, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        epoch = round(loader.num_images / cfg.SOLVER.IMS_PER_BATCH)
        # Before the writer, so that what it logs is written in the same iteration.
        self.register_hooks([ConceptCoverage(epoch), *self.build_hooks()])

    # Detectron2 v0.6 forgets the state of the inner trainer, and with it the optimizer's moments;
    # later versions keep it under this key.
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if "_trainer" in state_dict:
            self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        """The loader of DATASETS.TRAIN with the mapper INPUT.DATASET_MAPPER_NAME.

        Its attribute ``num_images`` is the number of images in an epoch.
        """
        mapper = build_mapper(cfg)
        # An image without instances has labels all the same.
        semantic = isinstance(mapper, SemanticConceptMapper)
        filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS and not semantic
        dataset = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=filter_empty)
        loader = build_detection_train_loader(cfg, mapper=mapper, dataset=dataset)
        loader.num_images = len(dataset)
        return loader

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name, output_folder)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer):
        return build_lr_scheduler(cfg, optimizer)


def evaluate(
    cfg: CfgNode, *, allow_pickle: bool = False, resume: bool = False
) -> OrderedDict[str, Any]:
    """Evaluate MODEL.WEIGHTS, or with ``resume`` the last checkpoint of OUTPUT_DIR."""
    model = Trainer.build_model(cfg)
    checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR, allow_pickle=allow_pickle)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    return Trainer.test(cfg, model)
