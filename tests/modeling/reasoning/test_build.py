import pytest
from detectron2.config import get_cfg

from sgr import add_sgr_config
from sgr.modeling.reasoning import SemanticGlobalReasoning, build_reasoning


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


def test_unknown_name(cfg):
    cfg.MODEL.SGR.NAME = "Nonsense"
    with pytest.raises(ValueError, match="'Nonsense'.*SemanticGlobalReasoning"):
        build_reasoning(cfg, 32)
