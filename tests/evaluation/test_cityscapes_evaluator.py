"""The measures of the benchmark, against definitions and, where installed, official code."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from PIL import Image

from official_layouts import CITYSCAPES_EVALUATED, write_cityscapes
from sgr.evaluation import CityscapesMeanIoUEvaluator

NAME = "cityscapes_fine_sem_seg_val"
MEAN_SIZES = {  # by trainId
    11: 3462.4756337644, 12: 3930.4788056518, 13: 12794.0202738185, 14: 27855.1264367816,
    15: 35732.1511111111, 16: 67583.7075812274, 17: 6298.7200839748, 18: 4672.3249222261,
}  # fmt: skip
CATEGORIES = [[0, 1], [2, 3, 4], [5, 6, 7], [8, 9], [10], [11, 12], range(13, 19)]


@pytest.fixture
def cityscapes(tmp_path):
    """Registers a split in the official layout, with instances; returns (name, records)."""
    names = []

    def register(split="val", instances=True, **metadata):
        expected = write_cityscapes(tmp_path, splits=(split,))
        records = []
        for file, labels in sorted(expected.items()):
            file = Path(file)
            Image.fromarray(np.full_like(labels, 255) if split == "test" else labels).save(file)
            stem = file.name.removesuffix("_gtFine_labelTrainIds.png")
            ids_file = file.with_name(f"{stem}_gtFine_labelIds.png")
            instance_file = file.with_name(f"{stem}_gtFine_instanceIds.png")
            ids = np.asarray(Image.open(ids_file)).astype(np.uint16)
            # Left and right half are two instances; the upper rows are groups, without a number.
            halves = (np.arange(ids.shape[1]) >= ids.shape[1] // 2).astype(np.uint16)
            numbered = (ids >= 24) & (np.arange(len(ids))[:, None] >= 4)
            if instances:
                Image.fromarray(np.where(numbered, 1000 * ids + halves, ids)).save(instance_file)
            else:
                instance_file.unlink()
            image = tmp_path / "cityscapes" / "leftImg8bit" / split / file.parent.name
            records.append(
                {
                    "file_name": str(image / f"{stem}_leftImg8bit.png"),
                    "sem_seg_file_name": str(file),
                }
            )
        name = f"cityscapes_{split}_{tmp_path.name}"
        names.append(name)
        DatasetCatalog.register(name, lambda: records)
        stuff_classes = MetadataCatalog.get(NAME).stuff_classes
        MetadataCatalog.get(name).set(
            **{"stuff_classes": stuff_classes, "ignore_label": 255, **metadata}
        )
        return name, records

    yield register
    for name in names:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)


def predictions(records, classes=range(19), seed=0):
    """Two thirds right."""
    rng = np.random.default_rng(seed)
    predicted = []
    for record in records:
        truth = np.asarray(Image.open(record["sem_seg_file_name"]))
        guess = rng.choice(list(classes), truth.shape)
        right = (truth != 255) & (rng.random(truth.shape) < 2 / 3)
        predicted.append(np.where(right, truth, guess).astype(np.int64))
    return predicted


def measure(evaluator, records, predicted):
    for record, labels in zip(records, predicted):
        evaluator.process(
            [{"file_name": record["file_name"]}], [{"sem_seg": torch.from_numpy(labels)}]
        )
    return evaluator.evaluate()


def images_of(records):
    for record in records:
        file = record["sem_seg_file_name"]
        truth = np.asarray(Image.open(file)).astype(int)
        instances = np.asarray(Image.open(file.replace("labelTrainIds", "instanceIds")))
        yield truth, instances.astype(int)


def oracle(records, predicted):
    """IoU, iIoU, IoU_sup and iIoU_sup, group of classes by group and instance by instance."""
    classes = [[index] for index in range(19)]
    values = []
    for groups in (classes, CATEGORIES):
        iou, instance_iou = [], []
        for group in groups:
            right = missed = wrong = weighted_right = weighted_missed = 0
            for (truth, instances), labels in zip(images_of(records), predicted):
                mine, theirs = np.isin(labels, group), np.isin(truth, group)
                right += (mine & theirs).sum()
                missed += (theirs & ~mine).sum()
                wrong += (mine & ~theirs & (truth != 255)).sum()
                for id in np.unique(instances[instances > 1000]):
                    label = id // 1000
                    if label not in CITYSCAPES_EVALUATED:
                        continue
                    train_id = CITYSCAPES_EVALUATED.index(label)
                    if train_id in group:
                        mask = instances == id
                        weight = MEAN_SIZES[train_id] / mask.sum()
                        weighted_right += weight * (mask & mine).sum()
                        weighted_missed += weight * (mask & ~mine).sum()
            if right + missed + wrong:
                iou.append(right / (right + missed + wrong))
            if all(index in MEAN_SIZES for index in group):
                union = weighted_right + weighted_missed + wrong
                if union:
                    instance_iou.append(weighted_right / union)
        values += [100 * np.mean(iou), 100 * np.mean(instance_iou)]
    return dict(zip(("IoU", "iIoU", "IoU_sup", "iIoU_sup"), values))


@pytest.mark.parametrize("classes", [range(19), (0, 2, 11, 13, 14)])
def test_equals_the_definition(cityscapes, classes):
    name, records = cityscapes()
    predicted = predictions(records, classes)
    results = measure(CityscapesMeanIoUEvaluator(name), records, predicted)["sem_seg"]
    expected = oracle(records, predicted)
    assert {key: results[key] for key in expected} == pytest.approx(expected, rel=1e-12)
    assert results["mIoU"] == pytest.approx(results["IoU"], rel=1e-12)
    assert 0 < results["iIoU"] != results["IoU"] and results["IoU_sup"] > results["IoU"]
    assert list(results)[-4:] == list(expected)


@pytest.mark.parametrize("classes", [range(19), (0, 2, 11, 13, 14)])
def test_equals_the_official_scripts(cityscapes, tmp_path, monkeypatch, classes):
    """On the files that are kept; the classes' own values too."""
    official = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # 2.3.0 wants it of NumPy before 2.4
    name, records = cityscapes()
    evaluator = CityscapesMeanIoUEvaluator(name, output_dir=str(tmp_path / "out"))
    results = measure(evaluator, records, predictions(records, classes))["sem_seg"]

    options = official.args
    for key, value in {
        "predictionPath": str(tmp_path / "out" / "cityscapes_predictions"),
        "predictionWalk": None,
        "JSONOutput": False,
        "quiet": True,
    }.items():
        monkeypatch.setattr(options, key, value)
    truths = [each["sem_seg_file_name"].replace("labelTrainIds", "labelIds") for each in records]
    found = [official.getPrediction(options, truth) for truth in truths]
    expected = official.evaluateImgLists(found, truths, options)
    for ours, theirs in {
        "mIoU": "averageScoreClasses",
        "IoU": "averageScoreClasses",
        "iIoU": "averageScoreInstClasses",
        "IoU_sup": "averageScoreCategories",
        "iIoU_sup": "averageScoreInstCategories",
    }.items():
        assert results[ours] == pytest.approx(100 * expected[theirs], rel=1e-12)
    for key, value in expected["classScores"].items():
        if not np.isnan(results.get(f"IoU-{key}", np.nan)):
            assert results[f"IoU-{key}"] == pytest.approx(100 * value, rel=1e-12)


