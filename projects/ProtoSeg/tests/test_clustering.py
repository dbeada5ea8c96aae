import pytest
import torch

from protoseg import equal_shares
from protoseg.clustering import logsumexp_of_classes


def literal_shares(scores, iterations):
    """Of one class: (N, M) with exponentials, loop by loop."""
    rows = scores.exp().tolist()
    cells, number = len(rows), len(rows[0])
    whole = sum(map(sum, rows))
    rows = [[value / whole for value in row] for row in rows]
    for _ in range(iterations):
        for column in range(number):
            mass = sum(row[column] for row in rows)
            for row in rows:
                row[column] /= mass * number
        for row in rows:
            mass = sum(row)
            row[:] = [value / mass / cells for value in row]
    return cells * torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("iterations", [1, 3, 7])
def test_each_class_is_clustered_by_itself(iterations):
    """Class 2 has no cells, class 3 has fewer than prototypes."""
    scores = torch.randn(24, 4, dtype=torch.float64) * 5
    classes = torch.tensor([0, 1, 4] * 7 + [3, 3, 0])
    shares = equal_shares(scores, classes, 5, iterations=iterations)
    for index in (0, 1, 3, 4):
        own = classes == index
        expected = literal_shares(scores[own], iterations)
        torch.testing.assert_close(shares[own], expected.double(), atol=1e-6, rtol=1e-5)


def test_rows_sum_to_one_and_columns_become_equal():
    scores = torch.randn(30, 4)
    classes = torch.arange(30) % 2
    for iterations, tolerance in ((1, 2.0), (100, 1e-3)):
        shares = equal_shares(scores, classes, 2, iterations=iterations)
        torch.testing.assert_close(shares.sum(1), torch.ones(30))
        for index in range(2):
            columns = shares[classes == index].sum(0)
            torch.testing.assert_close(columns, torch.full((4,), 15 / 4), atol=tolerance, rtol=0)


def test_scores_beyond_what_an_exponential_can_hold():
    """Scores are those of cosines / 0.001. A constant for all cells of a class changes nothing."""
    scores = torch.randn(20, 3)
    classes = torch.arange(20) % 2
    far = equal_shares(1000 * scores, classes, 2)
    assert far.isfinite().all()
    torch.testing.assert_close(
        equal_shares(scores + 500, classes, 2), equal_shares(scores, classes, 2), atol=1e-4, rtol=0
    )


def test_one_prototype_gets_everything():
    shares = equal_shares(torch.randn(6, 1), torch.tensor([0, 0, 1, 1, 1, 1]), 3)
    assert shares.eq(1).all()


def test_logsumexp_of_a_class_without_rows():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    sums = logsumexp_of_classes(values, torch.tensor([2, 2]), 3)
    assert sums[:2].eq(-torch.inf).all()
    torch.testing.assert_close(sums[2], values.logsumexp(0))
    assert (
        logsumexp_of_classes(values[:0], torch.tensor([], dtype=torch.long), 3).eq(-torch.inf).all()
    )
