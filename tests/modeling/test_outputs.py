"""The contract of what a model puts out; a new meta-architecture touches its own file only."""

from dataclasses import replace

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, PanopticFPN, RetinaNet
from torch import nn

import sgr
from sgr.evaluation import MeanIoUEvaluator, build_evaluator
from sgr.export import export_program
from sgr.modeling.outputs import (
    Outputs,
    outputs_of,
    panoptic_classes,
    pixel_scores,
    predicted_labels,
    scores_only,
)
from sgr.testing import MultiScaleSemanticSegmentor, build_multi_scale_model


class Stripes(nn.Module):
    """A meta-architecture of somebody else: the class of a pixel is the colour of its channel."""

    outputs = Outputs(results=("semantic",), sem_seg="logits", batch_scores=pixel_scores)
    pixel_mean, pixel_std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)

    def __init__(self, cfg=None):
        super().__init__()
        self.backbone = nn.Identity()
        self.backbone.size_divisibility = 0
        self.panoptic_on = True

    def sem_seg_head(self, images):
        return images * 2, {}

    def forward(self, batched_inputs):
        return [{"sem_seg": self.sem_seg_head(each["image"].float())[0]} for each in batched_inputs]


@pytest.fixture
def stripes():
    META_ARCH_REGISTRY.register(Stripes)
    yield Stripes().eval()
    META_ARCH_REGISTRY._obj_map.pop("Stripes")


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    sgr.add_sgr_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "Stripes"
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.TEST.TOKENS.ENABLED = False
    return cfg


def test_a_new_meta_architecture_is_evaluated_tested_and_exported(stripes, cfg, tiny_shapes):
    assert type(build_evaluator(cfg, "shapes_sem_seg_val")) is MeanIoUEvaluator
    several = build_multi_scale_model(cfg, stripes)
    assert isinstance(several, MultiScaleSemanticSegmentor) and several.logits
    image = torch.randint(0, 255, (3, 16, 16), dtype=torch.uint8)
    assert several([{"image": image}])[0]["sem_seg"].shape == (3, 16, 16)
    program = export_program(stripes, (16, 16), batch=1)
    torch.testing.assert_close(program.module()(image[None].float()), 2 * image[None].float())


def test_scores_only_switches_and_restores(stripes):
    with scores_only(stripes):
        assert not stripes.panoptic_on
    assert stripes.panoptic_on


@pytest.mark.parametrize(
    "meta_arch, results, sem_seg, joint",
    [
        (META_ARCH_REGISTRY.get("SemanticSegmentor"), ("semantic",), "logits", True),
        (META_ARCH_REGISTRY.get("ConceptSemanticSegmentor"), ("semantic",), "logits", True),
        (GeneralizedRCNN, ("instance",), "", False),
        (RetinaNet, ("instance",), "", False),
        (PanopticFPN, ("semantic", "instance"), "", False),
    ],
)
def test_detectron2s_own(meta_arch, results, sem_seg, joint):
    outputs = outputs_of(meta_arch)
    assert (outputs.results, outputs.sem_seg, outputs.joint_classes) == (results, sem_seg, joint)


def test_what_a_class_declares_counts_more_than_its_bases():
    class Mine(GeneralizedRCNN):
        outputs = Outputs(results=("semantic",))

    assert outputs_of(Mine).results == ("semantic",)
    assert outputs_of(nn.Linear(1, 1)) is None


@pytest.mark.parametrize("name", ["MaskFormerSegmentor", "ConceptMask2FormerSegmentor"])
def test_switches(name, cfg):
    outputs = outputs_of(META_ARCH_REGISTRY.get(name))
    assert outputs.switched_on(cfg) == ("semantic",)
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = True
    cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON = False
    assert outputs.switched_on(cfg) == ("panoptic",)
    assert replace(outputs, switchable=False).switched_on(cfg) == outputs.results


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_classes", [1, 2, 20])
def test_of_equal_scores_the_first_class_counts(num_classes, dtype):
    scores = torch.randint(0, 3, (num_classes, 30, 40)).to(dtype)
    scores[-1, 3, 4:9] = torch.nan
    for each in (scores, scores.permute(1, 2, 0).contiguous().permute(2, 0, 1)):
        assert torch.equal(predicted_labels(each), scores.argmax(dim=0))
    assert (predicted_labels(torch.zeros(num_classes, 2, 2)) == 0).all()


def test_classes_of_panoptic_pixels():
    ids = torch.tensor([[0, 3], [-1, 1]], dtype=torch.int32)
    segments = [
        {"id": 1, "category_id": 2, "isthing": False},
        {"id": 3, "category_id": 2, "isthing": True},
        {"id": 9, "category_id": 4, "isthing": True},  # of which no pixel is left
    ]
    assert panoptic_classes((ids, segments)).tolist() == [[-1, 2], [-1, 2]]
    assert panoptic_classes((ids, segments), 10).tolist() == [[-1, 12], [-1, 2]]
    assert panoptic_classes((ids.clamp(max=0), [])).tolist() == [[-1, -1], [-1, -1]]