def test_predictions_are_kept_as_the_benchmark_wants_them(cityscapes, tmp_path):
    name, records = cityscapes()
    predicted = predictions(records)
    evaluator = CityscapesMeanIoUEvaluator(name, output_dir=str(tmp_path / "out"))
    measure(evaluator, records, predicted)
    folder = tmp_path / "out" / "cityscapes_predictions"
    assert {path.name for path in folder.iterdir()} == {
        f"{city}_000000_{frame}_pred.png"
        for city in ("lindau", "munster") for frame in ("000019", "004019")
    }  # fmt: skip
    for record, labels in zip(records, predicted):
        file = Path(record["file_name"]).name.replace("leftImg8bit", "pred")
        written = Image.open(folder / file)
        assert written.mode == "L"
        expected = np.array(CITYSCAPES_EVALUATED)[labels]
        np.testing.assert_array_equal(np.asarray(written), expected)
    results = json.loads((tmp_path / "out" / "sem_seg.json").read_text())
    assert {"mIoU", "iIoU", "IoU_sup", "iIoU_sup", "classes"} <= results.keys()


def test_where_predictions_are_is_logged(cityscapes, tmp_path, caplog):
    name, records = cityscapes()
    evaluator = CityscapesMeanIoUEvaluator(name, output_dir=str(tmp_path))
    with caplog.at_level(logging.INFO):
        measure(evaluator, records, predictions(records))
    (said,) = [each.message for each in caplog.records if "Written" in each.message]
    assert said.startswith(f"Written of {name} to {tmp_path}: sem_seg.json, ")
    assert said.endswith(", cityscapes_predictions/*.png")


