"""Whole models, from the small configs: training, resuming, evaluation and export."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

import sgr
from pretended_gpu import step_and_evaluate
from sgr.engine import Trainer, load_config
from sgr.export import export_onnx, export_program
from tiny_model import tiny_options

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
MIXINS = CONFIGS.parents[2] / "configs" / "mixins"
TINY = {
    "MODEL.RESNETS.RES4_DILATION": 1,
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.SEM_SEG_HEAD.NORM": "BN",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 12,
    "MODEL.PROTOSEG.NUM_PROTOTYPES": 2,
    "SOLVER.IMS_PER_BATCH": 3,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "TEST.TOKENS.ENABLED": False,
}
STAGES = {
    "MODEL.RESNETS.OUT_FEATURES": "['res2', 'res3', 'res4']",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": "['res2', 'res3', 'res4']",
}
HEADS = {
    "FCNHead": {},
    "AnySizeDeepLabV3Head": {"MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 12},
    "UperNetHead": {**STAGES, "MODEL.SEM_SEG_HEAD.AUX_IN_FEATURE": "res3"},
    "SemanticFPNHead": STAGES,
}
SGR = {
    "MODEL.BACKBONE.NAME": "build_sgr_backbone",
    "MODEL.SGR.BACKBONE_NAME": "build_resnet_backbone",
    "MODEL.SGR.IN_FEATURES": "['res4']",
    "MODEL.SGR.NUM_CONCEPTS": 24,
    "MODEL.SGR.NUM_LAYERS": 1,
}
LOSSES = {"loss_sem_seg", "loss_prototype_contrast", "loss_prototype_distance"}


def tiny(more=None, *, mixins=(), **options):
    files = [str(CONFIGS / "shapes" / "fcn_R50_prototypes.yaml"), *map(str, mixins)]
    return load_config(files, tiny_options(**{**TINY, **(more or {}), **options}))


def images_with_labels(count=2, size=64):
    return [
        {
            "image": torch.randint(256, (3, size, size)).float(),
            "sem_seg": torch.randint(9, (size // 16, size // 16))
            .repeat_interleave(16, 0)
            .repeat_interleave(16, 1),
        }
        for _ in range(count)
    ]


@pytest.mark.parametrize("head", HEADS)
def test_any_head(head):
    """It trains all of its parameters, and moves prototypes."""
    if head == "SemanticFPNHead":
        pytest.importorskip("semask")
    model = build_model(tiny(HEADS[head], MODEL__SEM_SEG_HEAD__NAME=head)).train()
    before = model.sem_seg_head.predictor.prototypes.clone()
    losses = model(images_with_labels())
    assert losses.keys() - {"loss_sem_seg_aux"} == LOSSES
    total = sum(losses.values())
    assert total.isfinite()
    total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not torch.equal(model.sem_seg_head.predictor.prototypes, before)


def test_on_a_pretended_gpu(tiny_shapes, tmp_path):
    cfg = tiny(SGR, OUTPUT_DIR=tmp_path, TEST__TOKENS__ENABLED=True)
    assert "tokens" in step_and_evaluate(cfg)


def test_resuming_restores_the_prototypes(tiny_shapes, tmp_path):
    """A training that stops after one step and goes on ends as one that does not stop."""

    def train(folder):
        torch.manual_seed(0)
        trainer = Trainer(tiny(OUTPUT_DIR=tmp_path / folder, DATASETS__TEST="()"))
        trainer.resume_or_load(resume=True)
        start = trainer.model.sem_seg_head.predictor.prototypes.clone()
        trainer.train()
        return start, trainer.model.sem_seg_head.predictor.prototypes

    fresh, whole = train("whole")
    train("parts")
    (tmp_path / "parts" / "model_final.pth").unlink()
    (tmp_path / "parts" / "last_checkpoint").write_text("model_0000000.pth")
    half, resumed = train("parts")
    assert not torch.equal(half, fresh) and not torch.equal(half, resumed)
    assert torch.equal(resumed, whole)


def test_metrics_of_prototypes(tiny_shapes, tmp_path):
    """S_C, D_C and the same of instances, as of any regions."""
    cfg = tiny(OUTPUT_DIR=tmp_path, TEST__TOKENS__ENABLED=True)
    model = Trainer.build_model(cfg).eval()
    results = Trainer.test(cfg, model)
    assert results["tokens"].keys() >= {"S_C", "D_C", "S_I", "D_I"}
    # Each pixel has one prototype, so only those that are somewhere count as active.
    assert 1 <= results["tokens"]["active_tokens"] <= 18
    with torch.no_grad():
        (output,) = model([{"image": torch.randint(256, (3, 96, 70)).float()}])
    regions = output["concept_regions"]
    assert regions.stride == 16
    assert regions.probabilities.shape == (1, 18, 6, 5)
    assert regions.probabilities.sum(1).eq(1).all()


def test_beside_sgr(tiny_shapes, tmp_path):
    """By --with: both have their losses, and the prototypes stand beside the tokens."""
    options = {**SGR, "OUTPUT_DIR": tmp_path, "TEST.TOKENS.ENABLED": True}
    cfg = tiny(options, mixins=[MIXINS / "sgr.yaml"])
    trainer = Trainer(cfg)
    losses = trainer.model.train()(next(iter(trainer.data_loader)))
    assert losses.keys() == LOSSES | {f"loss_concept_{x}" for x in ("focal", "dice", "cosine")}
    sum(losses.values()).backward()
    model = trainer.model.eval()
    assert {"tokens", "queries"} <= Trainer.test(cfg, model).keys()
    with torch.no_grad():
        (output,) = model([{"image": torch.randint(256, (3, 64, 64)).float()}])
    assert output["concept_regions"].logits.shape[1] == 24
    assert output["query_regions"].logits.shape[1] == 18


def test_with_a_tree(tiny_shapes, tmp_path):
    """Each node has prototypes, which move; the classes are those of the best paths."""
    tree = CONFIGS.parents[1] / "HSSN" / "configs" / "mixins" / "tree.yaml"
    pytest.importorskip("hssn")
    options = {"MODEL.HSSN.PROJECTION_DIM": 16, "TEST.TOKENS.ENABLED": True}
    cfg = tiny(options, mixins=[tree], OUTPUT_DIR=tmp_path)
    trainer = Trainer(cfg)
    classifier = trainer.model.sem_seg_head.predictor
    before = classifier.prototypes.clone()
    losses = trainer.model.train()(next(iter(trainer.data_loader)))
    assert LOSSES | {"loss_tree", "loss_sem_seg_level2"} <= losses.keys()
    sum(losses.values()).backward()
    moved = (classifier.prototypes - before).abs().amax((1, 2)) > 1e-6
    assert moved[:9].any() and moved[9:].any()
    results = Trainer.test(cfg, trainer.model.eval())
    assert results["tokens"]["S_C"] >= 0
    with torch.no_grad():
        (output,) = trainer.model([{"image": torch.randint(256, (3, 64, 64)).float()}])
    assert output["sem_seg"].shape == (9, 64, 64)
    assert output["concept_regions"].logits.shape[1] == 18


def test_export(tmp_path):
    """To torch.export and ONNX, for any batch, with the prototypes that the training has moved."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model = build_model(tiny()).train()
    model(images_with_labels())
    model.eval()
    images = torch.randint(256, (3, 3, 50, 70)).float()
    with torch.no_grad():
        outputs = model([{"image": image} for image in images])
        expected = torch.stack([output["sem_seg"] for output in outputs])
        program = export_program(model, (50, 70))
        torch.testing.assert_close(program.module()(images), expected, atol=1e-4, rtol=1e-4)
    path = tmp_path / "model.onnx"
    export_onnx(model, (50, 70), path, batch=3)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(scores), expected, atol=1e-3, rtol=1e-3)


def test_recording_does_not_change_a_training_step():
    model = build_model(tiny()).train()
    images = images_with_labels()
    with sgr.record_concepts(model) as record:
        losses = model(images)
    (regions,) = record.values()
    assert regions.logits.shape == (2, 18, 4, 4)
    assert not regions.logits.requires_grad
    assert losses.keys() == LOSSES
