"""Detectron2's evaluator of semantic segmentation, with the ground truth checked."""

from __future__ import annotations

from detectron2.evaluation import SemSegEvaluator
from torch import Tensor

from sgr.data.image_files import check_labels, read_labels

__all__ = ["CheckedSemSegEvaluator", "predicted_labels"]


def predicted_labels(sem_seg: Tensor) -> Tensor:
    """The best class of each pixel, from either form of a model's ``sem_seg``.

    Args:
        sem_seg: (C, H, W) scores, or (H, W) integer labels.

    Returns:
        (H, W) integer labels.

    Raises:
        ValueError: if it is neither.
    """
    if sem_seg.dim() == 3:
        return sem_seg.argmax(dim=0)
    if sem_seg.dim() == 2 and not sem_seg.is_floating_point():
        return sem_seg
    raise ValueError(
        "sem_seg must be (C, H, W) scores or (H, W) integer labels, got "
        f"{tuple(sem_seg.shape)} of {sem_seg.dtype}"
    )


class CheckedSemSegEvaluator(SemSegEvaluator):
    """mIoU by Detectron2, for which a wrong label in the ground truth is an error.

    Detectron2 itself counts a label past the last class as one of another class, or fails at the
    shape of its confusion matrix.
    """

    def __init__(self, dataset_name: str, *, output_dir: str | None = None) -> None:
        """
        Args:
            dataset_name: a registered dataset.
            output_dir: where predictions and results are written; None writes nothing.

        Raises:
            ValueError: if a record has no ``sem_seg_file_name``.
        """
        try:
            super().__init__(dataset_name, output_dir=output_dir)
        except KeyError as error:
            if error.args != ("sem_seg_file_name",):
                raise
            raise ValueError(
                f"the dataset {dataset_name} has records without sem_seg_file_name: mIoU needs a "
                "dataset for semantic segmentation"
            ) from error

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: one dict per image with "file_name".
            outputs: one dict per image with "sem_seg", (C, H, W) scores or (H, W) integer labels.

        Raises:
            FileNotFoundError, OSError: if a label map is missing or damaged.
            ValueError: if it holds a label that is neither a class nor the ignored one, or
                "sem_seg" is of another form.
        """
        for input_ in inputs:
            label_file = self.input_file_to_gt_file[input_["file_name"]]
            # Detectron2 reads the file again: little beside its run lengths of the prediction.
            check_labels(
                read_labels(label_file),
                label_file,
                num_classes=self._num_classes,
                ignore_label=self._ignore_label,
            )
        labels = [predicted_labels(output["sem_seg"]) for output in outputs]
        super().process(inputs, [{"sem_seg": _ScoresOf(each)} for each in labels])


class _ScoresOf:
    """Stands for the scores that have these (H, W) labels; all that Detectron2 asks of scores."""

    def __init__(self, labels: Tensor) -> None:
        self._labels = labels

    def argmax(self, dim: int) -> Tensor:
        return self._labels
