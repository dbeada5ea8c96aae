import pytest
import torch
from detectron2.modeling.postprocessing import sem_seg_postprocess
from torch.nn import functional as F

from sgr.modeling.layers import strips
from sgr.modeling.mask_classification import (
    instance_inference,
    merge_by_pixel,
    merge_by_pixel_within_masks,
    semantic_inference,
)

BIG = 20.0
NO_OBJECT = 3  # of three classes: 0 and 1 are things, 2 is stuff


def _classes(*classes, confidence=BIG):
    logits = torch.zeros(len(classes), 4)
    logits[range(len(classes)), list(classes)] = confidence
    return logits


def _masks(*rows, value=BIG):
    """Masks over a strip of one row, given as strings: "#" inside, "." outside."""
    inside = torch.tensor([[[cell == "#" for cell in row]] for row in rows])
    return torch.where(inside, value, -value)


# Padded size, image, output: nothing to do beyond the resizing to the image, padding only, a larger
# output, a smaller one, and one of other proportions.
SIZES = [
    ((32, 48), (32, 48), (32, 48)),
    ((32, 48), (29, 41), (29, 41)),
    ((32, 48), (29, 41), (75, 101)),
    ((32, 48), (29, 41), (13, 17)),
    ((32, 48), (32, 40), (70, 9)),
]


@pytest.fixture(params=["one row", "some rows", "all rows"])
def strip_elements(request, monkeypatch):
    """Strips of every kind; the rows of the maps here have 100 to 1000 elements."""
    elements = {"one row": 1, "some rows": 3000, "all rows": 10**9}[request.param]
    monkeypatch.setattr(strips, "STRIP_ELEMENTS", elements)


def _random_prediction(num_queries=9, num_classes=5):
    """Classes of several certainties, some of them "no object", and blobs for masks."""
    class_logits = 2 * torch.randn(num_queries, num_classes + 1)
    blobs = F.interpolate(5 * torch.randn(1, num_queries, 4, 5) - 1, (8, 12), mode="bicubic")
    return class_logits, blobs[0]


def _to_image(padded, image):
    return lambda masks: masks.resize(*padded).crop(*image)


def _to_output(padded, image, output):
    return lambda masks: _to_image(padded, image)(masks).resize(*output)


def _full_size(mask_logits, padded):
    return F.interpolate(mask_logits[None], padded, mode="bilinear", align_corners=False)[0]


def _check_semantic(class_logits, mask_logits, expected, **options):
    """Scores and labels against full-size scores."""
    scores = semantic_inference(class_logits, mask_logits, **options)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    labels = semantic_inference(class_logits, mask_logits, labels=True, **options)
    assert labels.dtype == torch.int32
    best, second = expected.topk(2, dim=0).values
    sure = best - second > 1e-5
    assert sure.float().mean() > 0.99
    assert torch.equal(labels[sure].long(), expected.argmax(0)[sure])


@pytest.mark.parametrize("padded, image, output", SIZES)
def test_semantic_in_strips_is_that_of_full_size(strip_elements, padded, image, output):
    class_logits, mask_logits = _random_prediction()
    prob = class_logits.softmax(-1)[:, :-1]
    masks = _full_size(mask_logits, padded)

    scores_last = torch.einsum("qc,qhw->chw", prob, masks.sigmoid())
    expected = sem_seg_postprocess(scores_last, image, *output)
    _check_semantic(
        class_logits, mask_logits, expected, resize=_to_image(padded, image), size=output
    )

    masks = sem_seg_postprocess(masks, image, *output)
    expected = torch.einsum("qc,qhw->chw", prob, masks.sigmoid())
    resize = _to_output(padded, image, output)
    _check_semantic(class_logits, mask_logits, expected, resize=resize)
    _check_semantic(class_logits, mask_logits, expected, resize=resize, size=output)


def _literal_panoptic(class_logits, masks, things, score_threshold, overlap_threshold, within):
    """Query by query, from full-size logits."""
    scores, classes = (each.tolist() for each in class_logits.softmax(-1).max(-1))
    no_object = class_logits.shape[1] - 1
    kept = [q for q, c in enumerate(classes) if c < no_object and scores[q] > score_threshold]
    masks = masks.sigmoid()
    # Of each pixel the most that a query wants it.
    most = torch.stack([scores[q] * masks[q] for q in kept]).amax(0) if kept else None
    result, segments, merged = torch.zeros(masks.shape[1:], dtype=torch.int32), [], {}
    for q in kept:
        owned, inside = scores[q] * masks[q] == most, masks[q] >= 0.5
        seen = owned & inside if within else owned
        if not seen.any() or not inside.any() or owned.sum() / inside.sum() < overlap_threshold:
            continue
        segment = merged.get(classes[q])
        if segment is None:
            segment = len(segments) + 1
            is_thing = classes[q] in things
            segments.append({"id": segment, "isthing": is_thing, "category_id": classes[q]})
            if not is_thing:
                merged[classes[q]] = segment
        result[seen] = segment
    return result, segments


