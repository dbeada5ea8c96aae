import numpy as np

from sgr.data.colors import class_colors, distinct_colors


def test_colours_are_distinct_and_stable():
    colors = distinct_colors(171)
    assert colors.shape == (171, 3) and colors.dtype == np.uint8
    assert len(np.unique(distinct_colors(255), axis=0)) == 255
    assert distinct_colors(255).any(axis=1).all()  # none is black
    np.testing.assert_array_equal(distinct_colors(12), colors[:12])
    first = colors[:12].astype(int)
    distance = np.abs(first[:, None] - first).sum(-1) + 999 * np.eye(12, dtype=int)
    assert distance.min() > 40
    assert distinct_colors(0).shape == (0, 3)


def test_a_datasets_own_colours_come_first():
    own = [[1, 2, 3], [4, 5, 6]]
    assert class_colors({"stuff_colors": own}, 2).tolist() == own
    assert class_colors({}, 2).tolist() == distinct_colors(2).tolist()
