import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators, SemSegEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from sgr.config import add_sgr_config
from sgr.evaluation import TokenSemanticsEvaluator, build_evaluator
from sgr.modeling.reasoning.concept_regions import ConceptRegions


@pytest.fixture
def register(tmp_path):
    name = f"build_{tmp_path.name}"

    def register(records, **metadata):
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(**metadata)
        return name

    yield register
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)


def config(tmp_path, tokens):
    cfg = get_cfg()
    add_sgr_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.TEST.TOKENS.ENABLED = tokens
    return cfg


@pytest.mark.parametrize("ignore_label", [3, 255])
def test_semantic_segmentation(register, tmp_path, ignore_label):
    labels = np.array([[0, 0, 1, 1], [0, 2, 2, ignore_label]], np.uint8)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    record = {"file_name": "a.jpg", "sem_seg_file_name": str(tmp_path / "labels.png")}
    name = register(
        [record],
        evaluator_type="sem_seg",
        stuff_classes=["sky", "road", "car"],
        ignore_label=ignore_label,
    )
    evaluator = build_evaluator(config(tmp_path, tokens=True), name)
    assert isinstance(evaluator, DatasetEvaluators)

    predicted = torch.tensor([[0, 0, 1, 0], [0, 2, 2, 1]])
    scores = torch.nn.functional.one_hot(predicted, 3).permute(2, 0, 1).float()
    regions = ConceptRegions(torch.zeros(1, 5, 1, 2), stride=2)
    evaluator.reset()
    evaluator.process(
        [{"file_name": "a.jpg", "image": torch.zeros(3, 2, 4)}],
        [{"sem_seg": scores, "concept_regions": regions}],
    )
    results = evaluator.evaluate()

    assert results["sem_seg"]["mIoU"] == pytest.approx(100 * (3 / 4 + 1 / 2 + 1) / 3)
    assert results["tokens"]["images_C"] == 1
    assert (tmp_path / "inference" / "tokens.json").is_file()


def test_coco(register, tmp_path):
    annotation = {
        "bbox": [2.0, 2.0, 20.0, 20.0],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "segmentation": [[2, 2, 22, 2, 22, 22, 2, 22]],
        "iscrowd": 0,
    }
    record = {"file_name": "a.jpg", "image_id": 1, "height": 32, "width": 32}
    name = register(
        [{**record, "annotations": [annotation]}], evaluator_type="coco", thing_classes=["thing"]
    )
    evaluator = build_evaluator(config(tmp_path, tokens=True), name, str(tmp_path / "out"))

    instances = Instances((32, 32))
    instances.pred_boxes = Boxes(torch.tensor([[2.0, 2, 22, 22]]))
    instances.scores = torch.tensor([0.9])
    instances.pred_classes = torch.tensor([0])
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[:, 2:22, 2:22] = True
    instances.pred_masks = mask
    regions = ConceptRegions(torch.zeros(1, 5, 2, 2), stride=16)
    evaluator.reset()
    evaluator.process(
        [{**record, "image": torch.zeros(3, 32, 32)}],
        [{"instances": instances, "concept_regions": regions}],
    )
    results = evaluator.evaluate()

    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["segm"]["AP"] == pytest.approx(100)
    assert results["tokens"]["S_I"] == 0


def test_without_tokens_there_is_only_the_tasks_evaluator(register, tmp_path):
    name = register([], evaluator_type="sem_seg", stuff_classes=["a"], ignore_label=255)
    assert isinstance(build_evaluator(config(tmp_path, tokens=False), name), SemSegEvaluator)
    evaluators = build_evaluator(config(tmp_path, tokens=True), name)._evaluators
    assert [type(evaluator) for evaluator in evaluators] == [
        SemSegEvaluator,
        TokenSemanticsEvaluator,
    ]


@pytest.mark.parametrize("metadata", [{}, {"evaluator_type": "lvis"}])
def test_unknown_evaluator_types_are_named(register, tmp_path, metadata):
    name = register([], **metadata)
    with pytest.raises(ValueError, match=r"evaluator_type (None|'lvis'), known are \['coco'"):
        build_evaluator(config(tmp_path, tokens=True), name)


def test_the_coco_evaluator_is_detectron2s(register, tmp_path):
    name = register([], evaluator_type="coco", thing_classes=["a"])
    assert isinstance(build_evaluator(config(tmp_path, tokens=False), name), COCOEvaluator)
