import json
import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sgr.data.augmentations.center_crop import CentralSquare
from sgr.evaluation import TokenSemanticsEvaluator
from sgr.modeling.reasoning.concept_regions import ConceptRegions

SIZE = (8, 16)
STRIDE = 4


@pytest.fixture
def dataset(tmp_path):
    """Registers records; returns a function (records, **metadata) -> name."""
    name = f"tokens_{tmp_path.name}"

    def register(records, **metadata):
        for index, record in enumerate(records):
            record["file_name"] = f"{index}.jpg"
            record["height"], record["width"] = SIZE
            for key in ("sem_seg_file_name", "pan_seg_file_name"):
                if key in record:
                    path = str(tmp_path / f"{key}-{index}.png")
                    Image.fromarray(record[key]).save(path)
                    record[key] = path
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(**metadata)
        return name

    yield register
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def inputs(index=0, size=SIZE):
    return [{"file_name": f"{index}.jpg", "image": torch.zeros(3, *size)}]


def outputs(probabilities):
    """One image's output; probabilities (K, h, w)."""
    logits = torch.tensor(probabilities, dtype=torch.float64).logit()[None]
    return [{"concept_regions": ConceptRegions(logits, stride=STRIDE)}]


def halves(left, right):
    """(8, 16) labels."""
    return np.array([[left, right]], np.uint8).repeat(8, 0).repeat(8, 1)


def box(x, y, w, h, **extra):
    return {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]], **extra}


LEFT = [[1.0, 1, 0, 0]] * 2
RIGHT = [[0.0, 0, 1, 1]] * 2
WEAK = [[0.4] * 4] * 2


def test_classes_of_pure_and_mixed_tokens(dataset):
    name = dataset([{"sem_seg_file_name": halves(0, 2)}], ignore_label=255)
    evaluator = TokenSemanticsEvaluator(name)
    evaluator.process(inputs(), outputs([LEFT, RIGHT, WEAK]))
    tokens = evaluator.evaluate()["tokens"]
    assert tokens["S_C"] == pytest.approx(math.log(2) / 3)
    assert tokens["D_C"] == pytest.approx(2 / 3 * 0.5)
    assert tokens["S_C_active"] == 0
    assert tokens["D_C_active"] == pytest.approx(0.5)
    assert tokens["active_tokens"] == 2
    assert tokens["images_C"] == 1
    assert not [key for key in tokens if "I" in key]


@pytest.mark.parametrize("ignore_label", [11, 255])
def test_the_ignore_label_is_the_metadatas(dataset, ignore_label):
    name = dataset([{"sem_seg_file_name": halves(0, ignore_label)}], ignore_label=ignore_label)
    evaluator = TokenSemanticsEvaluator(name)
    evaluator.process(inputs(), outputs([LEFT, WEAK, RIGHT]))
    tokens = evaluator.evaluate()["tokens"]
    assert tokens["S_C"] == 0 and tokens["D_C"] == 0


def test_instances_of_annotations(dataset):
    annotations = [
        box(0, 0, 8, 8),
        box(8, 0, 8, 4),
        box(0, 0, 16, 8, iscrowd=1),
        {"bbox": [0, 0, 4, 4]},
    ]
    name = dataset([{"annotations": annotations}])
    evaluator = TokenSemanticsEvaluator(name)
    evaluator.process(inputs(), outputs([LEFT, WEAK]))
    tokens = evaluator.evaluate()["tokens"]
    shares = 2 / 3, 1 / 3
    assert tokens["S_I"] == pytest.approx(-sum(p * math.log(p) for p in shares) / 2)
    assert tokens["D_I"] == pytest.approx(1 / 36 * 2)  # (1, 0), (2/3, 1/3): 1/6 off in each bin
    assert tokens["images_I"] == 1 and "S_C" not in tokens


def test_instances_with_boxes_only_are_said(dataset, caplog):
    """Crowds are not meant, nor are instances with a mask."""
    crowd = box(0, 0, 16, 8, iscrowd=1)
    records = [{"annotations": [box(0, 0, 8, 8), {"bbox": [0, 0, 4, 4]}, crowd]}, {}]
    name = dataset(records)
    for annotations, count in ((records[0]["annotations"], 1), ([box(0, 0, 8, 8), crowd], 0)):
        records[0]["annotations"] = annotations
        caplog.clear()
        evaluator = TokenSemanticsEvaluator(name)
        evaluator.process(inputs(), outputs([WEAK]))
        assert evaluator.evaluate()["tokens"]["images_I"] == 1
        message = f"{count} annotated instance(s) of {name} have no mask, only a box"
        assert (message in caplog.text) == (count > 0) == bool(caplog.text)


