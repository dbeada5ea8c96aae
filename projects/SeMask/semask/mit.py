"""Mix Transformer (MiT) of SegFormer (Xie et al., NeurIPS 2021), with and without semantic layers.

Parameter names are those of the ImageNet files of the SegFormer release, which load. Maps between
the layers are channels-last: (B, h, w, C).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from sgr.modeling.backbone.freezing import FreezableBackbone
from sgr.modeling.layers.checks import check_drop_path_rate, check_heads

from .semantic_layer import build_semantic_layers, semantic_options, warn_without_loss

NORM_EPS = 1e-6  # of blocks and outputs; other norms have PyTorch's 1e-5
NUM_HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)  # cells that become one key, along each side


class OverlapPatchEmbed(nn.Module):
    """A convolution whose kernel is larger than its stride, and a norm: the input of a stage."""

    def __init__(self, in_channels: int, dim: int, kernel_size: int, stride: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size, stride, padding=kernel_size // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C', H, W) -> (B, ceil(H / stride), ceil(W / stride), C)."""
        return self.norm(self.proj(maps).permute(0, 2, 3, 1))


class ReducedAttention(nn.Module):
    """Self-attention whose keys and values are those of squares of R x R cells.

    For n cells it costs ``2 n C^2 + 3 n C^2 / R^2 + n C^2 + 2 n^2 C / R^2`` multiply-adds or less.
    """

    def __init__(self, dim: int, num_heads: int, reduction: int):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.sr = None
        if reduction > 1:
            self.sr = nn.Conv2d(dim, dim, reduction, reduction)
            self.norm = nn.LayerNorm(dim)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, h, w, C) -> the same. h and w are at least R; what is no whole square has no keys."""
        read = maps
        if self.sr is not None:
            read = self.norm(self.sr(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        query, key, value = (
            part.flatten(1, 2).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.q(maps), *self.kv(read).chunk(2, dim=-1))
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2).unflatten(1, maps.shape[1:3]))


class DepthwiseConv(nn.Module):
    """A 3x3 convolution of each channel by itself."""

    def __init__(self, dim: int):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, h, w, C) -> the same."""
        return self.dwconv(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class MixFeedForward(nn.Module):
    """Two linear layers with a depth-wise convolution and GELU between them (Mix-FFN)."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = DepthwiseConv(hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, h, w, C) -> the same."""
        return self.fc2(F.gelu(self.dwconv(self.fc1(maps))))


class MixBlock(nn.Module):
    """Attention and feed-forward, each with a normalised input and a residual connection."""

    def __init__(self, dim: int, num_heads: int, reduction: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = ReducedAttention(dim, num_heads, reduction)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = MixFeedForward(dim, 4 * dim)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, maps: Tensor) -> Tensor:
        """(B, h, w, C) -> the same."""
        maps = maps + self.drop_path(self.attn(self.norm1(maps)))
        return maps + self.drop_path(self.mlp(self.norm2(maps)))


class MixTransformer(FreezableBackbone):
    """MiT with the outputs "res2" to "res5" at strides 4 to 32, for images of 32 pixels and more.

    Unlike in Swin, the norm of an output also stands before the next stage.

    A semantic layer stands between the last block of a stage and its norm. The paper of SeMask
    names a MiT-B4 and says no more: there is no public code. The semantic maps come as in
    :class:`SeMaskSwinTransformer`.

    Args:
        in_channels: channels of the images.
        embed_dims: channels of the stages. 32, 64, 160, 256 is B0; the others are as the default.
        depths: blocks of the stages. The default is B4.
        drop_path_rate: probability with which an image skips a residual branch of the last block in
            training. It rises linearly from 0 at the first block.
        freeze_at: parts that are not trained: 1 is the first patch embedding, 2 the first stage as
            well, and so on.
        semantic: options of :func:`build_semantic_layers`; None for no semantic layers.

    Raises:
        ValueError: for arguments that do not fit together.
    """

    title = "MiT"

    @configurable
    def __init__(
        self,
        *,
        in_channels: int = 3,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (3, 8, 27, 3),
        drop_path_rate: float = 0.1,
        freeze_at: int = 0,
        semantic: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if len(embed_dims) != 4 or len(depths) != 4:
            raise ValueError(
                f"embed_dims {list(embed_dims)} and depths {list(depths)} must have 4 entries each "
                "(MODEL.MIT.EMBED_DIMS, DEPTHS)"
            )
        check_drop_path_rate(drop_path_rate, "MODEL.MIT.DROP_PATH_RATE")
        self._out_features = ["res2", "res3", "res4", "res5"]
        strides = (4, 8, 16, 32)
        self._out_feature_channels = dict(zip(self._out_features, embed_dims))
        self._out_feature_strides = dict(zip(self._out_features, strides))
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").split(list(depths))
        for stage, (dim, heads, reduction, drop) in enumerate(
            zip(embed_dims, NUM_HEADS, REDUCTIONS, rates), 1
        ):
            check_heads(heads, dim, "heads of MiT", "embed_dims, MODEL.MIT.EMBED_DIMS")
            kernel_size, stride = (3, 2) if stage > 1 else (7, 4)
            embed = OverlapPatchEmbed(in_channels, dim, kernel_size, stride)
            blocks = [MixBlock(dim, heads, reduction, rate) for rate in drop.tolist()]
            self.add_module(f"patch_embed{stage}", embed)
            self.add_module(f"block{stage}", nn.Sequential(*blocks))
            self.add_module(f"norm{stage}", nn.LayerNorm(dim, eps=NORM_EPS))
            in_channels = dim
        self.apply(_initialize)

        self.semantic_layers = nn.ModuleDict()
        if semantic is not None:
            layers = build_semantic_layers(embed_dims, strides, **semantic)
            self.semantic_layers.update(layers)
            self.semantic_features = list(layers)
            self._out_features += self.semantic_features
            self._out_feature_channels.update(dict.fromkeys(layers, semantic["num_classes"]))
            self._out_feature_strides.update(zip(layers, strides))
        self.freeze(freeze_at)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {
            **{key.lower(): value for key, value in cfg.MODEL.MIT.items()},
            "in_channels": input_shape.channels,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        }

    def _parts(self) -> list[list[nn.Module]]:
        """The semantic layers of frozen stages are frozen with them."""
        parts: list[list[nn.Module]] = [[self.patch_embed1]]
        for stage in range(1, 5):
            kinds = ("block", "norm") if stage == 1 else ("patch_embed", "block", "norm")
            part = [getattr(self, f"{kind}{stage}") for kind in kinds]
            if self.semantic_layers:
                part.append(self.semantic_layers[f"semantic{stage + 1}"])
            parts.append(part)
        return parts

    @property
    def size_divisibility(self) -> int:
        """See :attr:`SeMaskSwinTransformer.size_divisibility`."""
        return 4

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """
        Args:
            images: (B, in_channels, H, W), normalised; H and W of 32 and more.

        Returns:
            "res2" and so on: (B, C, ceil(H / stride), ceil(W / stride)), and the semantic maps.
        """
        outputs, maps = {}, images
        for stage in range(1, 5):
            cells = getattr(self, f"patch_embed{stage}")(maps)
            cells = getattr(self, f"block{stage}")(cells)
            name = f"semantic{stage + 1}"
            if name in self.semantic_layers:
                cells, outputs[name] = self.semantic_layers[name](cells)
            cells = getattr(self, f"norm{stage}")(cells)
            maps = outputs[f"res{stage + 1}"] = cells.permute(0, 3, 1, 2).contiguous()
        return outputs

    def adapt_checkpoint(self, prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Name the tensors of an ImageNet file of SegFormer's release as the model does.

        :class:`~sgr.checkpoints.checkpointer.SafeCheckpointer` calls it.
        """
        if not prefix or not {"patch_embed1.proj.weight", "norm4.weight"} <= state.keys():
            return {}
        return {
            prefix + name: value for name, value in state.items() if not name.startswith("head.")
        }


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] ** 2 * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(module.bias)


@BACKBONE_REGISTRY.register()
def build_mit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> MixTransformer:
    """Build the Mix Transformer of ``cfg.MODEL.MIT``."""
    return MixTransformer(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_semask_mit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> MixTransformer:
    """Build the Mix Transformer of ``cfg.MODEL.MIT`` with the layers of ``cfg.MODEL.SEMASK``."""
    warn_without_loss(cfg)
    return MixTransformer(cfg, input_shape, semantic=semantic_options(cfg))
