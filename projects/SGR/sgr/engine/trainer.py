"""From the command line to a trained and evaluated model."""

from __future__ import annotations

import argparse
import logging
import os
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import (
    DatasetCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.engine import (
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    hooks,
)
from detectron2.engine import launch as detectron2_launch
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..checkpoints.checkpointer import SafeCheckpointer
from ..config import add_sgr_config
from ..data.datasets.descriptions import add_described_datasets
from ..data.datasets.folders import is_of_folders
from ..data.mappers import PanopticConceptMapper, SemanticConceptMapper, build_mapper
from ..data.truth.coco_file import explain_coco_errors
from ..evaluation import (
    MultiScaleSemanticSegmentor,
    SlidingWindowSegmentor,
    build_evaluator,
    build_multi_scale_model,
)
from ..evaluation.build import check_center_crop
from ..evaluation.json_file import write_json
from ..modeling.layers.checks import check_num_classes
from ..modeling.reasoning import ReasoningModule
from ..modeling.recording import has_regions
from ..modeling.supervision import ConceptCriterion, ConceptLosses
from ..modeling.supervision.meta_arch import WAYS_TO_REGIONS
from ..testing.multi_scale import describe_views
from ..testing.semantic_model import check_test_datasets, semantic_config
from .solver import build_lr_scheduler, build_optimizer

__all__ = [
    "Trainer",
    "argument_parser",
    "evaluate",
    "launch",
    "load_config",
    "setup_config",
    "train_or_evaluate",
]


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
    config_file: str,
    opts: list[str] | None = None,
    *,
    allow_unsafe: bool = False,
    add_configs: Iterable[Callable[[CfgNode], None]] = (),
) -> CfgNode:
    """Detectron2's defaults, ours, a file's, and the command line's.

    The datasets that DATASETS.FILES describes are registered, and MODEL.SEM_SEG_HEAD.NUM_CLASSES 0
    becomes the number of classes of the data: see :func:`add_described_datasets`.

    Args:
        config_file: YAML; "" for the defaults.
        opts: key, value, key, value...
        allow_unsafe: accept ``!!python`` tags.
        add_configs: functions of other projects that add their keys to a config, in their order;
            where a key is ours too, their default counts.

    Raises:
        FileNotFoundError: if there is no such file, or none of those in DATASETS.FILES.
        ValueError: if the file has tags that are not allowed, or a flag stands among ``opts``; or
            see :func:`add_described_datasets`.
        KeyError: for a key that does not exist.
    """
    cfg = get_cfg()
    for add_config in add_configs:
        add_config(cfg)
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
    opts = opts or []
    for key in opts[::2]:
        if key.startswith("--"):
            raise ValueError(f"{key} stands behind KEY VALUE options, which must come last")
    cfg.merge_from_list(opts)
    add_described_datasets(cfg)
    return cfg


def setup_config(
    args: argparse.Namespace,
    *,
    add_configs: Iterable[Callable[[CfgNode], None]] = (),
    log_file: bool = True,
) -> CfgNode:
    """The frozen config of a run, fitted to the machine.

    Without a GPU, MODEL.DEVICE becomes "cpu". Synchronised batch norms, which only several GPUs
    can have, become ordinary ones elsewhere. Both are logged.

    Args:
        args: of :func:`argument_parser`.
        add_configs: see :func:`load_config`.
        log_file: whether OUTPUT_DIR gets a log.txt.

    Raises:
        ValueError: if the number of classes is left to the data, and there are none; see
            :func:`load_config` for others.
    """
    cfg = load_config(
        args.config_file, args.opts, allow_unsafe=args.allow_unsafe_yaml, add_configs=add_configs
    )
    check_num_classes(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)  # before there is an OUTPUT_DIR
    folder = cfg.OUTPUT_DIR if log_file else None
    logger = setup_logger(folder, distributed_rank=comm.get_rank(), name="sgr")
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("There is no GPU: running in one process on the CPU")
        cfg.MODEL.DEVICE = "cpu"
    if comm.get_world_size() == 1 or cfg.MODEL.DEVICE == "cpu":
        model = cfg.MODEL
        for node in (
            model.RESNETS,
            model.FPN,
            model.SEM_SEG_HEAD,
            model.ROI_BOX_HEAD,
            model.ROI_MASK_HEAD,
        ):
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
        self.dtype = _half_precision(self.device_type)
        self.grad_scaler = torch.amp.GradScaler(
            self.device_type, enabled=self.dtype == torch.float16
        )
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
        # None where the checkpoint is of a training in float32 or bfloat16.
        if state_dict.get("grad_scaler") and self.grad_scaler.is_enabled():
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _half_precision(device_type: str) -> torch.dtype:
    # PyTorch would emulate bfloat16 on older GPUs, slowly; they are fast in float16.
    if device_type == "cuda" and torch.version.hip is None:
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    return torch.bfloat16