def test_metadata_may_come_with_the_records(tmp_path):
    """As Detectron2's own loader of COCO files fills them."""
    name = f"late_{tmp_path.name}"
    Image.fromarray(halves(0, 9)).save(tmp_path / "labels.png")

    def load():
        MetadataCatalog.get(name).set(ignore_label=9)
        return [{"file_name": "0.jpg", "sem_seg_file_name": str(tmp_path / "labels.png")}]

    DatasetCatalog.register(name, load)
    try:
        evaluator = TokenSemanticsEvaluator(name)
        evaluator.process(inputs(), outputs([WEAK]))
        assert evaluator.evaluate()["tokens"]["S_C"] == 0
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_instances_of_panoptic_segments(dataset):
    ids = halves(7, 5)
    ids[4:, 8:] = 6
    picture = np.stack([ids, np.ones_like(ids), np.zeros_like(ids)], axis=-1)
    segments = [
        {"id": 256 + 7, "category_id": 0},
        {"id": 256 + 5, "category_id": 1},
        {"id": 256 + 6, "category_id": 8},
    ]
    name = dataset(
        [{"pan_seg_file_name": picture, "segments_info": segments}],
        thing_dataset_id_to_contiguous_id={100: 0, 101: 1},
    )
    evaluator = TokenSemanticsEvaluator(name)
    evaluator.process(inputs(), outputs([WEAK]))
    shares = 2 / 3, 1 / 3
    expected = -sum(p * math.log(p) for p in shares)
    assert evaluator.evaluate()["tokens"]["S_I"] == pytest.approx(expected)


def test_classes_of_panoptic_segments(dataset):
    """Two cars are one class; a crowd and what is in no segment vote for nothing."""
    ids = halves(1, 2)
    ids[:2, 8:], ids[2:4, 8:], ids[4:, 8:12] = 3, 0, 4
    segments = [
        {"id": 1, "category_id": 0, "isthing": True},
        {"id": 2, "category_id": 5, "isthing": False},
        {"id": 3, "category_id": 5, "isthing": False, "iscrowd": 1},
        {"id": 4, "category_id": 0, "isthing": True},
    ]
    names = [str(number) for number in range(6)]
    record = {"pan_seg_file_name": ids, "segments_info": segments}
    name = dataset([record], stuff_classes=names, ignore_label=255)
    evaluator = TokenSemanticsEvaluator(name)
    evaluator.process(inputs(), outputs([WEAK]))
    tokens = evaluator.evaluate()["tokens"]
    shares = 80 / 96, 16 / 96
    assert tokens["S_C"] == pytest.approx(-sum(p * math.log(p) for p in shares))
    assert tokens["images_C"] == tokens["images_I"] == 1


def test_means_are_over_the_images_that_have_a_value(dataset):
    records = [
        {"sem_seg_file_name": halves(0, 1), "annotations": [box(0, 0, 8, 8), box(8, 0, 8, 8)]},
        {"sem_seg_file_name": halves(255, 255), "annotations": []},
        {"sem_seg_file_name": halves(1, 1), "annotations": []},
    ]
    name = dataset(records, ignore_label=255)
    evaluator = TokenSemanticsEvaluator(name)
    for index, regions in enumerate([[WEAK], [LEFT], [WEAK]]):
        evaluator.process(inputs(index), outputs(regions))
    tokens = evaluator.evaluate()["tokens"]
    assert tokens["images_C"] == 2 and tokens["images_I"] == 1
    assert tokens["S_C"] == pytest.approx(math.log(2) / 2)
    assert tokens["S_I"] == pytest.approx(math.log(2))
    assert "S_C_active" not in tokens  # only the unlabelled image has an active token
    assert tokens["active_tokens"] == pytest.approx(1 / 3)


