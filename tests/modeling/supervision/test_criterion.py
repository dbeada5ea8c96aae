import numpy as np
import pytest
import torch
from detectron2.config import get_cfg

import concept_oracle as oracle
from sgr import add_sgr_config
from sgr.modeling.reasoning import ConceptRegions
from sgr.modeling.supervision import ConceptCriterion, ConceptMatcher
from sgr.modeling.supervision.losses import SATURATION, noisy_or_union, pairwise_cosine, sum_union

STRIDE, GRID = 4, (3, 4)
SIZE = (GRID[0] * STRIDE, GRID[1] * STRIDE)
TERMS = ("focal", "dice", "cosine")


def criterion(max_active=5, weight=1.0, **arguments):
    return ConceptCriterion(ConceptMatcher(max_active=max_active), weight=weight, **arguments)


def regions_of(logits):
    return ConceptRegions(logits, stride=STRIDE)


@pytest.mark.parametrize("union", ["sum", "noisy_or"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_eq_6_at_the_pixels(union, seed):
    torch.manual_seed(seed)
    maps = [torch.randint(-1, 3, SIZE), torch.randint(-1, 2, (SIZE[0] - 3, SIZE[1] - 1))]
    counts = [3, 2]
    # Low enough for their sums to stay below 1, where "sum" is literal.
    logits = torch.randn(2, 7, *GRID) - 3
    module = criterion(union=union)
    result = module(regions_of(logits), maps, counts)

    targets_match = module.matcher
    wanted = np.zeros(3)
    for b in range(2):
        padded = np.full(SIZE, -1)
        padded[: maps[b].shape[0], : maps[b].shape[1]] = maps[b]
        probabilities = logits[b].double().sigmoid().numpy()
        labelled = padded >= 0
        costs = np.array(
            [
                [oracle.cost(p, padded == j, labelled, STRIDE) for j in range(counts[b])]
                for p in oracle.upsample(probabilities, STRIDE)
            ]
        )
        assignment = oracle.match(costs, targets_match.max_active)
        wanted += oracle.losses(
            probabilities, padded, counts[b], assignment, STRIDE, union, normaliser=sum(counts)
        )
        assert (result.matched[b] == (np.array(assignment) >= 0)).all()
    for term, value in zip(TERMS, wanted):
        assert result.losses[term].item() == pytest.approx(value, rel=1e-4), term
    assert result.active.item() == (logits.amax((2, 3)) > 0).float().mean().item()


@pytest.mark.parametrize("union", ["sum", "noisy_or"])
@pytest.mark.parametrize("offset", [-2.0, 2.0])  # sums below 1, and beyond
def test_gradients_by_finite_differences(union, offset):
    maps = [torch.randint(-1, 3, SIZE)]
    logits = (torch.randn(1, 6, *GRID, dtype=torch.float64) + offset).requires_grad_()
    module = criterion(union=union)

    def total(logits):
        return sum(module(regions_of(logits), maps, [3]).losses.values())

    assert torch.autograd.gradcheck(total, (logits,), eps=1e-7, atol=1e-5)


def test_weights():
    maps, logits = [torch.randint(-1, 3, SIZE)], torch.randn(1, 6, *GRID)
    plain = criterion()(regions_of(logits), maps, [3]).losses
    weighted = criterion(weight=0.25, focal_weight=2.0, dice_weight=3.0, cosine_weight=4.0)
    weighted.matcher = ConceptMatcher(max_active=5)  # the same matches for both
    losses = weighted(regions_of(logits), maps, [3]).losses
    for term, factor in zip(TERMS, (0.5, 0.75, 1.0)):
        assert losses[term].item() == pytest.approx(factor * plain[term].item())


@pytest.mark.parametrize("union", ["sum", "noisy_or"])
def test_nothing_to_match(union):
    logits = torch.randn(2, 6, *GRID, requires_grad=True)
    maps = [torch.full(SIZE, -1), torch.full((5, 5), -1)]
    result = criterion(union=union)(regions_of(logits), maps, [0, 0])
    total = sum(result.losses.values())
    total.backward()
    assert total.item() == 0 and not logits.grad.any()
    assert not result.matched.any()


@pytest.mark.parametrize("union", ["sum", "noisy_or"])
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_extreme_regions_stay_finite(union, scale):
    logits = (scale * torch.randn(2, 8, *GRID)).requires_grad_()
    maps = [torch.randint(-1, 3, SIZE), torch.randint(0, 1, SIZE)]
    losses = criterion(union=union)(regions_of(logits), maps, [3, 1]).losses
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert logits.grad.isfinite().all()


def test_divergence_shows_in_every_loss():
    """Its costs are set to 0, so the region is matched."""
    logits = torch.randn(1, 6, *GRID)
    logits[0, 4, 0, 0] = torch.nan
    losses = criterion()(regions_of(logits), [torch.randint(0, 2, SIZE)], [2]).losses
    assert losses and not any(loss.isfinite() for loss in losses.values())


def test_more_components_than_concepts():
    logits = torch.randn(1, 3, *GRID, requires_grad=True)
    maps = [torch.randint(0, 6, SIZE)]
    losses = criterion(max_active=2)(regions_of(logits), maps, [6]).losses
    sum(losses.values()).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_under_autocast(dtype):
    maps = [torch.randint(-1, 3, SIZE)]
    logits = torch.randn(1, 6, *GRID).to(dtype)
    expected = criterion()(regions_of(logits.float()), maps, [3]).losses
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = criterion()(regions_of(logits), maps, [3]).losses
    for term in TERMS:
        assert losses[term].dtype == torch.float32
        assert losses[term].item() == pytest.approx(expected[term].item(), rel=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("union", ["sum", "noisy_or"])
def test_on_a_gpu(union):
    maps, logits = [torch.randint(-1, 3, SIZE)], torch.randn(1, 6, *GRID)
    expected = criterion(union=union)(regions_of(logits), maps, [3])
    result = criterion(union=union)(regions_of(logits.cuda()), maps, [3])
    assert (result.matched == expected.matched).all()
    for term in TERMS:
        assert result.losses[term].item() == pytest.approx(expected.losses[term].item(), rel=1e-4)


def test_descent_finds_the_components():
    component_map = torch.zeros(SIZE, dtype=torch.int16)
    component_map[:, 8:] = 1
    logits = torch.full((1, 6, *GRID), -3.0) + 0.1 * torch.randn(1, 6, *GRID)
    logits.requires_grad_()
    module, optimizer = criterion(max_active=4), torch.optim.Adam([logits], lr=0.1)
    for _ in range(300):
        losses = module(regions_of(logits), [component_map], [2]).losses
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert losses["focal"] < 0.01 and losses["dice"] < 0.05
    left, right = component_map[::4, ::4].flatten() == 0, component_map[::4, ::4].flatten() == 1
    regions = logits.detach().sigmoid().flatten(2)[0]
    halves = torch.stack([regions[:, half].mean(dim=1) for half in (left, right)])
    assert (halves.max(dim=1).values > 0.3).all()


def test_unions_agree_with_their_definitions():
    logits = torch.randn(2, 5, 6, dtype=torch.float64) - 2
    groups = torch.zeros(2, 5, 2, dtype=torch.float64)
    groups[:, :2, 0] = groups[:, 2:4, 1] = 1
    p = logits.sigmoid()
    for function, wanted in (
        (sum_union, [p[:, 0] + p[:, 1], p[:, 2] + p[:, 3]]),
        (noisy_or_union, [1 - (1 - p[:, 0]) * (1 - p[:, 1]), 1 - (1 - p[:, 2]) * (1 - p[:, 3])]),
    ):
        union, log_inside, log_outside = function(logits, groups)
        wanted = torch.stack(wanted, dim=1)
        assert torch.allclose(union, wanted)
        assert torch.allclose(log_inside, wanted.log())
        assert torch.allclose(log_outside, (1 - wanted).log())


def test_a_sum_beyond_one_is_pushed_down():
    logits = torch.full((1, 3, 1), 2.0, requires_grad=True)
    union, log_inside, log_outside = sum_union(logits, torch.ones(1, 3, 1))
    assert union.item() > 1 and log_outside.isfinite() and log_inside.item() == 0
    (-log_outside).sum().backward()
    p = torch.tensor(2.0).sigmoid()
    assert torch.allclose(logits.grad, (p * (1 - p) / SATURATION + p).expand(1, 3, 1))


@pytest.mark.parametrize("union", [sum_union, noisy_or_union])
def test_a_region_near_one_is_pushed_down(union):
    logits = torch.tensor([[[8.0]]], requires_grad=True)
    _, _, log_outside = union(logits, torch.ones(1, 1, 1))
    (-log_outside).sum().backward()
    assert logits.grad.item() > 0.99


def test_cosine_needs_a_pair():
    groups = torch.eye(3)[None]
    assert not pairwise_cosine(torch.rand(1, 3, 4), torch.ones(1, 4), groups).any()


def test_unknown_union():
    with pytest.raises(ValueError, match="'max'.*sum, noisy_or"):
        criterion(union="max")


def test_config_with_fewer_concepts_than_active_ones():
    cfg = get_cfg()
    add_sgr_config(cfg)
    cfg.MODEL.SGR.NUM_CONCEPTS = 16
    with pytest.raises(ValueError, match="K = 16.*L = 64"):
        ConceptCriterion.from_config(cfg)