class ConceptMonitor(HookBase):
    """Log how many of the K concepts are in use.

    * ``sgr/active_concepts``: share of the regions that pass 0.5 somewhere in their image.
    * ``sgr/concepts_matched_per_epoch``, once per epoch: share of the concepts that were matched
      at least once in it. The others are never supervised, yet the token metrics count them: the
      first thing to look at where S_C stays high.

    Several reasoning modules are counted together.

    Args:
        iterations_per_epoch: iterations between two logs of the second.
    """

    def __init__(self, iterations_per_epoch: int):
        self.iterations_per_epoch = max(iterations_per_epoch, 1)
        self._matched: np.ndarray | None = None
        self._active: list[torch.Tensor] = []

    def before_train(self):
        self._handles = [
            module.register_forward_hook(self._watch)
            for module in self.trainer.model.modules()
            if isinstance(module, ConceptCriterion)
        ]

    def _watch(self, _criterion, _inputs, output: ConceptLosses):
        matched = output.matched.any(axis=0)
        self._matched = matched if self._matched is None else self._matched | matched
        self._active.append(output.active)

    def after_step(self):
        if self._active:
            # The trainer has read the losses by now, so the device is done with these too.
            active = np.mean([each.item() for each in self._active])
            self.trainer.storage.put_scalar("sgr/active_concepts", active)
            self._active.clear()
        step = self.trainer.iter + 1
        if step % self.iterations_per_epoch and step != self.trainer.max_iter:
            return
        matched = [each for each in comm.gather(self._matched) if each is not None]
        if matched:
            share = np.logical_or.reduce(matched).mean()
            self.trainer.storage.put_scalar(
                "sgr/concepts_matched_per_epoch", share, smoothing_hint=False
            )
        self._matched = None

    def after_train(self):
        for handle in self._handles:
            handle.remove()


