import pytest
import torch
from torch import nn

from sgr.modeling.layers.transformer import (
    Transformer,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
    TransformerEncoderOnly,
)

OPTIONS = {"num_heads": 4, "feedforward_dim": 24, "dropout": 0.0}


def _share_parameters(ours, theirs):
    theirs.load_state_dict(ours.state_dict())
    return theirs.eval()


@pytest.mark.parametrize("pre_norm", [False, True])
def test_without_positions_layers_are_those_of_torch(pre_norm):
    torch.manual_seed(0)
    tokens, memory = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    options = {"dropout": 0.0, "norm_first": pre_norm, "batch_first": True}

    ours = TransformerEncoderLayer(16, 4, 24, 0.0, pre_norm).eval()
    theirs = _share_parameters(ours, nn.TransformerEncoderLayer(16, 4, 24, **options))
    torch.testing.assert_close(ours(tokens, torch.zeros(1)), theirs(tokens))

    ours = TransformerDecoderLayer(16, 4, 24, 0.0, pre_norm).eval()
    theirs = _share_parameters(ours, nn.TransformerDecoderLayer(16, 4, 24, **options))
    torch.testing.assert_close(ours(tokens, memory, torch.zeros(1), memory), theirs(tokens, memory))


@pytest.mark.parametrize("pre_norm", [False, True])
def test_positions_reach_queries_and_keys_but_not_values(pre_norm):
    torch.manual_seed(0)
    layer = TransformerDecoderLayer(16, 4, 24, 0.0, pre_norm).eval()
    queries, memory = torch.randn(1, 3, 16), torch.randn(1, 6, 16)
    at, position = torch.randn(1, 3, 16), torch.randn(1, 6, 16)

    def attend(attention, query, key, value):
        return attention(query, key, value)[0]

    norms = (layer.norm1, layer.norm2, layer.norm3)
    x = queries
    read = norms[0](x) if pre_norm else x
    x = x + attend(layer.self_attn, read + at, read + at, read)
    x = x if pre_norm else norms[0](x)
    read = norms[1](x) if pre_norm else x
    x = x + attend(layer.multihead_attn, read + at, memory + position, memory)
    x = x if pre_norm else norms[1](x)
    read = norms[2](x) if pre_norm else x
    x = x + layer.linear2(layer.linear1(read).relu())
    x = x if pre_norm else norms[2](x)

    torch.testing.assert_close(layer(queries, memory, at, memory + position), x)


def test_encoder_without_layers_is_the_identity():
    tokens = torch.randn(2, 5, 16)
    assert torch.equal(TransformerEncoder(0, 16, **OPTIONS)(tokens, torch.zeros(1)), tokens)


def test_decoder_returns_every_layer_or_the_last_one():
    torch.manual_seed(0)
    decoder = TransformerDecoder(3, 16, return_intermediate=True, **OPTIONS).eval()
    inputs = torch.randn(2, 4, 16), torch.randn(2, 6, 16), torch.randn(1, 4, 16), torch.zeros(1)
    every = decoder(*inputs)
    assert every.shape == (3, 2, 4, 16)
    decoder.return_intermediate = False
    torch.testing.assert_close(decoder(*inputs), every[-1:])


def test_decoder_needs_a_layer():
    with pytest.raises(ValueError, match="at least 1 layer, got 0"):
        TransformerDecoder(0, 16, **OPTIONS)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_transformer_gives_every_parameter_a_gradient(pre_norm):
    torch.manual_seed(0)
    transformer = Transformer(
        16,
        encoder_layers=1,
        decoder_layers=2,
        pre_norm=pre_norm,
        return_intermediate=True,
        **OPTIONS,
    )
    query_position = torch.randn(5, 16, requires_grad=True)
    out = transformer(torch.randn(2, 16, 3, 4), torch.randn(1, 16, 3, 4), query_position)
    assert out.shape == (2, 2, 5, 16)
    (out * torch.randn_like(out)).sum().backward()
    assert query_position.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in transformer.parameters())
    assert (transformer.encoder.norm is not None) == pre_norm


def test_encoder_over_a_feature_map_keeps_cells_in_place():
    """Without positions an encoder treats all cells alike: flipped in, flipped out."""
    torch.manual_seed(0)
    encoder = TransformerEncoderOnly(2, 16, **OPTIONS).eval()
    features, nowhere = torch.randn(2, 16, 3, 4), torch.zeros(1, 16, 3, 4)
    out = encoder(features, nowhere)
    assert out.shape == features.shape
    torch.testing.assert_close(encoder(features.flip(-1), nowhere), out.flip(-1))
