import contextlib
import io
import itertools
import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sgr.evaluation import FastCOCOEvaluator

SIZE = (60, 80)
CATEGORIES = {3: 0, 11: 1, 12: 2, 90: 3}  # ids with gaps, as COCO's


@pytest.fixture
def dataset(tmp_path):
    """Registers the content of a COCO file; returns a function (coco, **metadata) -> name."""
    name = f"coco_{tmp_path.name}"

    def register(coco, **metadata):
        (tmp_path / "instances.json").write_text(json.dumps(coco))
        DatasetCatalog.register(name, lambda: [])
        MetadataCatalog.get(name).set(
            **{
                "json_file": str(tmp_path / "instances.json"),
                "thing_classes": [str(id) for id in CATEGORIES],
                "thing_dataset_id_to_contiguous_id": CATEGORIES,
                **metadata,
            }
        )
        return name

    yield register
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)


def random_box(rng):
    """x, y, width, height within the image, of any size."""
    x0, x1 = np.sort(rng.uniform(0, SIZE[1], 2))
    y0, y1 = np.sort(rng.uniform(0, SIZE[0], 2))
    return [x0, y0, x1 - x0, y1 - y0]


def ragged_mask(rng, box):
    mask = np.zeros(SIZE, bool)
    x, y, w, h = np.round(box).astype(int).tolist()
    mask[y : y + h, x : x + w] = True
    return mask & (rng.random(SIZE) < 0.95)


def as_rle(mask):
    rle = mask_util.encode(np.asfortranarray(mask, np.uint8))
    return {**rle, "counts": rle["counts"].decode()}


def random_ground_truth(rng, num_images, per_image):
    """Crowds, polygons, instances without area, and images without annotations among them."""
    images = [
        {"id": 7 * n + 3, "file_name": f"{n}.jpg", "height": SIZE[0], "width": SIZE[1]}
        for n in range(num_images)
    ]
    annotations = []
    for image in images:
        count = 0 if rng.random() < 0.2 else rng.poisson(per_image)
        for _ in range(count):
            x, y, w, h = box = random_box(rng)
            if rng.random() < 0.1:
                w = box[2] = 0.0
            mask = ragged_mask(rng, box)
            crowd = int(rng.random() < 0.15)
            as_polygon = not crowd and rng.random() < 0.5
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": int(rng.choice(list(CATEGORIES))),
                    "bbox": box,
                    "area": float(mask.sum()),
                    "iscrowd": crowd,
                    "segmentation": [corners] if as_polygon else as_rle(mask),
                }
            )
    categories = [{"id": id, "name": str(id)} for id in CATEGORIES]
    return {"images": images, "annotations": annotations, "categories": categories}


