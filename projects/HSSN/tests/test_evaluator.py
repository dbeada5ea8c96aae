"""mIoU of levels against mapped label maps, and contradictions counted by hand."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from hssn import TreeEvaluator
from sgr.data.class_tree import ClassTree
from sgr.engine import load_config
from sgr.evaluation import MeanIoUEvaluator, build_evaluator
from sgr.visualization import higher_is_better

CLASSES = ["cat", "dog", "car", "sky"]
TREE = {"thing": {"animal": ["cat", "dog"], "vehicle": ["car"]}, "sky": None}


@pytest.fixture
def register(tmp_path):
    """Register label maps as a dataset; gives its name."""
    names = []

    def add(truths, classes=CLASSES, **metadata):
        name = f"hssn_{tmp_path.name}_{len(names)}"
        records = []
        for index, truth in enumerate(truths):
            file = tmp_path / f"{name}_{index}.png"
            Image.fromarray(np.asarray(truth, np.uint8)).save(file)
            records.append({"file_name": f"{index}.jpg", "sem_seg_file_name": str(file)})
        DatasetCatalog.register(name, lambda: records)
        metadata = {"ignore_label": 255, "evaluator_type": "sem_seg", **metadata}
        MetadataCatalog.get(name).set(stuff_classes=classes, **metadata)
        names.append(name)
        return name

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def evaluate(evaluator, outputs, key):
    for index, output in enumerate(outputs):
        evaluator.process([{"file_name": f"{index}.jpg"}], [output])
    return evaluator.evaluate()[key]


def test_levels_are_those_of_mapped_labels(register, tmp_path):
    rng = np.random.default_rng(0)
    truths = [rng.choice([0, 1, 2, 3, 255], (6, 7)) for _ in range(3)]
    guesses = [rng.integers(0, 4, (6, 7)) for _ in range(3)]
    tree = ClassTree.parse(TREE, CLASSES)
    evaluator = TreeEvaluator(register(truths, class_tree=TREE), output_dir=str(tmp_path))
    outputs = [{"sem_seg": torch.from_numpy(guess)} for guess in guesses]
    found = evaluate(evaluator, outputs, "levels")
    assert not any("contradictions" in name for name in found)  # labels say nothing more
    for level, groups in enumerate(tree.groups, 1):
        table = np.full(256, 255)
        table[:4] = groups
        names = [f"node {place}" for place in range(tree.sizes[level - 1])]
        flat = MeanIoUEvaluator(register([table[each] for each in truths], names))
        outputs = [{"sem_seg": torch.from_numpy(groups[guess])} for guess in guesses]
        expected = evaluate(flat, outputs, "sem_seg")
        assert found[f"mIoU_level{level}"] == pytest.approx(expected["mIoU"])
        start = tree.starts[level - 1]
        for place, name in enumerate(tree.names[start : start + len(names)]):
            if level > 1:
                value = expected[f"IoU-node {place}"]
                assert found[f"IoU_level{level}-{name}"] == pytest.approx(value)
    assert json.loads((tmp_path / "levels.json").read_text()) == pytest.approx(found)


def test_contradictions_of_scores(register):
    """In the second pixel, cat has the largest score, and its superclass the smaller sum."""
    truth = np.array([[0, 0, 255, 2]])
    scores = torch.tensor(
        [[0.5, 0.4, 0.4, 0.1], [0.2, 0.01, 0.0, 0.2], [0.2, 0.3, 0.3, 0.6], [0.1, 0.29, 0.3, 0.1]]
    )[:, None]
    name = register([truth], class_tree={"pet": ["cat", "dog"], "other": ["car", "sky"]})
    found = evaluate(TreeEvaluator(name), [{"sem_seg": scores}], "levels")
    # Of three labelled pixels.
    assert found["contradictions_level2"] == pytest.approx(100 / 3)
    logits = scores.clamp_min(1e-9).log()
    assert evaluate(TreeEvaluator(name), [{"sem_seg": logits}], "levels") == found


def test_contradictions_of_levels(register):
    """What the model says of each level, in the place of sums of scores."""
    truth = np.array([[0, 1, 2, 255]])
    output = {
        "sem_seg": torch.tensor([[0, 1, 3, 3]]),  # animal, animal, sky, sky; thing, thing, sky
        "levels": torch.tensor([[[0, 1, 2, 0]], [[1, 1, 1, 0]]]),
    }
    found = evaluate(TreeEvaluator(register([truth], class_tree=TREE)), [output], "levels")
    assert found["contradictions_level2"] == pytest.approx(100 / 3)
    assert found["contradictions_level3"] == pytest.approx(200 / 3)


def test_nothing_is_labelled(register):
    name = register([np.full((2, 2), 255)], class_tree=TREE)
    output = {"sem_seg": torch.zeros(4, 2, 2)}
    assert evaluate(TreeEvaluator(name), [output], "levels") == {}


def test_by_config(register):
    """Beside mIoU; the tree of the config counts before that of the data."""
    name = register([np.array([[0, 1, 2, 3]])], class_tree=TREE)
    own = [{"left": ["cat", "car"]}, {"right": ["dog", "sky"]}]
    options = {
        "DATASETS.TEST": f"('{name}',)",
        "MODEL.META_ARCHITECTURE": "ConceptSemanticSegmentor",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 4,
        "TEST.EVALUATORS": "['TreeEvaluator']",
        "TEST.TOKENS.ENABLED": False,
    }
    for tree, names in (([], "animal vehicle sky"), (own, "left right")):
        options["MODEL.HSSN.TREE"] = tree
        cfg = load_config("", [str(each) for pair in options.items() for each in pair])
        evaluator = build_evaluator(cfg, name, None)
        evaluator.process([{"file_name": "0.jpg"}], [{"sem_seg": torch.rand(4, 1, 4)}])
        results = evaluator.evaluate()
        assert results["levels"]["mIoU_level1"] == pytest.approx(results["sem_seg"]["mIoU"])
        assert {f"IoU_level2-{each}" for each in names.split()} < results["levels"].keys()


def test_mistakes(register):
    with pytest.raises(ValueError, match="has no class_tree in its metadata"):
        TreeEvaluator(register([np.zeros((2, 2))]))
    with pytest.raises(ValueError, match="'cow' in the tree is no class"):
        TreeEvaluator(register([np.zeros((2, 2))], class_tree={"animal": ["cow"]}))


def test_which_way_is_better():
    assert higher_is_better("levels/mIoU_level2")
    assert higher_is_better("levels/contradictions_level3") is False
