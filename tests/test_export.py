"""Exported files beside the model that they were made from, on batches of other sizes."""

import re

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import SemanticSegmentor, build_model
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from torch import nn

import sgr.export
from foreign import TinyBackbone
from sgr.engine import load_config
from sgr.export import SemanticExport, export_onnx, export_program
from sgr.modeling.outputs import Outputs, pixel_scores
from tiny_model import CONFIG, tiny_options

SIZE, PADDED_SIZE = (64, 96), (50, 70)  # multiples of the divisibility of 32, and none
RESNET = {
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.SGR.NUM_LAYERS": 1,
    "MODEL.MASK_FORMER.DEC_LAYERS": 1,
}
SWIN = {
    "MODEL.BACKBONE.NAME": "build_sgr_swin_backbone",
    "MODEL.SWIN.EMBED_DIM": 16,
    "MODEL.SWIN.DEPTHS": "[2, 2]",
    "MODEL.SWIN.NUM_HEADS": "[1, 2]",
    "MODEL.SWIN.WINDOW_SIZE": 5,
    "MODEL.SWIN.OUT_FEATURES": "['res2', 'res3']",
}
MASK2FORMER = {
    "MODEL.META_ARCHITECTURE": "ConceptMask2FormerSegmentor",
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "DeformablePixelDecoder",
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": "['res2', 'res3']",
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": 2,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "MaskedAttentionPredictor",
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
    "MODEL.MASK_FORMER.DEC_LAYERS": 3,
}
WITHOUT_SGR = {
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.SGR.SUPERVISION.WEIGHT": 0.0,
}


def make_model(options=None):
    """MaskFormer with SGR and ``options``, in evaluation mode."""
    options = {**RESNET, **(options or {})}
    flat = [str(each) for pair in options.items() for each in pair]
    return build_model(load_config(str(CONFIG), [*tiny_options(), *flat])).eval()


def make_images(batch, size, dtype=torch.float32):
    return torch.randint(0, 256, (batch, 3, *size)).to(dtype)


@torch.no_grad()
def evaluate(model, images):
    """The meta-architecture's own scores."""
    scores = torch.stack([each["sem_seg"] for each in model([{"image": i} for i in images])])
    assert scores.flatten(2).std(dim=2).max() > 1e-3  # else any two would be near
    return scores


def run_program(program, images):
    with torch.inference_mode():
        return program.module()(images)


def run_onnx(path, images):
    session = pytest.importorskip("onnxruntime").InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@pytest.fixture(scope="module")
def maskformer():
    return make_model()


@pytest.fixture(scope="module", params=[(33, 41), (32, 40)], ids=["padded", "whole"])
def per_pixel(request):
    """A model of Detectron2's with a per-pixel head and a size divisibility, and a size."""

    class Backbone(TinyBackbone):
        size_divisibility = 4

    torch.manual_seed(0)
    shapes = {"stride2": ShapeSpec(channels=8, stride=2), "stride4": ShapeSpec(16, stride=4)}
    head = SemSegFPNHead(shapes, num_classes=3, conv_dims=8, common_stride=2)
    model = SemanticSegmentor(
        backbone=Backbone(), sem_seg_head=head, pixel_mean=[120.0] * 3, pixel_std=[60.0] * 3
    )
    return model.eval(), request.param


@pytest.mark.parametrize("size", [SIZE, PADDED_SIZE])
def test_module_equals_the_meta_architecture(maskformer, size):
    images = make_images(3, size)
    expected = evaluate(maskformer, images)
    with torch.no_grad():
        torch.testing.assert_close(SemanticExport(maskformer, size)(images), expected)
        labels = SemanticExport(maskformer, size, labels=True)(images)
    assert labels.dtype == torch.int64
    torch.testing.assert_close(labels, expected.argmax(dim=1))


def test_module_of_a_per_pixel_model(per_pixel):
    model, size = per_pixel
    images = make_images(2, size)
    program = export_program(model, size)
    torch.testing.assert_close(run_program(program, images), evaluate(model, images))


