import pickle

import pytest
import torch
from torch import nn

from sgr.checkpoint import SafeCheckpointer


class Evil:
    """Unpickling it writes a file."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return (open, (str(self.victim), "w"))


@pytest.fixture
def model():
    return nn.Linear(2, 3)


def test_round_trip(model, tmp_path):
    SafeCheckpointer(model, str(tmp_path)).save("model", iteration=5)
    other = nn.Linear(2, 3)
    rest = SafeCheckpointer(other).load(str(tmp_path / "model.pth"))
    assert torch.equal(other.weight, model.weight) and rest["iteration"] == 5


def test_bare_state_dict(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    other = nn.Linear(2, 3)
    SafeCheckpointer(other).load(str(tmp_path / "bare.pth"))
    assert torch.equal(other.weight, model.weight)


def test_no_code_runs(model, tmp_path):
    victim = tmp_path / "victim"
    torch.save({"model": model.state_dict(), "more": Evil(victim)}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="evil.pth.*--allow-pickle"):
        SafeCheckpointer(model).load(str(tmp_path / "evil.pth"))
    assert not victim.exists()


def test_pickles_need_a_flag(model, tmp_path):
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    file = tmp_path / "R-101.pkl"
    file.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}))
    other = nn.Linear(2, 3)
    with pytest.raises(ValueError, match="R-101.pkl.*--allow-pickle"):
        SafeCheckpointer(other).load(str(file))
    SafeCheckpointer(other, allow_pickle=True).load(str(file))
    assert torch.equal(other.weight, model.weight)


def test_missing_file(model):
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        SafeCheckpointer(model).load("nowhere.pth")


def test_names_of_the_model_zoo_are_fetched(model, tmp_path, monkeypatch):
    """As "detectron2://ImageNetPretrained/torchvision/R-50.pkl", without a network."""
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    file = tmp_path / "R-50.pkl"
    file.write_bytes(pickle.dumps({"model": arrays, "__author__": "torchvision"}))
    other = nn.Linear(2, 3)
    checkpointer = SafeCheckpointer(other, allow_pickle=True)
    handler = checkpointer.path_manager._PathManager__get_path_handler("detectron2://x")
    monkeypatch.setattr(handler, "_get_local_path", lambda path, **kwargs: str(file))
    checkpointer.load("detectron2://ImageNetPretrained/torchvision/R-50.pkl")
    assert torch.equal(other.weight, model.weight)


def test_damaged_file(model, tmp_path):
    SafeCheckpointer(model, str(tmp_path)).save("model")
    file = tmp_path / "model.pth"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match="model.pth"):
        SafeCheckpointer(model).load(str(file))


def test_checkpoint_of_another_model(model, tmp_path):
    SafeCheckpointer(nn.Sequential(nn.Linear(2, 3)), str(tmp_path)).save("other")
    with pytest.raises(ValueError, match="0.weight.*another model"):
        SafeCheckpointer(model).load(str(tmp_path / "other.pth"))


def test_no_weights_is_fine(model):
    assert SafeCheckpointer(model).load("") == {}
