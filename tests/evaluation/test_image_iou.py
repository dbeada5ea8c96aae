import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sgr.evaluation import ImageIoUEvaluator, MeanIoUEvaluator
from sgr.evaluation.build import EVALUATOR_REGISTRY

CLASSES = ["sky", "road", "car"]


@pytest.fixture
def dataset(tmp_path):
    """Four label maps; returns the dataset's name and them."""
    name = f"image_iou_{tmp_path.name}"
    rng = np.random.default_rng(0)
    truths = [rng.choice([0, 1, 2, 255], (6, 7)).astype(np.uint8) for _ in range(4)]
    truths[3][:] = 255
    records = []
    for index, truth in enumerate(truths):
        file = tmp_path / f"{index}.png"
        Image.fromarray(truth).save(file)
        records.append({"file_name": f"{index}.jpg", "sem_seg_file_name": str(file)})
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=CLASSES, ignore_label=255)
    yield name, truths
    DatasetCatalog.pop(name)
    MetadataCatalog.pop(name)


def test_counts_are_those_of_each_image(dataset, tmp_path):
    name, truths = dataset
    evaluator = EVALUATOR_REGISTRY.get("ImageIoUEvaluator")(name, output_dir=str(tmp_path))
    whole = MeanIoUEvaluator(name)
    rng = np.random.default_rng(1)
    predictions = [rng.integers(0, 3, (6, 7)) for _ in truths]
    for index in (2, 0, 3, 1):
        inputs = [{"file_name": f"{index}.jpg"}]
        outputs = [{"sem_seg": torch.from_numpy(predictions[index])}]
        evaluator.process(inputs, outputs)
        whole.process(inputs, outputs)
    assert evaluator.evaluate() == {}
    with np.load(tmp_path / "image_iou.npz") as file:
        found = dict(file)
    assert found["file_names"].tolist() == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert found["class_names"].tolist() == CLASSES
    for index, (truth, predicted) in enumerate(zip(truths, predictions)):
        for label in range(3):
            in_truth, in_prediction = truth == label, (predicted == label) & (truth != 255)
            assert found["truth"][index, label] == in_truth.sum()
            assert found["predicted"][index, label] == in_prediction.sum()
            assert found["right"][index, label] == (in_truth & in_prediction).sum()
    right, truth, predicted = (found[key].sum(0) for key in ("right", "truth", "predicted"))
    iou = 100 * right / (truth + predicted - right)
    assert whole.evaluate()["sem_seg"]["mIoU"] == pytest.approx(iou.mean())


def test_two_evaluations_do_not_mix(dataset, tmp_path):
    name, truths = dataset
    evaluator = ImageIoUEvaluator(name, output_dir=str(tmp_path))
    for index in (0, 1):
        evaluator.reset()
        evaluator.process(
            [{"file_name": f"{index}.jpg"}], [{"sem_seg": torch.from_numpy(truths[index] % 255)}]
        )
        evaluator.evaluate()
    with np.load(tmp_path / "image_iou.npz") as file:
        assert file["file_names"].tolist() == ["1.jpg"]
