from pathlib import Path

import pytest
import torch

from protoseg import PrototypeClassifier
from two_processes import run_twice


@pytest.fixture
def shares(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)  # for the other processes, too
    import prototype_shares

    return prototype_shares


@pytest.mark.parametrize("few", [False, True])
def test_two_processes_equal_one(shares, tmp_path, few):
    """In moves and gradients. The second process has no cell of class 0, the first none of 3.

    With few labels, each has one cell in the first step. After it only the first has one.
    """
    model = PrototypeClassifier(**shares.OPTIONS)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    features = torch.randn(3, 4, 6, 4, 5)  # steps, images
    labels = torch.randint(1, 3, (3, 4, 4, 5))
    labels[:, :2].masked_fill_(torch.rand(3, 2, 4, 5) < 0.3, 0)
    labels[:, 2:].masked_fill_(torch.rand(3, 2, 4, 5) < 0.3, 3)
    labels[:, ::2, 0] = 255
    if few:
        labels.masked_fill_(torch.arange(labels[0].numel()).view(labels.shape[1:]) > 5, 255)
        labels[0, 2, 1, 0] = 2
    steps = [
        [(x[part], y[part]) for part in (slice(0, 2), slice(2, 4))]
        for x, y in zip(features, labels)
    ]
    results = run_twice(shares.train_shares, tmp_path, state, steps)
    gradients, prototypes = shares.train(model, model, list(zip(features, labels)))
    start = state["prototypes"]
    for found, moved in results:
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient)
        for each, expected in zip(moved, prototypes):
            torch.testing.assert_close(each, expected)
            assert few or not torch.allclose(each, start, atol=1e-3)
    for each, other in zip(results[0][1], results[1][1]):
        assert torch.equal(each, other)
