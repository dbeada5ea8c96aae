import numpy as np
import pytest

from sgr.visualization.figure import new_figure, render
from sgr.visualization.legend import Legend

COLORS = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250]], np.uint8)
NAMES = ["sky", "road", "car"]


def names_of(legend):
    return [name for name, _ in legend.entries]


@pytest.mark.parametrize(
    "labels, numbered, expected",
    [
        ([2, 0, 2], False, ["sky", "car"]),
        ([2, 0], True, ["0 sky", "2 car"]),
        ([1, 255], False, ["road", "unlabelled"]),
        ([-1], True, ["unlabelled"]),
        ([], False, []),
    ],
)
def test_entries(labels, numbered, expected):
    legend = Legend(labels, NAMES, COLORS, 5.0, numbered=numbered)
    assert names_of(legend) == expected
    assert (legend.height > 0) == bool(expected)


def test_rows_follow_the_width():
    wide, narrow = (Legend(range(3), NAMES, COLORS, width) for width in (9.0, 0.9))
    assert (wide.num_rows, narrow.num_rows) == (1, 3)
    assert narrow.height > 2 * wide.height - 0.1


@pytest.mark.parametrize("width", [1.0, 2.0, 6.0])
def test_all_entries_are_drawn_within_the_figure(width):
    legend = Legend([0, 1, 2, 255], NAMES, COLORS, width)
    figure = new_figure(width, legend.height)
    legend.draw(figure)
    picture = render(figure)
    for color in COLORS:
        assert (picture == color).all(-1).sum() > 30


def test_nothing_to_draw():
    figure = new_figure(1.0, 1.0)
    Legend([], NAMES, COLORS, 1.0).draw(figure)
    assert (render(figure) == 255).all()
