import logging
import pickle

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from sgr.checkpoints.checkpointer import SafeCheckpointer
from sgr.modeling.backbone import SwinTransformer


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


@pytest.mark.parametrize("kind", ["of another Swin", "of a frozen norm", "in other shapes"])
def test_buffers_are_no_parameters(kind, tmp_path):
    """What is taken, or filled in, although the file has nothing for the model to learn from."""
    if kind == "of another Swin":
        model, words = Segmentor(embed_dim=16, num_heads=(2, 4)), r"is \(8, .* the file, \(16, "
        save_imagenet_weights(Segmentor().backbone, tmp_path / "other.pth")
    elif kind == "of a frozen norm":
        file = nn.ModuleDict({"linear": nn.Linear(2, 2)})
        model = nn.Sequential(nn.Conv2d(3, 4, 1), FrozenBatchNorm2d(4))
        words = "it has linear.weight, linear.bias .*the model 0.weight"
        SafeCheckpointer(file, str(tmp_path)).save("other")
    else:
        file, model = nn.Linear(3, 4), nn.Linear(2, 3)
        words = r"weight is \(4, 3\) in the file, \(3, 2\) in the model"
        SafeCheckpointer(file, str(tmp_path)).save("other")
    with pytest.raises(ValueError, match=f"holds no parameter .*{words}.*another model"):
        SafeCheckpointer(model).load(str(tmp_path / "other.pth"))


def test_models_without_parameters(tmp_path):
    norm, other = FrozenBatchNorm2d(4), FrozenBatchNorm2d(4)
    norm.running_mean += 1
    SafeCheckpointer(norm, str(tmp_path)).save("model")
    SafeCheckpointer(other).load(str(tmp_path / "model.pth"))
    assert torch.equal(other.running_mean, norm.running_mean)


def test_one_of_two_tied_names_is_enough(tmp_path):
    tied = nn.ModuleDict({"first": nn.Linear(2, 2, bias=False)})
    torch.save({"second.weight": torch.ones(2, 2)}, tmp_path / "tied.pth")
    tied["second"] = nn.Linear(2, 2, bias=False)
    tied["second"].weight = tied["first"].weight
    SafeCheckpointer(tied).load(str(tmp_path / "tied.pth"))
    assert (tied["first"].weight == 1).all()


def test_state_dict_of_another_trainer(model, tmp_path):
    file = {"meta": {"epoch": 3}, "state_dict": model.state_dict(), "optimizer": {"state": {}}}
    torch.save(file, tmp_path / "mm.pth")
    other = nn.Linear(2, 3)
    assert "optimizer" not in SafeCheckpointer(other).load(str(tmp_path / "mm.pth"))
    assert torch.equal(other.weight, model.weight)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.zeros(2)], "holds a list;"),
        (torch.zeros(2), "holds a Tensor;"),
        ({"epoch": 1, "net": {"weight": torch.zeros(2)}}, "holds a dict of 'epoch', 'net';"),
        ({"model": [1], "iteration": 3}, "holds a dict of 'model', 'iteration';"),
        ({"model": {"weight": 1}}, "holds a dict of 'model';"),
    ],
)
def test_files_of_another_kind(model, content, words, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=f"other.pth' {words} a checkpoint is .*{{name: tensor}}"):
        SafeCheckpointer(model).load(str(tmp_path / "other.pth"))


def test_pickle_of_another_kind(model, tmp_path):
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match="list.pkl' is damaged or no checkpoint: AttributeError"):
        SafeCheckpointer(model, allow_pickle=True).load(str(tmp_path / "list.pkl"))


@pytest.mark.parametrize("text", ["", "hello", "import torch", "1", "t", "A:\n  b: 1", "K", "("])
@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".pyth"])
@pytest.mark.parametrize("allow_pickle", [True, False])
def test_texts(model, text, suffix, allow_pickle, tmp_path):
    """Read as pickles they raise all kinds of errors."""
    file = tmp_path / f"text{suffix}"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"text{suffix}' is damaged"):
        SafeCheckpointer(model, allow_pickle=allow_pickle).load(str(file))


def test_no_weights_is_fine(model):
    assert SafeCheckpointer(model).load("") == {}


TINY_SWIN = {
    "embed_dim": 8,
    "depths": (2, 2),
    "num_heads": (1, 2),
    "out_features": ("res2", "res3"),
}


