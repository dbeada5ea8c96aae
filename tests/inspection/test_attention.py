"""Recorded attention, beside the formula written out."""

import math

import pytest
import torch

from sgr.inspection.attention import record_attention
from sgr.modeling.reasoning import GloRe, SemanticGlobalReasoning
from sgr.modeling.reasoning.position_encoding import sine_encoding

OPTIONS = {"num_concepts": 5, "token_dim": 8, "num_heads": 2, "dim_feedforward": 16}


def literal_attention(attention, tokens):
    """(B, heads, K, K): softmax of the scaled products of queries and keys, head by head."""
    width = tokens.shape[-1]
    query, key = (
        tokens @ attention.in_proj_weight[part * width : (part + 1) * width].T
        + attention.in_proj_bias[part * width : (part + 1) * width]
        for part in (0, 1)
    )
    size = width // attention.num_heads
    heads = []
    for head in range(attention.num_heads):
        channels = slice(head * size, (head + 1) * size)
        products = query[..., channels] @ key[..., channels].mT / math.sqrt(size)
        heads.append(products.softmax(dim=-1))
    return torch.stack(heads, dim=1)


def test_weights_of_the_mixer():
    module = SemanticGlobalReasoning(6, num_layers=2, **OPTIONS).eval()
    x = torch.randn(2, 6, 4, 5)
    with torch.inference_mode():
        expected, regions = module(x)
        with record_attention(module) as recorded:
            found, _ = module(x)
        torch.testing.assert_close(found, expected)
        tokens = regions.tokens + sine_encoding(regions.centroids, 4).flatten(-2)
        (weights,) = recorded.values()
        assert weights.shape == (2, 2, 2, 5, 5)
        for layer, encoder in enumerate(module.mixer.layers):
            literal = literal_attention(encoder.self_attn, tokens)
            torch.testing.assert_close(weights[:, layer], literal)
            tokens = encoder(tokens)
    assert list(recorded) == ["concept_regions"]


@pytest.mark.parametrize("token_mixer", ["graph", None])
def test_graphs_have_none(token_mixer):
    if token_mixer is None:
        module = GloRe(6, num_concepts=5, token_dim=8)
    else:
        module = SemanticGlobalReasoning(6, token_mixer=token_mixer, **OPTIONS)
    with record_attention(module.eval()) as recorded, torch.inference_mode():
        module(torch.randn(1, 6, 4, 5))
    assert not recorded


def test_the_latest_pass_counts():
    module = SemanticGlobalReasoning(6, **OPTIONS).eval()
    first, second = torch.randn(2, 1, 6, 4, 5)
    with record_attention(module) as recorded, torch.inference_mode():
        module(second)
        expected = recorded["concept_regions"]
    with record_attention(module) as recorded, torch.inference_mode():
        module(first)
        module(second)
    assert torch.equal(recorded["concept_regions"], expected)


def test_hooks_are_gone_at_the_end():
    module = SemanticGlobalReasoning(6, **OPTIONS).eval()
    with pytest.raises(KeyError):
        with record_attention(module):
            raise KeyError
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in module.modules())