def random_outputs(rng, coco, per_image):
    """Outputs of a model by image id: shifted ground truth and noise, with many equal scores."""
    by_image = {image["id"]: [] for image in coco["images"]}
    for annotation in coco["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    outputs = {}
    for image_id, annotations in by_image.items():
        boxes, classes = [], []
        count = 0 if rng.random() < 0.2 else rng.poisson(per_image)
        for _ in range(count):
            if annotations and rng.random() < 0.7:
                near = annotations[rng.integers(len(annotations))]
                x, y, w, h = np.array(near["bbox"]) + rng.normal(0, 2, 4)
                x, y = np.clip([x, y], 0, [SIZE[1], SIZE[0]])
                boxes.append([x, y, max(w, 0), max(h, 0)])
                classes.append(CATEGORIES[near["category_id"]])
            else:
                boxes.append(random_box(rng))
                classes.append(int(rng.integers(len(CATEGORIES))))
        scores = rng.random(count)
        scores = np.where(rng.random(count) < 0.5, scores.round(1), scores)
        instances = Instances(SIZE)
        corners = np.reshape(boxes, (-1, 4))
        corners[:, 2:] += corners[:, :2]
        instances.pred_boxes = Boxes(torch.from_numpy(corners))
        masks = np.reshape([ragged_mask(rng, box) for box in boxes], (-1, *SIZE))
        instances.pred_masks = torch.from_numpy(masks)
        instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
        instances.scores = torch.from_numpy(scores)
        outputs[image_id] = {"instances": instances}
    return outputs


def evaluate(evaluator, outputs):
    evaluator.reset()
    for image_id, output in outputs.items():
        evaluator.process([{"image_id": image_id}], [output])
    return evaluator.evaluate()


def pycocotools_evaluation(json_file, outputs, task):
    """Straight from the outputs to COCO's own evaluation."""
    id_of = {number: id for id, number in CATEGORIES.items()}
    results = []
    for image_id, output in outputs.items():
        instances = output["instances"]
        for n in range(len(instances)):
            x0, y0, x1, y1 = instances.pred_boxes.tensor[n].tolist()
            result = {
                "image_id": image_id,
                "category_id": id_of[int(instances.pred_classes[n])],
                "score": float(instances.scores[n]),
            }
            if task == "bbox":
                result["bbox"] = [x0, y0, x1 - x0, y1 - y0]
            else:
                result["segmentation"] = as_rle(instances.pred_masks[n].numpy())
            results.append(result)
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO(json_file)
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(results), task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


# Images, annotations and detections per image. Past 100 of one class, detections are cut off.
@pytest.mark.parametrize("sizes", [(12, 6, 12), (8, 2, 3), (2, 30, 500), (6, 12, 40), (1, 3, 20)])
@pytest.mark.parametrize("seed", range(2))
def test_all_values_are_those_of_pycocotools(dataset, sizes, seed, monkeypatch):
    rng = np.random.default_rng([seed, *sizes])
    num_images, num_annotations, num_detections = sizes
    coco = random_ground_truth(rng, num_images, num_annotations)
    outputs = random_outputs(rng, coco, num_detections)
    evaluator = FastCOCOEvaluator(dataset(coco))
    measured = {}

    def keep(evaluation, task, **options):
        measured[task] = evaluation
        return FastCOCOEvaluator._derive_coco_results(evaluator, evaluation, task, **options)

    monkeypatch.setattr(evaluator, "_derive_coco_results", keep)
    results = evaluate(evaluator, outputs)

    assert list(results) == ["bbox", "segm"]
    for task, values in results.items():
        expected = pycocotools_evaluation(evaluator._metadata.json_file, outputs, task)
        assert len(measured[task].stats) == len(expected.stats) == 12
        np.testing.assert_allclose(measured[task].stats, expected.stats, rtol=0, atol=1e-6)
        for index, key in enumerate(["AP", "AP50", "AP75", "APs", "APm", "APl"]):
            stat = expected.stats[index]
            assert values[key] == pytest.approx(100 * stat if stat >= 0 else np.nan, nan_ok=True)
        precision = expected.eval["precision"]
        for index, id in enumerate(sorted(CATEGORIES)):
            valid = precision[:, :, index, 0, -1][precision[:, :, index, 0, -1] > -1]
            ap = 100 * valid.mean() if valid.size else np.nan
            assert values[f"AP-{id}"] == pytest.approx(ap, abs=1e-6, nan_ok=True)


def test_results_and_files_are_detectron2s(dataset, tmp_path, caplog):
    rng = np.random.default_rng(0)
    coco = random_ground_truth(rng, 4, 6)
    outputs = random_outputs(rng, coco, 8)
    name = dataset(coco)
    ours = FastCOCOEvaluator(name, output_dir=str(tmp_path / "ours"))
    with caplog.at_level("INFO"):
        results = evaluate(ours, outputs)
    log = caplog.text
    for line in ("Evaluation results for bbox", "Per-category segm AP", "Average Recall"):
        assert line in log
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCOEvaluator(name, output_dir=str(tmp_path / "theirs"), use_fast_impl=False)
        expected = evaluate(theirs, outputs)
    assert list(results) == list(expected)
    for task in expected:
        assert list(results[task]) == list(expected[task])
        assert results[task] == pytest.approx(expected[task], abs=1e-6, nan_ok=True)
    file = "coco_instances_results.json"
    written = json.loads((tmp_path / "ours" / file).read_text())
    assert written == json.loads((tmp_path / "theirs" / file).read_text())
    assert {each["category_id"] for each in written} <= set(CATEGORIES)
    assert (tmp_path / "ours" / "instances_predictions.pth").is_file()
    # Detectron2's cannot be asked twice.
    assert ours.evaluate()["segm"] == pytest.approx(results["segm"], nan_ok=True)


def test_images_without_detections_and_no_detections_at_all(dataset, caplog):
    """As in Detectron2: NaN, of boxes only; nothing at all where no image has been processed."""
    coco = random_ground_truth(np.random.default_rng(1), 3, 4)
    evaluator = FastCOCOEvaluator(dataset(coco))
    outputs = random_outputs(np.random.default_rng(1), coco, 0)
    results = evaluate(evaluator, outputs)
    assert list(results) == ["bbox"] and np.isnan(list(results["bbox"].values())).all()
    assert "No predictions from the model!" in caplog.text
    evaluator.reset()
    assert evaluator.evaluate() == {}


def test_an_image_that_was_not_processed_counts_as_missed(dataset):
    coco = random_ground_truth(np.random.default_rng(2), 6, 4)
    outputs = random_outputs(np.random.default_rng(2), coco, 6)
    evaluator = FastCOCOEvaluator(dataset(coco))
    some = dict(itertools.islice(outputs.items(), 3))
    values = evaluate(evaluator, some)["bbox"]["AP"]
    json_file = evaluator._metadata.json_file
    assert values == pytest.approx(100 * pycocotools_evaluation(json_file, some, "bbox").stats[0])


def test_boxes_alone_are_measured_alone(dataset):
    coco = random_ground_truth(np.random.default_rng(3), 3, 4)
    outputs = random_outputs(np.random.default_rng(3), coco, 6)
    for output in outputs.values():
        output["instances"].remove("pred_masks")
    assert list(evaluate(FastCOCOEvaluator(dataset(coco)), outputs)) == ["bbox"]


@pytest.mark.parametrize("absent", [{}, {"segmentation": []}, {"segmentation": None}])
def test_masks_are_not_measured_where_the_ground_truth_has_boxes_only(dataset, caplog, absent):
    coco = random_ground_truth(np.random.default_rng(8), 3, 6)
    outputs = random_outputs(np.random.default_rng(8), coco, 6)
    fourth = coco["annotations"][3]
    del fourth["segmentation"]
    fourth.update(absent)
    assert list(evaluate(FastCOCOEvaluator(dataset(coco)), outputs)) == ["bbox"]
    assert "1 annotation(s) in" in caplog.text and "the first one has the id 4" in caplog.text


def test_of_a_crowd_without_a_mask_the_box_is_taken(dataset, tmp_path):
    coco = random_ground_truth(np.random.default_rng(9), 8, 8)
    outputs = random_outputs(np.random.default_rng(9), coco, 12)
    crowds = [each for each in coco["annotations"] if each["iscrowd"]]
    for each in crowds:
        x, y, w, h = each["bbox"]
        each["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    (tmp_path / "boxes.json").write_text(json.dumps(coco))
    for absent, each in zip(itertools.cycle(({}, {"segmentation": None})), crowds):
        del each["segmentation"]
        each.update(absent)
    ap = evaluate(FastCOCOEvaluator(dataset(coco)), outputs)["segm"]["AP"]
    expected = pycocotools_evaluation(str(tmp_path / "boxes.json"), outputs, "segm")
    assert len(crowds) > 3 and ap == pytest.approx(100 * expected.stats[0], abs=1e-6)


def test_a_test_set_without_annotations_gets_its_results_written(dataset, tmp_path, caplog):
    coco = random_ground_truth(np.random.default_rng(4), 3, 4)
    outputs = random_outputs(np.random.default_rng(4), coco, 6)
    del coco["annotations"]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = FastCOCOEvaluator(dataset(coco), output_dir=str(tmp_path / "out"))
    with caplog.at_level("INFO"):
        assert evaluate(evaluator, outputs) == {}
    assert "Annotations are not available" in caplog.text
    assert json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())


def test_names_follow_the_numbers_of_the_classes(dataset):
    """Numbers in another order than the ids."""
    coco = random_ground_truth(np.random.default_rng(5), 4, 8)
    outputs = random_outputs(np.random.default_rng(5), coco, 12)
    expected = evaluate(FastCOCOEvaluator(name := dataset(coco)), outputs)["bbox"]
    vars(MetadataCatalog.get(name)).update(
        thing_dataset_id_to_contiguous_id={id: 3 - number for id, number in CATEGORIES.items()},
        thing_classes=["90", "12", "11", "3"],
    )
    for output in outputs.values():
        output["instances"].pred_classes = 3 - output["instances"].pred_classes
    values = evaluate(FastCOCOEvaluator(name), outputs)["bbox"]
    assert values == pytest.approx(expected, nan_ok=True)


def test_user_mistakes_are_named(dataset, caplog):
    coco = random_ground_truth(np.random.default_rng(6), 3, 4)
    outputs = random_outputs(np.random.default_rng(6), coco, 6)
    name = dataset(coco)
    evaluator = FastCOCOEvaluator(name)
    with pytest.raises(ValueError, match="no image with the id 1 .*instances.json"):
        evaluate(evaluator, {1: next(iter(outputs.values()))})
    vars(MetadataCatalog.get(name)).update(thing_dataset_id_to_contiguous_id={3: 0, 11: 1, 12: 2})
    with pytest.raises(ValueError, match=f"class 3, but the 3 classes of {name} are 0 to 2"):
        evaluate(evaluator, outputs)
    for output in outputs.values():
        output["instances"].pred_classes.clamp_(max=2)
    with pytest.raises(ValueError, match=r"category id\(s\) \[90\] must be both in"):
        evaluate(evaluator, outputs)
    assert "id 0" not in caplog.text


@pytest.mark.parametrize("key", ["area", "bbox"])
def test_an_annotation_without_area_or_box_is_named(dataset, key):
    coco = random_ground_truth(np.random.default_rng(7), 2, 6)
    del coco["annotations"][1][key]
    with pytest.raises(ValueError, match=f"annotation 2 in .*instances.json has no {key}: COCO"):
        FastCOCOEvaluator(dataset(coco))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"bbox": None}, "no bbox"),
        ({"bbox": [1, 2, 3]}, r"the bbox \[1, 2, 3\]"),
        ({"bbox": [1, 2, 3, None], "area": "4"}, r"the area '4' and the bbox \[1, 2, 3, None\]"),
        ({"bbox": {"x": 1}}, "the bbox {'x': 1}"),
        ({"area": float("nan")}, "the area nan"),
    ],
)
def test_area_and_box_are_numbers(dataset, change, words):
    coco = random_ground_truth(np.random.default_rng(7), 2, 6)
    coco["annotations"][1].update(change)
    with pytest.raises(ValueError, match=f"annotation 2 in .*instances.json has {words}: COCO"):
        FastCOCOEvaluator(dataset(coco))


