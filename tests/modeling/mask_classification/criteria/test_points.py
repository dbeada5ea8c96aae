import pytest
import torch
from detectron2.projects.point_rend.point_features import point_sample

from sgr.modeling.mask_classification.criteria.points import (
    Corners,
    sample_maps,
    sample_masks,
)


def _masks(*shape):
    return torch.rand(*shape) > 0.5


def _read(masks, points):
    return sample_masks(masks, Corners.of(points, masks.shape[-2:]))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (12, 9)])
def test_against_point_sample(size):
    masks, points = _masks(4, *size), torch.rand(200, 2)
    points[:4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.5]])
    expected = point_sample(masks.float()[None], points[None], align_corners=False)[0]
    torch.testing.assert_close(_read(masks, points), expected, atol=1e-5, rtol=0)
    maps = torch.randn(3, *size)
    expected = point_sample(maps[None], points[None], align_corners=False)[0]
    read = sample_maps(maps, Corners.of(points, size))
    torch.testing.assert_close(read, expected.T, atol=1e-5, rtol=0)


def test_against_the_definition():
    """A mask's value at a point: pixel centres weigh by their distance along both axes."""
    mask, points = _masks(1, 5, 8), torch.rand(30, 2)
    for (x, y), value in zip(points.tolist(), _read(mask, points)[0].tolist()):
        expected = sum(
            max(0, 1 - abs(y * 5 - (row + 0.5))) * max(0, 1 - abs(x * 8 - (column + 0.5)))
            for row in range(5)
            for column in range(8)
            if mask[0, row, column]
        )
        assert value == pytest.approx(expected, abs=1e-5)


def test_no_masks_and_no_floats_of_full_size():
    assert _read(_masks(0, 6, 7), torch.rand(20, 2)).shape == (0, 20)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(value.numel() for value in [result] if isinstance(value, torch.Tensor))
            return result

    masks, points = _masks(2, 100, 100), torch.rand(20, 2)
    with Watch():
        _read(masks, points)
    assert max(size for size in sizes if size != masks.numel()) <= 4 * 20