@pytest.mark.parametrize("within_masks", [False, True])
@pytest.mark.parametrize("thresholds", [(0.0, 0.0), (0.4, 0.7), (0.99999, 0.8)])
def test_panoptic_in_strips_is_that_of_full_size(strip_elements, within_masks, thresholds):
    for sizes in SIZES[1:4]:
        padded, image, output = sizes
        class_logits, mask_logits = _random_prediction(12, 4)
        full = sem_seg_postprocess(_full_size(mask_logits, padded), image, *output)
        expected, segments = _literal_panoptic(
            class_logits, full, {0, 2}, *thresholds, within_masks
        )
        merge = merge_by_pixel_within_masks if within_masks else merge_by_pixel
        panoptic, found = merge(
            class_logits,
            mask_logits,
            thing_classes={0, 2},
            score_threshold=thresholds[0],
            overlap_threshold=thresholds[1],
            resize=_to_output(*sizes),
        )
        assert found == segments
        assert torch.equal(panoptic, expected)


@pytest.mark.parametrize("thing_classes", [None, [1, 3]])
def test_instances_in_strips_are_those_of_full_size(strip_elements, thing_classes):
    for padded, image, output in SIZES:
        class_logits, mask_logits = _random_prediction()
        full = sem_seg_postprocess(_full_size(mask_logits, padded), image, *output)
        resized = []

        def resize(masks):
            resized.append(masks.shape[0])
            return _to_output(padded, image, output)(masks)

        result = instance_inference(
            class_logits,
            mask_logits,
            max_instances=10,
            thing_classes=thing_classes,
            resize=resize,
        )
        prob = class_logits.softmax(-1)
        pairs = sorted(
            ((prob[q, c].item(), q, c) for q in range(9) for c in thing_classes or range(5)),
            reverse=True,
        )[:10]
        assert resized == [len({q for _, q, _ in pairs})]  # one query for two classes, but once
        assert len(result) == 10 and result.image_size == output
        assert result.pred_classes.tolist() == [c for _, _, c in pairs]
        for index, (score, query, _) in enumerate(pairs):
            mask = full[query] > 0
            assert torch.equal(result.pred_masks[index], mask)
            quality = full[query].sigmoid()[mask].mean() if mask.any() else 0.0
            assert result.scores[index].item() == pytest.approx(float(score * quality), abs=1e-5)


def _panoptic(
    class_logits, mask_logits, score_threshold=0.0, overlap_threshold=0.0, merge=merge_by_pixel
):
    panoptic, segments = merge(
        class_logits,
        mask_logits,
        thing_classes={0, 1},
        score_threshold=score_threshold,
        overlap_threshold=overlap_threshold,
    )
    assert panoptic.dtype == torch.int32
    return panoptic[0].tolist(), segments


def test_semantic_is_a_sum_over_queries():
    torch.manual_seed(0)
    class_logits, mask_logits = torch.randn(5, 4), torch.randn(5, 2, 3)
    expected = torch.zeros(3, 2, 3)
    for query in range(5):
        for c in range(3):
            expected[c] += class_logits[query].softmax(0)[c] * mask_logits[query].sigmoid()
    torch.testing.assert_close(semantic_inference(class_logits, mask_logits), expected)


def test_panoptic_keeps_things_apart_and_merges_stuff():
    panoptic, segments = _panoptic(
        _classes(0, 2, 0, 2, NO_OBJECT), _masks("##....", "..#...", "...#..", "....#.", "######")
    )
    # The last pixel is in no mask; it goes to the query that denies it least, here the first.
    assert panoptic[:5] == [1, 1, 2, 3, 2]
    assert segments == [
        {"id": 1, "isthing": True, "category_id": 0},
        {"id": 2, "isthing": False, "category_id": 2},
        {"id": 3, "isthing": True, "category_id": 0},
    ]


def test_panoptic_drops_weak_queries():
    class_logits = torch.cat([_classes(0), _classes(1, confidence=1.0)])
    masks = _masks("##..", "..##")
    assert [s["category_id"] for s in _panoptic(class_logits, masks)[1]] == [0, 1]
    panoptic, segments = _panoptic(class_logits, masks, score_threshold=0.8)
    assert [s["category_id"] for s in segments] == [0]
    assert panoptic[:2] == [1, 1]


