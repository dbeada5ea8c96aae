from pathlib import Path

import pytest
import torch

from two_processes import run_twice


@pytest.fixture
def shares(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)  # for the other processes, too
    import tree_share

    return tree_share


def test_two_processes_equal_one(shares, tmp_path):
    """Gradients under DDP. The second process has few labels, and no triplets.

    A process chooses triplets in its own images, and the mean is over the classes of all.
    """
    features, labels = torch.randn(4, 4, 18, 16), torch.randint(5, (4, 18, 16))
    labels[2:, 2:] = 255
    labels[2:, :2] = 4  # a class without siblings
    model = shares.Step()
    halves = [(features[:2], labels[:2]), (features[2:], labels[2:])]
    results = run_twice(shares.gradients_of_share, tmp_path, model.state_dict(), halves)
    sum(model(features, labels).values()).backward()
    expected = {name: each.grad for name, each in model.named_parameters()}
    # The projection learns from the triplets of the first process, the only ones.
    alone = shares.Step()
    alone.load_state_dict(model.state_dict())
    inputs = [{"sem_seg": each} for each in halves[0][1]]
    record = {"backbone": {"res5": halves[0][0]}}
    sum(alone.triplet(None, record, inputs).values()).backward()
    for name, each in alone.named_parameters():
        if name.startswith("triplet"):
            expected[name] = each.grad
    for gradients in results:
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4)
