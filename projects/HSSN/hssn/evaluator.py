"""Evaluates every level of a tree of classes."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from tabulate import tabulate
from torch import Tensor

from sgr.data.class_tree import ClassTree
from sgr.evaluation import MeanIoUEvaluator
from sgr.evaluation.build import EVALUATOR_REGISTRY
from sgr.evaluation.json_file import write_json
from sgr.evaluation.sem_seg_evaluator import mean_qualities
from sgr.visualization import HIGHER_IS_BETTER

for _level in range(1, 10):
    HIGHER_IS_BETTER[f"mIoU_level{_level}"] = True
    HIGHER_IS_BETTER[f"contradictions_level{_level}"] = False


@EVALUATOR_REGISTRY.register()
class TreeEvaluator(MeanIoUEvaluator):
    """mIoU of every level, and how often what a level says contradicts the predicted class.

    The superclass of a pixel is that of its predicted class, in every figure of IoU; so those of a
    level come from sums over the confusion matrix of the classes. Any model with "sem_seg" can be
    measured, also one that knows no tree.

    A level may say something else by itself. In the output of :class:`TreeSegmentor` this is
    ``levels``. From scores of classes (C, H, W), it is the superclass with the largest sum of
    probabilities. Scores are logits if one of an image is below 0, otherwise probabilities. The
    contradictions are the share of labelled pixels where it is not the superclass of the predicted
    class. Of labels (H, W) they are not measured.

    Cost, in addition to that of :class:`MeanIoUEvaluator`: the sums of probabilities need a copy of
    the scores.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        distributed: bool = True,
        output_dir: str | None = None,
        tree: Any = None,
    ):
        """
        Args:
            dataset_name, distributed: see :class:`MeanIoUEvaluator`.
            output_dir: the folder for ``levels.json``, the result. None writes nothing.
            tree: as :meth:`ClassTree.parse` reads it; None takes ``class_tree`` of the metadata.

        Raises:
            ValueError: see :class:`MeanIoUEvaluator`; or there is no tree, or it does not fit.
        """
        super().__init__(dataset_name, distributed=distributed, output_dir=output_dir)
        tree = MetadataCatalog.get(dataset_name).get("class_tree") if tree is None else tree
        if tree is None:
            raise ValueError(
                f"TEST.EVALUATORS has TreeEvaluator, but {dataset_name} has no class_tree in its "
                "metadata; set it, or 'tree' in its description, or MODEL.HSSN.TREE"
            )
        self._tree = ClassTree.parse(tree, self._class_names)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, dataset_name: str, *, output_dir: str | None = None
    ) -> TreeEvaluator:
        """Build it with the tree of MODEL.HSSN.TREE, if there is one."""
        tree = list(cfg.MODEL.HSSN.TREE) or None
        return cls(dataset_name, output_dir=output_dir, tree=tree)

    def reset(self) -> None:
        super().reset()
        self._contradicted: Tensor | int = 0  # pixels, for each level above the classes
        self._measured: Tensor | int = 0  # labelled pixels of outputs with scores

    def _by_itself(self, output: dict) -> Tensor | None:
        """(levels - 1, H, W): the node, counted in its level, that each higher level says."""
        if "levels" in output:
            return output["levels"]
        scores = output["sem_seg"]
        if scores.dim() == 2:
            return None
        scores = scores.float()
        # Tests at several scales average probabilities of the same model. Nothing waits for a GPU.
        scores = torch.where((scores < 0).any(), scores.softmax(dim=0), scores)
        said = []
        for groups, size in zip(self._tree.groups[1:], self._tree.sizes[1:]):
            sums = scores.new_zeros((size, *scores.shape[1:]))
            index = torch.from_numpy(groups).to(scores.device, non_blocking=True)
            said.append(sums.index_add_(0, index, scores).argmax(dim=0))
        return torch.stack(said) if said else None

    def _process_image(self, input_: dict, output: dict, truth: np.ndarray, labels: Tensor) -> None:
        super()._process_image(input_, output, truth, labels)
        said = self._by_itself(output)
        if said is None:
            return
        groups, is_labelled = (
            torch.from_numpy(array).to(labels.device, non_blocking=True)
            for array in (self._tree.groups[1:], truth >= 0)
        )
        named = groups[:, labels.clamp(0, self._num_classes - 1).long()]
        differs = (said.to(labels.device) != named) & is_labelled
        self._contradicted = self._contradicted + differs.sum(dim=(1, 2))
        self._measured = self._measured + is_labelled.sum()

    def _local_counts(self) -> tuple[np.ndarray, ...]:
        counts = np.zeros(len(self._tree.sizes), np.int64)
        counts[0] = int(self._measured)
        if counts[0]:
            counts[1:] = torch.as_tensor(self._contradicted).cpu().numpy()
        return (*super()._local_counts(), counts)

    def evaluate(self) -> OrderedDict | None:
        """
        Returns:
            ``{"levels": {name: percent}}``. The names are "mIoU_level1" (of the classes),
            "mIoU_level2" and so on, "contradictions_level2" and so on, and "IoU_level2-" and the
            name of a superclass. Empty if no pixel is labelled. None if the process is not the main
            one.
        """
        counts = self._gather(self._local_counts())
        if counts is None:
            return None
        confusion, (measured, *contradicted) = counts[0][1:, 1:-1], counts[1]
        results: OrderedDict[str, float] = OrderedDict()
        by_name: OrderedDict[str, float] = OrderedDict()
        for level, (groups, size) in enumerate(zip(self._tree.groups, self._tree.sizes), 1):
            one_hot = np.eye(size, dtype=np.int64)[groups]
            means, iou, _ = mean_qualities(one_hot.T @ confusion @ one_hot)
            if not means:
                return OrderedDict(levels=OrderedDict())
            results[f"mIoU_level{level}"] = means["mIoU"]
            if level == 1:
                continue
            start = self._tree.starts[level - 1]
            names = self._tree.names[start : start + size]
            by_name.update(
                (f"IoU_level{level}-{name}", value) for name, value in zip(names, iou.tolist())
            )
        for level, number in enumerate(contradicted, 2):
            if measured:
                results[f"contradictions_level{level}"] = float(100 * number / measured)
        options = {"floatfmt": ".3f", "tablefmt": "pipe"}
        table = tabulate([list(results.values())], headers=list(results), **options)
        self._logger.info(f"Levels of the classes of {self._dataset_name}:\n{table}")
        results.update(by_name)
        if self._output_dir:
            write_json(Path(self._output_dir) / "levels.json", results, needed=False)
        return OrderedDict(levels=results)
