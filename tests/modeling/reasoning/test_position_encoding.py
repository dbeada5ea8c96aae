import math

import pytest
import torch

from sgr.modeling.reasoning import sine_encoding


def test_formula():
    code = sine_encoding(torch.tensor([[0.0, 2.5], [1.0, 7.0]], dtype=torch.float64), 6)
    assert code.shape == (2, 2, 6)
    for index, position in {(0, 0): 0.0, (0, 1): 2.5, (1, 0): 1.0, (1, 1): 7.0}.items():
        for i in range(3):
            angle = position / 10000 ** (2 * i / 6)
            assert code[index][2 * i].item() == pytest.approx(math.sin(angle))
            assert code[index][2 * i + 1].item() == pytest.approx(math.cos(angle))


def test_odd_channels():
    with pytest.raises(ValueError, match="5"):
        sine_encoding(torch.zeros(1), 5)
