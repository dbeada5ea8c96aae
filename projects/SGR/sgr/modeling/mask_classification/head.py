"""Mask classification head: a pixel decoder and a predictor."""

from __future__ import annotations

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from ..layers.checks import check_num_classes
from .decoders.base import MULTI_SCALE, build_pixel_decoder
from .predictors.base import build_predictor, check_reads


@SEM_SEG_HEADS_REGISTRY.register()
class MaskClassificationHead(nn.Module):
    """Head of MaskFormer and Mask2Former: it turns features into classes and masks of queries."""

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        pixel_decoder: nn.Module,
        predictor: nn.Module,
        transformer_in_feature: str,
    ):
        """
        Args:
            num_classes: classes, "no object" not counted; at least 1.
            pixel_decoder: features -> :class:`PixelDecoderOutput`.
            predictor: features and mask features -> dict of predictions.
            transformer_in_feature: what the predictor reads: the name of a backbone's feature,
                "transformer_encoder" (the pixel decoder's encoder), "pixel_embedding" (the mask
                features) or "multi_scale_pixel_decoder" (the pixel decoder's maps of several
                strides). It must be the last one if ``predictor.reads_multi_scale``, and another
                one otherwise.

        Raises:
            ValueError: there is no class, or the predictor cannot read that feature.
        """
        super().__init__()
        check_num_classes(num_classes)
        check_reads(type(predictor), transformer_in_feature)
        self.num_classes = num_classes
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.transformer_in_feature = transformer_in_feature

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        pixel_decoder = build_pixel_decoder(cfg, input_shape)
        in_feature = cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE
        channels = {name: shape.channels for name, shape in input_shape.items()}
        channels.update(pixel_decoder.output_channels)
        if in_feature not in channels:
            raise ValueError(
                f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is {in_feature!r}; with this backbone "
                f"and pixel decoder it must be one of {sorted(channels)}"
            )
        predictor = build_predictor(
            cfg, channels[in_feature], mask_stride=pixel_decoder.mask_stride
        )
        return {
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "pixel_decoder": pixel_decoder,
            "predictor": predictor,
            "transformer_in_feature": in_feature,
        }

    def forward(self, features: dict[str, Tensor]) -> dict:
        """Features (B, C_i, h_i, w_i) -> predictions, see :meth:`QueryPredictor.predict`."""
        mask_features, encoder_features, multi_scale_features = self.pixel_decoder(features)
        if self.transformer_in_feature == MULTI_SCALE:
            read = multi_scale_features
        elif self.transformer_in_feature == "transformer_encoder":
            read = encoder_features
        elif self.transformer_in_feature == "pixel_embedding":
            read = mask_features
        else:
            read = features[self.transformer_in_feature]
        return self.predictor(read, mask_features)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # The first public checkpoints kept the pixel decoder's parameters in the head itself.
        for name in list(state_dict):
            if name.startswith(prefix):
                rest = name[len(prefix) :]
                if not rest.startswith(("pixel_decoder.", "predictor.")):
                    state_dict[f"{prefix}pixel_decoder.{rest}"] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