@pytest.mark.parametrize(
    "kind, change, words",
    [
        ("images", {"id": 5.0}, "has the id 5.0; COCO's evaluation needs integers"),
        ("images", {"id": -(10**9)}, "has the id -1000000000"),
        ("annotations", {"id": "a"}, "has the id 'a'"),
        ("annotations", {"iscrowd": None}, "annotation 2 in .* has the iscrowd None; it must be"),
        ("annotations", {"ignore": [1]}, r"has the ignore \[1\]; it must be 0 or 1"),
    ],
)
def test_values_that_the_evaluation_cannot_read(dataset, kind, change, words):
    coco = random_ground_truth(np.random.default_rng(7), 2, 6)
    coco[kind][1].update(change)
    with pytest.raises(ValueError, match=f"instances.json.*{words}|{words}"):
        FastCOCOEvaluator(dataset(coco))


def test_pairs_and_runs_that_are_floats_are_read(dataset):
    """JSON has no integers, and polygons may be lists of pairs; the package takes neither."""
    coco = random_ground_truth(np.random.default_rng(6), 3, 4)
    outputs = random_outputs(np.random.default_rng(6), coco, 6)
    square, mask = [[5.0, 5.0], [20.0, 5.0], [20.0, 30.0]], np.zeros(SIZE, np.uint8)
    mask[5:30, 5:20] = 1
    runs = np.diff(np.flatnonzero(np.diff(mask.ravel("F"), prepend=0, append=2)), prepend=0)
    values = []
    for as_written in (True, False):
        kind = float if as_written else int
        segmentations = [
            [[square]] if as_written else [np.ravel(square).tolist()],
            {"size": list(SIZE), "counts": list(map(kind, runs))},
        ]
        for annotation, segmentation in zip(coco["annotations"], segmentations):
            annotation["segmentation"] = segmentation
        evaluator = FastCOCOEvaluator(dataset(coco))
        values.append(evaluate(evaluator, outputs)["segm"])
        DatasetCatalog.pop(evaluator._dataset_name)
        MetadataCatalog.pop(evaluator._dataset_name)
    assert values[0] == pytest.approx(values[1], nan_ok=True)