def test_the_input_may_be_resized(dataset):
    name = dataset([{"sem_seg_file_name": halves(0, 2)}], ignore_label=255)
    small, large = TokenSemanticsEvaluator(name), TokenSemanticsEvaluator(name)
    regions = np.random.default_rng(0).random((5, 2, 4))
    small.process(inputs(), outputs(regions))
    large.process(inputs(size=(16, 32)), outputs(regions.repeat(2, 1).repeat(2, 2)))
    assert small.evaluate()["tokens"] == pytest.approx(large.evaluate()["tokens"])


def test_results_are_written_and_reset_forgets(dataset, tmp_path):
    name = dataset([{"sem_seg_file_name": halves(0, 2)}], ignore_label=255)
    evaluator = TokenSemanticsEvaluator(name, output_dir=str(tmp_path / "out"))
    evaluator.process(inputs(), outputs([WEAK]))
    tokens = evaluator.evaluate()["tokens"]
    assert json.loads((tmp_path / "out" / "tokens.json").read_text()) == tokens
    evaluator.reset()
    assert evaluator.evaluate() == {"tokens": {}}


def test_no_ground_truth_at_all_is_said(dataset, caplog):
    evaluator = TokenSemanticsEvaluator(dataset([{}]))
    evaluator.process(inputs(), outputs([WEAK]))
    assert evaluator.evaluate() == {"tokens": {"active_tokens": 0}}
    assert "Tokens are not measured, because no image" in caplog.text


def test_user_mistakes_are_named(dataset):
    name = dataset([{"sem_seg_file_name": halves(0, 2)}], ignore_label=255)
    evaluator = TokenSemanticsEvaluator(name)
    with pytest.raises(ValueError, match="sgr.supervise.*TEST.TOKENS.ENABLED to False"):
        evaluator.process(inputs(), [{"sem_seg": torch.zeros(3, *SIZE)}])
    with pytest.raises(ValueError, match="batch size 1, got 2"):
        regions = ConceptRegions(torch.zeros(2, 1, 2, 4), stride=STRIDE)
        evaluator.process(inputs(), [{"concept_regions": regions}])
    with pytest.raises(ValueError, match="without a stride"):
        evaluator.process(inputs(), [{"concept_regions": ConceptRegions(torch.zeros(1, 1, 2, 4))}])
    with pytest.raises(KeyError, match="other.jpg is not an image of"):
        other = [{"file_name": "other.jpg", "image": torch.zeros(3, *SIZE)}]
        evaluator.process(other, outputs([WEAK]))


def test_a_wrong_label_is_an_error_where_the_classes_are_known(dataset):
    name = dataset(
        [{"sem_seg_file_name": halves(0, 2)}], ignore_label=255, stuff_classes=["sky", "road"]
    )
    message = r"sem_seg_file_name-0\.png holds the label\(s\) 2; expected are 0 to 1, and 255"
    with pytest.raises(ValueError, match=message):
        TokenSemanticsEvaluator(name).process(inputs(), outputs([WEAK]))


