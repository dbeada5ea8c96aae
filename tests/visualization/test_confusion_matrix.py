import numpy as np
import pytest

from sgr.visualization import draw_confusion_matrix
from sgr.visualization.confusion_matrix import confusion_figure
from sgr.visualization.figure import render

GREY = 204


def matrix(rng, num_classes):
    counts = rng.integers(0, 30, (num_classes, num_classes))
    counts[np.diag_indices(num_classes)] += 1000
    return counts


@pytest.mark.parametrize("num_classes", [1, 2, 30, 31, 400])
def test_pictures_of_any_number_of_classes(num_classes):
    names = [f"class {index}" for index in range(num_classes)]
    picture = draw_confusion_matrix(matrix(np.random.default_rng(0), num_classes), names)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    assert max(picture.shape) < 3200
    assert (picture.max(axis=2) < 128).sum() > 500
    # Nothing reaches the border: no name is cut off.
    edges = picture[0], picture[-1], picture[:, 0], picture[:, -1]
    assert all((edge == 255).all() for edge in edges)


def test_long_names_are_shortened_and_fit():
    counts = matrix(np.random.default_rng(0), 3)
    short, longer, longest = (
        draw_confusion_matrix(counts, ["a", "b", "W" * length]) for length in (3, 24, 200)
    )
    assert short.shape[1] + 100 < longer.shape[1]
    assert abs(longest.shape[1] - longer.shape[1]) < 10
    assert (longest[:, 0] == 255).all() and (longest[-1] == 255).all()


def test_classes_without_a_pixel_are_grey():
    names = ["a", "b", "c"]
    counts = matrix(np.random.default_rng(0), 3)
    assert not (draw_confusion_matrix(counts, names) == GREY).all(axis=2).sum() > 1000
    counts[1] = 0
    grey = (draw_confusion_matrix(counts, names) == GREY).all(axis=2)
    rows = np.flatnonzero(grey.sum(axis=1) > 100)
    assert 60 < len(rows) < 100 and len(rows) == rows[-1] - rows[0] + 1


def test_what_is_written_where():
    """By row, the true class, and column, the predicted one, from half a percent on."""
    counts = np.array([[1194, 6, 0], [3, 594, 3], [401, 1995, 1604]])
    axes = confusion_figure(counts, ["sky", "road", "car"]).axes[0]
    written = {each.get_position()[::-1]: each.get_text() for each in axes.texts}
    assert written == {
        (0, 0): "100", (0, 1): "1",  # of 99.5 and 0.5
        (1, 0): "1", (1, 1): "99", (1, 2): "1",
        (2, 0): "10", (2, 1): "50", (2, 2): "40",
    }  # fmt: skip
    counts = np.array([[9951, 49], [0, 0]])  # 0.49 % is not shown
    (text,) = confusion_figure(counts, ["sky", "road"]).axes[0].texts
    assert (text.get_position(), text.get_text()) == ((0, 0), "100")


@pytest.mark.parametrize("num_classes", [30, 31])
def test_axes(num_classes):
    names = [f"class {index}" for index in range(num_classes)]
    counts = matrix(np.random.default_rng(0), num_classes)
    axes = confusion_figure(counts, names).axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    for axis in (axes.xaxis, axes.yaxis):
        labels = [each.get_text() for each in axis.get_ticklabels()]
        assert labels == names * (1 if num_classes == 30 else 2)  # one side, or both
        assert axis.get_ticklocs().tolist() == list(range(num_classes))
    assert bool(axes.texts) == (num_classes == 30)
    # The first row lies at the top.
    (image,) = axes.images
    shown = 100 * counts / counts.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(image.get_array(), shown)
    bottom, top = axes.get_ylim()
    assert bottom > top


@pytest.mark.parametrize("name, shown", [
    ("", ""), (" ", ""), ("\t\n", ""), ("\0", ""), ("\ud800", ""), ("\u200b", ""),
    ("\u2800", "\u2800"), (7, "7"), (None, "None"), ("two\nlines", "two lines"),
    ("$x_$", r"\$x_\$"), ("a$", r"a\$"), (r"\frac{", r"\frac{"), ("$" * 99, r"\$" * 23 + "…"),
])  # fmt: skip
def test_any_names(name, shown):
    figure = confusion_figure(np.array([[7]]), [name])
    render(figure)
    (tick,) = figure.axes[0].get_xticklabels()
    assert tick.get_text() == shown


@pytest.mark.parametrize("shape", [(3, 3), (2, 3), (4,), (0, 0)])
def test_a_matrix_must_be_square_and_of_the_names(shape):
    names = ["a"] * (0 if shape == (0, 0) else 2)
    with pytest.raises(ValueError, match=r"counts of the shape \("):
        draw_confusion_matrix(np.zeros(shape, int), names)
