import pytest
import torch

from sgr.modeling.supervision import ComponentMaps, component_targets


def test_area_averages():
    component_map = torch.tensor([[0, 0, 1, -1], [0, 1, 1, -1]], dtype=torch.int16)
    masks, weights, counts = component_targets([component_map], [2], (1, 2), 2, "cpu")
    assert torch.equal(masks, torch.tensor([[[0.75, 0.0], [0.25, 1.0]]]))
    assert torch.equal(weights, torch.tensor([[1.0, 0.5]]))
    assert counts == [2]


def test_against_a_loop():
    stride, grid = 4, (3, 5)
    maps = [torch.randint(-1, 3, (12, 20)), torch.randint(-1, 5, (9, 17))]
    masks, weights, _ = component_targets(maps, [3, 5], grid, stride, "cpu")
    assert masks.shape == (2, 5, 15) and weights.shape == (2, 15)
    for b, component_map in enumerate(maps):
        for i in range(grid[0]):
            for j in range(grid[1]):
                rows = slice(i * stride, (i + 1) * stride)
                cell = component_map[rows, j * stride : (j + 1) * stride]
                labelled = (cell >= 0).sum().item()
                assert weights[b, i * 5 + j].item() == pytest.approx(labelled / stride**2)
                for c in range(5):
                    share = (cell == c).sum().item() / max(labelled, 1)
                    assert masks[b, c, i * 5 + j].item() == pytest.approx(share)


def test_a_small_component_does_not_vanish():
    component_map = torch.zeros(32, 32, dtype=torch.int16)
    component_map[5, 5] = 1
    masks, _, _ = component_targets([component_map], [2], (1, 1), 32, "cpu")
    assert masks[0, 1, 0].item() == pytest.approx(1 / 1024)


@pytest.mark.parametrize("value", [-1, 0])
def test_no_component(value):
    component_map = torch.full((8, 8), -1)
    masks, weights, counts = component_targets([component_map], [0], (2, 2), 4, "cpu")
    assert masks.shape == (1, 0, 4) and not weights.any() and counts == [0]


def test_map_larger_than_the_grid():
    with pytest.raises(ValueError, match=r"\(9, 8\)"):
        component_targets([torch.zeros(9, 8)], [1], (2, 2), 4, "cpu")


@pytest.mark.parametrize("wrong", [-2, -100, 2, 255, 30000])
def test_a_wrong_index_is_no_component(wrong):
    right = torch.tensor([[0, 1, -1, -1], [1, 1, 0, 0]], dtype=torch.int16)
    faulty = torch.where(right < 0, wrong, right)
    expected = component_targets([right, right], [2, 2], (1, 2), 2, "cpu")
    found = component_targets([faulty, faulty], [2, 2], (1, 2), 2, "cpu")
    assert torch.equal(found.masks, expected.masks)
    assert torch.equal(found.weights, expected.weights)


def test_bytes():
    component_map = torch.tensor([[0, 1, 1]], dtype=torch.uint8)
    masks, weights, _ = component_targets([component_map], [2], (1, 2), 2, "cpu")
    assert torch.equal(masks, torch.tensor([[[0.5, 0.0], [0.5, 1.0]]]))
    assert torch.equal(weights, torch.tensor([[0.5, 0.25]]))


def test_maps_are_counted():
    maps = [torch.tensor([[-1, 1, 0]]), torch.full((1, 1), -1), torch.zeros(0, 4).short()]
    assert ComponentMaps.of(maps).counts == [2, 0, 0]


@pytest.mark.parametrize(
    ("indices", "dtype", "message"),
    [
        ([0, -100], torch.int64, "has the index -100; .* have -1"),
        ([0, 2, 2, 2], torch.int32, "has the index 2 and leaves out a lower one"),
        ([1, 0, 255], torch.uint8, "has the index 255 and leaves out .* a component -1, not 255"),
        ([0, 1], torch.bool, "is .H, W. integers"),
        ([0, 2**60], torch.int64, f"has the index {2**60} and leaves out"),
    ],
)
def test_indices_that_count_no_components(indices, dtype, message):
    with pytest.raises(ValueError, match=message):
        ComponentMaps.of([torch.tensor([indices], dtype=dtype)])
