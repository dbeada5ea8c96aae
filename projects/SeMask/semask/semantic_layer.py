"""The semantic layer of SeMask (Jain et al., ICCV Workshops 2023), for any hierarchical backbone.

Parameter names are those of the public models, so that their checkpoints load.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sgr.modeling.backbone.swin_layers import pad_to_multiple, partition, unite
from sgr.modeling.layers.checks import check_at_least_one, check_num_classes
from sgr.modeling.layers.exporting import is_exporting
from sgr.modeling.layers.precision import at_least_float32, float32_or_wider
from sgr.modeling.reasoning import ConceptRegions

# The most attention scores that exist at once, 64 MiB in float32. More are computed in parts.
MAX_SCORES = 2**24


class SemanticAttention(nn.Module):
    """Attention of one head whose queries and keys have a channel for each class (Sec. 3.2).

    The queries are the semantic map. For n cells in groups of m it costs
    ``n (2 C K + 2 C^2) + n m (K + C)`` multiply-adds. It stores at most :data:`MAX_SCORES` scores,
    and not all n m; in training it then computes scores a second time, in the backward pass.

    Queries, keys, scores and their softmax have float32 at least, also under autocast: a score is a
    sum of K products without a scale, and trained ones are in the hundreds, where bfloat16 has
    steps of 1 and more.

    Args:
        dim: C, channels.
        num_classes: K, channels of queries and keys.
        dropout: of the attention's result.
        learn_scale: whether ``gamma``, the paper's lambda, is learned. It starts at 0. Otherwise
            it is 1 (Table 4, without lambda).
    """

    def __init__(
        self, dim: int, num_classes: int, *, dropout: float = 0.1, learn_scale: bool = True
    ):
        super().__init__()
        self.gamma = nn.Parameter(
            torch.zeros(1) if learn_scale else torch.ones(1), requires_grad=learn_scale
        )
        self.mlp_cls_q = nn.Linear(dim, num_classes)
        # The softmax takes away what its bias adds. It stays for the checkpoints.
        self.mlp_cls_k = nn.Linear(dim, num_classes)
        self.mlp_v = nn.Linear(dim, dim)
        self.mlp_res = nn.Linear(dim, dim)
        self.drop = nn.Dropout(dropout)
        # Not mlp_res at 0, as some public code has it: beside a gamma of 0 neither would get a
        # gradient, ever.
        for linear in (self.mlp_cls_q, self.mlp_cls_k, self.mlp_v, self.mlp_res):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """(B, groups, m, C) -> semantic map (B, groups, m, K) and cells (B, groups, m, C).

        Cells attend to those of their group.
        """
        with torch.autocast(cells.device.type, enabled=False):
            exact = cells.to(self.mlp_cls_q.weight.dtype)
            query, key = self.mlp_cls_q(exact), self.mlp_cls_k(exact)
        mixed = attend(query, key, self.mlp_v(cells))
        return query, cells + self.gamma * self.drop(self.mlp_res(mixed))


def attend(query: Tensor, key: Tensor, value: Tensor, max_scores: int = MAX_SCORES) -> Tensor:
    """``softmax(query key^T) value``, with at most ``max_scores`` scores at once.

    They are at least those of one query of each group.

    Args:
        query, key: (B, groups, m, K).
        value: (B, groups, m, C).

    Returns:
        (B, groups, m, C) of the type of ``value``.
    """
    batch, groups, length = query.shape[:3]
    at_once = max(max_scores // (batch * groups * length), 1)
    # An exported program has no parts, because the number of cells may be open.
    if is_exporting() or at_once >= length:
        return _attend(query, key, value)
    training = torch.is_grad_enabled() and query.requires_grad
    parts = [
        checkpoint(_attend, part, key, value, use_reentrant=False)
        if training
        else _attend(part, key, value)
        for part in query.split(at_once, dim=2)
    ]
    return torch.cat(parts, dim=2)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    with torch.autocast(query.device.type, enabled=False):
        dtype = float32_or_wider(query.dtype)
        weights = (query.to(dtype) @ key.to(dtype).transpose(-1, -2)).softmax(dim=-1)
        return weights.to(value.dtype) @ value


class SemanticLayer(nn.Module):
    """What SeMask adds to the end of a stage: LayerNorm, then semantic attention N_S times.

    The sum of the attention is with the normalised cells, so nothing goes around the LayerNorm.
    The layer is no residual branch and starts as a LayerNorm.

    Args:
        dim: C, channels.
        num_classes: K.
        window_size: side of an attention window, cells; 0 lets every cell attend to the whole map.
            Maps are padded with zeros, after the norm, to whole windows. This padding takes part.
        num_blocks: N_S.
        stride: pixels per cell, for :class:`SemanticRegionLayer`.
        learn_scale: see :class:`SemanticAttention`.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        window_size: int = 7,
        num_blocks: int = 1,
        stride: int | None = None,
        learn_scale: bool = True,
    ):
        super().__init__()
        check_at_least_one("num_blocks (each value of MODEL.SEMASK.NUM_BLOCKS)", num_blocks)
        if window_size < 0:
            raise ValueError(
                f"window_size is {window_size}; it must be the side of a window in cells, or 0 for "
                "the whole map, as each value of MODEL.SEMASK.WINDOW_SIZES"
            )
        self.window_size = window_size
        self.stride = stride
        self.norm1 = nn.LayerNorm(dim)
        self.class_injection = nn.ModuleList(
            SemanticAttention(dim, num_classes, learn_scale=learn_scale) for _ in range(num_blocks)
        )

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """(B, h, w, C) -> the same, and the semantic map of the last block (B, K, h, w), logits."""
        height, width = maps.shape[1:3]
        maps = self.norm1(maps)
        if self.window_size:
            maps = pad_to_multiple(maps, self.window_size)
            size = maps.shape[1:3]
            cells = partition(maps, self.window_size)
        else:
            cells = maps.flatten(1, 2)[:, None]
        for block in self.class_injection:
            semantic, cells = block(cells)
        if self.window_size:
            maps = unite(cells, self.window_size, *size)[:, :height, :width]
            semantic = unite(semantic, self.window_size, *size)[:, :height, :width]
        else:
            maps = cells[:, 0].unflatten(1, (height, width))
            semantic = semantic[:, 0].unflatten(1, (height, width))
        return maps, semantic.permute(0, 3, 1, 2).contiguous()


