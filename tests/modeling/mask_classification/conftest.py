from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec

from sgr.modeling.mask_classification import (
    FPNPixelDecoder,
    MaskClassificationHead,
    TransformerPredictor,
)

REFERENCE = Path(__file__).resolve().parents[4] / "shared" / "reference"


@pytest.fixture
def input_shape():
    return {
        "res2": ShapeSpec(channels=16, stride=4),
        "res3": ShapeSpec(channels=24, stride=8),
        "res4": ShapeSpec(channels=32, stride=16),
        "res5": ShapeSpec(channels=48, stride=32),
    }


@pytest.fixture
def head(input_shape):
    """A small head, of the sizes of the reference."""
    return MaskClassificationHead(
        num_classes=7,
        pixel_decoder=FPNPixelDecoder(input_shape, conv_dim=32, mask_dim=16),
        predictor=TransformerPredictor(
            48,
            num_classes=7,
            hidden_dim=32,
            num_queries=10,
            num_heads=4,
            dropout=0.0,
            feedforward_dim=64,
            decoder_layers=3,
            mask_dim=16,
            mask_stride=4,
        ),
        transformer_in_feature="res5",
    )


@pytest.fixture
def features(input_shape):
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(
            2, shape.channels, 64 // shape.stride, 96 // shape.stride, generator=generator
        )
        for name, shape in input_shape.items()
    }


@pytest.fixture
def reference():
    """The reference MaskFormer head's arrays, as tensors; masks unpacked."""
    return _load_arrays("maskformer_head.npz")


@pytest.fixture
def mask2former_reference():
    """The reference Mask2Former head's arrays, as tensors."""
    return _load_arrays("mask2former_head.npz")


def _load_arrays(name):
    path = REFERENCE / name
    if not path.exists():
        pytest.skip("the reference arrays are not here")
    with np.load(path) as file:
        arrays = {
            name: np.unpackbits(file[name], axis=-1, count=160).astype(bool)
            if name.endswith(".masks")
            else file[name]
            for name in file.files
        }
    return {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}


@pytest.fixture
def reference_targets(reference):
    return [
        {"labels": reference[f"target{i}.labels"], "masks": reference[f"target{i}.masks"]}
        for i in range(2)
    ]


@pytest.fixture
def reference_outputs(reference):
    def layer(prefix):
        return {key: reference[f"{prefix}.{key}"] for key in ("pred_logits", "pred_masks")}

    return {**layer("out"), "aux_outputs": [layer("out.aux0"), layer("out.aux1")]}
