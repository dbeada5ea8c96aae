"""Training and evaluation of a model."""

from __future__ import annotations

import argparse
import logging
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
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
    default_setup,
)
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.utils import comm

from ..checkpoints.checkpointer import SafeCheckpointer
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
from ..modeling.reasoning import ReasoningModule
from ..modeling.recording import has_regions
from ..modeling.supervision.meta_arch import WAYS_TO_REGIONS
from ..testing.multi_scale import describe_views
from ..testing.semantic_model import check_test_datasets, semantic_config
from .amp import AutocastTrainer
from .hooks import ConceptMonitor
from .solver import build_lr_scheduler, build_optimizer

__all__ = ["Trainer", "evaluate", "train_or_evaluate"]


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
            evaluation = next(each for each in built if isinstance(each, EvalHook))
            built.insert(built.index(evaluation) + 1, EvalHook(0, self._test_at_the_end))
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
