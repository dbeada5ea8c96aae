"""Mask2Former's pixel decoder: a transformer of deformable attention over several strides.

Parameter names are those of Mask2Former's pixel decoder, so that its checkpoints load.
"""

from __future__ import annotations

import logging

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from ...layers.checks import check_at_least_one, check_heads
from ...layers.conv import conv_norm
from ...layers.deformable_attention import DeformableAttention
from ...layers.precision import float32_or_wider
from ...layers.transformer import xavier_init
from ..position_embedding import SinePositionEmbedding
from .base import MULTI_SCALE, PixelDecoderOutput, PyramidDecoder

NUM_GROUPS = 32  # of the input projections' norms
MAX_MULTI_SCALE_FEATURES = 3


@SEM_SEG_HEADS_REGISTRY.register()
class DeformablePixelDecoder(PyramidDecoder):
    """A transformer over features of several strides, and a pyramid (FPN) down to finer ones.

    In the transformer each cell of a feature reads ``num_points`` points per head of every feature.
    So the cost of a layer grows linearly with the number of cells.

    Autocast is switched off inside, as in the public code: everything is computed in the type of
    the parameters, and the output has this type.
    """

    upsampling = "bilinear"

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        transformer_in_features: list[str],
        common_stride: int = 4,
        conv_dim: int = 256,
        mask_dim: int = 256,
        norm: str = "GN",
        num_layers: int = 6,
        num_heads: int = 8,
        num_points: int = 4,
        feedforward_dim: int = 1024,
        dropout: float = 0.0,
    ):
        """
        Args:
            input_shape: channels and stride of every input feature, at least two.
            transformer_in_features: names of the features that the transformer encodes.
            common_stride: the pyramid goes from the finest of those through all finer input
                features down to this stride. A warning names the input features that nothing
                reads: parameters that make only these get no gradient, which stops distributed
                training.
            conv_dim: channels of the transformer and of the pyramid, a multiple of 32 and of
                ``num_heads``.
            mask_dim: channels of the mask features.
            norm: norm of the pyramid's convolutions (see Detectron2's ``get_norm``); "" leaves it
                out.
            num_layers, num_heads, num_points, feedforward_dim, dropout: of the transformer, which
                has at least one layer and one point.

        Raises:
            ValueError: there are fewer than two features, a name is not in ``input_shape``, there
                is no layer or point, or ``conv_dim`` is no multiple of the groups of the norms or
                of the heads.
        """
        super().__init__()
        if len(input_shape) < 2:
            raise ValueError(
                f"DeformablePixelDecoder reads features of several strides, got {list(input_shape)}"
                "; give it more (input_shape, MODEL.SEM_SEG_HEAD.IN_FEATURES), or take "
                "FPNPixelDecoder"
            )
        unknown = [name for name in transformer_in_features if name not in input_shape]
        if unknown or not transformer_in_features:
            raise ValueError(
                "transformer_in_features "
                "(MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES) must be some of "
                f"the inputs {list(input_shape)} (IN_FEATURES), got {list(transformer_in_features)}"
            )
        if conv_dim % NUM_GROUPS:
            raise ValueError(
                f"conv_dim (MODEL.SEM_SEG_HEAD.CONVS_DIM) is {conv_dim}; it must be a multiple of "
                f"{NUM_GROUPS}, the groups of the input projections' norms"
            )
        head = "MODEL.SEM_SEG_HEAD"
        check_heads(
            num_heads,
            conv_dim,
            f"num_heads, {head}.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS",
            f"conv_dim, {head}.CONVS_DIM",
        )
        check_at_least_one(
            f"num_points ({head}.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS)", num_points
        )
        check_at_least_one(f"num_layers ({head}.TRANSFORMER_ENC_LAYERS)", num_layers)

        def by_stride(names):
            return sorted(names, key=lambda name: input_shape[name].stride)

        # Dilated ResNets have equal strides. Among them the last of the inputs comes first.
        self.transformer_in_features = by_stride(
            name for name in input_shape if name in transformer_in_features
        )[::-1]
        finest = input_shape[self.transformer_in_features[-1]].stride
        self.pyramid_in_features = by_stride(
            name for name, shape in input_shape.items() if common_stride <= shape.stride < finest
        )
        decoded = [*self.transformer_in_features, *self.pyramid_in_features[::-1]]
        unread = [name for name in input_shape if name not in decoded]
        if unread:
            logging.getLogger(__name__).warning(
                "DeformablePixelDecoder does not read %s: not encoded, and outside of the pyramid "
                "from stride %d to MODEL.SEM_SEG_HEAD.COMMON_STRIDE %d. Parameters that make only "
                "these features get no gradient, which stops distributed training; take them out "
                "of IN_FEATURES and of the backbone's OUT_FEATURES, or lower COMMON_STRIDE",
                ", ".join(unread),
                finest,
                common_stride,
            )
        self.mask_stride = input_shape[decoded[-1]].stride
        self.output_channels = {
            "pixel_embedding": mask_dim,
            "transformer_encoder": conv_dim,
            MULTI_SCALE: [conv_dim] * len(decoded[:MAX_MULTI_SCALE_FEATURES]),
        }
        self.input_proj = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(input_shape[name].channels, conv_dim, kernel_size=1),
                nn.GroupNorm(NUM_GROUPS, conv_dim),
            )
            for name in self.transformer_in_features
        )
        for projection, _ in self.input_proj:
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)
        self.transformer = DeformableTransformer(
            num_layers,
            conv_dim,
            num_levels=len(self.transformer_in_features),
            num_heads=num_heads,
            num_points=num_points,
            feedforward_dim=feedforward_dim,
            dropout=dropout,
        )
        self.position_embedding = SinePositionEmbedding(conv_dim)
        self.add_levels([input_shape[name] for name in self.pyramid_in_features], conv_dim, norm)
        self.mask_features = conv_norm(conv_dim, mask_dim, 1, norm="")

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        head = cfg.MODEL.SEM_SEG_HEAD
        # The feed-forward width is Mask2Former's constant. MASK_FORMER.DIM_FEEDFORWARD is the
        # width of the predictor.
        return {
            "input_shape": {name: input_shape[name] for name in head.IN_FEATURES},
            "transformer_in_features": head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES,
            "common_stride": head.COMMON_STRIDE,
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
            "num_layers": head.TRANSFORMER_ENC_LAYERS,
            "num_heads": head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS,
            "num_points": head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS,
            "dropout": cfg.MODEL.MASK_FORMER.DROPOUT,
        }

    def forward(self, features: dict[str, Tensor]) -> PixelDecoderOutput:
        """
        Args:
            features: at least the features that are read, each (B, C_i, h_i, w_i), of any type.

        Returns:
            Mask features at the finest stride of the pyramid, the coarsest map of the transformer,
            and the three coarsest maps of the transformer and, if these are fewer, of the pyramid.
            All have the type of the parameters, also under autocast.
        """
        weight = self.mask_features.weight
        with torch.autocast(weight.device.type, enabled=False):
            names = (*self.transformer_in_features, *self.pyramid_in_features)
            return self._decode({name: features[name].to(weight.dtype) for name in names})

    def _decode(self, features: dict[str, Tensor]) -> PixelDecoderOutput:
        projected = [
            projection(features[name])
            for name, projection in zip(self.transformer_in_features, self.input_proj)
        ]
        positions = [self.position_embedding(feature) for feature in projected]
        encoded = self.transformer(projected, positions)
        finer = self.descend(encoded[-1], [features[name] for name in self.pyramid_in_features])
        maps = [*encoded[:-1], *finer]
        return PixelDecoderOutput(
            self.mask_features(maps[-1]), encoded[0], maps[:MAX_MULTI_SCALE_FEATURES]
        )


