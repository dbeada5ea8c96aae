import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sgr.load import load_model
from sgr.modeling.reasoning import ReasoningModule

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("analyze_model", ROOT / "tools/analyze_model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


class _Attention(ReasoningModule):
    """A 1x1 convolution and the attention of cells to each other, of known cost."""

    def __init__(self):
        super().__init__(8)
        self.conv = nn.Conv2d(8, 8, 1)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x):
        return self.layer(self.conv(x).flatten(2).transpose(1, 2)).sum()


class _Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.reasoning = _Attention()

    def forward(self, batched_inputs):
        x = self.stem(batched_inputs[0]["image"][None])
        return [{"sem_seg": torch.erf(x[0] + self.reasoning(x))}]


def test_counts_of_a_small_model(tool):
    cost = tool.analyze(_Model(), size=16)
    cells, norms = 16, 2 * 5 * 8 * 16  # fvcore: 5 flops per element of an affine layer norm
    layer = cells * (4 * 8 * 8 + 2 * 8 * 16) + norms
    assert cost.size == 16
    assert cost.reasoning.gflops * 1e9 == pytest.approx(cells * 64 + layer)
    assert cost.model.gflops * 1e9 == pytest.approx(cells * 3 * 16 * 8 + cells * 64 + layer)
    assert cost.model.attention_gflops == cost.reasoning.attention_gflops
    assert cost.model.attention_gflops * 1e9 == pytest.approx(2 * cells * cells * 8)
    assert cost.model.params_m * 1e6 == sum(p.numel() for p in _Model().parameters())
    assert cost.reasoning.params_m * 1e6 == sum(p.numel() for p in _Attention().parameters())
    assert cost.uncounted_ops["aten::erf"] == 1
    assert torch.backends.mha.get_fastpath_enabled()


def test_table_names_what_is_left_out(tool):
    table = tool.format_table(tool.analyze(_Model(), size=16))
    assert "16 x 16" in table and "aten::erf x1" in table


def test_only_semantic_segmentation_can_be_counted(tool):
    class Detector(nn.Module):
        def forward(self, batched_inputs):
            return [{"instances": batched_inputs[0]["image"]}]

    with pytest.raises(ValueError, match=r"Detector gives \['instances'\] but no 'sem_seg'"):
        tool.analyze(Detector(), size=16)


@pytest.mark.parametrize(
    ("config", "gflops", "params_m"),
    [
        ("coco-stuff-10k-171/maskformer_R101_bs16_78750", 75.15, 60.20),
        ("coco-stuff-10k-171/fcn_R101_bs16_78750", 224, 52.15),
        ("ade20k-150/maskformer_swin_tiny_bs16_160k", 57.26, 41.76),
        ("ade20k-150/mask2former_R101_bs16_160k", 90.20, 63.03),
        ("ade20k-150/mask2former_swin_tiny_bs16_160k", 73.64, 47.44),
    ],
)
def test_models_cost_what_is_published(tool, config, gflops, params_m):
    # The published parameters are those of trainable norms.
    opts = ["MODEL.DEVICE", "cpu"]
    if "mask2former_R101" in config:
        opts += ["MODEL.RESNETS.NORM", "BN"]
    cost = tool.analyze(load_model(CONFIGS / f"{config}.yaml", "", *opts)[0]).model
    assert cost.published_gflops == pytest.approx(gflops, rel=0.01)
    assert cost.params_m == pytest.approx(params_m, abs=0.005)


def test_table_a_stands_beside_the_papers(tool):
    costs = [tool.analyze(_Model(), size=16)] * 4
    rows = tool.format_table_a(costs).splitlines()[2:]
    published = f"{costs[0].model.published_gflops:.2f}"
    for row, (method, paper) in zip(
        rows,
        [("Dil-FCN", 224), ("Dil-FCN + SGR", 236), ("MaskFormer", 75), ("MaskFormer + SGR", 80)],
        strict=True,
    ):
        assert row.startswith(f"{method} ") and row.split()[-5:-3] == [published, str(paper)]
    assert all((tool._CONFIGS / file).is_file() for _, file, _ in tool._TABLE_A)


def test_sgr_stays_within_its_budget(tool, capsys):
    """75 -> at most 79.5 GFLOPs, where the paper's table says 80; printed as JSON."""
    config = CONFIGS / "coco-stuff-10k-171/maskformer_R101_sgr_bs16_78750.yaml"
    assert tool.main(["--config-file", str(config), "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)
    assert cost["size"] == 512
    assert cost["model"]["gflops"] + cost["model"]["auxiliary_gflops"] < 79.5
    assert 0 < cost["reasoning"]["gflops"] <= 4.25
    assert cost["reasoning"]["params_m"] < cost["model"]["params_m"]