# Exports take seconds, so each format sees each backbone and each head once.
@pytest.mark.parametrize(
    "options", [SWIN, {**MASK2FORMER, **WITHOUT_SGR}], ids=["maskformer-swin-sgr", "mask2former"]
)
def test_program_of_any_batch(options, tmp_path):
    model = make_model(options)
    path = tmp_path / "model.pt2"
    torch.export.save(export_program(model, PADDED_SIZE), path)
    program = torch.export.load(path)
    for batch in (1, 3):
        images = make_images(batch, PADDED_SIZE)
        expected = evaluate(model, images)
        torch.testing.assert_close(run_program(program, images), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "options", [{}, {**MASK2FORMER, **SWIN}], ids=["maskformer-sgr", "mask2former-swin-sgr"]
)
def test_onnx_of_any_batch(options, tmp_path):
    pytest.importorskip("onnxscript")
    model = make_model(options)
    path = tmp_path / "model.onnx"
    export_onnx(model, PADDED_SIZE, path)
    assert list(tmp_path.iterdir()) == [path]  # weights included
    for batch in (1, 3):
        images = make_images(batch, PADDED_SIZE)
        expected = evaluate(model, images)
        torch.testing.assert_close(run_onnx(path, images), expected, rtol=0, atol=1e-3)


def test_onnx_of_labels_names_its_axes(per_pixel, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, size = per_pixel
    path = tmp_path / "labels.onnx"
    export_onnx(model, size, path, labels=True, dtype=torch.uint8)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs, outputs = session.get_inputs(), session.get_outputs()
    assert [(i.name, i.shape, i.type) for i in (*inputs, *outputs)] == [
        ("images", ["batch", 3, *size], "tensor(uint8)"),
        ("labels", ["batch", *size], "tensor(int64)"),
    ]
    images = make_images(3, size, torch.uint8)
    differ = run_onnx(path, images) != evaluate(model, images).argmax(dim=1)
    assert differ.float().mean() < 1e-3


def test_program_of_one_batch_size_and_uint8(per_pixel):
    model, size = per_pixel
    program = export_program(model, size, batch=1, dtype=torch.uint8, labels=True)
    images = make_images(1, size, torch.uint8)
    expected = evaluate(model, images).argmax(dim=1)
    assert (run_program(program, images) != expected).float().mean() < 1e-3
    with pytest.raises((AssertionError, RuntimeError)):
        run_program(program, make_images(2, size, torch.uint8))


def test_dropout_is_switched_off(per_pixel):
    model, size = per_pixel
    model.sem_seg_head.predictor = nn.Sequential(nn.Dropout(0.5), model.sem_seg_head.predictor)
    program = export_program(model.train(), size)
    images = make_images(2, size)
    torch.testing.assert_close(run_program(program, images), evaluate(model.eval(), images))


class OneByOne(nn.Module):
    """A model whose code counts the images of the batch."""

    outputs = Outputs(results=("semantic",), sem_seg="logits", batch_scores=pixel_scores)
    pixel_mean, pixel_std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)

    def __init__(self):
        super().__init__()
        self.backbone = TinyBackbone()

    def sem_seg_head(self, features):
        return torch.cat([each[None] for each in features["stride2"].unbind()]), {}


def test_models_of_a_fixed_batch_size():
    with pytest.raises(ValueError, match="OneByOne does not export for any batch.* batch=1"):
        export_program(OneByOne(), (16, 16))
    program = export_program(OneByOne(), (16, 16), batch=2)
    assert run_program(program, make_images(2, (16, 16))).shape == (2, 8, 8, 8)


@pytest.mark.parametrize("size", [(0, 32), (32, -1), (32,), (32.0, 32)])
def test_sizes_that_are_none(maskformer, size):
    with pytest.raises(ValueError, match=re.escape(f"got {size}")):
        export_program(maskformer, size)


def test_other_images_than_exported_for(maskformer):
    with pytest.raises(ValueError, match=r"\(32, 64\), but this module is for \(64, 96\)"):
        SemanticExport(maskformer, SIZE)(make_images(1, (32, 64)))


def test_batches_and_types_that_are_none(maskformer):
    with pytest.raises(ValueError, match="at least 1 image, or None for any, got 0"):
        export_program(maskformer, SIZE, batch=0)
    with pytest.raises(ValueError, match="not torch.float16"):
        export_program(maskformer, SIZE, dtype=torch.float16)


def test_models_without_semantic_results():
    with pytest.raises(ValueError, match="Linear has no backbone and no sem_seg_head"):
        export_program(nn.Linear(1, 1), SIZE)
    model = make_model({"MODEL.MASK_FORMER.TEST.SEMANTIC_ON": False})
    with pytest.raises(ValueError, match="SEMANTIC_ON to True"):
        export_program(model, SIZE)


def test_missing_packages_are_named(maskformer, monkeypatch, tmp_path):
    monkeypatch.setattr(sgr.export, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"onnx and onnxscript: pip install 'sgr-segmentation\[export\]'"
    ):
        export_onnx(maskformer, SIZE, tmp_path / "model.onnx")
