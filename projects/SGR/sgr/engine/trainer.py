"""Training and evaluation of a model."""

from __future__ import annotations

import argparse
import logging
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    MetadataCatalog,
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
from detectron2.engine.hooks import EvalHook, LRScheduler
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from ..checkpoints.checkpointer import SafeCheckpointer
from ..checkpoints.trained import TrainedCheckpointer
from ..data.loading import keep_datasets, load_dataset
from ..data.mappers import build_mapper
from ..data.proposals import add_proposals, proposal_files
from ..data.stream import TrainingStream, build_training_stream
from ..data.threads import outlive_signals
from ..data.truth.annotations import check_outlines
from ..data.truth.coco_file import explain_coco_errors
from ..data.truth.records import check_sizes
from ..evaluation import build_evaluator
from ..modeling.reasoning import ReasoningModule
from ..modeling.recording import check_has_regions
from ..modeling.supervision import ConceptSupervision
from ..modeling.supervision.meta_arch import Supervised
from ..testing import PlannedTest, plan_multi_scale_test, plan_test, plan_tests
from .amp import AutocastTrainer
from .data_check import (
    check_class_names,
    check_measured,
    check_test_files,
    check_training_data,
    class_names,
)
from .hooks import BestCheckpoint, ConceptMonitor, ForgivingWriter
from .lock import lock_folder
from .pictures import TrainingPictures, put_evaluation_pictures
from .preemption import PreemptionHook
from .resume import apply_solver, check_optimizer_state, config_changes, report_changes
from .solver import build_lr_scheduler, build_optimizer
from .speed import arrange_memory, compile_for_training, uncompiled