def test_queries_are_measured_beside_the_tokens(dataset, tmp_path, caplog):
    """As tokens of their own, on a grid of their own; the ground truth is read once."""
    records = [
        {"sem_seg_file_name": halves(0, 2), "annotations": [box(0, 0, 8, 8), box(8, 0, 8, 4)]},
        {"sem_seg_file_name": halves(1, 1), "annotations": []},
    ]
    name = dataset(records, ignore_label=255)
    rng = np.random.default_rng(0)
    both = TokenSemanticsEvaluator(name, output_dir=str(tmp_path / "both"))
    tokens, queries = TokenSemanticsEvaluator(name), TokenSemanticsEvaluator(name)
    for index in range(2):
        of_tokens = outputs(rng.random((5, 2, 4)))[0]["concept_regions"]
        logits = torch.from_numpy(rng.normal(size=(1, 3, 4, 8)))
        of_queries = ConceptRegions(logits, stride=STRIDE // 2)
        tokens.process(inputs(index), [{"concept_regions": of_tokens}])
        queries.process(inputs(index), [{"concept_regions": of_queries}])
        both.process(inputs(index), [{"concept_regions": of_tokens, "query_regions": of_queries}])
    with caplog.at_level("INFO"):
        results = both.evaluate()
    assert list(results) == ["tokens", "queries"]
    assert results["tokens"] == tokens.evaluate()["tokens"]
    assert results["queries"] == queries.evaluate()["tokens"]
    assert "of the queries, one for each mask, on" in caplog.text
    for block, values in results.items():
        assert json.loads((tmp_path / "both" / f"{block}.json").read_text()) == values


def test_query_regions_are_checked(dataset):
    evaluator = TokenSemanticsEvaluator(dataset([{"sem_seg_file_name": halves(0, 1)}]))
    wrong = ConceptRegions(torch.zeros(2, 1, 2, 4), stride=STRIDE)
    with pytest.raises(ValueError, match="batch size 1, got 2"):
        evaluator.process(inputs(), [{**outputs([WEAK])[0], "query_regions": wrong}])


def square_inputs(side, index=0, size=SIZE):
    return [
        {
            "file_name": f"{index}.jpg",
            "image": torch.zeros(3, side, side),
            "height": side,
            "width": side,
            "ground_truth_transform": CentralSquare(side).transform_of(size),
        }
    ]


@pytest.mark.parametrize("sizes_known", [True, False])
def test_of_a_square_of_each_image(dataset, sizes_known):
    """Of the 8 x 16 pixels the 8 in the middle count, of classes as of instances."""
    labels = halves(0, 1)
    labels[:, :4], labels[:, 12:], labels[:, 10:12] = 7, 8, 255
    annotations = [box(0, 0, 6, 8), box(6, 0, 3, 8), box(12, 0, 4, 8)]
    record = {"sem_seg_file_name": labels, "annotations": annotations}
    name = dataset([record], ignore_label=255)
    if not sizes_known:
        del record["height"], record["width"]
    evaluator = TokenSemanticsEvaluator(name)
    rng = np.random.default_rng(0)
    regions = rng.random((5, 2, 2))
    evaluator.process(square_inputs(8), outputs(regions))
    tokens = evaluator.evaluate()["tokens"]
    # The middle by hand.
    cut = labels[:, 4:12].astype(int)
    cut[cut == 255] = -1
    things = np.full((8, 8), -1)
    things[:, :2], things[:, 2:5] = 0, 1
    full = regions.repeat(4, 1).repeat(4, 2)
    for kind, truth in (("C", cut), ("I", things)):
        values = [value for value in np.unique(truth) if value >= 0]
        assert len(values) == 2
        histograms = np.array(
            [[full[k][truth == value].sum() for value in values] for k in range(5)]
        )
        histograms /= histograms.sum(1, keepdims=True)
        semantics = -(histograms * np.log(histograms)).sum(1).mean()
        diversity = ((histograms - histograms.mean(0)) ** 2).sum(1).mean()
        assert tokens[f"S_{kind}"] == pytest.approx(semantics)
        assert tokens[f"D_{kind}"] == pytest.approx(diversity)
    share = (full * (things >= 0)).sum((1, 2)) / full.sum((1, 2))
    assert tokens["share_I"] == pytest.approx(share.mean())


def test_a_square_image_is_measured_as_without_the_transform(dataset):
    square = np.random.default_rng(1).integers(0, 4, (8, 8)).astype(np.uint8)
    annotations = [box(0, 0, 4, 8), box(4, 2, 4, 3)]
    record = {"sem_seg_file_name": square, "annotations": annotations}
    name = dataset([record], ignore_label=255)
    record["width"] = 8
    regions = np.random.default_rng(0).random((5, 2, 2))
    cut, plain = TokenSemanticsEvaluator(name), TokenSemanticsEvaluator(name)
    cut.process(square_inputs(8, size=(8, 8)), outputs(regions))
    plain.process(inputs(size=(8, 8)), outputs(regions))
    values = cut.evaluate()["tokens"]
    assert values == plain.evaluate()["tokens"] and {"S_C", "S_I"} <= values.keys()


def test_instances_that_the_square_leaves_out_are_none(dataset):
    name = dataset([{"annotations": [box(0, 0, 3, 8)]}])
    evaluator = TokenSemanticsEvaluator(name)
    evaluator.process(square_inputs(8), outputs([[[0.4] * 2] * 2]))
    assert "S_I" not in evaluator.evaluate()["tokens"]


def test_a_label_map_of_another_size_is_named(dataset):
    name = dataset([{"sem_seg_file_name": halves(0, 1)}])
    evaluator = TokenSemanticsEvaluator(name)
    with pytest.raises(ValueError, match="ground truth of 0.jpg is 8 x 16 pixels"):
        evaluator.process(square_inputs(8, size=(16, 8)), outputs([[[0.4] * 2] * 2]))
