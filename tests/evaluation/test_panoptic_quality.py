import importlib
import json
import logging

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sgr.evaluation import PanopticCounts, PanopticQualityEvaluator, match_segments

THINGS, STUFF = (0, 1), (2, 3)
NUM_CLASSES = 4


def count(predicted, predicted_classes, truth, truth_classes, crowd=None):
    """With indices of segments row by row, -1 for nothing."""
    crowd = [False] * len(truth_classes) if crowd is None else crowd
    return match_segments(
        np.atleast_2d(predicted),
        np.array(predicted_classes, int),
        np.atleast_2d(truth),
        np.array(truth_classes, int),
        truth_is_crowd=np.array(crowd, bool),
        num_classes=NUM_CLASSES,
    )


def oracle(predicted, predicted_classes, truth, truth_classes, crowd):
    """Sec. 4 of Kirillov et al., set by set."""
    iou = np.zeros(NUM_CLASSES)
    tp, fp, fn = np.zeros((3, NUM_CLASSES), int)
    void = truth == -1
    missed = {t for t in range(len(truth_classes)) if not crowd[t]}
    for p, category in enumerate(predicted_classes):
        mine = predicted == p
        if not mine.any():
            continue
        partner = None
        for t in sorted(missed):
            theirs = truth == t
            union = ((mine & ~void) | theirs).sum()
            if truth_classes[t] == category and (mine & theirs).sum() / union > 0.5:
                partner = t
                iou[category] += (mine & theirs).sum() / union
        if partner is not None:
            missed.remove(partner)
            tp[category] += 1
            continue
        groups = [t for t in range(len(crowd)) if crowd[t] and truth_classes[t] == category]
        forgiven = mine & (void | np.isin(truth, groups))
        fp[category] += forgiven.sum() / mine.sum() <= 0.5
    for t in missed:
        fn[truth_classes[t]] += 1
    return iou, tp, fp, fn


