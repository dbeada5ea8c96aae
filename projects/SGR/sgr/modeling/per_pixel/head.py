"""What the per-pixel heads have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import fvcore.nn.weight_init as weight_init
from detectron2.config import CfgNode
from detectron2.layers import NaiveSyncBatchNorm, ShapeSpec
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.checks import check_num_classes, find_registered
from ..layers.conv import conv_norm
from .classifiers import PIXEL_CLASSIFIER_REGISTRY, LinearClassifier
from .losses import PIXEL_LOSS_REGISTRY, CrossEntropyLoss, PixelLoss, labels_of_cells, upsample

conv_norm_relu = partial(conv_norm, activation=F.relu, init=weight_init.c2_msra_fill)


class PerPixelHead(nn.Module):
    """Base of the heads ``features -> decoder -> dropout -> classifier -> logits``.

    Three parts are chosen from registries: the decoder, which is the head's class and its method
    :meth:`decode` (MODEL.SEM_SEG_HEAD.NAME), the classifier (CLASSIFIER_NAME) and the loss
    (LOSS_TYPE). An auxiliary classifier (3x3 convolution, dropout, 1x1 convolution) may learn on an
    inner feature by the same loss. It runs in training only.

    The head has the interface of Detectron2's semantic heads, for ``SemanticSegmentor`` and
    ``PanopticFPN``. Its logits have the stride of the finest input feature. The backbone says this
    stride; MODEL.SEM_SEG_HEAD.COMMON_STRIDE plays no role.

    Attributes:
        in_features: names of the input features, from the finest to the coarsest.
        common_stride: pixels per cell of the logits.
        ignore_value: the label of pixels without loss.
        takes_reasoning: whether MODEL.SEM_SEG_HEAD.REASONING may be True.
    """

    takes_reasoning = False

    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        in_features: Sequence[str],
        channels: int,
        num_classes: int,
        classifier: Callable[..., nn.Module] = LinearClassifier,
        loss: Callable[..., PixelLoss] = CrossEntropyLoss,
        norm: str = "SyncBN",
        dropout: float = 0.1,
        ignore_value: int = 255,
        loss_weight: float = 1.0,
        aux_in_feature: str = "",
        aux_channels: int = 256,
        aux_loss_weight: float = 0.4,
    ):
        """
        Args:
            input_shape: channels and stride of the backbone's features.
            in_features: names of the features that the head reads.
            channels: channels of the output of :meth:`decode`.
            num_classes: C, at least 1.
            classifier: called as in ``PIXEL_CLASSIFIER_REGISTRY``, without the config.
            loss: called as in ``PIXEL_LOSS_REGISTRY``, without the config.
            norm: norm of the convolutions (see Detectron2's ``get_norm``); "" leaves it out.
            dropout: share of the channels that are dropped before the classifiers.
            ignore_value: the label of pixels without loss.
            loss_weight: weight of the loss.
            aux_in_feature: the feature that the auxiliary classifier reads; "" for no such
                classifier.
            aux_channels: channels of its 3x3 convolution.
            aux_loss_weight: weight of its loss.

        Raises:
            ValueError: the backbone does not give a feature, or there is no class.
        """
        super().__init__()
        check_num_classes(num_classes)
        _check_features("in_features", in_features, input_shape)
        self.in_features = sorted(in_features, key=lambda name: input_shape[name].stride)
        self.common_stride = input_shape[self.in_features[0]].stride
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.dropout = nn.Dropout2d(dropout)
        self.loss = loss(num_classes, in_channels=channels, ignore_value=ignore_value)
        self.predictor = classifier(channels, self.loss.num_outputs, stride=self.common_stride)
        self._learns_levels = bool(self.loss.levels) and hasattr(self.predictor, "levels")
        if self._learns_levels:
            self.predictor.levels = tuple(self.loss.levels)

        self.aux_in_feature = aux_in_feature
        if aux_in_feature:
            _check_features("aux_in_feature", [aux_in_feature], input_shape)
            aux_shape = input_shape[aux_in_feature]
            self.aux_stride = aux_shape.stride
            self.aux_loss_weight = aux_loss_weight
            self.aux_predictor = nn.Sequential(
                conv_norm_relu(aux_shape.channels, aux_channels, 3, norm),
                nn.Dropout2d(dropout),
                LinearClassifier(aux_channels, self.loss.num_aux_outputs or self.loss.num_outputs),
            )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head, key = cfg.MODEL.SEM_SEG_HEAD, "MODEL.SEM_SEG_HEAD"
        if head.REASONING and not cls.takes_reasoning:
            raise ValueError(
                f"{key}.REASONING is True, but {cls.__name__} has no reasoning module inside; put "
                "it on the backbone (--with configs/mixins/sgr.yaml)"
            )
        classifier = find_registered(
            PIXEL_CLASSIFIER_REGISTRY, head.CLASSIFIER_NAME, f"{key}.CLASSIFIER_NAME"
        )
        loss = find_registered(PIXEL_LOSS_REGISTRY, head.LOSS_TYPE, f"{key}.LOSS_TYPE")
        return {
            "input_shape": input_shape,
            "in_features": head.IN_FEATURES,
            "num_classes": head.NUM_CLASSES,
            "classifier": partial(classifier, cfg),
            "loss": partial(loss, cfg),
            "norm": head.NORM,
            "dropout": head.DROPOUT,
            "ignore_value": head.IGNORE_VALUE,
            "loss_weight": head.LOSS_WEIGHT,
            "aux_in_feature": head.AUX_IN_FEATURE,
            "aux_channels": head.AUX_CHANNELS,
            "aux_loss_weight": head.AUX_LOSS_WEIGHT,
        }

    def decode(self, features: dict[str, Tensor]) -> Tensor:
        """Turn the backbone's features into (B, channels, h, w) at ``common_stride``."""
        raise NotImplementedError

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """
        Args:
            features: of the backbone, each (B, C_i, h_i, w_i).
            targets: (B, H, W) int64 labels; needed in training only.

        Returns:
            In training, None and the weighted losses: those of the loss (``loss_sem_seg``), the
            same of the auxiliary classifier with the suffix ``_aux``, and the classifier's own. In
            evaluation, (B, C, H', W') logits and an empty dict. H' and W' are the pixels that the
            cells cover, at least those of the image.

        Raises:
            ValueError: there are no targets in training.
        """
        y = self.dropout(self.decode(features))
        if not self.training:
            logits = self.loss.class_logits(self.predictor(y).logits)
            return upsample(logits, self.common_stride), {}
        if targets is None:
            raise ValueError(
                "training needs labels ('sem_seg' in the inputs), which the mapper "
                "'semantic_concept' makes (INPUT.DATASET_MAPPER_NAME)"
            )
        labels = labels_of_cells(targets, y, self.common_stride, self.ignore_value)
        if self._learns_levels:
            labels = self.loss.level_labels(labels)
        prediction = self.predictor(y, labels)
        losses = dict(prediction.losses)
        for name, loss in self.loss(prediction.logits, targets, self.common_stride, y).items():
            losses[name] = self.loss_weight * loss
        if self.aux_in_feature:
            logits = self.aux_predictor(features[self.aux_in_feature]).logits
            for name, loss in self.loss(logits, targets, self.aux_stride).items():
                losses[f"{name}_aux"] = self.aux_loss_weight * loss
        return None, losses


def only_shape(input_shape: dict[str, ShapeSpec], in_features: Sequence[str]) -> ShapeSpec:
    """Give the shape of the only feature that a head reads, or raise a ValueError for several."""
    _check_features("in_features", in_features, input_shape)
    if len(in_features) > 1:
        raise ValueError(
            "the head reads one feature, but in_features (MODEL.SEM_SEG_HEAD.IN_FEATURES) names "
            f"{list(in_features)}"
        )
    return input_shape[in_features[0]]


def check_batch_statistics(pooled: Tensor, norm: nn.Module | None) -> None:
    """Raise a ValueError if there is one value per channel, which has no variance."""
    if not (isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training):
        return
    synchronised = isinstance(norm, (nn.SyncBatchNorm, NaiveSyncBatchNorm))
    if synchronised and comm.get_world_size() > 1:
        return
    if pooled.shape[0] * pooled.shape[2] * pooled.shape[3] == 1:
        raise ValueError(
            "pooling to 1 x 1 leaves one value per channel for a batch of one image, and "
            "batch norm cannot train on it: use at least two images per worker "
            "(SOLVER.IMS_PER_BATCH), several workers with the norm SyncBN, or, from 64 channels "
            "on, the norm GN (norm, MODEL.SEM_SEG_HEAD.NORM)"
        )


def _check_features(argument: str, names: Sequence[str], input_shape: dict[str, ShapeSpec]) -> None:
    missing = [name for name in names if name not in input_shape]
    if missing or not names:
        raise ValueError(
            f"{argument} (MODEL.SEM_SEG_HEAD.{argument.upper()}) asks for {missing or 'nothing'}, "
            f"but the backbone gives {sorted(input_shape)}; set it, or the backbone's out_features "
            "(OUT_FEATURES)"
        )
