"""Whole models: training with each head, evaluation, what a level says, export."""

from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.modeling.postprocessing import sem_seg_postprocess
from torch.nn import functional as F

import sgr
from hssn import TreeLoss
from pretended_gpu import step_and_evaluate
from sgr.engine import Trainer, load_config
from sgr.export import export_program
from sgr.packaging import package_model
from tiny_model import tiny_options

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
CORE = CONFIGS.parents[2] / "configs"
TINY = {
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.SEM_SEG_HEAD.NORM": "BN",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 16,
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 16,
    "MODEL.SGR.NUM_CONCEPTS": 24,
    "MODEL.SGR.NUM_LAYERS": 1,
    "MODEL.HSSN.PROJECTION_DIM": 16,
    "SOLVER.IMS_PER_BATCH": 3,
    "SOLVER.MAX_ITER": 2,
}
FPN = {
    "MODEL.SEM_SEG_HEAD.NAME": "SemanticFPNHead",
    "MODEL.RESNETS.OUT_FEATURES": "['res2', 'res3']",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": "['res2', 'res3']",
}
FOCAL = {
    "MODEL.HSSN.LOSS": "focal_tree_min",
    "MODEL.HSSN.RMI_WEIGHT": 0.5,
    "MODEL.HSSN.PATH_SCORE": "scores",
}


def tiny(config, more=None, *, mixin="tree", **options):
    files = [str(CORE / f"{config}.yaml"), str(CONFIGS / "mixins" / f"{mixin}.yaml")]
    return load_config(files, tiny_options(**{**TINY, **(more or {}), **options}))


TREE = ["tree", "sem_seg", "sem_seg_level2", "tree_triplet"]


@pytest.mark.parametrize(
    ("config", "more", "losses"),
    [
        ("shapes/fcn_R50", {}, TREE),
        ("shapes/fcn_R50", FOCAL, [*TREE, "tree_rmi"]),
        ("shapes/fcn_R50", FPN, TREE),
        ("shapes/fcn_R50_sgr", {}, [*TREE, "concept_focal"]),
        ("shapes/deeplabv3_R50_sgr", {}, [*TREE, "concept_focal"]),
        ("shapes/upernet_R50_sgr", {}, [*TREE, "concept_focal", "sem_seg_aux"]),
        ("shapes/maskformer_R50", {}, ["ce", "mask", "tree_triplet"]),
    ],
)
def test_training(config, more, losses, tiny_shapes, tmp_path):
    """All losses come, are finite and reach all trained parameters."""
    mixin = "triplet" if "maskformer" in config else "tree"
    trainer = Trainer(tiny(config, more, mixin=mixin, OUTPUT_DIR=tmp_path))
    model = trainer.model.train()
    result = model(next(iter(trainer.data_loader)))
    assert {f"loss_{name}" for name in losses} <= result.keys()
    assert "sem_seg_level2_aux" not in result
    total = sum(result.values())
    assert total.isfinite()
    total.backward()
    silent = [name for name, each in model.named_parameters() if each.grad is None]
    assert silent == [name for name, each in model.named_parameters() if not each.requires_grad]


def test_on_a_pretended_gpu(tiny_shapes, tmp_path):
    assert "sem_seg" in step_and_evaluate(tiny("shapes/fcn_R50", FOCAL, OUTPUT_DIR=tmp_path))


def test_training_on_semask(tiny_shapes, tmp_path):
    """The README's options: the semantic maps keep their loss, triplets are of the features."""
    pytest.importorskip("semask")
    semask = CONFIGS.parents[1] / "SeMask" / "configs" / "shapes" / "semask_fpn.yaml"
    criteria = "['ConceptSupervision', 'SemanticMapSupervision', 'TreeTripletSupervision']"
    assert criteria in (CONFIGS.parent / "README.md").read_text()
    options = {
        "MODEL.SWIN.EMBED_DIM": 16,
        "MODEL.SWIN.DEPTHS": "[1, 1, 1, 1]",
        "MODEL.SWIN.NUM_HEADS": "[1, 1, 2, 2]",
        "MODEL.SIDE_CRITERIA": criteria,
        "OUTPUT_DIR": tmp_path,
    }
    files = [str(semask), str(CONFIGS / "mixins" / "tree.yaml")]
    trainer = Trainer(load_config(files, tiny_options(**{**TINY, **options})))
    losses = trainer.model.train()(next(iter(trainer.data_loader)))
    assert {f"loss_{name}" for name in [*TREE, "cate"]} <= losses.keys()
    assert trainer.model.side_criteria.TreeTripletSupervision.feature == "res4"


@pytest.mark.parametrize("head", ["MaskClassificationHead", "SemSegFPNHead"])
def test_head_without_scores_of_nodes(head):
    """A mask classifier, and a head of Detectron2, do not read LOSS_TYPE."""
    with pytest.raises(ValueError, match=f"'hssn', which {head} does not read.*triplet.yaml"):
        build_model(tiny("shapes/maskformer_R50", MODEL__SEM_SEG_HEAD__NAME=head))


