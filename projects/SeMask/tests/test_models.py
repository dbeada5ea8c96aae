"""Whole models, from the small configs: training, evaluation, pictures and export."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

import sgr
from pretended_gpu import step_and_evaluate
from semask.feature_alignment import DeformableConv
from sgr.engine import Trainer, load_config
from sgr.export import export_onnx, export_program

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.SWIN.EMBED_DIM": 16,
    "MODEL.SWIN.DEPTHS": "[1, 1, 1, 1]",
    "MODEL.SWIN.NUM_HEADS": "[1, 1, 2, 2]",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.NORM": "BN",
    "MODEL.SGR.NUM_CONCEPTS": 24,
    "MODEL.SGR.TOKEN_DIM": 16,
    "MODEL.SGR.DIM_FEEDFORWARD": 32,
    "MODEL.SGR.NUM_LAYERS": 1,
    "INPUT.MIN_SIZE_TRAIN": "(96,)",
    "INPUT.MIN_SIZE_TEST": 96,
    "SOLVER.IMS_PER_BATCH": 3,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.WARMUP_ITERS": 0,
    "TEST.EVAL_PERIOD": 0,
    "DATALOADER.NUM_WORKERS": 0,
}
FAPN = {
    "MODEL.META_ARCHITECTURE": "ConceptMask2FormerSegmentor",
    "MODEL.SEM_SEG_HEAD.NAME": "MaskClassificationHead",
    "MODEL.SEM_SEG_HEAD.NORM": "GN",
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "FaPNPixelDecoder",
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "MaskedAttentionPredictor",
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
    "MODEL.MASK_FORMER.HIDDEN_DIM": 16,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 32,
    "MODEL.MASK_FORMER.DEC_LAYERS": 3,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 10,
    "INPUT.DATASET_MAPPER_NAME": "mask_former_semantic_concept",
}
MSFAPN = {
    **FAPN,
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSFaPNPixelDecoder",
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": "['res3', 'res4']",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
}
SWIN = {"MODEL.BACKBONE.NAME": "build_swin_backbone", "MODEL.SEMASK.LOSS_WEIGHT": 0.0}
RESNET = {
    "MODEL.BACKBONE.NAME": "build_sgr_backbone",
    "MODEL.SGR.BACKBONE_NAME": "build_resnet_backbone",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.OUT_FEATURES": "['res2', 'res3', 'res4']",
    "MODEL.SEMASK.LOSS_WEIGHT": 0.0,
}


def tiny(config, *more, **options):
    merged = dict(TINY)
    for each in (*more, {key.replace("__", "."): value for key, value in options.items()}):
        merged.update(each)
    opts = [str(each) for pair in merged.items() for each in pair]
    return load_config(str(CONFIGS / f"{config}.yaml"), opts)


@pytest.mark.parametrize(
    ("config", "more", "losses"),
    [
        ("shapes/swin_fpn", {}, []),
        ("shapes/semask_fpn", {}, ["cate"]),
        ("shapes/semask_fpn_wo_loss", {}, []),
        ("shapes/semask_fpn_sgr", {}, ["cate", "concept_focal", "concept_cosine"]),
        ("shapes/semask_fpn", FAPN, ["cate", "mask", "dice"]),
        ("shapes/semask_fpn", MSFAPN, ["cate", "mask"]),
        ("shapes/semask_fpn", {**FAPN, **SWIN}, ["mask"]),
        ("shapes/semask_fpn_sgr", {**MSFAPN, **RESNET}, ["mask", "concept_focal"]),
    ],
)
def test_training(config, more, losses, tiny_shapes, tmp_path):
    """All losses come, are finite and reach all trained parameters."""
    trainer = Trainer(tiny(config, more, OUTPUT_DIR=tmp_path))
    model = trainer.model.train()
    result = model(next(iter(trainer.data_loader)))
    assert {f"loss_{name}" for name in losses} <= result.keys()
    assert ("loss_cate" in result) == ("cate" in losses)
    total = sum(result.values())
    assert total.isfinite()
    total.backward()
    silent = [name for name, each in model.named_parameters() if each.grad is None]
    assert silent == [name for name, each in model.named_parameters() if not each.requires_grad]


def test_on_a_pretended_gpu(tiny_shapes, tmp_path):
    assert "sem_seg" in step_and_evaluate(tiny("shapes/semask_fpn", MSFAPN, OUTPUT_DIR=tmp_path))


@pytest.mark.parametrize("stage", ["semantic2", "semantic4"])
def test_metrics_of_semantic_maps(stage, tiny_shapes, tmp_path):
    """Of the chosen stage: semanticity and diversity, of classes and of instances."""
    cfg = tiny(
        "shapes/semask_fpn",
        OUTPUT_DIR=tmp_path,
        MODEL__SEMASK__REGIONS=f"['{stage}']",
        TEST__TOKENS__ENABLED=True,
    )
    model = Trainer.build_model(cfg).eval()
    results = Trainer.test(cfg, model)
    assert results["tokens"].keys() >= {"S_C", "D_C", "S_I", "D_I"}
    image = torch.randint(256, (3, 96, 70)).float()
    with sgr.record_concepts(model) as record, torch.no_grad():
        (output,) = model([{"image": image}])
    regions = output["concept_regions"]
    stride = 2 ** int(stage[-1])
    assert regions.stride == stride
    assert regions.probabilities.shape == (1, 9, 96 // stride, -(-70 // stride))
    assert len(record) == 1
    (recorded,) = record.values()
    torch.testing.assert_close(
        recorded.probabilities.sum(1), torch.ones_like(recorded.logits[:, 0])
    )


def test_metrics_beside_sgr(tiny_shapes, tmp_path):
    """The tokens are those of SGR, the semantic maps stand beside them."""
    cfg = tiny("shapes/semask_fpn_sgr", OUTPUT_DIR=tmp_path, MODEL__SEMASK__REGIONS="['semantic3']")
    model = Trainer.build_model(cfg).eval()
    assert {"tokens", "queries"} <= Trainer.test(cfg, model).keys()
    with torch.no_grad():
        (output,) = model([{"image": torch.randint(256, (3, 64, 64)).float()}])
    assert output["concept_regions"].logits.shape[1] == 24
    assert output["query_regions"].logits.shape[1] == 9


def test_more_classes_in_the_data_than_in_the_maps(tiny_shapes, tmp_path):
    """An error before the training, as for any head."""
    cfg = tiny("shapes/semask_fpn", OUTPUT_DIR=tmp_path, MODEL__SEM_SEG_HEAD__NUM_CLASSES=5)
    with pytest.raises(ValueError, match="NUM_CLASSES.* 5"):
        Trainer(cfg).train()


def test_images_are_not_padded_to_the_stride():
    """As in the public tests: to whole patches only."""
    model = build_model(tiny("shapes/semask_fpn")).eval()
    image = torch.randint(256, (3, 61, 70)).float()
    with torch.no_grad():
        (output,) = model([{"image": image}])
        normalised = (image - model.pixel_mean) / model.pixel_std
        padded = torch.nn.functional.pad(normalised, (0, 2, 0, 3))[None]
        logits, _ = model.sem_seg_head(model.backbone(padded))
    torch.testing.assert_close(output["sem_seg"], logits[0, :, :61, :70])


def test_export(tmp_path):
    """Of windows and of the whole map, to torch.export and ONNX."""
    two_stages = {
        "MODEL.SWIN.OUT_FEATURES": "['res2', 'res3']",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": "['res2', 'res3']",
        "MODEL.SEMASK.WINDOW_SIZES": "[5, 0, 0, 0]",
    }
    model = build_model(tiny("shapes/semask_fpn", two_stages)).eval()
    for parameter in model.parameters():
        if parameter.shape == (1,):  # gamma, so that the attention counts
            torch.nn.init.ones_(parameter)
    check_exports(model, 2, tmp_path / "model.onnx")


def test_export_of_aligned_pyramids(tmp_path):
    """Deformable convolution is one operator in both forms."""
    model = build_model(tiny("shapes/semask_fpn", FAPN, SWIN)).eval()
    for module in model.modules():
        if isinstance(module, DeformableConv):  # cells that move
            torch.nn.init.normal_(module.conv_offset_mask.bias)
    program = check_exports(model, 1, tmp_path / "model.onnx")
    assert "deform_conv2d" in str(program.graph)


def check_exports(model, batch, path):
    """Compare what both forms give for random images with what the model gives."""
    onnxruntime = pytest.importorskip("onnxruntime")
    images = torch.randint(256, (batch, 3, 50, 70)).float()
    with torch.no_grad():
        outputs = model([{"image": image} for image in images])
        expected = torch.stack([output["sem_seg"] for output in outputs])
        program = export_program(model, (50, 70), batch=batch)
        torch.testing.assert_close(program.module()(images), expected, atol=1e-4, rtol=1e-4)
    export_onnx(model, (50, 70), path, batch=batch)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(scores), expected, atol=1e-3, rtol=1e-3)
    return program
