import numpy as np
import pytest
import torch

from sgr.data.components import ComponentMap, connected_components
from sgr.evaluation.token_metrics import diversity, label_histograms, semantics
from sgr.inspection import inspect_tokens
from sgr.modeling.reasoning import ConceptRegions
from sgr.modeling.supervision import ConceptMatcher


@pytest.fixture
def regions():
    """Random regions of five tokens on 3 x 4 cells of 8 pixels."""
    return ConceptRegions(torch.randn(1, 5, 3, 4), stride=8)


@pytest.fixture
def labels():
    """Three classes and unlabelled pixels, at twice the size of the network's input."""
    labels = np.random.default_rng(0).integers(-1, 3, (6, 8))
    return labels.repeat(8, axis=0).repeat(8, axis=1)


def test_regions_of_a_training_step(regions, labels):
    components = connected_components(labels.clip(0))
    expected = inspect_tokens(regions, labels=labels, components=components)
    regions = regions._replace(logits=regions.logits.requires_grad_())
    found = inspect_tokens(regions, labels=labels, components=components)
    assert np.array_equal(found.components, expected.components)
    assert found.classes.S == expected.classes.S


def test_masses_peaks_and_centroids_of_known_regions():
    logits = torch.full((1, 3, 2, 4), -200.0)
    logits[0, 0, 1, 2] = 200  # one cell
    logits[0, 1] = 0  # half of every cell
    tokens = inspect_tokens(ConceptRegions(logits, stride=4))
    assert tokens.mass.tolist() == [1, 4, 0] and tokens.peak.tolist() == [1, 0.5, 0]
    assert tokens.active.tolist() == [True, False, False]
    assert tokens.centroids.tolist() == [[3, 2], [2.5, 1.5], [0, 0]]
    assert tokens.classes is tokens.instances is tokens.components is None


def test_histograms_are_those_of_the_token_metrics(regions, labels):
    tokens = inspect_tokens(regions, (20, 30), labels=labels, instances=labels - 1)
    expected, present, bins = label_histograms(
        regions.probabilities[0], torch.from_numpy(labels), 8, input_size=(20, 30)
    )
    classes = tokens.classes
    np.testing.assert_array_equal(classes.values, expected)
    np.testing.assert_array_equal(classes.labels, present)
    np.testing.assert_array_equal(classes.bins, bins)
    assert classes.S == pytest.approx(semantics(expected).item(), rel=1e-5)
    assert classes.D == pytest.approx(diversity(expected).item(), rel=1e-5)
    assert classes.semantics.mean() == pytest.approx(classes.S)
    assert tokens.instances.labels.tolist() == [0, 1]


def test_tokens_without_weight_on_a_label_are_not_measured(labels):
    logits = torch.zeros(1, 3, 3, 4)
    logits[0, 2] = -200
    tokens = inspect_tokens(
        ConceptRegions(logits, stride=8), labels=labels, instances=np.full_like(labels, -1)
    )
    assert np.isnan(tokens.classes.semantics).tolist() == [False, False, True]
    assert np.isnan(tokens.classes.diversity).tolist() == [False, False, True]
    assert tokens.classes.S == tokens.classes.semantics[0] and tokens.classes.D == 0
    assert tokens.instances.values.shape == (3, 0) and np.isnan(tokens.instances.S)


@pytest.mark.parametrize("scale", [1, 2])
def test_each_token_gets_the_component_below_it(scale):
    """Whatever the resolution of the components is."""
    logits = torch.full((1, 4, 2, 4), -9.0)
    logits[0, 0, :, :2] = logits[0, 1, :, 2:] = logits[0, 2, :, 3:] = 9
    labels = np.zeros((16 * scale, 32 * scale), np.uint8)
    labels[:, 16 * scale :] = 1
    regions = ConceptRegions(logits, stride=8)
    components = connected_components(labels)
    assert components.classes.tolist() == [0, 1]
    tokens = inspect_tokens(
        regions, (16, 32), components=components, matcher=ConceptMatcher(max_active=3)
    )
    assert tokens.components.tolist() == [0, 1, 1, -1]
    # As many as there are, where these are fewer than the matcher's.
    assert (inspect_tokens(regions, components=components).components >= 0).all()


def test_the_overlap_with_a_component_is_an_iou_of_pixels(regions):
    indices = np.random.default_rng(0).integers(-1, 3, (24, 32)).astype(np.int16)
    tokens = inspect_tokens(
        regions,
        components=ComponentMap(indices, np.arange(3)),
        matcher=ConceptMatcher(max_active=4),
    )
    full = regions.probabilities[0].numpy().repeat(8, axis=1).repeat(8, axis=2)
    counted = indices >= 0
    for region, component, overlap in zip(full, tokens.components, tokens.overlaps):
        pair = region[counted], (indices == component)[counted]
        expected = np.minimum(*pair).sum() / np.maximum(*pair).sum() if component >= 0 else np.nan
        np.testing.assert_allclose(overlap, expected, rtol=1e-5)
    assert (tokens.components < 0).sum() == 1


def test_no_component(regions):
    nothing = ComponentMap(np.full((24, 32), -1, np.int16), np.zeros(0, np.int64))
    tokens = inspect_tokens(regions, components=nothing)
    assert tokens.components.tolist() == 5 * [-1] and np.isnan(tokens.overlaps).all()


def test_sure_regions_come_before_faint_and_tiny_ones():
    faint = torch.full((4, 4), 0.1)
    tiny, sure = torch.zeros(4, 4), torch.zeros(4, 4)
    tiny[0, 0] = 0.9
    sure[:2, :2] = 0.9
    logits = torch.logit(torch.stack([faint, tiny, sure]))[None]
    tokens = inspect_tokens(ConceptRegions(logits, stride=4))
    assert tokens.most_used(2).tolist() == [2, 1]
    assert sorted(tokens.most_used(9).tolist()) == [0, 1, 2]


def test_regions_that_do_not_cover_the_image_are_refused(regions, labels):
    with pytest.raises(ValueError, match="3 x 4 cells of stride 8 cover 24 x 32 pixels"):
        inspect_tokens(regions, (25, 32), labels=labels)


def test_the_share_of_the_weight_on_instances(regions, labels):
    """Against regions that are repeated over their cells, at the size of the labels."""
    tokens = inspect_tokens(regions, labels=labels, instances=labels - 1)
    full = regions.probabilities[0].numpy().repeat(16, axis=1).repeat(16, axis=2)
    for histograms, least in ((tokens.classes, 0), (tokens.instances, 1)):
        expected = (full * (labels >= least)).sum(axis=(1, 2)) / full.sum(axis=(1, 2))
        np.testing.assert_allclose(histograms.share, expected, rtol=1e-5)
    nothing = ConceptRegions(torch.full((1, 1, 3, 4), -200.0), stride=8)
    assert inspect_tokens(nothing, labels=labels).classes.share.tolist() == [0]
