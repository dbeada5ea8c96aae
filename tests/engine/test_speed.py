"""Memory format and compilation of a model."""

import copy
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

import sgr
from foreign import ForeignModel, TinyBackbone, tiny_inputs
from sgr.engine import Trainer, evaluate
from sgr.engine.speed import compile_for_training
from tiny_model import CONFIG, tiny_config


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    counters.clear()


@pytest.fixture
def without_kernels(monkeypatch):
    """Compile to graphs only, which takes seconds."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


def is_compiled(model):
    return {name for name, module in model.named_modules() if module._compiled_call_impl}


def test_a_compiled_step_is_that_of_the_plain_model(tmp_path, monkeypatch):
    """With kernels; the tests of two processes have those of a reasoning module."""
    # Other processes would take longer to start than these kernels take.
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)
    plain = ForeignModel(TinyBackbone())
    model = copy.deepcopy(plain)
    cfg = tiny_config(tmp_path, MODEL__COMPILE=True)
    assert compile_for_training(model, cfg) == ["backbone"]
    batch = tiny_inputs()
    expected, found = plain(batch)["loss_sem_seg"], model(batch)["loss_sem_seg"]
    torch.testing.assert_close(found, expected)
    for loss in (expected, found):
        loss.backward()
    parameters = dict(model.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(parameters[name].grad, parameter.grad, rtol=1e-4, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 2  # with that of the check


def test_a_compiled_training(without_kernels, tiny_shapes, tmp_path):
    """It learns the same, without a graph break; its evaluation compiles nothing."""
    states = []
    for compiled in (False, True):
        cfg = tiny_config(
            tmp_path / str(compiled), MODEL__COMPILE=compiled, SOLVER__MAX_ITER=2, SEED=1
        )
        torch.manual_seed(0)
        trainer = Trainer(cfg)
        trainer.train()
        states.append(trainer.model.state_dict())
    assert states[0].keys() == states[1].keys()
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-5)
    assert is_compiled(trainer.model) == {"backbone", "sem_seg_head.pixel_decoder"}
    graphs = counters["stats"]["unique_graphs"]
    assert graphs and not counters["graph_break"]

    results = trainer._evaluate(trainer.tests[0])
    assert counters["stats"]["unique_graphs"] == graphs
    # A checkpoint does not know what was compiled.
    weights = tmp_path / "True" / "model_final.pth"
    again = evaluate(tiny_config(tmp_path, MODEL__WEIGHTS=weights))
    assert again["sem_seg"]["mIoU"] == pytest.approx(results["sem_seg"]["mIoU"])


def test_a_reasoning_module_in_the_head_is_a_part(without_kernels, tmp_path):
    cfg = tiny_config(tmp_path, CONFIG.with_name("fcn_R50_sgr.yaml"), MODEL__COMPILE=True)
    model = Trainer.build_model(cfg)
    assert not is_compiled(model)  # it may be for an evaluation
    assert compile_for_training(model, cfg) == ["backbone", "sem_seg_head.reasoning"]
    assert is_compiled(model) == {"backbone", "sem_seg_head.reasoning"}


def test_loaded_models_are_not_compiled(tmp_path):
    options = {"MODEL__CHANNELS_LAST": True, "MODEL__COMPILE": True}
    model, _ = sgr.load_model(tiny_config(tmp_path, **options), "")
    assert not is_compiled(model)
    for name, weight in model.named_parameters():
        if weight.dim() == 4:
            assert weight.is_contiguous(memory_format=torch.channels_last), name


class TestWhatCannotBeCompiled:
    @pytest.fixture
    def cfg(self, tmp_path):
        return tiny_config(tmp_path, MODEL__COMPILE=True)

    def test_no_compiler(self, cfg, monkeypatch):
        def fail(_function, **_options):
            raise RuntimeError("\nNo working C++ compiler found\nand more")

        monkeypatch.setattr(torch, "compile", fail)
        message = "MODEL.COMPILE is True, .* RuntimeError: No working C.. compiler found. On a CPU"
        with pytest.raises(ValueError, match=message):
            compile_for_training(ForeignModel(TinyBackbone()), cfg)

    def test_an_older_pytorch(self, cfg, monkeypatch):
        monkeypatch.delattr(torch.compiler, "set_stance")
        with pytest.raises(ValueError, match="COMPILE needs PyTorch 2.6 or newer, and not"):
            compile_for_training(ForeignModel(TinyBackbone()), cfg)

    def test_none_of_the_parts(self, cfg):
        with pytest.raises(ValueError, match="Linear has none of the parts .*: backbone, sem_seg"):
            compile_for_training(torch.nn.Linear(1, 1), cfg)