class Trainer(DefaultTrainer):
    """Detectron2's trainer with this project's data, optimisers, schedules and evaluators.

    Args:
        cfg: a frozen config, as :func:`setup_config` makes it.
        allow_pickle: see :class:`~sgr.checkpoints.checkpointer.SafeCheckpointer`.

    Raises:
        ValueError: see :meth:`build_model` and :meth:`build_train_loader`; if TEST.AUG or
            TEST.SLIDING_WINDOW is enabled and no dataset can serve to measure what they give; or if
            with TEST.CENTER_CROP_SIZE a result is to be measured that needs whole images.
        OSError, ValueError: a dataset of one's own (docs/your_data.md) in DATASETS.TEST cannot be
            loaded.
    """

    def __init__(self, cfg: CfgNode, *, allow_pickle: bool = False):
        # Past DefaultTrainer's own, which leaves no choice of inner trainer and checkpointer.
        super(DefaultTrainer, self).__init__()
        self.cfg = cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        _check_tests(cfg, model)
        if not cfg.DATASETS.TEST:
            logging.getLogger(__name__).warning(
                "DATASETS.TEST names no dataset: nothing will be evaluated"
            )
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
        self.register_hooks([ConceptMonitor(epoch), *self.build_hooks()])

    # Detectron2 v0.6 forgets the state of the inner trainer, and with it the optimizer's moments;
    # later versions keep it under this key.
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if "_trainer" in state_dict:
            self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        """Detectron2's, with a look at what would only show much later.

        Raises:
            ValueError: if the config asks for concept losses, token metrics, multi-scale testing
                or sliding windows of a model that knows none.
        """
        model = super().build_model(cfg)
        supervised = cfg.MODEL.SGR.SUPERVISION.WEIGHT > 0 and any(
            isinstance(module, ReasoningModule) for module in model.modules()
        )
        if (supervised or cfg.TEST.TOKENS.ENABLED) and not hasattr(model, "concept_criterion"):
            name = cfg.MODEL.META_ARCHITECTURE
            raise ValueError(
                f"{name} neither supervises concept regions nor puts them out; set "
                f"MODEL.META_ARCHITECTURE to Concept{name} (see sgr.supervise_concepts), or "
                "MODEL.SGR.SUPERVISION.WEIGHT to 0.0 and TEST.TOKENS.ENABLED to False"
            )
        if cfg.TEST.TOKENS.ENABLED and not has_regions(model):
            raise ValueError(
                f"there are no tokens to measure in {cfg.MODEL.META_ARCHITECTURE}: "
                f"{WAYS_TO_REGIONS}, or set TEST.TOKENS.ENABLED to False"
            )
        if cfg.TEST.AUG.ENABLED:
            build_multi_scale_model(cfg, model)
        if cfg.TEST.SLIDING_WINDOW.ENABLED:
            SlidingWindowSegmentor(cfg, model)
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        """The loader of DATASETS.TRAIN with the mapper INPUT.DATASET_MAPPER_NAME.

        Its attribute ``num_images`` is the number of images in an epoch.

        Raises:
            ValueError: if there is no dataset, no image is left of instance data, or annotations
                have faults; see :func:`build_mapper` for others.
        """
        if not cfg.DATASETS.TRAIN:
            raise ValueError("DATASETS.TRAIN names no dataset to train on")
        # The data first: some fill the metadata, which mappers read, as they are loaded.
        with explain_coco_errors(cfg.DATASETS.TRAIN):
            dataset = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
        mapper = build_mapper(cfg)
        # An image without instances has labels all the same.
        labelled = isinstance(mapper, (SemanticConceptMapper, PanopticConceptMapper))
        if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS and not labelled:
            dataset = _without_empty(dataset, cfg.DATASETS.TRAIN)
        if hasattr(mapper, "check_records") and isinstance(dataset, list):
            mapper.check_records(dataset)
        loader = build_detection_train_loader(cfg, mapper=mapper, dataset=dataset)
        loader.num_images = len(dataset)
        return loader

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        """Detectron2's loader of a dataset for testing, whose errors name the file or record.

        With TEST.CENTER_CROP_SIZE of a square of each image, see :func:`build_mapper`.
        """
        mapper = build_mapper(cfg, is_train=False)
        with explain_coco_errors([dataset_name]):
            return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name, output_folder)

    def build_hooks(self) -> list[HookBase | None]:
        """Detectron2's; with TEST.AUG, a multi-scale test follows the last evaluation."""
        built = super().build_hooks()
        if self.cfg.TEST.AUG.ENABLED:
            # Before the writer, which writes the results of both.
            evaluation = next(each for each in built if isinstance(each, hooks.EvalHook))
            built.insert(built.index(evaluation) + 1, hooks.EvalHook(0, self._test_at_the_end))
        return built

    def _test_at_the_end(self) -> dict[str, Any]:
        results = self.test_with_TTA(self.cfg, self.model)
        self._last_eval_results = OrderedDict({**(self._last_eval_results or {}), **results})
        return results

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: torch.nn.Module,
        evaluators: list[DatasetEvaluator] | None = None,
    ) -> OrderedDict[str, Any]:
        """Detectron2's; by windows, and without token metrics, where TEST.SLIDING_WINDOW is on.

        The results are also in OUTPUT_DIR/inference/results.json, with null for nan; those of the
        last test, where a training makes several.

        Args:
            evaluators: one for each of DATASETS.TEST; None stands for those of
                :meth:`build_evaluator`. With windows, of nothing but ``sem_seg``: that is all
                there is in the outputs.

        Raises:
            ValueError: if with TEST.CENTER_CROP_SIZE a result is put out that needs whole images.
        """
        check_center_crop(cfg, cfg.DATASETS.TEST)
        if cfg.TEST.SLIDING_WINDOW.ENABLED:
            model = SlidingWindowSegmentor(cfg, model)
            results = cls._test_several_views(
                cfg, model, evaluators, how="Sliding windows", folder="inference"
            )
        else:
            results = super().test(cfg, model, evaluators)
        _write_results(cfg, "inference", results)
        return results

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: torch.nn.Module) -> OrderedDict[str, Any]:
        """Evaluate at the scales of TEST.AUG, see :func:`build_multi_scale_model`.

        The scales are made of the images of the files, or with TEST.CENTER_CROP_SIZE of the squares
        that the mapper makes of them, to which they are relative. Token metrics are not measured,
        and of models for panoptic segmentation the semantic results only.

        Returns:
            Results as of :meth:`test`, with "_TTA" after each key of the outermost dict, which
            are datasets where DATASETS.TEST has several, else tasks. They are also in
            OUTPUT_DIR/inference_TTA/results.json.

        Raises:
            ValueError: see :func:`build_multi_scale_model`; or no dataset has label
                maps or segments of the model's classes.
        """
        cfg = cfg.clone()
        cfg.defrost()
        if cfg.TEST.CENTER_CROP_SIZE:
            cfg.INPUT.MIN_SIZE_TEST = 0  # scales are relative to the square, as it comes
        model = build_multi_scale_model(cfg, model)
        cfg.INPUT.MIN_SIZE_TEST = 0  # no resize before the scales are made
        results = cls._test_several_views(
            cfg, model, None, how="Multi-scale testing", folder="inference_TTA"
        )
        results = OrderedDict((f"{key}_TTA", value) for key, value in results.items())
        _write_results(cfg, "inference_TTA", results)
        return results

    @classmethod
    def _test_several_views(
        cls,
        cfg: CfgNode,
        model: torch.nn.Module,
        evaluators: list[DatasetEvaluator] | None,
        *,
        how: str,
        folder: str,
    ) -> OrderedDict[str, Any]:
        """Detectron2's ``test`` of what :func:`semantic_config` leaves to measure.

        Given ``evaluators`` are those of all of DATASETS.TEST, and must need ``sem_seg`` only.
        """
        logging.getLogger(__name__).info(f"{how}: {describe_views(model)}")
        several = len(cfg.DATASETS.TEST) > 1
        is_semantic = isinstance(model, (MultiScaleSemanticSegmentor, SlidingWindowSegmentor))
        all_datasets = evaluators is not None or not is_semantic
        cfg = semantic_config(cfg, how, all_datasets=all_datasets)
        names = cfg.DATASETS.TEST
        if evaluators is None:
            with explain_coco_errors(names):
                for name in names:  # some fill the metadata, which evaluators read, when loaded
                    DatasetCatalog.get(name)
            folder = os.path.join(cfg.OUTPUT_DIR, folder)
            evaluators = [
                cls.build_evaluator(cfg, name, os.path.join(folder, name) if several else folder)
                for name in names
            ]
        results = super().test(cfg, model, evaluators)
        # Detectron2's are by dataset where there are several.
        return OrderedDict({names[0]: results}) if several and len(names) == 1 else results

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer):
        return build_lr_scheduler(cfg, optimizer)


