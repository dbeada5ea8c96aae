import numpy as np
import pytest
import torch

import concept_oracle as oracle
from sgr.modeling.supervision import ConceptMatcher, component_targets

STRIDE, GRID = 4, (3, 4)


def scene(num_components, batch=1, generator=0):
    rng = np.random.default_rng(generator)
    shape = (GRID[0] * STRIDE, GRID[1] * STRIDE)
    return [torch.from_numpy(rng.integers(-1, num_components, shape)) for _ in range(batch)]


def targets_of(maps, counts):
    return component_targets(maps, counts, GRID, STRIDE, "cpu")


@pytest.mark.parametrize("seed", range(5))
def test_cost_equals_eq_5_at_the_pixels(seed):
    torch.manual_seed(seed)
    maps = scene(3, generator=seed)
    logits = 3 * torch.randn(1, 4, *GRID)
    costs = ConceptMatcher(max_active=4).cost(logits.flatten(2), targets_of(maps, [3]))
    regions = oracle.upsample(logits[0].double().sigmoid().numpy(), STRIDE)
    component_map = maps[0].numpy()
    for k in range(4):
        for j in range(3):
            wanted = oracle.cost(regions[k], component_map == j, component_map >= 0, STRIDE)
            assert costs[0, k, j].item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("num_components", "max_active"), [(1, 1), (1, 4), (3, 3), (3, 5), (4, 6)])
def test_match_equals_brute_force(seed, num_components, max_active):
    torch.manual_seed(seed)
    targets = targets_of(scene(num_components, generator=seed), [num_components])
    matcher = ConceptMatcher(max_active=max_active)
    logits = 2 * torch.randn(1, 6, GRID[0] * GRID[1])
    costs = matcher.cost(logits, targets)[0].double().numpy()
    assert matcher(logits, targets)[0].tolist() == oracle.match(costs, max_active)


def test_images_of_a_batch_are_matched_each_for_itself():
    maps = scene(4, batch=1) + scene(2, batch=1, generator=1) + [torch.full((12, 16), -1)]
    logits = torch.randn(3, 7, GRID[0] * GRID[1])
    matcher = ConceptMatcher(max_active=5)
    together = matcher(logits, targets_of(maps, [4, 2, 0]))
    for b, count in enumerate((4, 2, 0)):
        alone = matcher(logits[b : b + 1], targets_of(maps[b : b + 1], [count]))
        assert torch.equal(together[b : b + 1], alone)
    assert (together >= 0).sum(dim=1).tolist() == [5, 5, 0]


def test_as_many_components_as_active_concepts_and_more():
    logits = torch.randn(1, 6, GRID[0] * GRID[1])
    for count in (4, 5, 6):  # C >= L: every component gets its concept, nothing is greedy
        assignment = ConceptMatcher(max_active=4)(logits, targets_of(scene(count), [count]))
        assert sorted(assignment[assignment >= 0].tolist()) == list(range(count))


def test_more_components_than_concepts():
    logits = torch.randn(1, 3, GRID[0] * GRID[1])
    assignment = ConceptMatcher(max_active=2)(logits, targets_of(scene(5), [5]))
    assert len(set(assignment[0].tolist())) == 3 and assignment.min() >= 0


def test_fewer_concepts_than_active_ones():
    with pytest.raises(ValueError, match="6 concepts, but 64 are to be matched"):
        ConceptMatcher()(torch.zeros(1, 6, 12), targets_of(scene(2), [2]))


def test_max_active_is_positive():
    with pytest.raises(ValueError, match="0"):
        ConceptMatcher(max_active=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_diverged_model_is_matched(value):
    """Its loss shows that it has diverged, in all processes alike."""
    logits = torch.full((1, 4, GRID[0] * GRID[1]), value)
    assignment = ConceptMatcher(max_active=2)(logits, targets_of(scene(2), [2]))
    assert sorted(assignment[assignment >= 0].tolist()) == [0, 1]
