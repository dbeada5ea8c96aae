"""Swin Transformer (Liu et al., ICCV 2021, arXiv:2103.14030) as a Detectron2 backbone.

Parameter names, shapes and results are those of the backbones in the public MaskFormer and
Mask2Former. The blocks are not torchvision's: those leave the shift out where a map is no larger
than a window, which the public backbones never do. Inside, maps are channels-last: (B, H, W, C).
"""

from __future__ import annotations

import logging
from typing import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from ..layers.checks import check_at_least_one

__all__ = ["SwinTransformer"]

# What attention logits between patches lose that only the cyclic shift has made neighbours.
# Finite as in the models' training, so that trained weights see the function that they know.
NOT_NEIGHBOURS = -100.0

# Windows times heads in one call of the attention: fused kernels on GPUs number heads along an axis
# of their grid that ends here. The axis of images is as short, but PyTorch splits that by itself.
MAX_HEADS_AT_ONCE = 65_535


class PatchEmbed(nn.Module):
    """Patches of an image -> vectors, by a convolution whose stride is its size."""

    def __init__(self, patch_size: int, in_channels: int, embed_dim: int, normalize: bool):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dim, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dim) if normalize else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, ceil(H / patch_size), ceil(W / patch_size), embed_dim)."""
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % self.patch_size, 0, -height % self.patch_size))
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Half the resolution and twice the channels, from squares of 2 x 2 patches."""

    def __init__(self, dim: int):
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2 C)."""
        maps = pad_to_multiple(maps, 2)
        batch, height, width, dim = maps.shape
        squares = maps.reshape(batch, height // 2, 2, width // 2, 2, dim)
        # Down a column first, the order in which checkpoints have the channels.
        return self.reduction(self.norm(squares.permute(0, 1, 3, 4, 2, 5).flatten(3)))


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias per head and relative position.

    For a map of n patches with C channels in windows of side M it costs ``4 n C^2 + 2 n M^2 C``
    multiply-adds. In inference, logits and weights, n M^2 per head, are not stored where PyTorch
    has a fused kernel; in training as much is, for the gradient of the bias. With a shift mask, the
    logits' addend is stored too, for one image.

    Args:
        dim: C, channels.
        window_size: M, side of a window, patches.
        num_heads: must divide C.
        qkv_bias: give queries, keys and values a bias.
        qk_scale: factor of the logits; None stands for ``(C / num_heads)^-0.5``.
        attn_drop, proj_drop: dropout of the attention's weights and of the result.
    """

    def __init__(
        self,
        dim: int,
        window_size: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.scale = qk_scale
        self.attn_drop = attn_drop
        offsets = 2 * window_size - 1  # in each direction
        self.relative_position_bias_table = nn.Parameter(torch.empty(offsets**2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window_size))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, windows: Tensor, shift_mask: Tensor | None = None) -> Tensor:
        """
        Args:
            windows: (B, windows, M^2, C).
            shift_mask: (windows, M^2, M^2), added to the logits.

        Returns:
            (B, windows, M^2, C).
        """
        batch, count, length, dim = windows.shape
        qkv = self.qkv(windows).reshape(batch, count, length, 3, self.num_heads, -1)
        qkv = qkv.permute(3, 0, 1, 4, 2, 5)  # (3, B, windows, heads, M^2, C / heads)
        bias = self.relative_position_bias_table[self.relative_position_index]
        bias = bias.permute(2, 0, 1).to(qkv.dtype)  # (heads, M^2, M^2)
        if shift_mask is None:
            mixed = self._mix(qkv.flatten(1, 2), bias)
        else:
            # Windows beside heads, not beside images, so that the batch shares one addend.
            at_once = max(MAX_HEADS_AT_ONCE // self.num_heads, 1)
            parts = [
                self._mix(part.flatten(2, 3), (mask[:, None] + bias).flatten(0, 1))
                for part, mask in zip(
                    qkv.split(at_once, dim=2), shift_mask.to(qkv.dtype).split(at_once)
                )
            ]
            mixed = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        mixed = mixed.reshape(batch, count, self.num_heads, length, -1).transpose(2, 3)
        return self.proj_drop(self.proj(mixed.flatten(3)))

    def _mix(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """Attention of (3, B', heads, M^2, C') with (heads, M^2, M^2) added to the logits."""
        return F.scaled_dot_product_attention(
            *qkv.unbind(0),
            attn_mask=bias[None],
            dropout_p=self.attn_drop if self.training else 0.0,
            scale=self.scale,
        )


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class SwinBlock(nn.Module):
    """Window attention and an MLP, each normalised before and with a residual.

    Args:
        dim, window_size, num_heads, qkv_bias, qk_scale, attn_drop: of :class:`WindowAttention`.
        shift: patches by which the windows are moved down and to the right.
        mlp_ratio: hidden channels of the MLP relative to ``dim``.
        drop: dropout of the projection and in the MLP.
        drop_path: probability with which an image skips a residual branch in training.
    """

    def __init__(
        self,
        dim: int,
        window_size: int,
        num_heads: int,
        *,
        shift: int = 0,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.window_size = window_size
        self.shift = shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(
            dim,
            window_size,
            num_heads,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            attn_drop=attn_drop,
            proj_drop=drop,
        )
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, maps: Tensor, shift_mask: Tensor | None) -> Tensor:
        """
        Args:
            maps: (B, H, W, C).
            shift_mask: :func:`make_shift_mask` of the map; not used without a shift.

        Returns:
            (B, H, W, C).
        """
        maps = maps + self.drop_path(self._attend(self.norm1(maps), shift_mask))
        return maps + self.drop_path(self.mlp(self.norm2(maps)))

    def _attend(self, maps: Tensor, shift_mask: Tensor | None) -> Tensor:
        height, width = maps.shape[1:3]
        maps = pad_to_multiple(maps, self.window_size)
        size = maps.shape[1:3]
        if self.shift:
            maps = maps.roll((-self.shift, -self.shift), dims=(1, 2))
        windows = partition(maps, self.window_size)
        windows = self.attn(windows, shift_mask if self.shift else None)
        maps = unite(windows, self.window_size, *size)
        if self.shift:
            maps = maps.roll((self.shift, self.shift), dims=(1, 2))
        return maps[:, :height, :width]


class SwinStage(nn.Module):
    """Blocks on one resolution, every second one with shifted windows.

    Args:
        blocks: in their order, of one window size.
        downsample: makes the next stage's input, None in the last stage.
        use_checkpoint: keep only each block's input for the backward pass.
    """

    def __init__(
        self,
        blocks: Sequence[SwinBlock],
        downsample: nn.Module | None = None,
        use_checkpoint: bool = False,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.use_checkpoint = use_checkpoint

    def forward(self, maps: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C), without downsampling."""
        shift_mask = None
        for block in self.blocks:
            if block.shift and shift_mask is None:
                shift_mask = make_shift_mask(
                    *maps.shape[1:3], block.window_size, block.shift, maps.device
                )
            if self.use_checkpoint and self.training:
                maps = checkpoint(block, maps, shift_mask, use_reentrant=False)
            else:
                maps = block(maps, shift_mask)
        return maps


class SwinTransformer(Backbone):
    """Swin Transformer with a normalised output after each stage, for images of any size.

    Maps are padded with zeros at the bottom and on the right: images to whole patches, the inputs
    of attention to whole windows, and those of patch merging to even sizes.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int = 3,
        pretrain_img_size: int = 224,
        patch_size: int = 4,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.3,
        ape: bool = False,
        patch_norm: bool = True,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        use_checkpoint: bool = False,
        freeze_at: int = 0,
    ):
        """
        The defaults are Swin-T; S has depths 2, 2, 18, 2, B embed_dim 128 and heads 4, 8, 16, 32
        besides, L embed_dim 192 and heads 6, 12, 24, 48.

        Args:
            in_channels: of the images.
            pretrain_img_size: side of the images of the pretraining, pixels, for ``ape``.
            patch_size: side of a patch, pixels.
            embed_dim: channels of the first stage; they double from stage to stage.
            depths: blocks per stage.
            num_heads: attention heads per stage.
            window_size: side of an attention window, patches; every second block moves them by half
                of it.
            mlp_ratio: hidden channels of the MLPs relative to their stage's.
            qkv_bias: give queries, keys and values a bias.
            qk_scale: factor of the attention's logits; None stands for
                1 / sqrt(channels of a head).
            drop_rate: dropout of the patches' embeddings, the projections and the MLPs.
            attn_drop_rate: dropout of the attention's weights.
            drop_path_rate: probability with which an image skips a residual branch of the last
                block in training; it rises linearly from 0 at the first block.
            ape: add learned absolute positions, resized (bicubically) to the image.
            patch_norm: normalise the patches' embeddings.
            out_features: "res2" for the first stage, "res3" for the second, and so on. Stages
                behind the last of them are not built.
            use_checkpoint: in training, recompute the blocks' activations in the backward pass
                instead of keeping them, at the price of another forward pass.
            freeze_at: see :meth:`freeze`.

        Raises:
            ValueError: for arguments that do not fit together.
        """
        super().__init__()
        check_at_least_one("MODEL.SWIN.WINDOW_SIZE", window_size)
        _check(embed_dim, depths, num_heads, drop_path_rate, out_features)
        stage_names = [f"res{index + 2}" for index in range(len(depths))]
        self._out_features = [name for name in stage_names if name in out_features]
        num_stages = stage_names.index(self._out_features[-1]) + 1
        dims = [embed_dim * 2**index for index in range(num_stages)]
        self._out_feature_channels = dict(zip(stage_names, dims))
        self._out_feature_strides = {
            name: patch_size * 2**index for index, name in enumerate(stage_names)
        }

        self.patch_embed = PatchEmbed(patch_size, in_channels, embed_dim, patch_norm)
        self.absolute_pos_embed = None
        if ape:
            side = pretrain_img_size // patch_size
            self.absolute_pos_embed = nn.Parameter(torch.empty(1, embed_dim, side, side))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.pos_drop = nn.Dropout(drop_rate)

        drop_paths = torch.linspace(0, drop_path_rate, sum(depths)).split(list(depths))
        self.layers = nn.ModuleList()
        for index, dim in enumerate(dims):
            blocks = [
                SwinBlock(
                    dim,
                    window_size,
                    num_heads[index],
                    shift=window_size // 2 if number % 2 else 0,
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    qk_scale=qk_scale,
                    drop=drop_rate,
                    attn_drop=attn_drop_rate,
                    drop_path=drop_path,
                )
                for number, drop_path in enumerate(drop_paths[index].tolist())
            ]
            downsample = PatchMerging(dim) if index < num_stages - 1 else None
            self.layers.append(SwinStage(blocks, downsample, use_checkpoint))
        self.apply(_initialize)
        for index, dim in enumerate(dims):
            if stage_names[index] in self._out_features:
                self.add_module(f"norm{index}", nn.LayerNorm(dim))
        self._freeze_at = 0
        self.freeze(freeze_at)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        swin = cfg.MODEL.SWIN
        return {
            "in_channels": input_shape.channels,
            "pretrain_img_size": swin.PRETRAIN_IMG_SIZE,
            "patch_size": swin.PATCH_SIZE,
            "embed_dim": swin.EMBED_DIM,
            "depths": swin.DEPTHS,
            "num_heads": swin.NUM_HEADS,
            "window_size": swin.WINDOW_SIZE,
            "mlp_ratio": swin.MLP_RATIO,
            "qkv_bias": swin.QKV_BIAS,
            "qk_scale": swin.QK_SCALE,
            "drop_rate": swin.DROP_RATE,
            "attn_drop_rate": swin.ATTN_DROP_RATE,
            "drop_path_rate": swin.DROP_PATH_RATE,
            "ape": swin.APE,
            "patch_norm": swin.PATCH_NORM,
            "out_features": swin.OUT_FEATURES,
            "use_checkpoint": swin.USE_CHECKPOINT,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        }

    def freeze(self, freeze_at: int = 0) -> SwinTransformer:
        """Do not train the first parts, as the method of Detectron2's ResNet.

        Dropped paths and dropout are off in them, as in evaluation. The norms of the outputs, which
        no ImageNet file has, are trained nevertheless. What was frozen before stays so. A line of
        the log names what is frozen.

        Args:
            freeze_at: 0 or less freezes nothing, 1 the embedding of the patches and the absolute
                positions, 2 the first stage ("res2") as well, and so on. The step from one stage to
                the next belongs to the latter.

        Returns:
            The same backbone.
        """
        self._freeze_at = max(self._freeze_at, freeze_at)
        parts = self._parts()[: self._freeze_at]
        self._frozen = [module for part in parts for module in part]
        for module in self._frozen:
            module.requires_grad_(False)
        if parts:
            if self.absolute_pos_embed is not None:
                self.absolute_pos_embed.requires_grad_(False)
            stages = [f"res{index + 2}" for index in range(len(parts) - 1)]
            logging.getLogger(__name__).info(
                "Not trained in Swin are %s (MODEL.BACKBONE.FREEZE_AT %d; 0 trains all)",
                ", ".join(["the embedding of the patches", *stages]),
                self._freeze_at,
            )
        return self.train(self.training)

    def train(self, mode: bool = True) -> SwinTransformer:
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def _parts(self) -> list[list[nn.Module]]:
        """What can be frozen: the modules at each resolution of the features."""
        steps = [[], *([stage.downsample] for stage in self.layers[:-1])]
        stages = [[*step, *stage.blocks] for step, stage in zip(steps, self.layers)]
        return [[self.patch_embed, self.pos_drop], *stages]

    @property
    def size_divisibility(self) -> int:
        """The last stride. The backbone takes any size; pyramids on top need sizes that halve."""
        return self._out_feature_strides[self._out_features[-1]]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """
        Args:
            images: (B, in_channels, H, W), normalised.

        Returns:
            For each of ``out_features`` (B, C, ceil(H / stride), ceil(W / stride)), contiguous.
        """
        maps = self.patch_embed(images)
        if self.absolute_pos_embed is not None:
            positions = F.interpolate(
                self.absolute_pos_embed, maps.shape[1:3], mode="bicubic", align_corners=False
            )
            maps = maps + positions.permute(0, 2, 3, 1)
        maps = self.pos_drop(maps)
        outputs = {}
        for index, stage in enumerate(self.layers):
            maps = stage(maps)
            name = f"res{index + 2}"
            if name in self._out_features:
                normalized = getattr(self, f"norm{index}")(maps)
                outputs[name] = normalized.permute(0, 3, 1, 2).contiguous()
            if stage.downsample is not None:
                maps = stage.downsample(maps)
        return outputs


def relative_position_index(window_size: int) -> Tensor:
    """For each pair of patches of a window, the row of the bias table: (M^2, M^2) of int64.

    The row for patches (y, x) and (y', x') is ``(y - y' + M - 1) (2 M - 1) + x - x' + M - 1``.
    """
    side = torch.arange(window_size)
    offsets = side[:, None] - side + window_size - 1  # (M, M)
    index = offsets[:, None, :, None] * (2 * window_size - 1) + offsets[None, :, None, :]
    return index.reshape(window_size**2, window_size**2)


def make_shift_mask(
    height: int, width: int, window_size: int, shift: int, device: torch.device
) -> Tensor:
    """What keeps patches apart that a cyclic shift has brought into one window.

    Args:
        height, width: of the map, before it is padded to whole windows.
        window_size, shift: patches.

    Returns:
        (windows, M^2, M^2): 0 for pairs of patches that were within a window's reach before the
        shift, else :data:`NOT_NEIGHBOURS`.
    """

    def parts(size: int) -> Tensor:
        # The last window holds the end of the map and, behind it, its beginning.
        size += -size % window_size
        place = torch.arange(size, device=device)
        return (place >= size - window_size).int() + (place >= size - shift).int()

    regions = 3 * parts(height)[:, None] + parts(width)
    regions = partition(regions[None, :, :, None], window_size)[0, :, :, 0]  # (windows, M^2)
    return (regions[:, None] != regions[:, :, None]) * NOT_NEIGHBOURS


def pad_to_multiple(maps: Tensor, multiple: int) -> Tensor:
    """Zeros at the bottom and on the right of (B, H, W, C), up to multiples of ``multiple``."""
    height, width = maps.shape[1:3]
    bottom, right = -height % multiple, -width % multiple
    return F.pad(maps, (0, 0, 0, right, 0, bottom)) if bottom or right else maps


def partition(maps: Tensor, window_size: int) -> Tensor:
    """(B, H, W, C) -> (B, windows, M^2, C), windows and patches row by row."""
    batch, height, width, dim = maps.shape
    rows, columns = height // window_size, width // window_size
    windows = maps.reshape(batch, rows, window_size, columns, window_size, dim).transpose(2, 3)
    return windows.reshape(batch, rows * columns, window_size**2, dim)


def unite(windows: Tensor, window_size: int, height: int, width: int) -> Tensor:
    """The inverse of :func:`partition`."""
    batch, _, _, dim = windows.shape
    rows, columns = height // window_size, width // window_size
    maps = windows.reshape(batch, rows, columns, window_size, window_size, dim).transpose(2, 3)
    return maps.reshape(batch, height, width, dim)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check(
    embed_dim: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    drop_path_rate: float,
    out_features: Sequence[str],
) -> None:
    if len(depths) != len(num_heads):
        raise ValueError(
            f"MODEL.SWIN.DEPTHS {list(depths)} and NUM_HEADS {list(num_heads)} must have one "
            "entry per stage each"
        )
    for index, heads in enumerate(num_heads):
        if heads < 1 or (embed_dim * 2**index) % heads:
            raise ValueError(
                f"stage {index + 1} of Swin has {embed_dim * 2**index} channels, which "
                f"{heads} heads do not divide (MODEL.SWIN.EMBED_DIM, NUM_HEADS)"
            )
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f"MODEL.SWIN.DROP_PATH_RATE is {drop_path_rate}; it must be in [0, 1)")
    known = [f"res{index + 2}" for index in range(len(depths))]
    unknown = [name for name in out_features if name not in known]
    if unknown or not out_features:
        raise ValueError(
            f"MODEL.SWIN.OUT_FEATURES is {list(out_features)}; there are: {', '.join(known)}"
        )