def test_panoptic_drops_covered_segments():
    """Of the second mask a quarter is left; its pixels stay empty once it is dropped."""
    class_logits = torch.cat([_classes(0), _classes(1, confidence=3.0)])
    masks = _masks("###.....", "####....")
    assert _panoptic(class_logits, masks, overlap_threshold=0.25)[0][:4] == [1, 1, 1, 2]
    panoptic, segments = _panoptic(class_logits, masks, overlap_threshold=0.3)
    assert panoptic[:4] == [1, 1, 1, 0]
    assert [s["category_id"] for s in segments] == [0]


def test_panoptic_within_masks():
    """The third pixel is in no mask; the last is in none either, but the second query's most.

    So that query, whose mask the first one covers, owns the last pixel only.
    """
    class_logits = torch.cat([_classes(0), _classes(1, confidence=1.0)])
    masks = _masks("##..", "#...")
    masks[1, 0, 3] = -1.0
    panoptic, segments = _panoptic(class_logits, masks)
    assert panoptic == [1, 1, 1, 2] and [s["category_id"] for s in segments] == [0, 1]
    panoptic, segments = _panoptic(class_logits, masks, merge=merge_by_pixel_within_masks)
    assert panoptic == [1, 1, 0, 0] and [s["category_id"] for s in segments] == [0]


def test_owned_pixels_outside_the_mask_count_for_the_overlap():
    """Of its mask of two pixels a query keeps one, and it owns another outside."""
    class_logits = torch.cat([_classes(0), _classes(1, confidence=1.0)])
    masks = _masks("##..", ".##.")
    masks[1, 0, 3] = -1.0
    for merge, expected in (
        (merge_by_pixel, [1, 1, 2, 2]),
        (merge_by_pixel_within_masks, [1, 1, 2, 0]),
    ):
        options = {"overlap_threshold": 0.9, "merge": merge}
        assert _panoptic(class_logits, masks, **options)[0] == expected


def test_panoptic_without_objects_has_the_output_size():
    panoptic, segments = merge_by_pixel(
        _classes(NO_OBJECT),
        torch.zeros(1, 4, 6),
        thing_classes={0},
        score_threshold=0.0,
        overlap_threshold=0.0,
        resize=lambda masks: masks.resize(16, 24).crop(13, 24).resize(7, 5),
    )
    assert panoptic.shape == (7, 5) and not panoptic.any() and segments == []


def test_panoptic_without_objects():
    panoptic, segments = _panoptic(_classes(NO_OBJECT, NO_OBJECT), _masks("##..", "..##"))
    assert panoptic == [0, 0, 0, 0] and segments == []


def test_instances_are_the_best_pairs_of_query_and_class():
    torch.manual_seed(0)
    class_logits, mask_logits = torch.randn(4, 4), torch.randn(4, 5, 6)
    result = instance_inference(class_logits, mask_logits, max_instances=6, thing_classes=[0, 2])
    prob = class_logits.softmax(-1)
    pairs = sorted(((prob[q, c].item(), q, c) for q in range(4) for c in (0, 2)), reverse=True)[:6]
    assert result.image_size == (5, 6)
    assert result.pred_classes.tolist() == [c for _, _, c in pairs]
    for index, (score, query, _) in enumerate(pairs):
        mask = mask_logits[query] > 0
        assert torch.equal(result.pred_masks[index], mask)
        quality = mask_logits[query].sigmoid()[mask].mean()
        torch.testing.assert_close(result.scores[index], score * quality)
        ys, xs = mask.nonzero().unbind(1)
        box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert result.pred_boxes.tensor[index].tolist() == box


def test_instances_of_all_classes_and_of_none():
    class_logits, mask_logits = torch.randn(4, 4), torch.randn(4, 5, 6)
    everything = instance_inference(class_logits, mask_logits, max_instances=100)
    assert len(everything) == 12 and set(everything.pred_classes.tolist()) == {0, 1, 2}
    nothing = instance_inference(class_logits, mask_logits, max_instances=100, thing_classes=[])
    assert len(nothing) == 0 and nothing.pred_masks.shape == (0, 5, 6)


def test_empty_mask_has_an_empty_box_and_no_score():
    result = instance_inference(_classes(0), torch.full((1, 3, 4), -1.0), max_instances=1)
    assert result.pred_boxes.tensor.tolist() == [[0, 0, 0, 0]]
    assert result.scores.tolist() == [0]
