import torch

from sgr.modeling.reasoning import SemanticGlobalReasoning, UniformReasoning

OPTIONS = {"num_concepts": 7, "token_dim": 8, "num_heads": 2, "dim_feedforward": 16}


def test_size_of_the_module_of_the_paper():
    control, module = UniformReasoning(6, **OPTIONS), SemanticGlobalReasoning(6, **OPTIONS)
    shapes = {name: value.shape for name, value in module.state_dict().items()}
    assert {name: value.shape for name, value in control.state_dict().items()} == shapes


def test_every_cell_gets_the_same_vector_and_every_region_the_same_token():
    control = UniformReasoning(6, **OPTIONS).eval()
    x = torch.rand(2, 6, 4, 5)
    enhanced, regions = control(x)
    added = (enhanced - x).flatten(2)
    torch.testing.assert_close(added, added[..., :1].expand_as(added))
    assert added.abs().max() > 1e-3
    torch.testing.assert_close(regions.probabilities, torch.full((2, 7, 4, 5), 1 / 8))
    torch.testing.assert_close(regions.tokens, regions.tokens[:, :1].expand_as(regions.tokens))
    assert not control.supervised_concepts


def test_all_that_is_trained_gets_gradients():
    control = UniformReasoning(6, **OPTIONS)
    control(torch.rand(2, 6, 4, 5))[0].sum().backward()
    for name, parameter in control.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad
        assert parameter.requires_grad != name.startswith("concepts.")
