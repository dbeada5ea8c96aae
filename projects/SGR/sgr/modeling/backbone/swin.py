"""Swin Transformer (Liu et al., ICCV 2021, arXiv:2103.14030) as a Detectron2 backbone.

Its layers are in :mod:`~sgr.modeling.backbone.swin_layers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.checks import check_at_least_one, check_drop_path_rate
from .freezing import FreezableBackbone
from .swin_layers import PatchEmbed, PatchMerging, SwinBlock, SwinStage
from .swin_weights import adapt_swin_weights


class SwinTransformer(FreezableBackbone):
    """Swin Transformer with a normalised output after each stage, for images of any size.

    It pads maps with zeros at the bottom and on the right: images to whole patches, the inputs of
    attention to whole windows, and the inputs of patch merging to even sizes.

    The defaults are those of Swin-T. Swin-S has depths 2, 2, 18, 2. Swin-B has these depths,
    ``embed_dim`` 128 and heads 4, 8, 16, 32; Swin-L has ``embed_dim`` 192 and heads 6, 12, 24, 48.

    A subclass can replace :attr:`block_class`, :attr:`stage_class` or :meth:`build_stage`, and put
    out more features by :meth:`run_stage`.

    Args:
        pretrain_img_size: side of the images of the pretraining, pixels; ``ape`` needs it.
        patch_size: side of a patch, pixels.
        embed_dim: channels of the first stage; they double from stage to stage.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        window_size: side of an attention window, patches. Every second block shifts its windows by
            half of it.
        mlp_ratio: hidden channels of the MLPs, relative to the channels of their stage.
        qkv_bias: give queries, keys and values a bias.
        qk_scale: factor of the attention's logits; None stands for 1 / sqrt(channels of a head).
        drop_rate: dropout of the embedded patches, the projections and the MLPs.
        attn_drop_rate: dropout of the attention's weights.
        drop_path_rate: probability with which an image skips a residual branch of the last block in
            training. It rises linearly from 0 at the first block.
        ape: add learned absolute positions, resized bicubically to the image.
        patch_norm: normalise the embedded patches.
        out_features: "res2" for the first stage, "res3" for the second, and so on. Stages behind
            the last of them are not built.
        use_checkpoint: recompute the activations of the blocks in the backward pass instead of
            keeping them. This costs another forward pass in training.
        freeze_at: see :meth:`freeze`.

    Raises:
        ValueError: for arguments that do not fit together.
    """

    title = "Swin"
    block_class = SwinBlock
    stage_class = SwinStage

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
        super().__init__()
        check_at_least_one("window_size (MODEL.SWIN.WINDOW_SIZE)", window_size)
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

        # On the CPU also where a model is built without memory, on the device "meta".
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu")
        drop_paths = rates.split(list(depths))
        self.layers = nn.ModuleList(
            self.build_stage(
                index,
                dim,
                drop_paths[index].tolist(),
                downsample=index < num_stages - 1,
                use_checkpoint=use_checkpoint,
                num_heads=num_heads[index],
                window_size=window_size,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                drop=drop_rate,
                attn_drop=attn_drop_rate,
            )
            for index, dim in enumerate(dims)
        )
        self.apply(_initialize)
        for index, dim in enumerate(dims):
            if stage_names[index] in self._out_features:
                self.add_module(f"norm{index}", nn.LayerNorm(dim))
        self.freeze(freeze_at)

    def build_stage(
        self,
        index: int,
        dim: int,
        drop_paths: Sequence[float],
        *,
        downsample: bool,
        use_checkpoint: bool,
        window_size: int,
        **block_options: Any,
    ) -> SwinStage:
        """Build the stage of an index, from 0; a subclass can build another one here.

        Args:
            dim: channels.
            drop_paths: for each block, the probability that an image skips a branch of it.
            downsample: whether another stage follows.
            window_size, block_options: arguments of :class:`SwinBlock`.
        """
        blocks = [
            self.block_class(
                dim,
                window_size,
                shift=window_size // 2 if number % 2 else 0,
                drop_path=drop_path,
                **block_options,
            )
            for number, drop_path in enumerate(drop_paths)
        ]
        return self.stage_class(blocks, PatchMerging(dim) if downsample else None, use_checkpoint)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        return {
            **{key.lower(): value for key, value in cfg.MODEL.SWIN.items()},
            "in_channels": input_shape.channels,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        }

    def freeze(self, freeze_at: int = 0) -> SwinTransformer:
        """See :class:`FreezableBackbone`. The absolute positions belong to the embedding.

        The norms of the outputs are trained in any case, because no ImageNet file has them.
        """
        super().freeze(freeze_at)
        if self._frozen and self.absolute_pos_embed is not None:
            self.absolute_pos_embed.requires_grad_(False)
        return self

    def _parts(self) -> list[list[nn.Module]]:
        steps = [[], *([stage.downsample] for stage in self.layers[:-1])]
        stages = [[*step, *stage.blocks] for step, stage in zip(steps, self.layers)]
        return [[self.patch_embed, self.pos_drop], *stages]

    @property
    def size_divisibility(self) -> int:
        """The largest stride: pyramids on top need such sizes. The backbone itself takes any."""
        return max(self._out_feature_strides[name] for name in self._out_features)

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
            maps, more = self.run_stage(index, maps)
            name = f"res{index + 2}"
            if name in self._out_features:
                normalized = getattr(self, f"norm{index}")(maps)
                outputs[name] = normalized.permute(0, 3, 1, 2).contiguous()
            outputs.update(more)
            if stage.downsample is not None:
                maps = stage.downsample(maps)
        return outputs

    def run_stage(self, index: int, maps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the stage of an index, from 0; a subclass can put out more features here.

        It has to add their names to ``_out_features``, ``_out_feature_channels`` and
        ``_out_feature_strides``, as for any Detectron2 backbone.

        Returns:
            (B, H, W, C), which is normalised for the output and goes on to the next stage, and
            further features: name -> (B, C', H', W').
        """
        return self.layers[index](maps), {}

    def adapt_checkpoint(self, prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Fit ImageNet weights of Swin, and tables of other window sizes, to this backbone.

        :class:`~sgr.checkpoints.checkpointer.SafeCheckpointer` calls it, and says what it returns.
        """
        return adapt_swin_weights(self.state_dict(), prefix, state)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that embed positions, for the optimiser."""
        embeddings = ("relative_position_bias_table", "absolute_pos_embed")
        return {name for name, _ in self.named_parameters() if name.endswith(embeddings)}


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
            f"depths {list(depths)} and num_heads {list(num_heads)} must have one entry per stage "
            "each (MODEL.SWIN.DEPTHS, NUM_HEADS)"
        )
    for index, heads in enumerate(num_heads):
        if heads < 1 or (embed_dim * 2**index) % heads:
            raise ValueError(
                f"stage {index + 1} of Swin has {embed_dim * 2**index} channels, which "
                f"{heads} heads do not divide (embed_dim, MODEL.SWIN.EMBED_DIM, and num_heads, "
                "MODEL.SWIN.NUM_HEADS)"
            )
    check_drop_path_rate(drop_path_rate, "MODEL.SWIN.DROP_PATH_RATE")
    known = [f"res{index + 2}" for index in range(len(depths))]
    unknown = [name for name in out_features if name not in known]
    if unknown or not out_features:
        raise ValueError(
            f"out_features (MODEL.SWIN.OUT_FEATURES) is {list(out_features)}; there are: "
            f"{', '.join(known)}"
        )
