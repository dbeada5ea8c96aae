"""Distances between colours, as people see them."""

import numpy as np
import pytest

from sgr.explorer.palette import appearances, safe_colors


def test_known_colours_of_oklab():
    """White, black and red, from the table of Ottosson's article."""
    looks = appearances(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0]]))[0]
    np.testing.assert_allclose(looks[0], [1, 0, 0], atol=1e-3)
    np.testing.assert_allclose(looks[1], [0, 0, 0], atol=1e-3)
    np.testing.assert_allclose(looks[2], [0.628, 0.225, 0.126], atol=1e-3)


def test_a_deficiency_brings_red_and_green_together():
    normal, *deficient = appearances(np.array([[200, 60, 60], [110, 110, 40]]))
    apart = [np.linalg.norm(first - second) for first, second in (normal, *deficient)]
    assert apart[2] < 0.5 * apart[0]


@pytest.mark.parametrize(("count", "least"), [(8, 0.11), (11, 0.1), (19, 0.065), (50, 0.035)])
def test_everybody_can_tell_the_colours_apart(count, least):
    for looks in appearances(safe_colors(count)):
        apart = np.linalg.norm(looks[:, None] - looks, axis=-1)
        assert apart[~np.eye(count, dtype=bool)].min() > least


def test_many_colours():
    colors = safe_colors(450)
    assert colors.shape == (450, 3) and colors.dtype == np.uint8
    assert len(np.unique(colors[:200], axis=0)) == 200
    np.testing.assert_array_equal(colors[200:400], colors[:200])
