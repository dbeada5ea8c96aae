import torch

from sgr.modeling.mask_classification import (
    instance_inference,
    panoptic_inference,
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


def _panoptic(class_logits, mask_logits, score_threshold=0.0, overlap_threshold=0.0):
    panoptic, segments = panoptic_inference(
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