def test_evaluation(tiny_shapes, tmp_path):
    """Of a tree, and of a model that knows none."""
    cfg = tiny("shapes/fcn_R50", OUTPUT_DIR=tmp_path / "tree")
    results = Trainer.test(cfg, Trainer.build_model(cfg).eval())
    names = {"mIoU_level1", "mIoU_level2", "contradictions_level2", "IoU_level2-round"}
    assert names <= results["levels"].keys()
    assert results["levels"]["mIoU_level1"] == pytest.approx(results["sem_seg"]["mIoU"])
    flat = tiny("shapes/fcn_R50", mixin="levels", OUTPUT_DIR=tmp_path / "flat")
    assert names <= Trainer.test(flat, Trainer.build_model(flat).eval())["levels"].keys()
    labels = tiny(
        "shapes/maskformer_R50",
        mixin="triplet",
        OUTPUT_DIR=tmp_path / "labels",
        MODEL__MASK_FORMER__TEST__SEMANTIC_OUTPUT="labels",
    )
    found = Trainer.test(labels, Trainer.build_model(labels).eval())["levels"].keys()
    assert names - found == {"contradictions_level2"}


def test_output():
    """Scores of the paths, and the best node of each level, both at the size of the file."""
    model = build_model(tiny("shapes/fcn_R50")).eval()
    assert isinstance(model.sem_seg_head.loss, TreeLoss)
    images = [torch.randint(256, (3, 64, 90)).float(), torch.randint(256, (3, 50, 60)).float()]
    inputs = [{"image": images[0], "height": 100, "width": 140}, {"image": images[1]}]
    with torch.no_grad():
        outputs = model(inputs)
        batch = torch.zeros(2, 3, 64, 90)
        for place, image in zip(batch, images):
            pixels = (image - model.pixel_mean) / model.pixel_std
            place[:, : image.shape[1], : image.shape[2]] = pixels
        head = model.sem_seg_head
        logits = head.predictor(head.decode(model.backbone(batch))).logits
        logits = F.interpolate(logits, scale_factor=8, mode="bilinear")
        for index, (image, size) in enumerate(zip(images, [(100, 140), (50, 60)])):
            nodes = sem_seg_postprocess(logits[index], image.shape[1:], *size)
            paths = model.sem_seg_head.loss.index.path_scores(nodes[None])[0]
            torch.testing.assert_close(outputs[index]["sem_seg"], paths, atol=1e-4, rtol=1e-4)
            assert outputs[index]["levels"].shape == (1, *size)
            assert torch.equal(outputs[index]["levels"][0], nodes[9:].argmax(0))
        model.levels_in_output = False
        assert all("levels" not in output for output in model(inputs))


def test_projection_does_not_run_after_the_training():
    model = build_model(tiny("shapes/fcn_R50")).eval()
    model.side_criteria.TreeTripletSupervision.projection = None
    model([{"image": torch.zeros(3, 32, 32)}])


def test_one_level(tiny_shapes, tmp_path):
    """A tree without superclasses is the plain binary loss, without triplets."""
    names = ["sky", "water", "grass", "wall", "disc", "box", "triangle", "star", "ring"]
    cfg = tiny("shapes/fcn_R50", OUTPUT_DIR=tmp_path, MODEL__HSSN__TREE=names)
    trainer = Trainer(cfg)
    losses = trainer.model.train()(next(iter(trainer.data_loader)))
    assert list(losses) == ["loss_tree", "loss_sem_seg"]
    assert Trainer.test(cfg, trainer.model.eval())["levels"].keys() == {"mIoU_level1"}


def test_export():
    model = build_model(tiny("shapes/fcn_R50")).eval()
    images = torch.randint(256, (1, 3, 64, 72)).float()
    with torch.no_grad():
        expected = model([{"image": images[0]}])[0]["sem_seg"]
        scores = export_program(model, (64, 72), batch=1).module()(images)[0]
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)


def test_model_folder_without_its_data(tmp_path):
    """The folder knows the tree."""
    name = "hssn_packaged"
    tree = {"street": ["road", "walk"], "sky": ["sky"]}
    DatasetCatalog.register(name, list)
    metadata = {"stuff_classes": ["sky", "road", "walk"], "class_tree": tree}
    MetadataCatalog.get(name).set(evaluator_type="sem_seg", ignore_label=255, **metadata)
    cfg = tiny(
        "shapes/fcn_R50",
        DATASETS__TRAIN=f"('{name}',)",
        DATASETS__TEST=f"('{name}',)",
        MODEL__SEM_SEG_HEAD__NUM_CLASSES=3,
    )
    model = build_model(cfg)
    package_model(model, cfg, tmp_path / "model")
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    loaded, _ = sgr.load_model(tmp_path / "model")
    assert loaded.sem_seg_head.loss.index.tree == model.sem_seg_head.loss.index.tree
    images = torch.randint(256, (1, 3, 40, 40)).float()
    with torch.no_grad():
        outputs = [each.eval()([{"image": images[0]}])[0]["levels"] for each in (model, loaded)]
    assert torch.equal(*outputs)
