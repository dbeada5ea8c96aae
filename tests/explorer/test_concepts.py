"""Sums over images, beside loops."""

import numpy as np
import pytest
import torch

from explorer_data import unpack
from sgr.explorer import concepts as module
from sgr.explorer.concepts import ConceptSummary, region_boxes
from sgr.inspection.tokens import inspect_tokens
from sgr.modeling.reasoning.concept_regions import ConceptRegions


def tokens_of(seed, labels=True):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(1, 4, 3, 5, generator=generator)
    maps = torch.randint(-1, 3, (24, 40), generator=generator).numpy() if labels else None
    return inspect_tokens(ConceptRegions(logits, stride=8), (24, 36), labels=maps)


def test_boxes_hold_the_cells_above_half_of_the_peak():
    regions = tokens_of(0).probabilities
    for region, box in zip(regions, region_boxes(regions, 8, (24, 36))):
        cells = [
            (row, column)
            for row in range(3)
            for column in range(5)
            if region[row, column] >= region.max() / 2
        ]
        rows, columns = zip(*cells)
        expected = [
            min(columns) * 8 / 36,
            min(rows) * 8 / 24,
            min((max(columns) + 1) * 8 / 36, 1),
            min((max(rows) + 1) * 8 / 24, 1),
        ]
        np.testing.assert_allclose(box, expected)


def test_content_over_three_images(monkeypatch):
    monkeypatch.setattr(module, "BEST_IMAGES", 2)
    summary = ConceptSummary(num_classes=3)
    images = {4: tokens_of(1), 5: tokens_of(2), 9: tokens_of(3)}
    for image, tokens in images.items():
        summary.add(image, tokens, (24, 36))
    content = summary.content()
    for concept in range(4):
        each = [(image, one.mass[concept], one.peak[concept]) for image, one in images.items()]
        ranked = sorted(each, key=lambda item: -item[1] * item[2])
        assert unpack(content["best"])[concept].tolist() == [item[0] for item in ranked[:2]]
        assert unpack(content["active"])[concept] == sum(peak > 0.5 for _, _, peak in each)
        mass = np.mean([item[1] for item in each])
        assert unpack(content["mass"])[concept] == pytest.approx(mass, rel=1e-5)
        entropy = np.mean([one.classes.semantics[concept] for one in images.values()])
        assert unpack(content["semantics"])[concept] == pytest.approx(entropy, rel=1e-5)
        weights = np.zeros(3)
        for one in images.values():
            for label, share in zip(one.classes.labels, one.classes.values[concept]):
                weights[label] += one.mass[concept] * share
        shares = dict(content["classes"][concept])
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
        for label, weight in enumerate(weights):
            assert shares[label] == pytest.approx(weight / weights.sum(), abs=6e-4)
    box = region_boxes(images[4].probabilities, 8, (24, 36))
    place = np.argwhere(unpack(content["best"]) == 4)
    for concept, rank in place:
        found = unpack(content["boxes"])[concept, rank] / 65535
        np.testing.assert_allclose(found, box[concept], atol=1e-5)


def test_without_labels():
    summary = ConceptSummary(num_classes=3)
    summary.add(0, tokens_of(1, labels=False), (24, 36))
    content = summary.content()
    assert content["classes"] == [[]] * 4 and np.isnan(unpack(content["semantics"])).all()
