"""How a model is tested, decided once.

A plan says which model or wrapper sees which datasets, what measures it there, and where the
results go. It is made and checked before a training begins; the evaluations of the training and
``--eval-only`` carry it out.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from torch import nn

from ..data.loading import keep_datasets, load_dataset
from ..data.mappers import build_mapper
from ..evaluation.build import MEASURES, build_evaluator, measurable
from ..evaluation.json_file import write_json
from .multi_scale import build_multi_scale_model, describe_views
from .semantic_views import unwrapped
from .sliding_window import SlidingWindowSegmentor

# (config, name of a dataset, folder) -> evaluator, as ``Trainer.build_evaluator``.
BuildEvaluator = Callable[[CfgNode, str, str], DatasetEvaluator]


@dataclass(frozen=True)
class PlannedTest:
    """One test of a model.

    Attributes:
        model: the model, or a wrapper that shows it several views of an image.
        cfg: what the loaders of the test read; DATASETS.TEST names its datasets.
        evaluators: one for each of DATASETS.TEST.
        datasets: records by the name of the dataset, loaded once for all tests of a plan.
        folder: where the results are written.
        suffix: of the outermost keys of the results.
        by_dataset: whether these are names of datasets, and not of tasks.
    """

    model: nn.Module
    cfg: CfgNode
    evaluators: list[DatasetEvaluator]
    datasets: dict[str, Any]
    folder: str
    suffix: str
    by_dataset: bool

    def run(self, test: Callable[..., OrderedDict]) -> OrderedDict[str, Any]:
        """Carry the test out.

        Args:
            test: (config, model, evaluators) -> results, as ``DefaultTrainer.test``.

        Returns:
            Results by task or by dataset, see ``by_dataset``, which are also in
            ``folder``/results.json, with null for nan; empty in all processes but the main one.
        """
        names = self.cfg.DATASETS.TEST
        path = os.path.join(self.folder, "results.json")
        results: OrderedDict[str, Any] = OrderedDict()

        def keep(name: str, measured: dict[str, Any]) -> None:
            measured = {name: measured} if self.by_dataset else measured
            results.update((f"{key}{self.suffix}", value) for key, value in measured.items())
            write_json(path, results)

        evaluators = [_Kept(*each, keep) for each in zip(self.evaluators, names)]
        with keep_datasets(self.datasets):
            test(self.cfg, self.model, evaluators)
        if results:
            logging.getLogger(__name__).info(f"All results are in {path}")
        return results


class _Kept(DatasetEvaluator):
    """Gives the results of an evaluator away at once, before the next dataset can fail."""

    def __init__(
        self,
        evaluator: DatasetEvaluator,
        dataset_name: str,
        keep: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._evaluator = evaluator
        self._dataset_name = dataset_name
        self._keep = keep

    def reset(self) -> None:
        self._evaluator.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        self._evaluator.process(inputs, outputs)

    def evaluate(self) -> dict[str, Any] | None:
        results = self._evaluator.evaluate()
        if comm.is_main_process() and results is not None:
            self._keep(self._dataset_name, results)
        return results


def plan_tests(
    cfg: CfgNode, model: nn.Module, build_evaluator: BuildEvaluator = build_evaluator
) -> list[PlannedTest]:
    """The tests that a config asks for, checked: the plain one, and that of TEST.AUG if enabled.

    Args:
        cfg: a config with the keys of ``add_sgr_config``.
        model: the model; its weights may be loaded or trained later.
        build_evaluator: what measures the model on a dataset.

    Raises:
        ValueError: if the model cannot be tested as TEST.AUG or TEST.SLIDING_WINDOW says, no
            dataset can measure what they give, or see :func:`~sgr.evaluation.build_evaluator`.
        KeyError, OSError, ValueError: if a dataset is unknown or cannot be loaded.
    """
    plain = plan_test(cfg, model, build_evaluator)
    if not cfg.TEST.AUG.ENABLED:
        return [plain]
    return [
        plain,
        plan_multi_scale_test(cfg, plain.model, build_evaluator, datasets=plain.datasets),
    ]


def plan_test(
    cfg: CfgNode,
    model: nn.Module,
    build_evaluator: BuildEvaluator = build_evaluator,
    *,
    evaluators: Sequence[DatasetEvaluator] | None = None,
) -> PlannedTest:
    """The test of whole images, or of windows with TEST.SLIDING_WINDOW.

    Args:
        cfg, model, build_evaluator: as of :func:`plan_tests`.
        evaluators: one for each of DATASETS.TEST, in the place of those of ``build_evaluator``.
            With windows they must need ``sem_seg`` only.

    Raises: as :func:`plan_tests`.
    """
    model = unwrapped(model)
    views = ""
    if cfg.TEST.SLIDING_WINDOW.ENABLED:
        model = SlidingWindowSegmentor(cfg, model)
        views = "Sliding windows"
    return _plan(cfg, model, build_evaluator, evaluators, {}, views, "inference", "")


def plan_multi_scale_test(
    cfg: CfgNode,
    model: nn.Module,
    build_evaluator: BuildEvaluator = build_evaluator,
    *,
    datasets: dict[str, Any] | None = None,
) -> PlannedTest:
    """The test at the scales of TEST.AUG, see :func:`~.multi_scale.build_multi_scale_model`.

    The scales are made of the images of the files, or with TEST.CENTER_CROP_SIZE of the squares
    that the mapper makes of them, to which they are relative. Tokens are not measured, and of
    models for panoptic segmentation the semantic results only. Results have the suffix "_TTA".

    Args:
        cfg, model, build_evaluator: as of :func:`plan_tests`.
        datasets: records that are loaded already, by the name of the dataset.

    Raises: as :func:`plan_tests`.
    """
    cfg = cfg.clone()
    cfg.defrost()
    if cfg.TEST.CENTER_CROP_SIZE:
        cfg.INPUT.MIN_SIZE_TEST = 0  # scales are relative to the square, as it comes
    model = build_multi_scale_model(cfg, model)
    cfg.INPUT.MIN_SIZE_TEST = 0  # no resize before the scales are made
    datasets = {} if datasets is None else datasets
    return _plan(
        cfg, model, build_evaluator, None, datasets, "Multi-scale testing", "inference_TTA", "_TTA"
    )


def _plan(
    cfg: CfgNode,
    model: nn.Module,
    build_evaluator: BuildEvaluator,
    evaluators: Sequence[DatasetEvaluator] | None,
    datasets: dict[str, Any],
    views: str,
    folder: str,
    suffix: str,
) -> PlannedTest:
    """
    Args:
        evaluators: given ones, or None for those of ``build_evaluator``.
        views: what the wrapper does, for the log; "" without a wrapper.
    """
    build_mapper(cfg, is_train=False)  # an error in a key of INPUT or TEST shows here
    several = len(cfg.DATASETS.TEST) > 1
    folder = os.path.join(cfg.OUTPUT_DIR, folder)
    with keep_datasets(datasets):
        if views:
            logging.getLogger(__name__).info(f"{views}: {describe_views(model)}")
            is_detector = isinstance(model, GeneralizedRCNNWithTTA)
            all_datasets = is_detector or evaluators is not None
            cfg = _semantic_config(cfg, views, all_datasets=all_datasets)
        names = cfg.DATASETS.TEST
        if evaluators is None:
            for name in names:  # some fill the metadata, which evaluators read, when loaded
                load_dataset(name)
            folders = [os.path.join(folder, name) if several else folder for name in names]
            evaluators = [build_evaluator(cfg, *each) for each in zip(names, folders)]
    return PlannedTest(
        model=model,
        cfg=cfg,
        evaluators=list(evaluators),
        datasets=datasets,
        folder=folder,
        suffix=suffix,
        by_dataset=several,
    )


def _semantic_config(cfg: CfgNode, views: str, *, all_datasets: bool) -> CfgNode:
    """A copy of the config for a test of ``sem_seg`` alone; it logs what is not measured.

    Tokens are not measured, since their regions would be those of one scale or window among
    several. Nor are panoptic and instance results, and datasets that cannot measure ``sem_seg``.

    Args:
        all_datasets: leave DATASETS.TEST as it is.

    Raises:
        ValueError: if no dataset is left of those in DATASETS.TEST.
    """
    cfg = cfg.clone()
    cfg.defrost()
    switches = cfg.MODEL.MASK_FORMER.TEST
    left_out = []
    if cfg.TEST.TOKENS.ENABLED:
        left_out.append("token metrics (regions belong to one scale or window)")
    if switches.PANOPTIC_ON:
        left_out.append(MEASURES["panoptic"])
    if switches.INSTANCE_ON:
        left_out.append(MEASURES["instance"])
    left_out += cfg.TEST.EVALUATORS
    cfg.TEST.TOKENS.ENABLED = switches.PANOPTIC_ON = switches.INSTANCE_ON = False
    cfg.TEST.EVALUATORS = []
    if not all_datasets:
        missing: dict[str, str] = {}
        for name in cfg.DATASETS.TEST:
            missing.update((name, why) for why in measurable(cfg, name, ["semantic"])[1].values())
        left = tuple(name for name in cfg.DATASETS.TEST if name not in missing)
        if missing and not left:
            reasons = " and ".join(f"{name}, since {why}" for name, why in missing.items())
            raise ValueError(
                f"{views}: semantic segmentations cannot be measured on {reasons}; set "
                "DATASETS.TEST to a dataset with label maps or segments of the model's classes"
            )
        cfg.DATASETS.TEST = left
        left_out += [f"anything on {name}, since {why}" for name, why in missing.items()]
    if left_out:
        logging.getLogger(__name__).info(f"{views}: not measured are {', '.join(left_out)}")
    cfg.freeze()
    return cfg
