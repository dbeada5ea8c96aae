"""Replacing a feature map in whatever a module puts out."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from sgr.modeling.reasoning.features import replace_feature

Pair = namedtuple("Pair", "first second")


@dataclass(frozen=True)
class Frozen:
    maps: torch.Tensor
    name: str = "x"


class Box(OrderedDict):
    """A dict whose items are attributes, as the outputs of transformers are."""

    def __getattr__(self, name):
        return self[name]


def features():
    return torch.zeros(1), torch.ones(1)


@pytest.mark.parametrize(
    ("make", "keys", "read"),
    [
        (lambda a, b: b, (), lambda out: out),
        (lambda a, b: [a, b], (), lambda out: out[1]),
        (lambda a, b: (a, b), ("-2",), lambda out: out[0]),
        (lambda a, b: Pair(a, b), ("1",), lambda out: out.second),
        (lambda a, b: {"out": a, "aux": b}, (), lambda out: out["aux"]),
        (lambda a, b: OrderedDict(aux=b, out=a), ("aux",), lambda out: out["aux"]),
        (lambda a, b: {0: a, 1: b}, ("1",), lambda out: out[1]),
        (lambda a, b: Box(feature_maps=(a, b), logits=a), (), lambda out: out["feature_maps"][1]),
        (lambda a, b: SimpleNamespace(feature_maps=[a, b]), (), lambda out: out.feature_maps[1]),
        (lambda a, b: SimpleNamespace(x=a, y=(a, {"z": b})), ("y",), lambda out: out.y[1]["z"]),
        (lambda a, b: Frozen(b), ("maps",), lambda out: out.maps),
    ],
)
def test_replaces_one_feature_in_a_copy(make, keys, read):
    first, second = features()
    output = make(first, second)
    place = second if read(output) is second else first
    replaced = replace_feature(output, keys, lambda feature: feature + 5)
    assert type(replaced) is type(output)
    assert torch.equal(read(replaced), place + 5) and read(output) is place
    again = replace_feature(replaced, keys, lambda feature: place)
    assert str(again) == str(output)  # and nothing else


@pytest.mark.parametrize(
    ("output", "keys", "words"),
    [
        ({"out": torch.zeros(1)}, ("aux",), "a dict has no 'aux'; it has: out"),
        ([torch.zeros(1)], ("1",), "a list has no '1'; it has: -1, 0"),
        ((), (), "no feature map in a tuple"),
        ("text", (), "no feature map in a str"),
        ({"loss": None}, (), "no feature map in a NoneType"),
        (torch.zeros(1), ("aux",), "a Tensor has no 'aux'"),
    ],
)
def test_no_such_feature(output, keys, words):
    with pytest.raises(ValueError, match=words):
        replace_feature(output, keys, lambda feature: feature)