class Trainer(DefaultTrainer):
    """Detectron2's trainer with this project's data, optimisers, schedules and evaluators.

    Args:
        cfg: a frozen config, as :func:`setup_config` makes it.
        allow_pickle: see :class:`~sgr.checkpoints.checkpointer.SafeCheckpointer`.

    Attributes:
        tests: the tests that the config asks for, planned before the training begins; see
            :func:`~sgr.testing.plan_tests`.

    Raises:
        ValueError: see :meth:`build_model`, :meth:`build_train_loader`,
            :func:`~sgr.engine.speed.compile_for_training` and :func:`~sgr.testing.plan_tests`.
        KeyError, OSError, ValueError: if a dataset is unknown or cannot be loaded.
    """

    def __init__(self, cfg: CfgNode, *, allow_pickle: bool = False):
        # DefaultTrainer.__init__ is skipped: it fixes the inner trainer and the checkpointer.
        super(DefaultTrainer, self).__init__()
        self.cfg = cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        self.tests = plan_tests(cfg, model, self.build_evaluator)
        if not cfg.DATASETS.TEST:
            logging.getLogger(__name__).warning(
                "DATASETS.TEST names no dataset: nothing will be evaluated"
            )
        compile_for_training(model, cfg)
        optimizer = self.build_optimizer(cfg, model)
        with keep_datasets(self.tests[0].datasets):  # the checks look at the test sets again
            loader = self.build_train_loader(cfg)
            check_class_names(cfg)
        if comm.is_main_process():
            check_test_files(cfg, self.tests[0].datasets)
        on_cpu = {"device_ids": None} if cfg.MODEL.DEVICE == "cpu" else {}
        model = create_ddp_model(model, broadcast_buffers=False, **on_cpu)
        inner = AutocastTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = inner(model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SafeCheckpointer(
            model, cfg.OUTPUT_DIR, allow_pickle=allow_pickle, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self._replaces = False  # the checkpoints in OUTPUT_DIR
        self._last_eval_results: OrderedDict[str, Any] = OrderedDict()
        self.max_iter = cfg.SOLVER.MAX_ITER
        # What the config says of these, which a loaded checkpoint must not change.
        self._solver_options = [
            {key: value for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ]
        self._schedule = dict(vars(self.scheduler))
        epoch = round(loader.num_images / cfg.SOLVER.IMS_PER_BATCH)
        # Before the writer, so that what it logs is written in the same iteration.
        pictures = []
        if cfg.VIS_PERIOD and comm.is_main_process():  # only there a writer takes them
            pictures = [TrainingPictures(cfg.VIS_PERIOD, cfg.INPUT.FORMAT)]
        self.register_hooks([ConceptMonitor(epoch), *pictures, *self.build_hooks()])

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next iteration depends on; see :mod:`sgr.data.stream` for the data.

        Detectron2 v0.6 saves neither the inner trainer, which has the optimizer's moments, nor
        random states. Later versions save the inner trainer under the same key.
        """
        state = {
            **super().state_dict(),
            "_trainer": self._trainer.state_dict(),
            "config": self.cfg.dump(),
            "classes": class_names(self.cfg),
        }
        if isinstance(self._trainer.data_loader, TrainingStream):
            state["stream"] = self._trainer.data_loader.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the state of a checkpoint; where the config has changed, the config holds.

        Raises:
            ValueError: if the checkpoint is that of another optimizer, of other parameters or of
                other classes, or has done more iterations than SOLVER.MAX_ITER.
        """
        done = state_dict["iteration"] + 1
        if done > self.max_iter:
            raise ValueError(
                f"the checkpoint to resume from has done {done} iterations, and SOLVER.MAX_ITER is "
                f"{self.max_iter}; set SOLVER.MAX_ITER to more, or evaluate it with --eval-only "
                "--resume"
            )
        with keep_datasets(self.tests[0].datasets):
            check_class_names(self.cfg, state_dict.get("classes"))
        before = state_dict.get("config")
        changes = {} if before is None else config_changes(before, self.cfg)
        report_changes(changes)
        inner = state_dict.get("_trainer")
        if inner is not None:
            check_optimizer_state(self._trainer.optimizer, inner["optimizer"], changes)
        super().load_state_dict(state_dict)
        if inner is not None:
            self._trainer.load_state_dict(inner)
        apply_solver(self._trainer.optimizer, self.scheduler, self._solver_options, self._schedule)
        self._resume_stream(done, state_dict.get("stream"))

    def before_train(self) -> None:
        if self._replaces and comm.is_main_process():
            self.checkpointer.tag_last_checkpoint("")
        super().before_train()

    def run_step(self) -> None:
        """Train for one iteration.

        Raises:
            FloatingPointError: if the loss is infinite or nan.
        """
        try:
            super().run_step()
        except FloatingPointError as error:
            raise FloatingPointError(
                f"the loss is infinite or nan at iteration {self.iter}: training has diverged; "
                "lower SOLVER.BASE_LR or the weights of the losses, and look at the data with "
                f"tools/check_dataset.py. Detectron2 says: {error}"
            ) from error

    def _resume_stream(self, done: int, state: dict[str, Any] | None) -> None:
        stream = self._trainer.data_loader
        logger = logging.getLogger(__name__)
        if not isinstance(stream, TrainingStream):
            logger.warning("The data is no list of records: its order starts anew")
        elif state is None:
            stream.skip(done)
            logger.warning("An older checkpoint, without the order of the images: it is a new one")
        else:
            seed = self.cfg.SEED if self.cfg.SEED >= 0 else state["seed"]
            stream.load_state_dict({**state, "seed": seed})
            batch_size = self.cfg.SOLVER.IMS_PER_BATCH
            if state["batch_size"] != batch_size:
                logger.warning(
                    "SOLVER.IMS_PER_BATCH was %d and is %d: the order of the images goes on, in "
                    "other batches",
                    state["batch_size"],
                    batch_size,
                )

    def resume_or_load(self, resume: bool = True) -> None:
        """Load the last checkpoint of OUTPUT_DIR with ``resume``, else MODEL.WEIGHTS."""
        if comm.is_main_process():
            for draft in Path(self.cfg.OUTPUT_DIR).glob(".*.pth.*.tmp"):
                draft.unlink()  # of a training that was killed while it saved
        found = self.checkpointer.has_checkpoint()
        if found and not resume:
            logging.getLogger(__name__).warning(
                "The checkpoints of this training replace those of an earlier one in %s. --resume "
                "would have gone on with it, and goes on with this one from now on",
                self.cfg.OUTPUT_DIR,
            )
        if resume and not found and any(Path(self.cfg.OUTPUT_DIR).glob("model_*.pth")):
            logging.getLogger(__name__).warning(
                "The checkpoints in %s are of a training that a later one was to replace: this one "
                "starts anew. To go on with one of them, write its name into last_checkpoint",
                self.cfg.OUTPUT_DIR,
            )
        self._replaces = found and not resume
        resume = resume and found
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume:
            self.start_iter = self.iter + 1

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        """Build the model, and check that it can do what the config asks of its tokens.

        Raises:
            ValueError: if the config asks for side criteria, concept losses among them, or for
                token metrics, and the model has no tokens or does not put them out; or if a part
                of the model cannot be built.
        """
        try:
            model = super().build_model(cfg)
        except (AssertionError, AttributeError, LookupError, TypeError, RuntimeError) as error:
            raise ValueError(
                "the config does not make a model; the error is that of the part that cannot be "
                f"built, {type(error).__name__}: {error}"
            ) from error
        supervised = cfg.MODEL.SGR.SUPERVISION.WEIGHT > 0 and any(
            isinstance(module, ReasoningModule) and module.supervised_concepts
            for module in model.modules()
        )
        name = cfg.MODEL.META_ARCHITECTURE
        others = [one for one in cfg.MODEL.SIDE_CRITERIA if one != ConceptSupervision.__name__]
        if others and not isinstance(model, Supervised):
            raise ValueError(
                f"{name} has no side criteria, but MODEL.SIDE_CRITERIA has {', '.join(others)}; "
                f"set MODEL.META_ARCHITECTURE to Concept{name} (see sgr.supervise)"
            )
        if (supervised or cfg.TEST.TOKENS.ENABLED) and not isinstance(model, Supervised):
            raise ValueError(
                f"{name} neither supervises concept regions nor puts them out; set "
                f"MODEL.META_ARCHITECTURE to Concept{name} (see sgr.supervise), or "
                "MODEL.SGR.SUPERVISION.WEIGHT to 0.0 and TEST.TOKENS.ENABLED to False"
            )
        if cfg.TEST.TOKENS.ENABLED:
            check_has_regions(model, "set TEST.TOKENS.ENABLED to False")
        return arrange_memory(model, cfg)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        """Build the loader of DATASETS.TRAIN with the mapper INPUT.DATASET_MAPPER_NAME.

        Its attribute ``num_images`` is the number of images in an epoch.

        Raises:
            ValueError: if DATASETS.TRAIN is empty, no image has an instance, or annotations have
                faults; see also :func:`build_mapper`.
        """
        if not cfg.DATASETS.TRAIN:
            raise ValueError("DATASETS.TRAIN names no dataset to train on")
        # The data first: some datasets fill their metadata, which mappers read, when loaded.
        with explain_coco_errors(cfg.DATASETS.TRAIN):
            if cfg.MODEL.LOAD_PROPOSALS:
                # Not by Detectron2, which unpickles the files.
                dataset = [
                    record
                    for name, file in proposal_files(cfg, "TRAIN")
                    for record in add_proposals(
                        get_detection_dataset_dicts([name], filter_empty=False), file
                    )
                ]
            else:
                dataset = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
        mapper = build_mapper(cfg)
        # A mapper of label maps or segments learns from images without instances, too.
        needs_instances = getattr(mapper, "truth_key", "annotations") == "annotations"
        if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS and needs_instances:
            dataset = _without_empty(dataset, cfg.DATASETS.TRAIN)
        if isinstance(dataset, list):
            check_sizes(dataset)
            getattr(mapper, "check_records", check_outlines)(dataset)
            check_training_data(cfg, mapper, dataset)
            with _explain_nesting(cfg.DATASETS.TRAIN):
                return build_training_stream(cfg, dataset, mapper)
        loader = build_detection_train_loader(cfg, mapper=mapper, dataset=dataset)
        loader.num_images = len(dataset)
        return loader

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        """Build Detectron2's loader for testing; its errors name the file or record.

        TEST.CENTER_CROP_SIZE cuts a square out of each image, see :func:`build_mapper`.
        """
        mapper = build_mapper(cfg, is_train=False)
        records = load_dataset(dataset_name)
        if isinstance(records, list) and not records:
            raise ValueError(f"the dataset {dataset_name} of DATASETS.TEST has no image")
        if cfg.MODEL.LOAD_PROPOSALS:
            records = add_proposals(records, dict(proposal_files(cfg, "TEST"))[dataset_name])
        with _explain_nesting([dataset_name]):
            loader = build_detection_test_loader(
                records, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
            )
        loader.worker_init_fn = outlive_signals
        return loader

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name, output_folder)

    def build_hooks(self) -> list[HookBase | None]:
        """Build Detectron2's hooks, with evaluations that carry out :attr:`tests`.

        The plain test runs every TEST.EVAL_PERIOD iterations and at the end. The multi-scale test
        of TEST.AUG runs at the end only.
        """
        plain, *others = self.tests
        built: list[HookBase | None] = []
        for hook in super().build_hooks():
            if isinstance(hook, LRScheduler):
                built += [hook, PreemptionHook(self.cfg.TEST.EVAL_PERIOD)]
                continue
            if not isinstance(hook, EvalHook):
                built.append(hook)
                continue
            built.append(EvalHook(self.cfg.TEST.EVAL_PERIOD, partial(self._evaluate, plain)))
            # Before the writer, which writes the results of all.
            built += [EvalHook(0, partial(self._evaluate, other)) for other in others]
            if self.cfg.TEST.BEST_METRIC:
                built.append(BestCheckpoint(self.cfg.TEST.EVAL_PERIOD, self.cfg.TEST.BEST_METRIC))
        return built

    def build_writers(self) -> list[EventWriter]:
        """Build Detectron2's writers, none of which ends the training."""
        return [ForgivingWriter(writer) for writer in super().build_writers()]

    def _evaluate(self, test: PlannedTest) -> OrderedDict[str, Any]:
        with uncompiled() if self.cfg.MODEL.COMPILE else nullcontext():
            results = self.run_test(test)
            if test is self.tests[0] and self.cfg.TEST.PICTURES and comm.is_main_process():
                put_evaluation_pictures(test, self.cfg.TEST.PICTURES)
        before: dict[str, Any] = {} if test is self.tests[0] else self._last_eval_results
        self._last_eval_results = OrderedDict({**before, **results})
        return results

    @classmethod
    def run_test(cls, test: PlannedTest) -> OrderedDict[str, Any]:
        """Carry out a test of :func:`~sgr.testing.plan_tests` with the loaders of this class."""
        return test.run(super().test)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: torch.nn.Module,
        evaluators: list[DatasetEvaluator] | None = None,
    ) -> OrderedDict[str, Any]:
        """Test a model as :func:`~sgr.testing.plan_test` says.

        The results are also in OUTPUT_DIR/inference/results.json, with null for nan.

        Args:
            evaluators: one for each of DATASETS.TEST; None means those of
                :meth:`build_evaluator`. With TEST.SLIDING_WINDOW they must need ``sem_seg`` only.
        """
        return cls.run_test(plan_test(cfg, model, cls.build_evaluator, evaluators=evaluators))

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: torch.nn.Module) -> OrderedDict[str, Any]:
        """Test a model at several scales as :func:`~sgr.testing.plan_multi_scale_test` says.

        Returns:
            Results as of :meth:`test`, with "_TTA" after each key of the outermost dict, which
            are datasets where DATASETS.TEST has several, else tasks. They are also in
            OUTPUT_DIR/inference_TTA/results.json.
        """
        return cls.run_test(plan_multi_scale_test(cfg, model, cls.build_evaluator))

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer):
        return build_lr_scheduler(cfg, optimizer)


