"""SeMask on a Swin Transformer, as a Detectron2 backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn

from sgr.modeling.backbone.swin import SwinTransformer
from sgr.modeling.backbone.swin_layers import SwinStage

from .semantic_layer import (
    SemanticLayer,
    build_semantic_layers,
    semantic_options,
    warn_without_loss,
)


class SeMaskStage(SwinStage):
    """A stage of Swin with a semantic layer behind its blocks."""

    def __init__(self, stage: SwinStage, semantic_layer: SemanticLayer):
        super().__init__(list(stage.blocks), None, stage.use_checkpoint)
        # In this order the names are those of the public models.
        self.semantic_layer = semantic_layer
        self.downsample = stage.downsample

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """(B, h, w, C) -> see :meth:`SemanticLayer.forward`."""
        return self.semantic_layer(super().forward(maps))


class SeMaskSwinTransformer(SwinTransformer):
    """Swin Transformer with a semantic layer at the end of each stage.

    Beside "res2" and so on, it puts out the semantic maps: "semantic2" (B, K, h, w) is that of
    "res2", in logits.

    Args:
        semantic: options of :func:`build_semantic_layers`; ``num_classes`` is needed.
        **swin: see :class:`SwinTransformer`.

    Attributes:
        semantic_features: names of the semantic maps, the finest first.

    Raises:
        ValueError: for arguments that do not fit together.
    """

    @configurable
    def __init__(
        self,
        *,
        semantic: Mapping[str, Any],
        freeze_at: int = 0,
        **swin: Any,
    ):
        super().__init__(**swin)
        # The settings are for all stages, also those behind the last output, which are not built.
        strides = list(self._out_feature_strides.values())
        channels = [swin.get("embed_dim", 96) * 2**index for index in range(len(strides))]
        layers = build_semantic_layers(channels, strides, **semantic)
        self.layers = nn.ModuleList(map(SeMaskStage, self.layers, layers.values()))
        self.semantic_features = list(layers)[: len(self.layers)]
        missing = [
            name for name in semantic.get("regions", ()) if name not in self.semantic_features
        ]
        if missing:
            raise ValueError(
                f"regions (MODEL.SEMASK.REGIONS) has {missing}, but the last stage that is built "
                f"is that of {self._out_features[-1]!r} (out_features, MODEL.SWIN.OUT_FEATURES); "
                f"the maps are {', '.join(self.semantic_features)}"
            )
        self._out_features += self.semantic_features
        num_classes = semantic["num_classes"]
        self._out_feature_channels.update(dict.fromkeys(self.semantic_features, num_classes))
        self._out_feature_strides.update(zip(self.semantic_features, strides))
        self.freeze(freeze_at)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {**super().from_config(cfg, input_shape), "semantic": semantic_options(cfg)}

    @property
    def size_divisibility(self) -> int:
        """The side of a patch: images are not padded further, as in the public tests of SeMask.

        Semantic layers with the whole map would attend to the padding. Heads must take maps whose
        sizes are not multiples; :class:`SemanticFPNHead` does. Mask classifiers have a key of
        their own, MODEL.MASK_FORMER.SIZE_DIVISIBILITY.
        """
        return self.patch_embed.patch_size

    def run_stage(self, index: int, maps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        maps, semantic = self.layers[index](maps)
        return maps, {self.semantic_features[index]: semantic}

    def _parts(self) -> list[list[nn.Module]]:
        """As in Swin; the semantic layers of frozen stages are frozen with them."""
        embedding, *stages = super()._parts()
        layers = [getattr(stage, "semantic_layer", None) for stage in self.layers]
        return [
            embedding,
            *([*stage, layer] if layer else stage for stage, layer in zip(stages, layers)),
        ]


@BACKBONE_REGISTRY.register()
def build_semask_swin_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SeMaskSwinTransformer:
    """Build the Swin Transformer of ``cfg.MODEL.SWIN`` with the layers of ``cfg.MODEL.SEMASK``."""
    warn_without_loss(cfg)
    return SeMaskSwinTransformer(cfg, input_shape)
