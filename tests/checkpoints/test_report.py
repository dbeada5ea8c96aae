import pytest
import torch
from torch import nn

from sgr.checkpoints.report import report_differences


def tree(**children):
    return nn.ModuleDict(children)


@pytest.fixture
def model():
    return tree(
        backbone=tree(
            layers=nn.ModuleList(tree(fc=nn.Linear(2, 2), norm=nn.LayerNorm(2)) for _ in range(3)),
            stem=nn.Linear(2, 2),
        ),
        head=tree(predictor=nn.Linear(2, 5), decoder=nn.Linear(2, 2)),
    )


def report(model, file=None, *, missing=(), unexpected=(), mismatched=()):
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    table = report_differences(
        model,
        shapes if file is None else file,
        missing=missing,
        unexpected=unexpected,
        mismatched=mismatched,
    )
    if table is None:
        return None
    return [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in table.split("\n")[2:]]


def names(model, words):
    return [name for name in model.state_dict() if words in name]


def test_nothing_to_tell(model):
    assert report(model) is None


def test_single_tensors(model):
    rows = report(
        model,
        {"head.old.bias": (7,), "head.predictor.weight": (9, 2)},
        missing=["head.predictor.bias", "head.predictor.weight"],
        unexpected=["head.old.bias"],
        mismatched=[("head.predictor.weight", (9, 2), (5, 2))],
    )
    assert rows == [
        ("missing", "head.predictor.bias", "", "(5,)"),
        ("unexpected", "head.old.bias", "(7,)", ""),
        ("mismatched", "head.predictor.weight", "(9, 2)", "(5, 2)"),
    ]


def test_what_is_missing_as_a_whole_is_one_row(model):
    rows = report(model, missing=names(model, "head."))
    assert rows == [("missing", "head.* (4 tensors)", "", "(5, 2), ...")]
    rows = report(model, missing=names(model, "head.predictor."))
    assert rows == [("missing", "head.predictor.* (2 tensors)", "", "(5, 2), ...")]


def test_numbered_names_are_one_row(model):
    assert report(model, missing=names(model, "fc.weight")) == [
        ("missing", "backbone.layers.*.fc.weight (3 tensors)", "", "(2, 2)")
    ]
    some = [name for name in names(model, ".norm.") if ".1." not in name]
    assert report(model, missing=some) == [
        ("missing", "backbone.layers.*.norm.* (4 tensors)", "", "(2,)")
    ]


def test_what_is_unexpected_folds_by_the_names_in_the_file(model):
    file = {"backbone.stem.weight": (2, 2)}
    extra = {f"backbone.res{i}.{j}.conv.weight": (4, i) for i in (2, 3) for j in range(4)}
    assert report(model, {**file, **extra}, unexpected=extra) == [
        ("unexpected", "backbone.res*.* (8 tensors)", "(4, 2), ...", "")
    ]


def test_equal_numbers_stay(model):
    some = [f"backbone.layers.1.fc.{name}" for name in ("weight1", "weight2")]
    assert report(
        model, {**dict.fromkeys(some, (2,)), "backbone.layers.1.fc.bias": (2,)}, unexpected=some
    ) == [("unexpected", "backbone.layers.1.fc.weight* (2 tensors)", "(2,)", "")]


def test_mismatches_keep_their_names(model):
    found = [(name, (9, 9), (2, 2)) for name in names(model, "fc.weight")]
    assert report(model, mismatched=found) == [
        ("mismatched", "backbone.layers.*.fc.weight (3 tensors)", "(9, 9)", "(2, 2)")
    ]


def test_a_shared_parameter_that_came_by_its_other_name(model):
    model["head"]["predictor"].weight = nn.Parameter(torch.zeros(5, 2))
    model["head"]["twin"] = model["head"]["predictor"]
    assert report(model, missing=["head.twin.weight", "head.twin.bias"]) is None
    rows = report(model, missing=[*names(model, "head.twin."), *names(model, "head.predictor.")])
    assert [row[1] for row in rows] == ["head.predictor.* (2 tensors)", "head.twin.* (2 tensors)"]


def test_names_that_the_file_lists_otherwise(model):
    """As after the conversion of a Caffe2 file."""
    assert report(model, {}, unexpected=["a.b"]) == [("unexpected", "a.b", "", "")]