def assert_same(counts, expected):
    for found, wanted in zip(counts, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


def blocks(rng, num_segments, empty):
    """A map of rectangles of unequal sizes, so that some overlap well with another's."""
    indices = rng.integers(-1 if empty else 0, num_segments, (3, 4))
    return indices.repeat(rng.integers(1, 5), 0).repeat(rng.integers(1, 5), 1)


def random_image(rng, *, empty=True, crowds=True):
    truth_classes = rng.integers(0, NUM_CLASSES, 6)
    truth = blocks(rng, 6, empty=True)
    predicted = np.where(rng.random(truth.shape) < 0.75, truth, np.roll(truth, 2, axis=1))
    predicted_classes = np.where(rng.random(6) < 0.8, truth_classes, rng.permutation(truth_classes))
    if not empty:
        predicted = np.where(predicted < 0, 5, predicted)
    crowd = (rng.random(6) < 0.3) & (truth_classes < 2) & crowds
    return predicted, predicted_classes, truth, truth_classes, crowd


@pytest.mark.parametrize("seed", range(40))
def test_against_the_definition(seed):
    image = random_image(np.random.default_rng(seed))
    assert_same(count(*image), oracle(*image))


def test_the_random_images_are_of_use():
    total = PanopticCounts.zeros(NUM_CLASSES)
    for seed in range(40):
        total = total.plus(count(*random_image(np.random.default_rng(seed))))
    assert min(part.sum() for part in total) > 20


def test_equal_maps():
    counts = count([0, 0, 1, 2, -1], [0, 0, 3], [2, 2, 1, 0, -1], [3, 0, 0])
    assert_same(counts, ([2, 0, 0, 1], [2, 0, 0, 1], [0] * 4, [0] * 4))
    np.testing.assert_array_equal(counts.qualities(), [[1] * 3, [0] * 3, [0] * 3, [1] * 3])
    assert counts.measured.tolist() == [True, False, False, True]


def test_an_iou_of_one_half_is_none():
    # 2 of 4 pixels in common; with a pixel more, 3 of 5.
    assert_same(count([0, 0, 0, -1], [0], [-1, 0, 0, 0], [0])[1:], ([1, 0, 0, 0], [0] * 4, [0] * 4))
    half = count([0, 0, 0, -1], [0], [1, 0, 0, 0], [0, 2])
    assert half.true_positives[0] == 0 and half.false_positives[0] == half.false_negatives[0] == 1
    more = count([0, 0, 0, 0, -1], [0], [1, 0, 0, 0, 0], [0, 2])
    assert more.iou[0] == 3 / 5 and more.true_positives[0] == 1


def test_a_segment_without_a_pixel_is_missed():
    """As in COCO's script: crowds are not, and an empty prediction is no error."""
    counts = count([0, 0, 0], [0, 1], [0, 0, 0], [0, 0, 2, 1], crowd=[0, 0, 0, 1])
    assert_same(counts, ([1, 0, 0, 0], [1, 0, 0, 0], [0] * 4, [1, 0, 1, 0]))
    assert counts.qualities()[0].tolist() == [2 / 3, 1, 2 / 3]


def test_two_segments_of_one_class_are_two():
    one = count([0] * 4, [0], [0, 0, 0, 1], [0, 0])
    assert (one.iou[0], one.true_positives[0], one.false_negatives[0]) == (3 / 4, 1, 1)
    quality = one.qualities()[0]
    assert quality == pytest.approx([3 / 4 * 2 / 3, 3 / 4, 2 / 3])


def test_void_pixels_of_the_ground_truth_count_for_nothing():
    counts = count([0, 0, 0, 0, 1, 1], [0, 1], [0, 0, -1, -1, -1, 2], [0, 2, 2])
    assert counts.iou[0] == 1
    # Half of the other prediction lies on void pixels: not more than half.
    assert counts.false_positives[1] == 1
    forgiven = count([1, 1, 1], [0, 1], [-1, -1, 2], [0, 2, 2])
    assert forgiven.false_positives[1] == 0


def test_pixels_left_empty_are_missed():
    counts = count([0, 0, 0, -1], [0], [0, 0, 0, 0], [0])
    assert counts.iou[0] == 3 / 4
    nothing = count([-1] * 4, [], [0] * 4, [0])
    assert nothing.false_negatives[0] == 1 and nothing.false_positives.sum() == 0


def test_crowds():
    truth, classes, crowd = [0, 0, 0, 1, 1, 1], [0, 0], [True, False]
    # On the crowd, but for one pixel: forgiven. The crowd itself is not missed.
    assert_same(
        count([0, 0, 0, 0, 1, 1], [0, 0], truth, classes, crowd)[1:],
        ([1, 0, 0, 0], [0] * 4, [0] * 4),
    )
    # Of another class it is wrong, and so it is with half of it elsewhere.
    assert count([0, 0, 0, 0, 1, 1], [1, 0], truth, classes, crowd).false_positives[1] == 1
    assert count([-1, -1, 0, 0, 1, 1], [0, 0], truth, classes, crowd).false_positives[0] == 1
    # Its pixels stay in a union, unlike void ones.
    assert count([-1, -1, 0, 0, 0, 0], [0], truth, classes, crowd).iou[0] == 3 / 4


def official_code():
    """COCO's, of which Cityscapes' scripts have the same function."""
    for name in (
        "panopticapi.evaluation",
        "cityscapesscripts.evaluation.evalPanopticSemanticLabeling",
    ):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    pytest.skip("neither panopticapi nor cityscapesscripts is installed")


@pytest.mark.parametrize("crowds", [False, True])
def test_the_official_code_agrees(tmp_path, crowds):
    """Image by image, but for several crowds of a class, of which it looks at one."""
    official = official_code()
    categories = {c: {"id": c, "isthing": int(c in THINGS)} for c in range(NUM_CLASSES)}
    total, pairs = PanopticCounts.zeros(NUM_CLASSES), []
    for seed in range(30):
        predicted, predicted_classes, truth, truth_classes, crowd = random_image(
            np.random.default_rng(seed), crowds=crowds
        )
        first = np.unique(truth_classes[crowd], return_index=True)[1]
        crowd[np.delete(np.flatnonzero(crowd), first)] = False
        total = total.plus(count(predicted, predicted_classes, truth, truth_classes, crowd))
        pair = []
        for what, places, classes, crowds_of in (
            ("truth", truth, truth_classes, crowd),
            ("predicted", predicted, predicted_classes, np.zeros(6, bool)),
        ):
            file = f"{what}-{seed}.png"
            picture = np.stack([places + 1, places * 0, places * 0], axis=-1)
            Image.fromarray(picture.astype(np.uint8)).save(tmp_path / file)
            segments = [
                {
                    "id": place + 1,
                    "category_id": int(classes[place]),
                    "area": int((places == place).sum()),
                    "iscrowd": int(crowds_of[place]),
                }
                for place in range(6)
                if (places == place).any()
            ]
            pair.append({"file_name": file, "image_id": seed, "segments_info": segments})
        pairs.append(pair)
    folder = str(tmp_path)
    statistics = official.pq_compute_single_core(0, pairs, folder, folder, categories)
    for index in range(NUM_CLASSES):
        theirs = statistics[index]
        ours = [part[index] for part in total]
        assert ours == pytest.approx([theirs.iou, theirs.tp, theirs.fp, theirs.fn], rel=1e-12)
    qualities = total.qualities()
    for chosen, isthing in ((range(NUM_CLASSES), None), (THINGS, True), (STUFF, False)):
        means, _ = statistics.pq_average(categories, isthing=isthing)
        expected = [means["pq"], means["sq"], means["rq"]]
        assert qualities[list(chosen)].mean(axis=0).tolist() == pytest.approx(expected, rel=1e-12)


def torchmetrics_pq(images, *, extra_stuff=()):
    detection = pytest.importorskip("torchmetrics.detection")
    metric = detection.PanopticQuality(
        things=set(THINGS),
        stuffs={*STUFF, *extra_stuff},
        return_sq_and_rq=True,
        return_per_class=True,
        allow_unknown_preds_category=True,
    )
    for predicted, predicted_classes, truth, truth_classes, _ in images:
        pair = [
            np.stack([np.append(classes, 7)[indices], indices], axis=-1)
            for indices, classes in ((predicted, predicted_classes), (truth, truth_classes))
        ]
        metric.update(*(torch.from_numpy(each)[None] for each in pair))
    return metric.compute()[: len(THINGS) + len(STUFF)].numpy()


def merge_stuff(image):
    """torchmetrics takes all segments of a kind of stuff for one."""
    predicted, predicted_classes, truth, truth_classes, crowd = image
    merged = []
    for indices, classes in ((predicted, predicted_classes), (truth, truth_classes)):
        first = [
            np.flatnonzero(classes == c)[0] if c in STUFF else i for i, c in enumerate(classes)
        ]
        merged += [np.array([*first, -1])[indices], classes]
    # It does not know of segments without a pixel; crowds are never missed.
    return *merged, crowd | ~np.isin(np.arange(len(crowd)), merged[2])


@pytest.mark.parametrize("empty", [False, True])
def test_torchmetrics_agrees_where_empty_pixels_have_a_class(empty):
    images = [
        merge_stuff(random_image(np.random.default_rng(seed), empty=empty, crowds=False))
        for seed in range(20)
    ]
    total = PanopticCounts.zeros(NUM_CLASSES)
    for image in images:
        total = total.plus(count(*image))
    # In predictions, 7 becomes a kind of stuff. In the ground truth 9 stays unknown, that is void.
    images = [
        (np.where(p < 0, 6, p), np.append(pc, 7), np.where(t < 0, 6, t), np.append(tc, 9), crowd)
        for p, pc, t, tc, crowd in images
    ]
    theirs = torchmetrics_pq(images, extra_stuff=(7,))
    np.testing.assert_allclose(theirs, total.qualities(), rtol=1e-6)  # in float32


def test_torchmetrics_alone_would_reward_leaving_out():
    """Why it is not used: a model that finds half of each segment is perfect to it."""
    truth = np.array([[0] * 4, [1] * 4])
    half = np.where(np.arange(4) < 2, truth, -1)
    classes, crowd = np.array([0, 2]), np.zeros(2, bool)
    image = half, classes, truth, classes, crowd
    ours = count(*image)
    assert_same(ours, oracle(*image))
    assert ours.true_positives.sum() == 0 and ours.false_negatives.sum() == 2
    assert torchmetrics_pq([image])[[0, 2]].tolist() == [[1, 1, 1], [1, 1, 1]]


# The evaluator.


@pytest.fixture
def dataset(tmp_path):
    """Registers images; returns a function (ids, segments) ... -> name."""
    name = f"panoptic_{tmp_path.name}"

    def register(*images, **metadata):
        records = []
        for index, (ids, segments) in enumerate(images):
            picture = np.stack([ids % 256, ids // 256, np.zeros_like(ids)], axis=-1)
            path = tmp_path / f"{index}.png"
            Image.fromarray(picture.astype(np.uint8)).save(path)
            records.append(
                {
                    "file_name": f"{index}.jpg",
                    "pan_seg_file_name": str(path),
                    "segments_info": segments,
                }
            )
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(
            **{
                "stuff_classes": ["car", "cat", "road", "sky"],
                "thing_dataset_id_to_contiguous_id": {17: 0, 90: 1},
                **metadata,
            }
        )
        return name

    yield register
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)


IDS = np.array([[300, 300, 300, 5], [9, 9, 9, 0]])
TRUTH = [
    {"id": 9, "category_id": 2, "iscrowd": 0},
    {"id": 300, "category_id": 0, "iscrowd": 0},
    {"id": 5, "category_id": 0, "iscrowd": 0},
]
PREDICTED = torch.tensor([[1, 1, 1, 1], [2, 2, -1, 2]], dtype=torch.int32)
SEGMENTS = [{"id": 1, "category_id": 0, "isthing": True}, {"id": 2, "category_id": 2}]


def process(evaluator, index=0, predicted=PREDICTED, segments=SEGMENTS):
    evaluator.process([{"file_name": f"{index}.jpg"}], [{"panoptic_seg": (predicted, segments)}])


def test_results(dataset, tmp_path, caplog):
    output = tmp_path / "out"
    evaluator = PanopticQualityEvaluator(dataset((IDS, TRUTH)), output_dir=str(output))
    process(evaluator)
    with caplog.at_level(logging.INFO):
        results = evaluator.evaluate()["panoptic_seg"]
    car = 100 * np.array([3 / 4 * 2 / 3, 3 / 4, 2 / 3])
    road = 100 * np.array([2 / 3, 2 / 3, 1])
    expected = {}
    for suffix, values in (("", (car + road) / 2), ("_th", car), ("_st", road)):
        expected.update(zip((f"PQ{suffix}", f"SQ{suffix}", f"RQ{suffix}"), values))
    expected.update({"PQ-car": car[0], "PQ-road": road[0]})
    assert results == pytest.approx(expected)
    assert list(results) == list(expected)
    written = json.loads((output / "panoptic.json").read_text())
    assert written["PQ"] == results["PQ"]
    assert written["classes"]["car"] == {
        "PQ": pytest.approx(50),
        "SQ": 75,
        "RQ": pytest.approx(200 / 3),
        "TP": 1,
        "FP": 0,
        "FN": 1,
        "isthing": True,
    }
    assert "things" in caplog.text and "road" in caplog.text and "sky" not in caplog.text


def test_reset_forgets_and_nothing_is_said_of_nothing(dataset, caplog):
    evaluator = PanopticQualityEvaluator(dataset((IDS, TRUTH)))
    process(evaluator)
    evaluator.reset()
    assert evaluator.evaluate() == {"panoptic_seg": {}}
    assert "segment" in caplog.text
    empty = torch.zeros(2, 4, dtype=torch.int32)
    process(evaluator, predicted=empty, segments=[])
    assert evaluator.evaluate()["panoptic_seg"]["RQ"] == 0


def test_user_mistakes_are_named(dataset):
    name = dataset((IDS, TRUTH), (IDS, TRUTH[1:]))
    evaluator = PanopticQualityEvaluator(name)
    with pytest.raises(ValueError, match="0.jpg has no .panoptic_seg.*PANOPTIC_ON"):
        evaluator.process([{"file_name": "0.jpg"}], [{"sem_seg": None}])
    with pytest.raises(ValueError, match=r"0.jpg is \(4, 2\).*0.png is \(2, 4\)"):
        process(evaluator, predicted=PREDICTED.T)
    with pytest.raises(ValueError, match=r"0.jpg holds the ids \[2\] without a segment"):
        process(evaluator, segments=SEGMENTS[:1])
    with pytest.raises(ValueError, match="0.jpg has a segment of category_id 4; expected are 0 to"):
        process(evaluator, segments=[SEGMENTS[0], {"id": 2, "category_id": 4}])
    with pytest.raises(ValueError, match=r"1.png holds the id\(s\) 9"):
        process(evaluator, index=1)
    with pytest.raises(KeyError, match="7.jpg is not an image of"):
        process(evaluator, index=7)
    DatasetCatalog.get(name)[0].pop("segments_info")
    with pytest.raises(ValueError, match="0.jpg in .* has no pan_seg_file_name.*separated"):
        PanopticQualityEvaluator(name)


@pytest.mark.parametrize(
    "change, fault",
    [
        ({"id": None}, "segment 1 of .*0.png has no id"),
        ({"category_id": None}, "segment 1 of .*0.png has no category_id"),
        ({"category_id": 4}, "segment 300 of .*0.png has category_id 4; expected are 0 to 3"),
    ],
)
def test_segments_of_the_ground_truth_are_checked_before_the_first_image(dataset, change, fault):
    changed = {**TRUTH[1], **change}
    segment = {key: value for key, value in changed.items() if value is not None}
    with pytest.raises(ValueError, match=fault):
        PanopticQualityEvaluator(dataset((IDS, [TRUTH[0], segment, TRUTH[2]])))


@pytest.mark.parametrize("key", ["id", "category_id"])
def test_segments_of_a_prediction_need_an_id_and_a_category(dataset, key):
    evaluator = PanopticQualityEvaluator(dataset((IDS, TRUTH)))
    segment = {other: value for other, value in SEGMENTS[1].items() if other != key}
    with pytest.raises(ValueError, match=f"0.jpg has a segment without {key}: .*needs"):
        process(evaluator, segments=[SEGMENTS[0], segment])


@pytest.mark.parametrize("id", [0, -1])
def test_ids_below_one_are_refused(dataset, id):
    evaluator = PanopticQualityEvaluator(dataset((IDS, TRUTH)))
    with pytest.raises(ValueError, match=f"0.jpg has a segment of id {id}; ids must be 1 or more"):
        process(evaluator, segments=[*SEGMENTS, {"id": id, "category_id": 1}])


def test_ids_may_be_large(dataset):
    name = dataset((IDS, TRUTH))
    results = []
    for large in (2, 2**30, 2**40):
        evaluator = PanopticQualityEvaluator(name)
        predicted = torch.where(PREDICTED == 2, large, PREDICTED.long())
        segments = [SEGMENTS[0], {**SEGMENTS[1], "id": large}]
        process(evaluator, predicted=predicted, segments=segments)
        results.append(evaluator.evaluate())
    assert results[0] == results[1] == results[2]
    with pytest.raises(ValueError, match=rf"0.jpg holds the ids \[{2**30}\] without a segment"):
        predicted = torch.where(PREDICTED == 2, 2**30, PREDICTED.long())
        process(evaluator, predicted=predicted)


def test_a_prediction_without_a_list_of_segments(dataset):
    """Panoptic-DeepLab's."""
    evaluator = PanopticQualityEvaluator(dataset((IDS, TRUTH)))
    with pytest.raises(ValueError, match="0.jpg has no list of its segments"):
        process(evaluator, segments=None)


def test_metadata_must_name_classes_and_things(dataset):
    name = dataset((IDS, TRUTH), thing_dataset_id_to_contiguous_id=None)
    with pytest.raises(ValueError, match="needs thing_dataset_id_to_contiguous_id"):
        PanopticQualityEvaluator(name)
