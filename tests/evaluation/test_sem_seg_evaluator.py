import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sgr.evaluation import CheckedSemSegEvaluator


@pytest.fixture
def evaluator(tmp_path):
    """Of a dataset of three classes and one image, whose labels are in labels.png."""
    name = f"sem_seg_{tmp_path.name}"
    record = {"file_name": "a.jpg", "sem_seg_file_name": str(tmp_path / "labels.png")}
    DatasetCatalog.register(name, lambda: [record])
    MetadataCatalog.get(name).set(stuff_classes=["sky", "road", "car"], ignore_label=255)
    evaluator = CheckedSemSegEvaluator(name)
    evaluator.reset()
    yield evaluator
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def predict(evaluator, predicted):
    scores = torch.nn.functional.one_hot(torch.tensor([predicted]), 3).permute(2, 0, 1).float()
    evaluator.process([{"file_name": "a.jpg"}], [{"sem_seg": scores}])


def test_right_labels_are_measured(evaluator, tmp_path):
    Image.fromarray(np.array([[0, 1, 2, 255]], np.uint8)).save(tmp_path / "labels.png")
    predict(evaluator, [0, 1, 1, 2])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(100 * (1 + 1 / 2 + 0) / 3)


def test_labels_are_as_good_as_scores(evaluator, tmp_path):
    truth = np.random.default_rng(0).choice([0, 1, 2, 255], (30, 40)).astype(np.uint8)
    Image.fromarray(truth).save(tmp_path / "labels.png")
    scores = torch.rand(3, 30, 40)
    results = []
    for dtype in (None, torch.int64, torch.int32, torch.uint8):
        evaluator.reset()
        sem_seg = scores if dtype is None else scores.argmax(0).to(dtype)
        evaluator.process([{"file_name": "a.jpg"}], [{"sem_seg": sem_seg}])
        results.append((evaluator._predictions, evaluator.evaluate()["sem_seg"]))
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("shape", [(4, 5), (1, 3, 4, 5)])
def test_other_forms_of_a_prediction_are_an_error(evaluator, tmp_path, shape):
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "labels.png")
    with pytest.raises(ValueError, match=r"\(C, H, W\) scores or \(H, W\) integer .*float32"):
        evaluator.process([{"file_name": "a.jpg"}], [{"sem_seg": torch.rand(shape)}])


@pytest.mark.parametrize("wrong", [3, 5, 200])  # Detectron2 takes 3 for ignored, 5 for another.
def test_a_wrong_label_is_an_error(evaluator, tmp_path, wrong):
    Image.fromarray(np.array([[0, 1, 255, wrong]], np.uint8)).save(tmp_path / "labels.png")
    message = rf"labels\.png holds the label\(s\) {wrong}; expected are 0 to 2, and 255"
    with pytest.raises(ValueError, match=message):
        predict(evaluator, [0, 1, 2, 2])


def test_a_missing_label_map_is_named(evaluator):
    with pytest.raises(FileNotFoundError, match="labels.png does not exist"):
        predict(evaluator, [0])
