import pytest
from detectron2.config import get_cfg

from sgr import add_sgr_config
from sgr.modeling.reasoning import (
    GloRe,
    SemanticGlobalReasoning,
    apply_reasoning_defaults,
    build_reasoning,
)


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_sgr_config(cfg)
    return cfg


def test_defaults_are_the_constructors(cfg):
    cfg.MODEL.SGR.NUM_CONCEPTS = 8
    cfg.MODEL.SGR.TOKEN_DIM = 16
    module = build_reasoning(cfg, 32, stride=16)
    assert isinstance(module, SemanticGlobalReasoning)
    assert (module.in_channels, module.stride, module.num_concepts) == (32, 16, 8)


def test_config_repeats_the_constructors_defaults(cfg):
    import inspect

    parameters = inspect.signature(SemanticGlobalReasoning).parameters
    for name, value in SemanticGlobalReasoning.from_config(cfg).items():
        assert parameters[name].default == value, name


def test_a_module_has_defaults_of_its_own(cfg):
    assert apply_reasoning_defaults(cfg, "GloRe")
    cfg.MODEL.SGR.NAME = "GloRe"
    module = build_reasoning(cfg, 32)
    assert isinstance(module, GloRe)
    assert (module.num_concepts, module.token_dim) == (64, 128)
    assert not module.blocker.weight.any() and cfg.MODEL.SGR.SUPERVISION.WEIGHT == 0


@pytest.mark.parametrize("name", ["SemanticGlobalReasoning", "Nonsense"])
def test_other_defaults_stay(cfg, name):
    before = cfg.clone()
    assert not apply_reasoning_defaults(cfg, name)
    assert cfg == before


def test_unknown_name(cfg):
    cfg.MODEL.SGR.NAME = "Nonsense"
    with pytest.raises(ValueError, match="'Nonsense'.*SemanticGlobalReasoning"):
        build_reasoning(cfg, 32)
