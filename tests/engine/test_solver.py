import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from foreign import ForeignModel, TinyBackbone
from sgr import add_reasoning, add_sgr_config
from sgr.engine.solver import build_lr_scheduler, build_optimizer, parameter_groups
from sgr.modeling.reasoning import SemanticGlobalReasoning


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_sgr_config(cfg)
    cfg.SOLVER.BASE_LR = 1e-3
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    cfg.SOLVER.WEIGHT_DECAY = 0.05
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.01
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.02
    return cfg


class BackboneWithPositions(TinyBackbone):
    def __init__(self):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(3))
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
        self.norm = nn.BatchNorm2d(4)

    def no_weight_decay(self):
        return {"pos_embed", "cls_token"}  # a name that is not there, as timm's models may have it


@pytest.fixture
def model():
    module = SemanticGlobalReasoning(
        16, num_concepts=6, token_dim=8, num_heads=2, dim_feedforward=16
    )
    model = ForeignModel(add_reasoning(BackboneWithPositions(), {"stride4": module}))
    model.queries = nn.Embedding(5, 4)
    return model


def settings(cfg, model):
    """name of a parameter -> (learning rate, weight decay)"""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in parameter_groups(cfg, model)
        for parameter in group["params"]
    }


def test_norms_of_other_packages(cfg, model):
    class Scale(nn.Module):  # as timm's RmsNorm
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

    model.rms, model.scale = nn.RMSNorm(4), Scale()
    found = settings(cfg, model)
    assert found["rms.weight"] == found["scale.weight"] == (1e-3, 0.01)


def test_every_trainable_parameter_once(cfg, model):
    listed = [id(p) for group in parameter_groups(cfg, model) for p in group["params"]]
    trainable = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(listed) == sorted(trainable) and len(set(listed)) == len(listed)


def test_rates_and_decays(cfg, model):
    found = settings(cfg, model)
    assert found["backbone.first.weight"] == (1e-4, 0.05)
    assert found["backbone.norm.weight"] == (1e-4, 0.01)
    assert found["backbone.pos_embed"] == (1e-4, 0.02)
    assert found["classifier.weight"] == (1e-3, 0.05)
    assert found["queries.weight"] == (1e-3, 0.02)
    # The reasoning module lies in the backbone and learns like the head.
    assert found["backbone.reasoning.stride4.concepts.weight"] == (1e-3, 0.05)
    assert found["backbone.reasoning.stride4.mixer.layers.0.norm1.weight"] == (1e-3, 0.01)


def test_the_rate_of_token_mixers(cfg, model):
    before, cfg.SOLVER.TOKEN_MIXER_MULTIPLIER = settings(cfg, model), 0.1
    found = settings(cfg, model)
    slower = {name for name in found if found[name] != before[name]}
    assert slower == {name for name in found if ".mixer." in name}
    assert {found[name][0] for name in slower} == {1e-4}


def test_biases(cfg, model):
    assert settings(cfg, model)["classifier.bias"] == (1e-3, 0.05)
    # Before, attention's biases were always among the weights: the groups must stay, for --resume.
    in_proj = next(p for name, p in model.named_parameters() if name.endswith("in_proj_bias"))
    (group,) = (
        group["name"]
        for group in parameter_groups(cfg, model)
        if any(parameter is in_proj for parameter in group["params"])
    )
    assert group == "head and reasoning: weights"
    cfg.SOLVER.BIAS_LR_FACTOR = 2.0
    cfg.SOLVER.WEIGHT_DECAY_BIAS = 0.0
    found = settings(cfg, model)
    assert found["classifier.bias"] == (2e-3, 0.0)
    assert {name: found[name] for name in found if name.endswith("in_proj_bias")} == {
        f"backbone.reasoning.stride4.mixer.layers.{i}.self_attn.in_proj_bias": (2e-3, 0.0)
        for i in range(2)
    }


def test_table_is_logged(cfg, model, caplog):
    with caplog.at_level("INFO", logger="sgr.engine.solver"):
        parameter_groups(cfg, model)
    assert "backbone: weights" in caplog.text and "head and reasoning: embeddings" in caplog.text


@pytest.mark.parametrize(
    ("name", "wanted"), [("SGD", torch.optim.SGD), ("ADAMW", torch.optim.AdamW)]
)
def test_optimizers(cfg, model, name, wanted):
    cfg.SOLVER.OPTIMIZER = name
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, wanted)
    if name == "SGD":
        assert optimizer.param_groups[0]["momentum"] == 0.9


def test_unknown_optimizer(cfg, model):
    cfg.SOLVER.OPTIMIZER = "LION"
    with pytest.raises(ValueError, match="'LION'.*SGD, ADAMW"):
        build_optimizer(cfg, model)


def test_full_model_clipping(cfg, model):
    cfg.SOLVER.OPTIMIZER = "SGD"
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.01
    optimizer = build_optimizer(cfg, model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-4)


def test_polynomial_decay(cfg, model):
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.SOLVER.MAX_ITER = 50
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    for iteration in range(50):
        for group in optimizer.param_groups:
            wanted = group["initial_lr"] * (1 - iteration / 50) ** 0.9
            assert group["lr"] == pytest.approx(wanted)
        optimizer.step()
        scheduler.step()


def test_warmup_and_constant_ending(cfg, model):
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    cfg.SOLVER.WARMUP_ITERS = 10
    cfg.SOLVER.WARMUP_FACTOR = 0.1
    cfg.SOLVER.MAX_ITER = 100
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.2
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    ratios = []
    for _ in range(100):
        ratios.append(optimizer.param_groups[0]["lr"] / optimizer.param_groups[0]["initial_lr"])
        optimizer.step()
        scheduler.step()
    assert ratios[0] == pytest.approx(0.1) and ratios[-1] == pytest.approx(0.2)
    assert ratios[:10] == sorted(ratios[:10])


def test_detectron2s_schedules(cfg, model):
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupMultiStepLR"
    assert build_lr_scheduler(cfg, build_optimizer(cfg, model)) is not None
