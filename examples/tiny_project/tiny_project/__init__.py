"""A project beside SGR: one backbone, one classifier, one loss and one metric of its own."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F

from sgr.data.loading import load_dataset
from sgr.data.truth.records import apply_test_transform, read_class_map
from sgr.evaluation.build import EVALUATOR_REGISTRY
from sgr.modeling.outputs import predicted_labels
from sgr.modeling.per_pixel.classifiers import PIXEL_CLASSIFIER_REGISTRY, PixelPrediction
from sgr.modeling.per_pixel.losses import PIXEL_LOSS_REGISTRY, PixelLoss, upsample_to_labels


def add_tiny_project_config(cfg: CfgNode) -> None:
    """Add the project's keys; ``sgr`` calls it before it reads a config file."""
    cfg.MODEL.TINY_PROJECT = CfgNode()
    # Channels of the backbone.
    cfg.MODEL.TINY_PROJECT.CHANNELS = 64
    # Scale of the cosines, which is that of the logits.
    cfg.MODEL.TINY_PROJECT.SCALE = 10.0
    # Exponent of the focal loss; 0 is cross entropy.
    cfg.MODEL.TINY_PROJECT.GAMMA = 2.0


class PatchBackbone(Backbone):
    """Patches of 8 x 8 pixels, and two convolutions between them: "patches" at stride 8."""

    stride = 8

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels
        self.layers = nn.Sequential(
            nn.Conv2d(3, channels, self.stride, self.stride),
            *(nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)),
            *(nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)),
        )

    @property
    def size_divisibility(self) -> int:
        return self.stride

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"patches": ShapeSpec(channels=self.channels, stride=self.stride)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"patches": self.layers(images)}


@BACKBONE_REGISTRY.register()
def build_patch_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> PatchBackbone:
    return PatchBackbone(cfg.MODEL.TINY_PROJECT.CHANNELS)


@PIXEL_CLASSIFIER_REGISTRY.register()
class CosineClassifier(nn.Module):
    """The logit of a class is the scaled cosine between the features and the class's vector."""

    def __init__(self, cfg: CfgNode, in_channels: int, num_outputs: int, stride: int | None = None):
        super().__init__()
        self.scale = cfg.MODEL.TINY_PROJECT.SCALE
        self.vectors = nn.Parameter(torch.randn(num_outputs, in_channels))

    def forward(self, features: Tensor, labels: Tensor | None = None) -> PixelPrediction:
        vectors = F.normalize(self.vectors, dim=1)
        cosines = torch.einsum("bdhw,cd->bchw", F.normalize(features, dim=1), vectors)
        return PixelPrediction(self.scale * cosines)


@PIXEL_LOSS_REGISTRY.register()
class FocalLoss(PixelLoss):
    """Mean of ``-(1 - p)^gamma log p`` over the labelled pixels, p being that of their class."""

    def __init__(self, cfg: CfgNode, num_classes: int, **options):
        super().__init__(num_classes, **options)
        self.gamma = cfg.MODEL.TINY_PROJECT.GAMMA

    def forward(
        self, logits: Tensor, labels: Tensor, stride: int, features: Tensor | None = None
    ) -> dict[str, Tensor]:
        logits = upsample_to_labels(logits.float(), labels, stride)
        losses = F.cross_entropy(logits, labels, ignore_index=self.ignore_value, reduction="none")
        losses = (1 - (-losses).exp()) ** self.gamma * losses
        return {"loss_focal": losses.sum() / (labels != self.ignore_value).sum().clamp_min(1)}


@EVALUATOR_REGISTRY.register()
class BoundaryAccuracy(DatasetEvaluator):
    """Percentage of right pixels among those with a neighbour, right or below, of another label."""

    def __init__(self, dataset_name: str, output_dir: str | None = None):
        self._records = {record["file_name"]: record for record in load_dataset(dataset_name)}
        metadata = MetadataCatalog.get(dataset_name)
        self._options = {
            "num_classes": len(metadata.stuff_classes),
            "ignore_label": metadata.get("ignore_label"),
        }
        self.reset()

    def reset(self) -> None:
        self._right = self._pixels = 0

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for image, output in zip(inputs, outputs):
            record = self._records[image["file_name"]]
            truth = apply_test_transform(image, read_class_map(record, **self._options))
            boundary = np.zeros(truth.shape, dtype=bool)
            boundary[:-1] |= truth[:-1] != truth[1:]
            boundary[:, :-1] |= truth[:, :-1] != truth[:, 1:]
            boundary &= truth >= 0  # where the pixel is labelled
            labels = predicted_labels(output["sem_seg"]).cpu().numpy()
            self._right += int((labels == truth)[boundary].sum())
            self._pixels += int(boundary.sum())

    def evaluate(self) -> dict[str, dict[str, float]]:
        right, pixels = np.sum(comm.all_gather((self._right, self._pixels)), axis=0)
        return {"boundary": {"accuracy": 100 * float(right) / max(int(pixels), 1)}}