class SemanticRegionLayer(SemanticLayer):
    """A semantic layer whose map counts as concept regions, for metrics and pictures."""

    def concept_regions(self, output: tuple[Tensor, Tensor]) -> ConceptRegions:
        """The semantic map as K regions: the sigmoid of their logits is the softmax over classes.

        :func:`sgr.record_concepts` calls it with what :meth:`forward` returned.
        """
        return ConceptRegions(log_odds(output[1]), stride=self.stride)


def build_semantic_layers(
    channels: Sequence[int],
    strides: Sequence[int],
    *,
    num_classes: int,
    windows: Sequence[int] = (7, 7, 7, 7),
    blocks: Sequence[int] = (1, 1, 1, 1),
    regions: Sequence[str] = (),
    learn_scale: bool = True,
) -> dict[str, SemanticLayer]:
    """Build the semantic layers of all stages of a backbone, the finest first.

    Args:
        channels: of the stages.
        strides: of the stages, pixels per cell.
        num_classes: K.
        windows: for each stage, the side of the windows in cells; 0 for the whole map. The released
            models and the paper differ here, see the README, and a checkpoint does not tell.
        blocks: for each stage, N_S.
        regions: names of the maps that count as concept regions.
        learn_scale: see :class:`SemanticAttention`.

    Returns:
        Name of the semantic map -> layer: "semantic2" for the first stage, and so on.

    Raises:
        ValueError: ``windows`` or ``blocks`` have another number of entries than there are stages,
            or there is no map of a name in ``regions``.
    """
    check_num_classes(num_classes)
    for key, values in {
        "windows (MODEL.SEMASK.WINDOW_SIZES)": windows,
        "blocks (MODEL.SEMASK.NUM_BLOCKS)": blocks,
    }.items():
        if len(values) != len(channels):
            raise ValueError(
                f"{key} is {list(values)}; the backbone has {len(channels)} stages, and each needs "
                "one value"
            )
    names = [f"semantic{index + 2}" for index in range(len(channels))]
    unknown = [name for name in regions if name not in names]
    if unknown:
        raise ValueError(
            f"regions (MODEL.SEMASK.REGIONS) has {unknown}; the maps are {', '.join(names)}"
        )
    return {
        name: (SemanticRegionLayer if name in regions else SemanticLayer)(
            dim,
            num_classes,
            window_size=window,
            num_blocks=number,
            stride=stride,
            learn_scale=learn_scale,
        )
        for name, dim, stride, window, number in zip(names, channels, strides, windows, blocks)
    }


def semantic_options(cfg: CfgNode) -> dict[str, Any]:
    """The options of :func:`build_semantic_layers` that ``cfg.MODEL.SEMASK`` has.

    The maps have the classes of the head, ``MODEL.SEM_SEG_HEAD.NUM_CLASSES``: there is no second
    number that could differ.
    """
    return {
        "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        "windows": cfg.MODEL.SEMASK.WINDOW_SIZES,
        "blocks": cfg.MODEL.SEMASK.NUM_BLOCKS,
        "regions": cfg.MODEL.SEMASK.REGIONS,
        "learn_scale": cfg.MODEL.SEMASK.LEARN_SCALE,
    }


def warn_without_loss(cfg: CfgNode) -> None:
    """Warn if the config gives the semantic maps no loss, but MODEL.SEMASK.LOSS_WEIGHT a weight.

    A file that is merged over a config of SeMask may have a list MODEL.SIDE_CRITERIA of its own,
    in the place of the one with the criterion of the maps.
    """
    options = cfg.MODEL.SEMASK
    if options.LOSS_WEIGHT and "SemanticMapSupervision" not in cfg.MODEL.SIDE_CRITERIA:
        logging.getLogger(__name__).warning(
            "The semantic maps have no loss: MODEL.SIDE_CRITERIA is %s. Add SemanticMapSupervision "
            "to it, or set MODEL.SEMASK.LOSS_WEIGHT 0.0",
            list(cfg.MODEL.SIDE_CRITERIA),
        )


def log_odds(logits: Tensor) -> Tensor:
    """The numbers whose sigmoid is ``softmax(logits, dim=1)``, in float32 at least."""
    logits = at_least_float32(logits)
    log_share = F.log_softmax(logits, dim=1)
    # log p - log(1 - p); a p that rounds to 1 keeps a finite number.
    smallest = torch.finfo(logits.dtype).tiny
    return log_share - torch.log(-torch.expm1(log_share.clamp(max=-smallest)))