def test_files_that_cannot_be_written_are_a_warning(dataset, tmp_path, caplog):
    coco = random_ground_truth(np.random.default_rng(6), 3, 4)
    outputs = random_outputs(np.random.default_rng(6), coco, 6)
    (tmp_path / "file").touch()
    evaluator = FastCOCOEvaluator(dataset(coco), output_dir=str(tmp_path / "file" / "out"))
    assert evaluate(evaluator, outputs)["bbox"]["AP"] >= 0
    for name in ("instances_predictions.pth", "coco_instances_results.json"):
        assert f"{name} cannot be written: " in caplog.text


def test_an_annotation_of_id_0_is_warned_of(dataset, caplog):
    coco = random_ground_truth(np.random.default_rng(7), 2, 6)
    coco["annotations"][0]["id"] = 0
    FastCOCOEvaluator(dataset(coco))
    assert "has the id 0. In COCO's evaluation, nothing matches it" in caplog.text


def test_the_ground_truth_of_real_images_as_detections(shared, dataset):
    """AP is 100 where every instance is found; crowds change nothing."""
    json_file = shared / "data" / "coco_mini" / "annotations" / "instances_val2017.json"
    if not json_file.is_file():
        pytest.skip("no COCO images there")
    coco = json.loads(json_file.read_text())
    ids = {each["id"]: number for number, each in enumerate(coco["categories"])}
    names = [each["name"] for each in coco["categories"]]
    name = dataset(coco, thing_classes=names, thing_dataset_id_to_contiguous_id=ids)
    by_image = {image["id"]: (image, []) for image in coco["images"]}
    for each in coco["annotations"]:
        if not each["iscrowd"]:
            by_image[each["image_id"]][1].append(each)
    outputs = {}
    for image, annotations in by_image.values():
        size = image["height"], image["width"]
        instances = Instances(size)
        boxes = np.reshape([each["bbox"] for each in annotations], (-1, 4))
        boxes[:, 2:] += boxes[:, :2]
        instances.pred_boxes = Boxes(torch.from_numpy(boxes))
        masks = [
            mask_util.decode(mask_util.merge(mask_util.frPyObjects(each["segmentation"], *size)))
            for each in annotations
        ]
        instances.pred_masks = torch.from_numpy(np.reshape(masks, (-1, *size))).bool()
        instances.pred_classes = torch.tensor([ids[each["category_id"]] for each in annotations])
        instances.scores = torch.ones(len(annotations))
        outputs[image["id"]] = {"instances": instances}
    results = evaluate(FastCOCOEvaluator(name), outputs)
    for task in ("bbox", "segm"):
        assert results[task]["AP"] == pytest.approx(100, abs=1e-6)
        present = {each["category_id"] for _, found in by_image.values() for each in found}
        measured = [each for key, each in results[task].items() if key.startswith("AP-")]
        assert np.isfinite(measured).sum() == len(present)
        assert np.nanmin(measured) == pytest.approx(100, abs=1e-6)


