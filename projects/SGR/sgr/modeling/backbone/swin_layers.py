"""The layers of a Swin Transformer (Liu et al., ICCV 2021, arXiv:2103.14030).

Parameter names, shapes and results are those of the backbones in the public MaskFormer and
Mask2Former. Torchvision's blocks differ: they do not shift where a map is no larger than a window,
while the public backbones always do. All maps are channels-last: (B, H, W, C).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

# Added to attention logits between patches that are neighbours only because of the cyclic shift.
# Finite, as in the training of the public models, so that trained weights see the same function.
NOT_NEIGHBOURS = -100.0

# Windows times heads in one call of the attention: fused kernels on GPUs number heads along an axis
# of their grid that ends here. The axis of images is as short, but PyTorch splits that by itself.
MAX_HEADS_AT_ONCE = 65_535


class PatchEmbed(nn.Module):
    """Embed the patches of an image, by a convolution whose stride is its size."""

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
    """Merge squares of 2 x 2 patches: half the resolution, twice the channels."""

    def __init__(self, dim: int):
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2 C)."""
        maps = pad_to_multiple(maps, 2)
        batch, height, width, dim = maps.shape
        squares = maps.reshape(batch, height // 2, 2, width // 2, 2, dim)
        # Down a column first: checkpoints have the channels in this order.
        return self.reduction(self.norm(squares.permute(0, 1, 3, 4, 2, 5).flatten(3)))


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias per head and relative position.

    For a map of n patches with C channels in windows of side M it costs ``4 n C^2 + 2 n M^2 C``
    multiply-adds. In inference, a fused kernel of PyTorch, if there is one, stores neither logits
    nor weights, n M^2 per head. Training stores as much for the gradient of the bias. With a shift
    mask, bias and mask are stored for one image.

    Args:
        dim: C, channels.
        window_size: M, side of a window, patches.
        num_heads: attention heads; must divide C.
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
        """(B, windows, M^2, C) -> the same. Logits get the (windows, M^2, M^2) mask added."""
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
    """Window attention and an MLP, each with a normalised input and a residual connection.

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
        """(B, H, W, C) -> the same. Only a block with a shift reads ``shift_mask``."""
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
        blocks: the blocks in their order, of one window size.
        downsample: makes the input of the next stage; None in the last stage.
        use_checkpoint: keep only the input of each block for the backward pass.
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
        """(B, H, W, C) -> (B, H, W, C). The backbone calls ``downsample`` itself."""
        shift_mask = None
        height, width = maps.shape[1:3]
        for block in self.blocks:
            if block.shift and shift_mask is None:
                shift_mask = make_shift_mask(
                    height, width, block.window_size, block.shift, maps.device
                )
            if self.use_checkpoint and self.training:
                maps = checkpoint(block, maps, shift_mask, use_reentrant=False)
            else:
                maps = block(maps, shift_mask)
        return maps


def relative_position_index(window_size: int) -> Tensor:
    """Index the bias table for each pair of patches of a window: (M^2, M^2) of int64.

    The row for patches (y, x) and (y', x') is ``(y - y' + M - 1) (2 M - 1) + x - x' + M - 1``.
    """
    side = torch.arange(window_size)
    offsets = side[:, None] - side + window_size - 1  # (M, M)
    index = offsets[:, None, :, None] * (2 * window_size - 1) + offsets[None, :, None, :]
    return index.reshape(window_size**2, window_size**2)


def make_shift_mask(
    height: int, width: int, window_size: int, shift: int, device: torch.device
) -> Tensor:
    """Make the mask that keeps patches apart that only a cyclic shift has brought together.

    Args:
        height, width: size of the map in patches, before it is padded to whole windows.
        window_size, shift: patches.

    Returns:
        (windows, M^2, M^2): 0 for pairs of patches that were neighbours before the shift, else
        :data:`NOT_NEIGHBOURS`.
    """

    def parts(size: int) -> Tensor:
        # After the shift, the last window holds the end of the map, then its beginning.
        size += -size % window_size
        place = torch.arange(size, device=device)
        return (place >= size - window_size).int() + (place >= size - shift).int()

    regions = 3 * parts(height)[:, None] + parts(width)
    regions = partition(regions[None, :, :, None], window_size)[0, :, :, 0]  # (windows, M^2)
    return (regions[:, None] != regions[:, :, None]) * NOT_NEIGHBOURS


def pad_to_multiple(maps: Tensor, multiple: int) -> Tensor:
    """Pad (B, H, W, C) with zeros at the bottom and on the right, to multiples of ``multiple``."""
    height, width = maps.shape[1:3]
    bottom, right = -height % multiple, -width % multiple
    return F.pad(maps, (0, 0, 0, right, 0, bottom)) if bottom or right else maps


def partition(maps: Tensor, window_size: int) -> Tensor:
    """Cut maps into windows: (B, H, W, C) -> (B, windows, M^2, C), both row by row."""
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