def _write_results(cfg: CfgNode, folder: str, results: dict[str, Any]) -> None:
    if comm.is_main_process() and cfg.DATASETS.TEST:  # the other processes have none
        path = os.path.join(cfg.OUTPUT_DIR, folder, "results.json")
        write_json(path, results)
        logging.getLogger(__name__).info(f"All results are in {path}")


def _check_tests(cfg: CfgNode, model: torch.nn.Module) -> None:
    """Raise what would only show after the training: datasets that cannot serve for a test.

    Those of folders are loaded, which lists their files.
    """
    for name in filter(is_of_folders, cfg.DATASETS.TEST):
        with explain_coco_errors([name]):
            DatasetCatalog.get(name)
    check_center_crop(cfg, cfg.DATASETS.TEST)
    if cfg.TEST.SLIDING_WINDOW.ENABLED:
        check_test_datasets(cfg, "Sliding windows")
    elif cfg.TEST.AUG.ENABLED:
        if isinstance(build_multi_scale_model(cfg, model), MultiScaleSemanticSegmentor):
            check_test_datasets(cfg, "Multi-scale testing")


def _without_empty(dataset: Any, names: Iterable[str]) -> Any:
    """Records without those that have no instance but crowds; other data as they are."""
    # Detectron2 does not filter datasets that are no lists of records either.
    if not isinstance(dataset, list) or "annotations" not in dataset[0]:
        return dataset
    dataset = filter_images_with_only_crowd_annotations(dataset)
    if not dataset:
        raise ValueError(
            f"no image of {', '.join(names)} has an instance that is not a crowd; to train on "
            "images without any, set DATALOADER.FILTER_EMPTY_ANNOTATIONS to False"
        )
    return dataset