ZIGZAG = [value for n in range(2000) for value in (n % 2 * 1e5, n % 3)]


@pytest.mark.parametrize(
    "segmentation, sides, error",
    [
        ([[0, 0, 1e9, 0, 1e9, 1e9]], SIZE, None),
        ([[1e9, 1e9, 1e9, 1e9]], SIZE, None),
        ([ZIGZAG], SIZE, None),
        ([ZIGZAG], (200_000, 200_000), "annotation 1 .* outline"),
        ([[0, 0, 1e9, 0, 1e9, 1e9]], (10**9, 10**9), r"annotation 1 .* height and width \(10000"),
        ({"size": [10**9, 10**9], "counts": "0"}, SIZE, "mask of 1000000000 x 1000000000"),
        ({"size": list(SIZE), "counts": [5, -2]}, SIZE, "annotation 1 .* negative run"),
    ],
)
def test_ground_truth_that_would_end_the_process(dataset, segmentation, sides, error):
    """It is clipped or refused before pycocotools draws it."""
    image = {"id": 1, "file_name": "a.jpg", "height": sides[0], "width": sides[1]}
    annotation = {"id": 1, "image_id": 1, "category_id": 3, "area": 9, "bbox": [0, 0, 3, 3]}
    annotation.update(segmentation=segmentation, iscrowd=0)
    categories = [{"id": id, "name": str(id)} for id in CATEGORIES]
    content = {"images": [image], "annotations": [annotation], "categories": categories}
    name = dataset(content)
    if error:
        with pytest.raises(ValueError, match=error):
            FastCOCOEvaluator(name)
        return
    evaluator = FastCOCOEvaluator(name)
    evaluator._coco_api.annToRLE(evaluator._coco_api.anns[1])
