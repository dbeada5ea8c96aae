"""The examples of examples/any_model, for a step each. A library that is absent skips its test."""

import importlib
import math
import sys

import pytest
import torch
from torch import nn

import sgr
from sgr.modeling.supervision import ConceptLoss
from tiny_model import CHECKOUT, tiny_options

FOLDER = CHECKOUT / "examples" / "any_model"
EXAMPLES = {
    "timm_features": ["timm"],
    "lightning_module": ["lightning", "timm"],
    "smp_models": ["segmentation_models_pytorch"],
    "torchvision_segmentation": [],
    "torchvision_mask_rcnn": [],
    "transformers_semantic": ["transformers"],
    "transformers_masks": ["transformers"],
}


@pytest.fixture
def load(monkeypatch):
    """Loads an example as a module, without a worker process."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(torch.utils.data.DataLoader, "__init__", without_workers)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
            del sys.modules[name]


initialise = torch.utils.data.DataLoader.__init__


def without_workers(self, *arguments, **options):
    initialise(self, *arguments, **{**options, "num_workers": 0})


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, load, monkeypatch, tmp_path):
    """It runs, its concept losses are numbers above 0, and its reasoning modules learn."""
    monkeypatch.chdir(tmp_path)
    for library in EXAMPLES[name]:
        pytest.importorskip(library)
    losses, forward = [], ConceptLoss.forward

    def watched(self, record, component_maps):
        assert all(len(regions.logits) == 2 for regions in record.values())
        losses.append(forward(self, record, component_maps))
        return losses[-1]

    monkeypatch.setattr(ConceptLoss, "forward", watched)
    trained = list(load(name).main(steps=1))
    assert len(losses) == len(trained) and all(0 < loss < math.inf for loss in losses)
    for model in trained:
        assert isinstance(model, nn.Module)
        for module in model.reasoning.values():
            assert module.concepts.weight.grad.any() and module.projection.weight.grad.any()
        sgr.remove_reasoning(model)


def test_detectron2s_own_trainer(load, tiny_shapes, tmp_path):
    options = tiny_options(OUTPUT_DIR=tmp_path, SOLVER__MAX_ITER=1, SOLVER__IMS_PER_BATCH=2)
    trainer = load("detectron2_default_trainer").main(*options)
    storage = trainer.storage.latest()
    for name in ("loss_sem_seg", "loss_concept_focal", "loss_concept_dice"):
        assert 0 < storage[name][0] < math.inf
    assert (tmp_path / "model_final.pth").is_file()


def test_examples_are_short_and_all_run():
    files = {path.stem: path.read_text() for path in FOLDER.glob("*.py")}
    assert files.keys() == EXAMPLES.keys() | {"scenes", "detectron2_default_trainer"}
    for name, text in files.items():
        assert len(text.splitlines()) <= 40, name


def test_the_guide_links_all_examples():
    guide = (CHECKOUT / "docs" / "own_model.md").read_text()
    for path in FOLDER.glob("*.py"):
        assert f"](../examples/any_model/{path.name})" in guide, path.name
