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
    assert len(np.unique(distinct_colors(500), axis=0)) > 490  # a second, darker round
    assert distinct_colors(0).shape == (0, 3)


def test_even_the_most_alike_of_many_classes_differ():
    """Distances in OKLab, where 2 is about what one just sees beside one another."""
    for count, least in ((11, 10), (21, 10), (54, 5), (171, 3)):
        lab = 100 * oklab(distinct_colors(count))
        distance = np.linalg.norm(lab[:, None] - lab, axis=-1) + 999 * np.eye(count)
        assert distance.min() > least, count


def oklab(colors):
    """OKLab (B. Ottosson, 2020) of 8-bit sRGB."""
    share = colors / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_lms = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.cbrt(linear @ np.transpose(to_lms)) @ np.transpose(to_lab)


def test_a_datasets_own_colours_come_first():
    own = [[1, 2, 3], [4, 5, 6]]
    assert class_colors({"stuff_colors": own}, 2).tolist() == own
    assert class_colors({}, 2).tolist() == distinct_colors(2).tolist()
