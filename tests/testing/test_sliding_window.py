"""Sliding windows beside a loop over the pixels of each."""

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn
from torch.nn import functional as F

from sgr.testing import SlidingWindowSegmentor
from sgr.testing.sliding_window import window_starts
from tiny_model import CONFIG, tiny_config


@pytest.mark.parametrize(
    "side, window, stride, starts",
    [
        (100, 40, 30, [0, 30, 60]),
        (101, 40, 30, [0, 30, 60, 61]),  # shifted inside
        (100, 50, 50, [0, 50]),
        (100, 100, 30, [0]),
        (41, 40, 40, [0, 1]),
        (30, 40, 20, [0]),
        (100, 99, 1, [0, 1]),
    ],
)
def test_starts(side, window, stride, starts):
    assert window_starts(side, window, stride) == starts


def test_every_pixel_is_in_a_window():
    for side in range(1, 60):
        for window in (7, 20):
            for stride in (1, 3, window):
                starts = window_starts(side, window, stride)
                covered = {p for start in starts for p in range(start, start + window)}
                assert set(range(side)) <= covered
                assert starts == sorted(set(starts))
                assert side < window or covered == set(range(side))


class Position(nn.Module):
    """Puts out the window's pixels, and how far they are from its upper left corner."""

    def __init__(self, divisibility=0):
        super().__init__()
        self.size_divisibility = divisibility
        self.windows = []
        self.eval()

    def forward(self, inputs):
        image = inputs[0]["image"].float()
        height, width = image.shape[-2:]
        self.windows.append((height, width))
        distance = torch.arange(height)[:, None] * 2.0 + torch.arange(width)
        return [{"sem_seg": torch.cat([image, distance[None]])}]


def literal(image, size, stride, model):
    """A sum and a count of each pixel."""
    height, width = image.shape[-2:]
    rows, columns = min(size[0], height), min(size[1], width)
    total = count = 0
    for top in window_starts(height, size[0], stride[0]):
        for left in window_starts(width, size[1], stride[1]):
            window = image[:, top : top + rows, left : left + columns]
            padding = (left, width - left - columns, top, height - top - rows)
            scores = model([{"image": window}])[0]["sem_seg"]
            total = total + F.pad(scores, padding)
            count = count + F.pad(torch.ones(1, rows, columns), padding)
    return total / count


@pytest.mark.parametrize("height, width", [(100, 130), (40, 130), (100, 33), (48, 64), (49, 65)])
def test_mean_over_the_windows(height, width):
    image = torch.rand(3, height, width) * 255
    model = Position()
    windows = SlidingWindowSegmentor(model, size=(48, 64), stride=(20, 31))
    actual = windows([{"image": image}])[0]["sem_seg"]
    torch.testing.assert_close(actual, literal(image, (48, 64), (20, 31), Position()))
    torch.testing.assert_close(actual[:3], image)
    assert set(model.windows) == {(min(height, 48), min(width, 64))}


def small(tmp_path, name, **more):
    return build_model(tiny_config(tmp_path, CONFIG.with_name(f"{name}.yaml"), **more)).eval()


@pytest.mark.parametrize("name", ["fcn_R50_sgr", "maskformer_R50_sgr"])
def test_models(tmp_path, name):
    model = small(tmp_path, name, TEST__TOKENS__ENABLED=False)
    windows = SlidingWindowSegmentor(model, size=(48, 64), stride=(32, 40))
    image = torch.rand(3, 80, 100) * 255
    (output,) = windows([{"image": image, "height": 90, "width": 70}])
    with torch.no_grad():
        expected = literal(image, (48, 64), (32, 40), model)
    expected = F.interpolate(expected[None], (90, 70), mode="bilinear")[0]
    torch.testing.assert_close(output["sem_seg"], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["fcn_R50_sgr", "maskformer_R50_sgr"])
@pytest.mark.parametrize("before", [False, True])
def test_a_window_as_large_as_the_image_is_the_model(tmp_path, name, before):
    model = small(
        tmp_path, name, MODEL__MASK_FORMER__TEST__SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE=before
    )
    inputs = [
        {"image": torch.rand(3, 64, 80) * 255, "height": 100, "width": 90},
        {"image": torch.rand(3, 50, 60) * 255},
    ]
    windows = SlidingWindowSegmentor(model, size=(64, 80), stride=(64, 80))
    outputs = windows(inputs)
    for each, output in zip(inputs, outputs):
        with torch.no_grad():
            assert torch.equal(output["sem_seg"], model([each])[0]["sem_seg"])
        assert list(output) == ["sem_seg"]


def test_labels():
    image = torch.rand(3, 70, 90) * 255
    options = {"size": (64, 64), "stride": (32, 32)}
    inputs = [{"image": image, "height": 35, "width": 60}]
    scores = SlidingWindowSegmentor(Position(), **options)(inputs)[0]["sem_seg"]
    labels = SlidingWindowSegmentor(Position(), **options, semantic_output="labels")(inputs)
    assert labels[0]["sem_seg"].dtype == torch.int32
    assert torch.equal(labels[0]["sem_seg"].long(), scores.argmax(0))


@pytest.mark.parametrize(
    "size, stride, message",
    [
        ((31, 64), (16, 16), r"at least 32 pixels with this model, got \[31, 64\]"),
        ((64, 64), (64, 0), "overlap by their whole size"),
        ((64, 64), (-5, 64), "overlap by their whole size"),
        ((64, 64), (64, 65), "pixels in no window"),
        ((64,), (64, 64), r"SIZE must be two integers.*\[64\]"),
        ((64, 64), (32.5, 64), "STRIDE must be two integers"),
    ],
)
def test_windows_that_make_no_sense(size, stride, message):
    with pytest.raises(ValueError, match=message):
        SlidingWindowSegmentor(Position(), size=size, stride=stride)


def test_windows_smaller_than_what_the_model_pads_to():
    with pytest.raises(ValueError, match="at least 128 pixels"):
        SlidingWindowSegmentor(Position(128), size=(96, 128), stride=(64, 64))


def test_training_mode():
    windows = SlidingWindowSegmentor(Position().train(), size=(64, 64), stride=(64, 64))
    with pytest.raises(RuntimeError, match="Position is in training mode"):
        windows([{"image": torch.rand(3, 70, 70)}])
