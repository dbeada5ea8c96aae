"""Mask classification head: a pixel decoder and a predictor."""

from __future__ import annotations

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from .pixel_decoder import build_pixel_decoder
from .predictor import TransformerPredictor

__all__ = ["MaskClassificationHead"]


@SEM_SEG_HEADS_REGISTRY.register()
class MaskClassificationHead(nn.Module):
    """MaskFormer's head: features of a backbone -> classes and masks of Q queries."""

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
            num_classes: classes, "no object" not counted.
            pixel_decoder: features -> :class:`PixelDecoderOutput`.
            predictor: features and mask features -> dict of predictions.
            transformer_in_feature: what the predictor reads: the name of a backbone's feature,
                "transformer_encoder" (the pixel decoder's encoder) or "pixel_embedding" (the mask
                features).
        """
        super().__init__()
        self.num_classes = num_classes
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.transformer_in_feature = transformer_in_feature

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        pixel_decoder = build_pixel_decoder(cfg, input_shape)
        in_feature = cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE
        channels = {name: shape.channels for name, shape in input_shape.items()}
        channels["pixel_embedding"] = cfg.MODEL.SEM_SEG_HEAD.MASK_DIM
        if hasattr(pixel_decoder, "transformer"):
            channels["transformer_encoder"] = cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM
        if in_feature not in channels:
            raise ValueError(
                f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is {in_feature!r}; with this backbone "
                f"and pixel decoder it must be one of {sorted(channels)}"
            )
        finest = min(input_shape[name].stride for name in cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES)
        return {
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "pixel_decoder": pixel_decoder,
            "predictor": TransformerPredictor(cfg, channels[in_feature], mask_stride=finest),
            "transformer_in_feature": in_feature,
        }

    def forward(self, features: dict[str, Tensor]) -> dict:
        """
        Args:
            features: of the backbone, each (B, C_i, h_i, w_i).

        Returns:
            The predictor's output, see :meth:`TransformerPredictor.forward`.
        """
        mask_features, encoder_features, _ = self.pixel_decoder(features)
        if self.transformer_in_feature == "transformer_encoder":
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
