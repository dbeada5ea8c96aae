import runpy

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from sgr.engine import load_config
from tiny_model import CHECKOUT, CONFIG, tiny_options

tool = runpy.run_path(str(CHECKOUT / "tools" / "compare_gradients.py"))
compare_gradients = tool["compare_gradients"]


class _Model(nn.Module):
    """Two losses on a shared layer; each has a layer of its own."""

    def __init__(self):
        super().__init__()
        self.shared = nn.ModuleDict({"first": nn.Linear(3, 3), "second": nn.Linear(3, 3)})
        self.task, self.concept = nn.Linear(3, 1), nn.Linear(3, 1)

    def forward(self, x):
        x = self.shared["second"](self.shared["first"](x))
        return {
            "loss_ce": self.task(x).square().mean(),
            "loss_mask": self.task(x).abs().mean(),
            "loss_concept_focal": self.concept(x).square().mean(),
        }


def literal(model, x, part):
    """The flat gradients of both groups with respect to the parameters of a part."""

    def gradient(names):
        model.zero_grad()
        losses = model(x)
        sum(losses[name] for name in names).backward()
        return torch.cat([p.grad.flatten() for n, p in model.named_parameters() if part in n])

    one, other = gradient(["loss_concept_focal"]), gradient(["loss_ce", "loss_mask"])
    return one.norm() / other.norm(), torch.cosine_similarity(one, other, dim=0)


def test_equals_the_literal_gradients():
    torch.manual_seed(0)
    model = _Model()
    batches = torch.randn(4, 5, 3)
    rows = compare_gradients(model, batches)
    # Of the other two layers, each is reached by one group only.
    assert [row.part for row in rows] == ["shared.first", "shared.second"]
    for row in rows:
        ratios, cosines = zip(*(literal(model, x, row.part) for x in batches))
        assert row.ratio == pytest.approx(torch.stack(ratios).mean().item(), rel=1e-5)
        assert row.cosine == pytest.approx(torch.stack(cosines).mean().item(), rel=1e-5)
        assert row.deviation == pytest.approx(torch.stack(cosines).std().item(), rel=1e-4)
    (whole,) = compare_gradients(model, batches, depth=1)
    assert whole.part == "shared"


def test_a_batch_in_which_nothing_is_labelled_does_not_count():
    torch.manual_seed(0)
    model = _Model()
    batches = torch.randn(2, 5, 3)
    rows = compare_gradients(model, batches)
    model.forward = lambda x, forward=model.forward: {
        name: loss * bool(x.any()) for name, loss in forward(x).items()
    }
    assert compare_gradients(model, [*batches, torch.zeros(5, 3)]) == rows


@pytest.mark.parametrize("losses, count", [("loss_other", "none"), ("loss", "each")])
def test_one_group_only(losses, count):
    with pytest.raises(ValueError, match=f"loss_ce, .*: {count} of them begins with {losses!r}"):
        compare_gradients(_Model(), torch.randn(1, 5, 3), losses)


def test_prints_a_table_for_each_checkpoint(tiny_shapes, tmp_path, capsys):
    files = [str(tmp_path / f"model_{index}.pth") for index in range(2)]
    for file in files:
        model = build_model(load_config(str(CONFIG), tiny_options()))
        torch.save({"model": model.state_dict()}, file)
    tool["main"](
        ["--config-file", str(CONFIG), "--batches", "1", "--weights", *files]
        + ["--depth", "1", *tiny_options()]
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines if line.startswith("gradients at")] == files
    assert [line.split()[0] for line in lines].count("backbone") == 2
