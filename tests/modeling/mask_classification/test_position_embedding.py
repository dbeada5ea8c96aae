import math

import pytest
import torch

from sgr.modeling.mask_classification.position_embedding import SinePositionEmbedding
from sgr.modeling.reasoning import sine_encoding


def test_every_entry_against_the_formula():
    embedding = SinePositionEmbedding(12)(torch.zeros(2, 5, 3, 4))
    assert embedding.shape == (1, 12, 3, 4)
    for y in range(3):
        for x in range(4):
            for channel in range(12):
                position = (y + 1) / 3 if channel < 6 else (x + 1) / 4
                pair = channel % 6 // 2
                angle = 2 * math.pi * position / 10000.0 ** (2 * pair / 6)
                wave = math.cos if channel % 2 else math.sin
                assert embedding[0, channel, y, x].item() == pytest.approx(wave(angle), abs=1e-5)


def test_it_is_that_of_the_reasoning_modules_per_axis():
    embedding = SinePositionEmbedding(16)(torch.zeros(1, 1, 3, 5))[0]
    rows = torch.arange(1, 4) / (3 + 1e-6) * 2 * math.pi
    assert torch.equal(embedding[:8, :, 0].T, sine_encoding(rows, 8))


def test_type_follows_the_features():
    embedding = SinePositionEmbedding(8)(torch.zeros(1, 1, 2, 2, dtype=torch.float16))
    assert embedding.dtype == torch.float16


def test_width_must_be_a_multiple_of_four():
    with pytest.raises(ValueError, match="multiple of 4, got 10"):
        SinePositionEmbedding(10)