def test_the_test_split_is_for_the_server(cityscapes, tmp_path, caplog):
    name, records = cityscapes("test")
    folder = tmp_path / "out" / "cityscapes_predictions"
    folder.mkdir(parents=True)
    (folder / "lindau_000000_000019_pred.png").touch()
    evaluator = CityscapesMeanIoUEvaluator(name, output_dir=str(tmp_path / "out"))
    predicted = [np.zeros((24, 32), int)] * len(records)
    assert measure(evaluator, records, predicted) == {"sem_seg": {}}
    assert len(list(folder.iterdir())) == 3
    (said,) = [each.message for each in caplog.records if "upload" in each.message]
    assert f"2 predictions of {name} in {folder} (and not the 1 others there)" in said
    assert "NaN" not in (tmp_path / "out" / "sem_seg.json").read_text()
    # Without a folder there is nothing to upload.
    caplog.clear()
    measure(CityscapesMeanIoUEvaluator(name), records, predicted)
    assert "upload" not in caplog.text and "mIoU is not measured" in caplog.text


def test_without_files_of_instances(cityscapes, caplog):
    name, records = cityscapes(instances=False)
    with caplog.at_level(logging.WARNING):
        results = measure(CityscapesMeanIoUEvaluator(name), records, predictions(records))
    assert "4 images of" in caplog.text and "iIoU is not measured" in caplog.text
    assert list(results["sem_seg"])[-2:] == ["IoU", "IoU_sup"]


def test_unlabelled_images_need_no_files_of_instances(cityscapes, caplog):
    name, records = cityscapes()
    predicted = predictions(records)
    expected = oracle(records[1:], predicted[1:])
    file = Path(records[0]["sem_seg_file_name"])
    Image.fromarray(np.full((24, 32), 255, np.uint8)).save(file)
    file.with_name(file.name.replace("labelTrainIds", "instanceIds")).unlink()
    results = measure(CityscapesMeanIoUEvaluator(name), records, predicted)["sem_seg"]
    assert {key: results[key] for key in expected} == pytest.approx(expected, rel=1e-12)
    assert "iIoU is not measured" not in caplog.text


@pytest.mark.parametrize("stray", [19, 255, -1, 65536, 65536 - 3])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("part", [False, True])
def test_predicted_labels_that_are_no_class(cityscapes, tmp_path, stray, kept, part):
    """An error at once, on an ignored pixel too, and no file of them is left."""
    name, records = cityscapes()
    labels = np.zeros((24, 32), int)
    truth = np.asarray(Image.open(records[0]["sem_seg_file_name"]))
    labels[tuple(np.argwhere(truth == 255)[0])] = stray
    more = {"ground_truth_transform": T.CropTransform(0, 0, 32, 24)} if part else {}
    folder = tmp_path / "out"
    evaluator = CityscapesMeanIoUEvaluator(name, output_dir=str(folder) if kept else None)
    with pytest.raises(ValueError, match="lindau_.*_leftImg8bit.png has labels that are no class"):
        evaluator.process(
            [{"file_name": records[0]["file_name"], **more}],
            [{"sem_seg": torch.from_numpy(labels)}],
        )
    assert not folder.exists()


def test_a_part_of_the_image_is_measured_but_not_kept(cityscapes, tmp_path):
    name, records = cityscapes()
    evaluator = CityscapesMeanIoUEvaluator(name, output_dir=str(tmp_path / "out"))
    crop = T.CropTransform(0, 0, 16, 24)
    for record, labels in zip(records, predictions(records)):
        evaluator.process(
            [{"file_name": record["file_name"], "ground_truth_transform": crop}],
            [{"sem_seg": torch.from_numpy(labels[:24, :16].copy())}],
        )
    results = evaluator.evaluate()["sem_seg"]
    assert 0 < results["iIoU"] < 100
    assert not (tmp_path / "out" / "cityscapes_predictions").exists()


def test_user_mistakes_are_named(cityscapes, tmp_path):
    name, records = cityscapes()
    evaluator = CityscapesMeanIoUEvaluator(name, output_dir=str(tmp_path / "out"))
    file = Path(records[0]["sem_seg_file_name"].replace("labelTrainIds", "instanceIds"))
    Image.fromarray(np.zeros((24, 30), np.uint16)).save(file)
    with pytest.raises(ValueError, match=r"_instanceIds.png is \(24, 30\), but .* is \(24, 32\)"):
        measure(evaluator, records, [np.zeros((24, 32), int)])
    file.write_bytes(b"no picture")
    with pytest.raises(OSError, match="instanceIds.png cannot be read"):
        measure(evaluator, records, [np.zeros((24, 32), int)])
    vars(MetadataCatalog.get(name)).update(stuff_classes=["flat", "human"])
    with pytest.raises(ValueError, match=f'of {name} are not the 19 of Cityscapes.*to "sem_seg"'):
        CityscapesMeanIoUEvaluator(name)
