"""Weights by other names than those of files."""

import hashlib
import sys
import types

import pytest
import torch
from torch import nn

from sgr.checkpoints.checkpointer import SafeCheckpointer


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with weights of a linear layer, whose import fails; and the layer."""
    model = nn.Linear(2, 3)
    folder = tmp_path / "some_weights" / "files"
    folder.mkdir(parents=True)
    (tmp_path / "some_weights" / "__init__.py").write_text("raise RuntimeError('code ran')")
    torch.save(model.state_dict(), folder / "model.pth")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder / "model.pth", model


def load(path):
    model = nn.Linear(2, 3)
    SafeCheckpointer(model).load(path)
    return model


def test_file_of_a_package(package):
    file, model = package
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    for fragment in ("", f"#sha256={digest}"):
        loaded = load(f"package://some_weights/files/model.pth{fragment}")
        assert torch.equal(loaded.weight, model.weight)


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("some_weights/files/model.pth#sha256=12ab", ValueError, "SHA-256 .* instead of 12ab"),
        ("some_weights/files/model.pth#md5=12ab", ValueError, "only #sha256=DIGEST is known"),
        ("some_weights/other.pth", FileNotFoundError, "'some_weights' has no file 'other.pth'"),
        ("no_such_weights/a.pth", FileNotFoundError, "pip install no-such-weights"),
        ("json.tool/a.pth", FileNotFoundError, "not installed"),
        ("", FileNotFoundError, "not installed"),
    ],
)
def test_what_cannot_be(package, path, error, words):
    with pytest.raises(error, match=words):
        load(f"package://{path}")


def test_file_of_the_hub(tmp_path, monkeypatch):
    safetensors = pytest.importorskip("safetensors.torch")
    model, asked = nn.Linear(2, 3), []
    file = tmp_path / "model.safetensors"
    safetensors.save_file(model.state_dict(), file)

    def download(repository, name, revision):
        asked.append((repository, name, revision))
        if revision == "gone":
            raise OSError("no route to host")
        return str(file)

    client = types.SimpleNamespace(hf_hub_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    assert torch.equal(load("hf-hub:timm/resnet50.a1_in1k").weight, model.weight)
    assert asked[0] == ("timm/resnet50.a1_in1k", "model.safetensors", None)
    with pytest.raises(FileNotFoundError, match="no route.*huggingface.co/a/b/resolve/gone/model"):
        load("hf-hub:a/b@gone")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        load("hf-hub:a/b")


def test_damaged_safetensors(tmp_path):
    pytest.importorskip("safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"12345678 no header")
    with pytest.raises(ValueError, match="model.safetensors' is damaged or no checkpoint"):
        load(str(tmp_path / "model.safetensors"))


def test_without_safetensors(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        load(str(tmp_path / "model.safetensors"))