@contextmanager
def _explain_nesting(names: Iterable[str]) -> Iterator[None]:
    """Loaders pickle the records, so that their workers share them."""
    try:
        yield
    except RecursionError as error:
        raise ValueError(
            f"a record of {', '.join(names)} has values that are nested too deeply; correct the "
            "file that it comes from"
        ) from error


def _without_empty(dataset: Any, names: Iterable[str]) -> Any:
    """Drop the records without an instance that is not a crowd; leave data of other kinds."""
    # As in Detectron2, a dataset that is no list of records is not filtered.
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

    Returns:
        The results of all tests that the config asks for, see :func:`~sgr.testing.plan_tests`.

    Raises:
        ValueError: if there are no weights, or they do not fill the model with finite numbers; if
            DATASETS.TEST is empty, or its classes differ from those of the training; or if nothing
            could be measured. See also :meth:`Trainer.build_model` and
            :func:`~sgr.testing.plan_tests`.
        KeyError, OSError, ValueError: if a dataset is unknown or cannot be loaded.
    """
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST names no dataset to evaluate on")
    model = Trainer.build_model(cfg)
    tests = plan_tests(cfg, model, Trainer.build_evaluator)
    with keep_datasets(tests[0].datasets):
        check_class_names(cfg)
    checkpointer = TrainedCheckpointer(model, cfg.OUTPUT_DIR, allow_pickle=allow_pickle)
    if not cfg.MODEL.WEIGHTS and not (resume and checkpointer.has_checkpoint()):
        raise ValueError(
            "there are no weights to evaluate: add MODEL.WEIGHTS FILE, or --resume for the last "
            f"checkpoint in {cfg.OUTPUT_DIR}"
        )
    rest = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    with keep_datasets(tests[0].datasets):
        check_class_names(cfg, rest.get("trainer", {}).get("classes"))
    results: OrderedDict[str, Any] = OrderedDict()
    measurable: dict[str, Any] = {}
    for test in tests:
        found = Trainer.run_test(test)
        results.update(found)
        for key, values in found.items():
            dataset = key.removesuffix(test.suffix) if test.by_dataset else cfg.DATASETS.TEST[0]
            if not MetadataCatalog.get(dataset).get("labels_are_hidden", False):
                measurable[key] = values
    check_measured(measurable)
    return results


def train_or_evaluate(cfg: CfgNode, args: argparse.Namespace) -> OrderedDict[str, Any]:
    """Train or evaluate in this process, as the command line says.

    Args:
        cfg: of :func:`setup_config`.
        args: of :func:`argument_parser`.

    Returns:
        The results of the evaluation, or of the last one of the training, by task; in the main
        process only.
    """
    if args.eval_only:
        default_setup(cfg, args)
        results = evaluate(cfg, allow_pickle=args.allow_pickle, resume=args.resume)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    with lock_folder(cfg.OUTPUT_DIR) if comm.is_main_process() else nullcontext():
        default_setup(cfg, args)
        trainer = Trainer(cfg, allow_pickle=args.allow_pickle)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()
    # Detectron2's train() returns results only if the config has TEST.EXPECTED_RESULTS.
    return trainer._last_eval_results