def evaluate(
    cfg: CfgNode, *, allow_pickle: bool = False, resume: bool = False
) -> OrderedDict[str, Any]:
    """Evaluate MODEL.WEIGHTS, or with ``resume`` the last checkpoint of OUTPUT_DIR.

    Where TEST.AUG is enabled, a multi-scale test follows: see :meth:`Trainer.test_with_TTA`.

    Raises:
        ValueError: if there is neither, or no dataset in DATASETS.TEST; if TEST.AUG or
            TEST.SLIDING_WINDOW is enabled and no dataset can serve to measure what they give; or if
            with TEST.CENTER_CROP_SIZE a result is to be measured that needs whole images.
        OSError, ValueError: a dataset of one's own (docs/your_data.md) cannot be loaded.
    """
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST names no dataset to evaluate on")
    model = Trainer.build_model(cfg)
    _check_tests(cfg, model)
    checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR, allow_pickle=allow_pickle)
    if not cfg.MODEL.WEIGHTS and not (resume and checkpointer.has_checkpoint()):
        raise ValueError(
            "there are no weights to evaluate: add MODEL.WEIGHTS FILE, or --resume for the last "
            f"checkpoint in {cfg.OUTPUT_DIR}"
        )
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_TTA(cfg, model))
    return results


def train_or_evaluate(cfg: CfgNode, args: argparse.Namespace) -> OrderedDict[str, Any]:
    """What the command line asks for, in this process.

    Args:
        cfg: of :func:`setup_config`.
        args: of :func:`argument_parser`.

    Returns:
        The results of the evaluation, or of the last one of the training, by task; in the main
        process only.
    """
    default_setup(cfg, args)
    if args.eval_only:
        results = evaluate(cfg, allow_pickle=args.allow_pickle, resume=args.resume)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg, allow_pickle=args.allow_pickle)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    # Detectron2's train() returns them only where the config has TEST.EXPECTED_RESULTS.
    return trainer._last_eval_results


def launch(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Run ``main(args)`` in a process for each of ``--num-gpus``; in this one without a GPU."""
    if not torch.cuda.is_available():
        args.num_gpus = 0  # setup_config says so
    detectron2_launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