class Segmentor(nn.Module):
    """A Swin in a model, a head, and the buffers that Detectron2 treats apart."""

    def __init__(self, **options):
        super().__init__()
        self.backbone = SwinTransformer(**{**TINY_SWIN, **options})
        self.head = nn.Linear(16, 3)
        self.register_buffer("pixel_mean", torch.zeros(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.ones(3, 1, 1))


def save_imagenet_weights(swin, file):
    """As in the original release of Swin."""
    state = {name: v for name, v in swin.state_dict().items() if not name.startswith("norm")}
    state |= {"norm.weight": torch.ones(16), "head.weight": torch.zeros(3, 16)}
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    if file.suffix == ".pkl":  # as Mask2Former's conversion script leaves it
        file.write_bytes(
            pickle.dumps({"model": state, "__author__": "third_party", "matching_heuristics": True})
        )
    else:
        torch.save({"model": state}, file)


class MadeUpBackbone(nn.Module):
    """It knows its classifier's files, whose names begin with "trunk.", and resizes a table."""

    def __init__(self, length=4):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.table = nn.Parameter(torch.zeros(length))

    def adapt_checkpoint(self, prefix, state):
        own = {prefix + name: state.get(f"trunk.{name}") for name in self.state_dict()}
        own = {name: value for name, value in own.items() if value is not None}
        table = own.get(f"{prefix}table", state.get(f"{prefix}table"))
        if table is not None and table.shape != self.table.shape:
            own[f"{prefix}table"] = table.repeat(len(self.table) // len(table))
        return own


@pytest.mark.parametrize("names", ["of a classifier", "of the model"])
def test_a_backbone_says_how_files_fit_it(names, tmp_path, caplog):
    """Twice in the model: both get the weights of a classifier."""
    model = nn.ModuleDict({name: MadeUpBackbone(4) for name in ("one", "two")})
    file = MadeUpBackbone(2)
    nn.init.constant_(file.table, 3.0)
    prefixes = ["trunk."] if names == "of a classifier" else ["one.", "two."]
    state = {p + name: value for p in prefixes for name, value in file.state_dict().items()}
    if names == "of a classifier":
        state["head.weight"] = torch.zeros(5, 4)
    torch.save({"model": state}, tmp_path / "file.pth")
    with caplog.at_level(logging.WARNING):
        SafeCheckpointer(model).load(str(tmp_path / "file.pth"))
    for backbone in model.values():
        assert torch.equal(backbone.conv.weight, file.conv.weight)
        assert backbone.table.tolist() == [3.0] * 4
    assert not caplog.messages  # the head is left out, as it is none of the model's


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_imagenet_weights_of_swin(suffix, tmp_path, caplog):
    swin, model = SwinTransformer(**TINY_SWIN), Segmentor()
    save_imagenet_weights(swin, tmp_path / f"swin{suffix}")
    head = model.head.weight.clone()
    with caplog.at_level(logging.INFO):
        SafeCheckpointer(model, allow_pickle=suffix == ".pkl").load(str(tmp_path / f"swin{suffix}"))
    for name, value in model.backbone.state_dict().items():
        if not name.startswith("norm"):
            assert torch.equal(value, swin.state_dict()[name])
    assert torch.equal(model.head.weight, head)
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    message = warning.getMessage()
    assert "backbone.norm*.* (4 tensors)" in message and "head.* (2 tensors)" in message
    assert "unexpected" not in message and "attn_mask" not in message and "pixel" not in message
    assert sum("Recognised ImageNet weights of Swin" in text for text in caplog.messages) == 1


def test_a_model_with_windows_of_another_size(tmp_path, caplog):
    torch.save(Segmentor(window_size=4).state_dict(), tmp_path / "small.pth")
    with caplog.at_level(logging.INFO):
        SafeCheckpointer(Segmentor(window_size=6)).load(str(tmp_path / "small.pth"))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "from windows of 4 patches to 6" in caplog.text


def test_what_does_not_fit_is_one_table(tmp_path, caplog):
    state = Segmentor().state_dict()
    state["head.weight"] = torch.zeros(5, 16)
    del state["head.bias"]
    state["old.weight"] = torch.zeros(2)
    torch.save(state, tmp_path / "other.pth")
    with caplog.at_level(logging.WARNING):
        SafeCheckpointer(Segmentor()).load(str(tmp_path / "other.pth"))
    (message,) = caplog.messages
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in message.splitlines()[3:]]
    assert rows == [
        ["missing", "head.bias", "", "(3,)"],
        ["unexpected", "old.weight", "(2,)", ""],
        ["mismatched", "head.weight", "(5, 16)", "(3, 16)"],
    ]


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_that_fits_is_not_commented_on(prefix, tmp_path, caplog):
    state = Segmentor().state_dict()
    del state["pixel_std"]  # the config's, as Detectron2 has it
    torch.save({prefix + name: value for name, value in state.items()}, tmp_path / "same.pth")
    with caplog.at_level(logging.WARNING):
        SafeCheckpointer(Segmentor()).load(str(tmp_path / "same.pth"))
    assert not caplog.messages


def test_an_address_that_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    address = "http://127.0.0.1:9/model.pth"
    with pytest.raises(OSError, match=f"the weights '{address}' .* cannot be fetched: .*download"):
        SafeCheckpointer(torch.nn.Linear(2, 2)).load(address)
