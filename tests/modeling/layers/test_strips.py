import pytest
import torch
from torch.nn import functional as F

from sgr.modeling.layers import strips
from sgr.modeling.layers.strips import Strips


def _interpolate(x, size):
    return F.interpolate(x[None], size, mode="bilinear", align_corners=False)[0]


def _read(map_, step):
    """The whole map, ``step`` rows at a time."""
    height = map_.shape[1]
    parts = [map_.rows(a, min(a + step, height)) for a in range(0, height, step)]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("step", [1, 2, 5, 13, 1000])
@pytest.mark.parametrize(
    "old, new",
    [
        ((8, 6), (32, 24)),  # masks of stride 4
        ((9, 7), (31, 50)),
        ((40, 30), (13, 11)),
        ((40, 30), (1, 1)),
        ((1, 1), (7, 3)),
        ((2, 5), (3, 2)),
        ((12, 9), (12, 20)),
        ((12, 9), (20, 9)),
    ],
)
def test_strips_of_a_resized_map_are_those_of_interpolate(old, new, step):
    x = torch.randn(3, *old)
    resized = Strips.of(x).resize(*new)
    assert resized.shape == (3, *new)
    torch.testing.assert_close(_read(resized, step), _interpolate(x, new), atol=1e-5, rtol=0)


@pytest.mark.parametrize("step", [1, 4, 1000])
@pytest.mark.parametrize("output", [(50, 70), (23, 90), (110, 31), (3, 200)])
def test_steps_follow_one_another(output, step):
    x = torch.randn(4, 16, 24)
    chosen = torch.tensor([3, 0, 3])
    chain = Strips.of(x).select(chosen).resize(64, 96).crop(50, 70).resize(*output)
    chain = chain.apply(lambda strip: strip[:2].exp(), channels=2)
    expected = _interpolate(_interpolate(x[chosen], (64, 96))[:, :50, :70], output)[:2].exp()
    assert chain.shape == expected.shape
    torch.testing.assert_close(_read(chain, step), expected, atol=1e-5, rtol=1e-5)


def test_precision_and_coordinates_of_large_maps():
    """Where a row's position needs most of float32's digits."""
    x = torch.randn(1, 751, 2)
    torch.testing.assert_close(
        _read(Strips.of(x).resize(3001, 2), 500), _interpolate(x, (3001, 2)), atol=1e-5, rtol=0
    )
    double = Strips.of(x.double()).resize(30, 5)
    assert double.rows(0, 30).dtype == torch.float64


def test_a_strip_reads_no_more_rows_than_it_needs():
    read = []

    def rows(start, stop):
        read.append((start, stop))
        return torch.zeros(1, stop - start, 8)

    source = Strips((1, 10, 8), rows, 8, torch.float32, torch.device("cpu"))
    resized = source.resize(40, 32)
    resized.rows(0, 2)  # above the first row's centre, where nothing is interpolated
    resized.rows(14, 18)
    resized.rows(39, 40)
    assert read == [(0, 2), (3, 5), (9, 10)]


def test_the_same_size_is_the_same_map():
    same = Strips.of(torch.randn(2, 5, 6))
    assert same.resize(5, 6) is same


@pytest.mark.parametrize("budget", [1, 100, 1000, 10**9])
def test_iteration_covers_all_rows_within_the_budget(monkeypatch, budget):
    monkeypatch.setattr(strips, "STRIP_ELEMENTS", budget)
    x = torch.randn(2, 12, 10)
    whole = torch.full((2, 31, 20), float("nan"))
    for rows, strip in Strips.of(x).resize(31, 20):
        assert strip.shape == (2, rows.stop - rows.start, 20)
        assert strip.numel() <= budget or rows.stop == rows.start + 1
        whole[:, rows] = strip
    torch.testing.assert_close(whole, _interpolate(x, (31, 20)), atol=1e-5, rtol=0)


def test_the_budget_counts_the_largest_tensor_on_the_way(monkeypatch):
    """Also of maps that shrink: ten times as many rows, twice as wide, of four times the masks."""
    monkeypatch.setattr(strips, "STRIP_ELEMENTS", 10_000)
    sizes = []

    def rows(start, stop):
        sizes.append((stop - start) * 20 * 8)
        return torch.zeros(8, stop - start, 20)

    source = Strips((8, 200, 20), rows, 160, torch.float32, torch.device("cpu"))
    shrunk = source.apply(lambda strip: strip[:2], channels=2).resize(20, 10)
    assert sum(strip.shape[1] for _, strip in shrunk) == 20
    assert len(sizes) > 1 and max(sizes) <= 10_000


def test_no_channel_and_gradients():
    empty = Strips.of(torch.randn(0, 4, 5)).resize(8, 10)
    assert [strip.shape for _, strip in empty] == [(0, 8, 10)]
    x = torch.randn(1, 4, 5, requires_grad=True)
    Strips.of(x).resize(9, 9).rows(2, 9).sum().backward()
    y = x.detach().clone().requires_grad_()
    _interpolate(y, (9, 9))[:, 2:].sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
