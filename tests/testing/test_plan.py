"""A test is decided once: every dataset loaded, every wrapper built, every question asked."""

import json
from collections import Counter

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator

from sgr.engine import Trainer, evaluate, load_config
from sgr.evaluation import build_evaluator
from sgr.evaluation.build import EVALUATOR_REGISTRY
from sgr.testing import PlannedTest, SlidingWindowSegmentor, plan_tests
from tiny_model import tiny_config

VIEWS = {
    "TEST__AUG__ENABLED": True,
    "TEST__AUG__SCALES": "[0.5]",
    "TEST__SLIDING_WINDOW__ENABLED": True,
    "TEST__SLIDING_WINDOW__SIZE": [64, 64],
    "TEST__SLIDING_WINDOW__STRIDE": [32, 32],
}
VAL = "shapes_sem_seg_val"


@pytest.fixture
def counts(monkeypatch) -> Counter:
    """How often a dataset is loaded, by its name, and a window wrapper is built."""
    counts = Counter()
    get, init = DatasetCatalog.get, SlidingWindowSegmentor.__init__

    def counting_get(name):
        counts[name] += 1
        return get(name)

    def counting_init(self, *args, **kwargs):
        counts["windows"] += 1
        init(self, *args, **kwargs)

    monkeypatch.setattr(DatasetCatalog, "get", counting_get)
    monkeypatch.setattr(SlidingWindowSegmentor, "__init__", counting_init)
    return counts


def test_an_evaluation_loads_a_dataset_once(tiny_shapes, tmp_path, counts):
    cfg = tiny_config(tmp_path, **VIEWS, MODEL__WEIGHTS=tmp_path / "weights.pth")
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, tmp_path / "weights.pth")
    assert evaluate(cfg).keys() == {"sem_seg", "sem_seg_TTA"}
    assert counts == {VAL: 1, "windows": 1}


def test_a_plain_evaluation_loads_a_dataset_once(tiny_shapes, tmp_path, counts):
    cfg = tiny_config(tmp_path)
    assert {"sem_seg", "tokens"} <= Trainer.test(cfg, Trainer.build_model(cfg)).keys()
    assert counts == {VAL: 1}


def test_the_evaluations_of_a_training_share_a_plan(tiny_shapes, tmp_path, counts):
    cfg = tiny_config(tmp_path, **VIEWS, SOLVER__MAX_ITER=2, TEST__EVAL_PERIOD=1)
    trainer = Trainer(cfg)
    assert counts == {"shapes_sem_seg_train": 1, VAL: 1, "windows": 1}
    trainer.train()
    assert counts == {"shapes_sem_seg_train": 1, VAL: 1, "windows": 1}
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    assert sum("sem_seg/mIoU" in line for line in lines) == 2


def test_evaluators_are_built_once_for_each_test(tiny_shapes, tmp_path):
    built = []

    def build(cfg, name, folder):
        built.append((name, folder))
        return build_evaluator(cfg, name, folder)

    cfg = tiny_config(tmp_path, **VIEWS)
    plain, several = plan_tests(cfg, Trainer.build_model(cfg), build)
    folders = [str(tmp_path / "inference"), str(tmp_path / "inference_TTA")]
    assert built == [(VAL, folder) for folder in folders]
    assert plain.datasets is several.datasets and several.model.model is plain.model
    assert (plain.suffix, several.suffix) == ("", "_TTA")


def test_unknown_datasets_are_found_before_the_training(tiny_shapes, tmp_path):
    with pytest.raises(KeyError, match="no_such_dataset"):
        Trainer(tiny_config(tmp_path, DATASETS__TEST="('no_such_dataset',)"))


class TestFurtherEvaluators:
    @pytest.fixture
    def counting(self):
        class Counting(DatasetEvaluator):
            def __init__(self, dataset_name, *, output_dir=None):
                self.about = dataset_name, output_dir

            def reset(self):
                self.images = 0

            def process(self, inputs, outputs):
                self.images += len(outputs)

            def evaluate(self):
                return {"count": {"images": self.images}}

        EVALUATOR_REGISTRY.register(Counting)
        yield
        EVALUATOR_REGISTRY._obj_map.pop("Counting")

    def test_by_name(self, tiny_shapes, tmp_path, counting):
        cfg = tiny_config(tmp_path, TEST__EVALUATORS=["Counting"], TEST__TOKENS__ENABLED=False)
        results = Trainer.test(cfg, Trainer.build_model(cfg))
        assert results["count"] == {"images": 5} and "sem_seg" in results

    def test_unknown_names(self, tiny_shapes, tmp_path, counting):
        cfg = tiny_config(tmp_path, TEST__EVALUATORS=["Kounting"])
        with pytest.raises(ValueError, match="'Kounting'; registered: .*Counting"):
            plan_tests(cfg, Trainer.build_model(cfg))


def test_results_stay_when_a_later_dataset_fails(tmp_path):
    class Measured(DatasetEvaluator):
        def evaluate(self):
            return {"sem_seg": {"mIoU": 1.0}}

    class Full(DatasetEvaluator):
        def evaluate(self):
            raise OSError(28, "No space left on device")

    cfg = load_config("", ["DATASETS.TEST", "['one', 'two']"])
    test = PlannedTest(torch.nn.Module(), cfg, [Measured(), Full()], {}, str(tmp_path), "_X", True)
    with pytest.raises(OSError):
        test.run(lambda _cfg, _model, evaluators: [each.evaluate() for each in evaluators])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results == {"one_X": {"sem_seg": {"mIoU": 1.0}}}