class DeformableTransformer(nn.Module):
    """An encoder whose tokens are the cells of ``num_levels`` feature maps."""

    def __init__(self, num_layers: int, embed_dim: int, *, num_levels: int, **layer_options):
        super().__init__()
        self.level_embed = nn.Parameter(torch.randn(num_levels, embed_dim))
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(
            DeformableEncoderLayer(embed_dim, num_levels=num_levels, **layer_options)
            for _ in range(num_layers)
        )

    def forward(self, maps: list[Tensor], positions: list[Tensor]) -> list[Tensor]:
        """Encode maps (B, C, h_l, w_l) with position embeddings (B or 1, C, h_l, w_l)."""
        shapes = [(feature_map.shape[-2], feature_map.shape[-1]) for feature_map in maps]
        tokens = _to_tokens(maps)
        position = _to_tokens(
            [place + level[:, None, None] for place, level in zip(positions, self.level_embed)]
        )
        reference_points = torch.cat([_cell_centers(feature_map) for feature_map in maps])[None]
        for layer in self.encoder.layers:
            tokens = layer(tokens, position, reference_points, shapes)
        cells = tokens.split([height * width for height, width in shapes], dim=1)
        return [token.transpose(1, 2).unflatten(2, shape) for token, shape in zip(cells, shapes)]


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward block, each with a residual and then a norm.

    Args:
        embed_dim: C, channels of a token.
        num_levels, num_heads, num_points: as for :class:`DeformableAttention`.
        feedforward_dim: hidden channels of the feed-forward block.
        dropout: probability, before each residual sum and inside the feed-forward block.
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        num_levels: int,
        num_heads: int = 8,
        num_points: int = 4,
        feedforward_dim: int = 1024,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.self_attn = DeformableAttention(
            embed_dim, num_levels=num_levels, num_heads=num_heads, num_points=num_points
        )
        self.norm1 = nn.LayerNorm(embed_dim)
        self.linear1 = nn.Linear(embed_dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.linear1, self.linear2):
            xavier_init(linear)

    def forward(
        self,
        tokens: Tensor,
        position: Tensor,
        reference_points: Tensor,
        spatial_shapes: list[tuple[int, int]],
    ) -> Tensor:
        """
        Args:
            tokens: (B, S, C) cells of all maps, one map after the other, rows first.
            position: (B or 1, S, C) embedding that is added to the queries, but not to what they
                read.
            reference_points: (B or 1, S, 2) the cells' centres (x, y), relative to their map.
            spatial_shapes: (h_l, w_l) of the maps.

        Returns:
            (B, S, C).
        """
        read = self.self_attn(tokens + position, reference_points, tokens, spatial_shapes)
        tokens = self.norm1(tokens + self.dropout(read))
        hidden = self.dropout(F.relu(self.linear1(tokens)))
        return self.norm2(tokens + self.dropout(self.linear2(hidden)))


def _to_tokens(maps: list[Tensor]) -> Tensor:
    """Maps (B, C, h_l, w_l) -> (B, S, C)."""
    return torch.cat([feature_map.flatten(2) for feature_map in maps], dim=2).transpose(1, 2)


def _cell_centers(x: Tensor) -> Tensor:
    """Give (h * w, 2) x and y of the cells, relative to the map's size, in float32 or better."""
    height, width = x.shape[-2:]
    dtype = float32_or_wider(x.dtype)
    rows = (torch.arange(height, dtype=dtype, device=x.device) + 0.5) / height
    columns = (torch.arange(width, dtype=dtype, device=x.device) + 0.5) / width
    centers = (columns.expand(height, width), rows[:, None].expand(height, width))
    return torch.stack(centers, dim=-1).flatten(0, 1)
