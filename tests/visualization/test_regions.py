import numpy as np
import pytest

from sgr.visualization import upsample_region, upsample_regions


@pytest.mark.parametrize("size", [(20, 28), (40, 56), (11, 17)])
def test_a_region_lands_where_its_cells_are(size):
    region = np.zeros((3, 4), np.float32)
    region[1, 2] = 1  # rows 8 to 16, columns 16 to 24 of the input
    heat = upsample_region(region, 8, (20, 28), size)
    assert heat.shape == size and 0.85 < heat.max() <= 1
    row, column = np.unravel_index(heat.argmax(), size)
    assert 8 <= (row + 0.5) * 20 / size[0] <= 16
    assert 16 <= (column + 0.5) * 28 / size[1] <= 24


def test_a_constant_region_stays_constant():
    region = np.full((2, 2), 0.3, np.float32)
    np.testing.assert_allclose(upsample_region(region, 16, (17, 30), (33, 9)), 0.3, rtol=1e-5)


def test_several_regions_at_once():
    regions = np.random.default_rng(0).random((3, 2, 4))
    heat = upsample_regions(regions, 8, (15, 30), (20, 40))
    expected = [upsample_region(region, 8, (15, 30), (20, 40)) for region in regions]
    np.testing.assert_array_equal(heat, expected)
    assert upsample_regions(regions[:0], 8, (15, 30), (20, 40)).shape == (0, 20, 40)
