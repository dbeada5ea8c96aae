"""A model's tokens in images of Shapes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances

from sgr.engine import load_config
from sgr.evaluation import TokenSemanticsEvaluator
from sgr.inspection.image import Inspector
from sgr.load import load_model
from sgr.modeling.outputs import Outputs
from tiny_model import CHECKOUT, tiny_config

SHAPES = CHECKOUT / "configs" / "shapes"


@pytest.mark.parametrize("name", ["maskformer_R50_sgr", "maskformer_R50_glore", "fcn_R50_sgr"])
def test_s_and_d_are_those_of_an_evaluation(tiny_shapes, tmp_path, name):
    cfg = tiny_config(tmp_path, SHAPES / f"{name}.yaml", MODEL__SEM_SEG_HEAD__NORM="BN")
    model, cfg = load_model(cfg, "", "MODEL.RESNETS.NORM", "BN")
    dataset = cfg.DATASETS.TEST[0]
    inspector = Inspector(model, cfg, MetadataCatalog.get(dataset))
    evaluator = TokenSemanticsEvaluator(dataset, distributed=False)
    record = DatasetCatalog.get(dataset)[0]
    inspected = inspector(record)
    input_ = inspector._mapper(record)
    with torch.inference_mode():
        evaluator.process([input_], model([input_]))
    results = evaluator.evaluate()
    for block, tokens in (("tokens", inspected.tokens), ("queries", inspected.queries)):
        assert (block in results) == (tokens is not None)
        if tokens is not None:
            measured = (tokens.classes.S, tokens.classes.D, tokens.instances.S, tokens.instances.D)
            expected = [results[block][key] for key in ("S_C", "D_C", "S_I", "D_I")]
            assert measured == pytest.approx(expected, rel=1e-4)
            assert tokens.active.sum() == results[block]["active_tokens"]
            matched = tokens.components
            assert matched.shape == tokens.mass.shape
            assert set(matched[matched >= 0]) == set(range(len(inspected.components.classes)))
    assert inspected.image.shape[:2] == inspected.labels.shape == inspected.prediction.shape
    assert set(inspected.instance_names) <= set(inspector.class_names)
    assert len(inspected.instance_names) == len(inspected.tokens.instances.labels)


def test_damaged_images_are_named(tiny_shapes, tmp_path):
    model, cfg = load_model(tiny_config(tmp_path), "")
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(OSError, match="broken.png"):
        Inspector(model, cfg, metadata)({"file_name": str(tmp_path / "broken.png")})


def test_an_image_without_ground_truth(tiny_shapes, tmp_path):
    model, cfg = load_model(tiny_config(tmp_path), "")
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    record = DatasetCatalog.get(cfg.DATASETS.TEST[0])[0]
    only_image = {key: record[key] for key in ("file_name", "height", "width")}
    inspected = Inspector(model, cfg, metadata)(only_image)
    assert inspected.labels is inspected.components is inspected.instance_names is None
    assert inspected.tokens.classes is inspected.tokens.components is None
    assert np.isfinite(inspected.tokens.probabilities).all()


class Fixed(torch.nn.Module):
    """Puts out what it is given, and no regions."""

    def __init__(self, output, **declared):
        super().__init__()
        self.output = output
        self.outputs = Outputs(("semantic",), **declared)

    def forward(self, inputs):
        return [self.output]


@pytest.fixture
def inspect(tiny_shapes):
    """(model) -> what it predicts in the first image."""
    cfg = load_config("", ["TEST.TOKENS.ENABLED", "False"])
    metadata = MetadataCatalog.get("shapes_sem_seg_val")
    file_name = DatasetCatalog.get("shapes_sem_seg_val")[0]["file_name"]

    def prediction_of(model, **changes):
        own = metadata.as_dict()
        own.update(changes)
        own = SimpleNamespace(get=own.get, **own)
        return Inspector(model, cfg, own)({"file_name": file_name}).prediction

    return prediction_of


def test_a_model_without_tokens(inspect):
    labels = torch.randint(9, (40, 40))
    assert (inspect(Fixed({"sem_seg": labels})) == labels.numpy()).all()
    model = Fixed({"sem_seg": labels})
    model.sem_seg_head = SimpleNamespace(num_classes=54)
    assert inspect(model) is None  # the classes of another dataset


def test_panoptic_predictions(inspect):
    ids = torch.tensor([[0, 1], [3, 1]])
    segments = [{"id": number, "category_id": label} for number, label in ((1, 4), (3, 0), (9, 2))]
    assert inspect(Fixed({"panoptic_seg": (ids, segments)})).tolist() == [[-1, 4], [0, 4]]


def test_the_surest_instance_is_on_top(inspect):
    masks = torch.tensor([[1, 1, 1, 0], [0, 1, 0, 0], [1, 1, 1, 1]]).bool()[:, None]
    instances = Instances(
        (1, 4),
        pred_masks=masks,
        scores=torch.tensor([0.7, 0.9, 0.3]),
        pred_classes=torch.tensor([2, 1, 0]),
    )
    detector = Fixed({"instances": instances}, joint_classes=False)
    assert inspect(detector, stuff_classes=None).tolist() == [[2, 1, 2, -1]]
    assert inspect(detector) is None  # the numbers of its classes are not those of the names
    instances.remove("pred_masks")
    assert inspect(detector, stuff_classes=None) is None
