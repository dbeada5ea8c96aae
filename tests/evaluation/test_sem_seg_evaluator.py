import json
import logging
import math

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

from sgr.evaluation import MeanIoUEvaluator
from sgr.modeling.outputs import predicted_labels

CLASSES = ["sky", "road", "car"]


@pytest.fixture
def register(tmp_path):
    """Registers a dataset of the images "0.jpg", "1.jpg"...; returns its name."""
    name = f"sem_seg_{tmp_path.name}"

    def register(*truths, records=None, **metadata):
        if records is None:
            records = []
            for index, truth in enumerate(truths):
                file = tmp_path / f"{index}.png"
                Image.fromarray(np.atleast_2d(np.array(truth, np.uint8))).save(file)
                records.append({"file_name": f"{index}.jpg", "sem_seg_file_name": str(file)})
        DatasetCatalog.register(name, lambda: records)
        metadata = {"stuff_classes": CLASSES, "ignore_label": 255, **metadata}
        MetadataCatalog.get(name).set(**metadata)
        return name

    yield register
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)


def predict(evaluator, predicted, index=0, **more):
    labels = torch.atleast_2d(torch.as_tensor(predicted))
    evaluator.process([{"file_name": f"{index}.jpg", **more}], [{"sem_seg": labels}])


def random_images(rng, num_classes, count, size=(20, 30)):
    """Ground truth with ignored pixels, and predictions, in a few of the classes."""
    present = rng.permutation(num_classes)[: max(num_classes * 2 // 3, 1)]
    truths = [rng.choice([*present, 255], size).astype(np.uint8) for _ in range(count)]
    guesses = [rng.integers(0, num_classes, size) for _ in range(count)]
    keep = [rng.random(size) < 0.6 for _ in range(count)]
    right = [(truth != 255) & each for truth, each in zip(truths, keep)]
    return truths, [np.where(r, t, g) for r, t, g in zip(right, truths, guesses)]


def test_far_too_many_classes(register):
    name = register([0, 1], stuff_classes=[str(index) for index in range(65536)])
    with pytest.raises(ValueError, match=f"{name} has 65536 classes, .* would take 32 GiB"):
        MeanIoUEvaluator(name)


def test_files_that_cannot_be_written_are_a_warning(register, tmp_path, caplog):
    (tmp_path / "file").touch()
    name = register([0, 1, 1, 255])
    evaluator = MeanIoUEvaluator(name, output_dir=str(tmp_path / "file" / "out"))
    predict(evaluator, [0, 1, 1, 0])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == 100
    for ending in ("sem_seg.json", "sem_seg_evaluation.pth", "matrix.npz", "matrix.png"):
        assert f"{ending} cannot be written" in caplog.text


@pytest.mark.parametrize("num_classes", [1, 2, 5, 21, 171])
def test_equals_detectron2s(register, tmp_path, num_classes):
    """By name, order and value, in what it returns and in its file."""
    truths, predictions = random_images(np.random.default_rng(num_classes), num_classes, 3)
    name = register(*truths, stuff_classes=[f"class {index}" for index in range(num_classes)])
    results = []
    for evaluator in (
        SemSegEvaluator(name, output_dir=str(tmp_path / "theirs")),
        MeanIoUEvaluator(name, output_dir=str(tmp_path / "ours")),
    ):
        evaluator.reset()
        for index, predicted in enumerate(predictions):
            scores = torch.nn.functional.one_hot(torch.from_numpy(predicted), num_classes)
            scores = scores.permute(2, 0, 1).float()
            evaluator.process([{"file_name": f"{index}.jpg"}], [{"sem_seg": scores}])
        results.append(evaluator.evaluate())
    theirs, ours = results
    assert list(ours) == list(theirs) == ["sem_seg"]
    # The development version always measures boundary IoU, and in another way.
    boundary = ("BoundaryIoU-", "min(IoU, B-Iou)-")
    plain = {key: x for key, x in theirs["sem_seg"].items() if not key.startswith(boundary)}
    assert list(ours["sem_seg"]) == list(plain)
    expected = pytest.approx(plain, rel=1e-12, nan_ok=True)
    assert ours["sem_seg"] == expected
    written = torch.load(tmp_path / "ours" / "sem_seg_evaluation.pth", weights_only=True)
    assert written == expected
    if len(plain) < len(theirs["sem_seg"]):
        evaluator = MeanIoUEvaluator(name, boundary_ratio=0.02)
        for index, predicted in enumerate(predictions):
            predict(evaluator, predicted, index)
        assert list(evaluator.evaluate()["sem_seg"])[:-2] == list(theirs["sem_seg"])


@pytest.mark.parametrize("size, ratio", [((24, 30), 0.05), ((120, 160), 0.02)])
def test_boundary_iou(register, tmp_path, size, ratio):
    """As its definition has it, class by class; everything else stays as it is."""
    rng = np.random.default_rng(0)
    truths, predictions = [], []
    for _ in range(3):
        truth = np.zeros(size, np.uint8)
        truth[size[0] // 2 :] = 1
        truth[size[0] // 3 : -4, size[1] // 3 : size[1] // 2] = 2
        predictions.append(np.roll(truth, rng.integers(-3, 4, 2), (0, 1)))
        truth[: size[0] // 5, size[1] // 2 :] = 255
        truths.append(truth)
    predictions[0][:3, :3] = 3  # a class that the ground truth does not have
    name = register(*truths, stuff_classes=[*CLASSES, "boat"])
    results = []
    for boundary_ratio in (ratio, None):
        evaluator = MeanIoUEvaluator(
            name, boundary_ratio=boundary_ratio, output_dir=str(tmp_path / f"{boundary_ratio}")
        )
        for index, predicted in enumerate(predictions):
            predict(evaluator, predicted, index)
        results.append(evaluator.evaluate()["sem_seg"])
    found, plain = results

    distance = max(1, round(ratio * math.hypot(*size)))
    square = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    for label, class_name in enumerate([*CLASSES, "boat"]):
        shared = united = 0
        for truth, predicted in zip(truths, predictions):
            masks = [(each == label) & (truth != 255) for each in (truth, predicted)]
            edges = [
                mask
                & (cv2.erode(np.pad(np.uint8(mask), distance), square) == 0)[
                    distance:-distance, distance:-distance
                ]
                for mask in masks
            ]
            shared += (edges[0] & edges[1]).sum()
            united += (edges[0] | edges[1]).sum()
        value = 100 * shared / united if label < 3 else math.nan
        assert found.pop(f"BoundaryIoU-{class_name}") == pytest.approx(value, nan_ok=True)
        least = found.pop(f"min(IoU, B-Iou)-{class_name}")
        assert least == pytest.approx(min(value, plain[f"IoU-{class_name}"]), nan_ok=True)
        file = json.loads((tmp_path / str(ratio) / "sem_seg.json").read_text())["classes"]
        assert file[class_name]["BoundaryIoU"] == (pytest.approx(value) if label < 3 else None)
    values = [file[class_name] for class_name in CLASSES]
    for key in ("BoundaryIoU", "min(IoU, B-Iou)"):  # "boat" counts as 0, as in mIoU
        mean = sum(each[key] for each in values) / 4
        assert 0 < mean < 100 and found.pop(f"m{key}") == pytest.approx(mean)
    assert list(found) == list(plain)
    assert found == pytest.approx(plain, nan_ok=True, rel=1e-12)


def oracle(truths, predictions, num_classes):
    """mIoU and mean accuracy from the definitions, class by class as sets of pixels."""
    truth, predicted = np.stack(truths).ravel(), np.stack(predictions).ravel()
    labelled = truth != 255
    iou, accuracy = [], []
    for index in range(num_classes):
        there, found = labelled & (truth == index), labelled & (predicted == index)
        if (there | found).any():
            iou.append((there & found).sum() / (there | found).sum())
        if there.any():
            accuracy.append((there & found).sum() / there.sum())
    return 100 * np.mean(iou), 100 * np.mean(accuracy)


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_definition(register, seed):
    truths, predictions = random_images(np.random.default_rng(seed), 7, 4)
    evaluator = MeanIoUEvaluator(register(*truths, stuff_classes=list("abcdefg")))
    for index, predicted in enumerate(predictions):
        predict(evaluator, predicted, index)
    results = evaluator.evaluate()["sem_seg"]
    miou, macc = oracle(truths, predictions, 7)
    assert (results["mIoU"], results["mACC"]) == pytest.approx((miou, macc), rel=1e-12)


def test_labels_are_as_good_as_scores(register):
    truth = np.random.default_rng(0).choice([0, 1, 2, 255], (30, 40)).astype(np.uint8)
    evaluator = MeanIoUEvaluator(register(truth))
    scores = torch.rand(3, 30, 40)
    results = []
    for dtype in (None, torch.int64, torch.int32, torch.int16, torch.uint8):
        evaluator.reset()
        sem_seg = scores if dtype is None else scores.argmax(0).to(dtype)
        evaluator.process([{"file_name": "0.jpg"}], [{"sem_seg": sem_seg}])
        results.append(evaluator.evaluate())
    assert all(result == results[0] for result in results)


def test_small_types_of_labels_hold_fewer_numbers_than_there_are_classes(register):
    evaluator = MeanIoUEvaluator(
        register([[0, 1, 127]], stuff_classes=[f"class {index}" for index in range(200)])
    )
    predict(evaluator, torch.tensor([0, 1, 127], dtype=torch.int8))
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == 100


@pytest.mark.gpu
def test_a_gpu_counts_the_same(register):
    truths, predictions = random_images(np.random.default_rng(0), 3, 3)
    evaluator = MeanIoUEvaluator(register(*truths))
    results = []
    for device in ("cpu", "cuda"):
        evaluator.reset()
        for index, predicted in enumerate(predictions):
            predict(evaluator, torch.from_numpy(predicted).to(device), index)
        results.append(evaluator.evaluate()["sem_seg"])
    assert results[0] == pytest.approx(results[1], nan_ok=True, rel=0)


def test_devices_other_than_a_cpu_count_the_same(register, monkeypatch):
    """Without bincount, which would wait for them."""
    truths, predictions = random_images(np.random.default_rng(0), 3, 3)
    name = register(*truths)
    results = []
    for is_cpu in (True, False):
        evaluator = MeanIoUEvaluator(name)
        for index, predicted in enumerate(predictions):
            with monkeypatch.context() as patch:
                if not is_cpu:
                    patch.setattr(torch.Tensor, "is_cpu", property(lambda self: False))
                    patch.setattr(torch, "bincount", None)
                predict(evaluator, predicted, index)
        results.append(evaluator.evaluate())
    assert results[0]["sem_seg"] == pytest.approx(results[1]["sem_seg"], nan_ok=True, rel=0)


def test_what_is_written_and_logged(register, tmp_path, caplog):
    evaluator = MeanIoUEvaluator(register([0, 0, 1, 255]), output_dir=str(tmp_path / "out"))
    predict(evaluator, [0, 1, 1, 2])
    with caplog.at_level(logging.INFO):
        results = evaluator.evaluate()["sem_seg"]
    assert results["mIoU"] == pytest.approx(50) and results["pACC"] == pytest.approx(200 / 3)
    assert math.isnan(results["IoU-car"]) and math.isnan(results["ACC-car"])
    written = json.loads((tmp_path / "out" / "sem_seg.json").read_text())
    assert {key: written[key] for key in ("mIoU", "fwIoU", "mACC", "pACC")} == {
        key: value for key, value in results.items() if "-" not in key
    }
    assert written["classes"]["road"] == {"IoU": 50, "ACC": 100, "pixels": 1}
    assert written["classes"]["car"] == {"IoU": None, "ACC": None, "pixels": 0}
    with np.load(tmp_path / "out" / "confusion_matrix.npz") as matrix:
        assert matrix["counts"].tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
        assert matrix["class_names"].tolist() == CLASSES
    assert Image.open(tmp_path / "out" / "confusion_matrix.png").mode == "RGB"
    (said,) = [each.message for each in caplog.records if each.message.startswith("Written")]
    before, names = said.split(": ")
    assert before.endswith(f" to {tmp_path / 'out'}")
    assert sorted(names.split(", ")) == sorted(each.name for each in (tmp_path / "out").iterdir())
    (line,) = [line for line in caplog.text.splitlines() if line.startswith("| road")]
    assert [each.strip() for each in line.split("|")[1:-1]] == [
        "road", "50.000", "100.000", "33.333"
    ]  # fmt: skip
    (line,) = [line for line in caplog.text.splitlines() if line.startswith("| car")]
    assert [each.strip() for each in line.split("|")[1:-1]] == ["car", "-", "-", "0.000"]


def test_a_class_that_is_only_predicted_counts_as_0(register):
    evaluator = MeanIoUEvaluator(register([0, 0, 1, 1]))
    predict(evaluator, [0, 0, 1, 2])
    results = evaluator.evaluate()["sem_seg"]
    assert results["mIoU"] == pytest.approx(100 * (1 + 1 / 2 + 0) / 3)
    assert results["mACC"] == pytest.approx(75)


def test_nothing_labelled(register, tmp_path, caplog):
    evaluator = MeanIoUEvaluator(register([255, 255]), output_dir=str(tmp_path / "out"))
    predict(evaluator, [0, 1])
    assert evaluator.evaluate() == {"sem_seg": {}}
    assert "mIoU is not measured: no predicted pixel" in caplog.text
    assert "NaN" not in (tmp_path / "out" / "sem_seg.json").read_text()


def test_no_older_results_stay_beside_new_ones(register, tmp_path):
    """Where no pixel is labelled either."""
    evaluator = MeanIoUEvaluator(register([0, 1], [255, 255]), output_dir=str(tmp_path / "out"))
    pictures = []
    for index in (0, 1):
        evaluator.reset()
        predict(evaluator, [0, 1], index)
        evaluator.evaluate()
        pictures.append((tmp_path / "out" / "confusion_matrix.png").read_bytes())
    assert pictures[0] != pictures[1]
    with np.load(tmp_path / "out" / "confusion_matrix.npz") as matrix:
        assert not matrix["counts"].any()
    assert torch.load(tmp_path / "out" / "sem_seg_evaluation.pth", weights_only=True) == {}


def test_any_class_names(register, tmp_path):
    names = ["", "$x_$", 3]
    evaluator = MeanIoUEvaluator(
        register([0, 1, 2], stuff_classes=names), output_dir=str(tmp_path / "out")
    )
    predict(evaluator, [0, 1, 2])
    results = evaluator.evaluate()["sem_seg"]
    assert all(results[f"IoU-{name}"] == 100 for name in names)
    with np.load(tmp_path / "out" / "confusion_matrix.npz") as matrix:
        assert matrix["class_names"].tolist() == ["", "$x_$", "3"]


def test_reset_forgets(register):
    evaluator = MeanIoUEvaluator(register([0, 1]))
    predict(evaluator, [0, 0])
    evaluator.reset()
    predict(evaluator, [0, 1])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == 100


@pytest.mark.parametrize("shape", [(4, 5), (1, 3, 4, 5)])
def test_other_forms_of_a_prediction_are_an_error(register, shape):
    evaluator = MeanIoUEvaluator(register(np.zeros((4, 5))))
    with pytest.raises(ValueError, match=r"\(C, H, W\) scores or \(H, W\) integer .*float32"):
        evaluator.process([{"file_name": "0.jpg"}], [{"sem_seg": torch.rand(shape)}])


@pytest.mark.parametrize("given", [np.zeros((4, 5), int), [[0]], None])
def test_predictions_other_than_tensors_are_an_error(register, given):
    evaluator = MeanIoUEvaluator(register(np.zeros((4, 5))))
    message = f"sem_seg must be a tensor, .*got a {type(given).__name__}"
    with pytest.raises(ValueError, match=message):
        evaluator.process([{"file_name": "0.jpg"}], [{"sem_seg": given}])


def test_an_image_has_one_ground_truth(register, tmp_path):
    record = {"file_name": "0.jpg", "sem_seg_file_name": str(tmp_path / "a.png")}
    records = [record, {**record, "image_id": 7}]
    name = register(records=records)
    MeanIoUEvaluator(name)
    records[1]["sem_seg_file_name"] = str(tmp_path / "b.png")
    with pytest.raises(ValueError, match=f"0.jpg is in {name} more than once, with different"):
        MeanIoUEvaluator(name)


def test_user_mistakes_are_named(register):
    name = register(np.zeros((4, 5)))
    evaluator = MeanIoUEvaluator(name)
    match = r"0.jpg is \(5, 4\), but its ground truth is \(4, 5\) .*EXIF orientation"
    with pytest.raises(ValueError, match=match):
        predict(evaluator, np.zeros((5, 4), int))
    with pytest.raises(ValueError, match=r"is \(4, 4\), but .* \(4, 5\) \(height, width\)$"):
        predict(evaluator, np.zeros((4, 4), int))
    with pytest.raises(ValueError, match=f"0.jpg has scores of 5 classes, but {name} has 3"):
        predict_scores = [{"sem_seg": torch.rand(5, 4, 5)}]
        evaluator.process([{"file_name": "0.jpg"}], predict_scores)
    with pytest.raises(ValueError, match="0.jpg has no .sem_seg.*SEMANTIC_ON"):
        evaluator.process([{"file_name": "0.jpg"}], [{"instances": None}])
    with pytest.raises(KeyError, match=f"7.jpg is not an image of {name}"):
        predict(evaluator, np.zeros((4, 5), int), index=7)


@pytest.mark.parametrize("wrong", [-1, 3, 200, -9])
def test_predicted_labels_that_are_no_class(register, wrong):
    """Found at the end, so that no GPU is waited for; on ignored pixels they do not matter."""
    name = register([[0, 1, 255]])
    evaluator = MeanIoUEvaluator(name)
    predict(evaluator, [0, 1, wrong])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == 100
    predict(evaluator, [0, wrong, wrong])
    with pytest.raises(ValueError, match=f"1 labelled pixels of {name} .* none of its classes"):
        evaluator.evaluate()


@pytest.mark.parametrize("wrong", [3, 5, 200])  # Detectron2 takes 3 for ignored, 5 for another.
def test_a_wrong_label_is_an_error(register, wrong):
    evaluator = MeanIoUEvaluator(register([[0, 1, 255, wrong]]))
    message = rf"0\.png holds the label\(s\) {wrong}; expected are 0 to 2, and 255"
    with pytest.raises(ValueError, match=message):
        predict(evaluator, [0, 1, 2, 2])


def test_a_missing_label_map_is_named(register, tmp_path):
    evaluator = MeanIoUEvaluator(register([0]))
    (tmp_path / "0.png").unlink()
    with pytest.raises(FileNotFoundError, match="0.png does not exist"):
        predict(evaluator, [0])


def test_the_metadata_may_come_with_the_records(tmp_path):
    name = f"late_{tmp_path.name}"

    def load():
        MetadataCatalog.get(name).set(stuff_classes=CLASSES)
        return []

    DatasetCatalog.register(name, load)
    try:
        assert MeanIoUEvaluator(name).evaluate() == {"sem_seg": {}}
    finally:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)


def test_a_part_of_the_image_is_measured_on_that_part(register):
    truth = np.array([[0, 0, 1, 1], [0, 0, 2, 2]])
    evaluator = MeanIoUEvaluator(register(truth))
    right_half = T.CropTransform(2, 0, 2, 2)
    predict(evaluator, [[1, 1], [2, 1]], ground_truth_transform=right_half)
    results = evaluator.evaluate()["sem_seg"]
    assert results["IoU-road"] == pytest.approx(200 / 3) and results["IoU-car"] == 50
    with pytest.raises(ValueError, match=r"\(2, 4\), but its ground truth is \(2, 2\)"):
        predict(evaluator, truth, ground_truth_transform=right_half)


def panoptic_record(tmp_path, ids, segments):
    picture = np.stack([ids % 256, ids // 256, ids * 0], axis=-1).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "panoptic.png")
    return {
        "file_name": "0.jpg",
        "pan_seg_file_name": str(tmp_path / "panoptic.png"),
        "segments_info": segments,
    }


def test_segments_serve_where_there_is_no_label_map(register, tmp_path):
    """Crowds too have a class; the pixel without a segment is ignored."""
    ids = np.array([[300, 300, 5, 5], [9, 9, 9, 0]])
    segments = [
        {"id": 9, "category_id": 2},
        {"id": 300, "category_id": 0, "iscrowd": 1},
        {"id": 5, "category_id": 0, "iscrowd": 0},
    ]
    name = register(records=[panoptic_record(tmp_path, ids, segments)])
    evaluator = MeanIoUEvaluator(name)
    predict(evaluator, [[0, 0, 0, 1], [2, 2, 2, 1]])
    results = evaluator.evaluate()["sem_seg"]
    assert results["IoU-sky"] == 75 and results["IoU-car"] == 100
    assert results["mIoU"] == pytest.approx((75 + 0 + 100) / 3)
    assert segments[1]["iscrowd"] == 1
    with pytest.raises(ValueError, match=r"\(4, 2\), but its ground truth is \(2, 4\)"):
        predict(evaluator, np.zeros((4, 2), int))


def test_a_label_map_comes_before_segments(register, tmp_path):
    record = panoptic_record(tmp_path, np.array([[1, 1]]), [{"id": 1, "category_id": 2}])
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "labels.png")
    record["sem_seg_file_name"] = str(tmp_path / "labels.png")
    evaluator = MeanIoUEvaluator(register(records=[record]))
    predict(evaluator, [[0, 2]])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == 100


@pytest.mark.parametrize("missing", ["pan_seg_file_name", "segments_info"])
def test_records_without_classes_are_an_error(register, tmp_path, missing):
    record = panoptic_record(tmp_path, np.array([[1, 1]]), [{"id": 1, "category_id": 2}])
    record.pop(missing)
    name = register(records=[record])
    with pytest.raises(ValueError, match=f"{name} has records without sem_seg_file_name, or pan"):
        MeanIoUEvaluator(name)
    vars(MetadataCatalog.get(name)).pop("stuff_classes")
    with pytest.raises(ValueError, match=f"stuff_classes in the metadata of {name}"):
        MeanIoUEvaluator(name)


def test_predicted_labels_stay_where_they_are():
    labels = torch.tensor([[1, 2]], dtype=torch.int16)
    assert predicted_labels(labels) is labels
