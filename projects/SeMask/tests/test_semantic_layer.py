import pytest
import torch
from torch.nn import functional as F

from semask.semantic_layer import (
    SemanticAttention,
    SemanticLayer,
    SemanticRegionLayer,
    attend,
    log_odds,
)


def randomize(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module.eval()


def literal_attention(block, cells):
    """One group, cell by cell: (m, C) -> (m, K), (m, C)."""
    query = [block.mlp_cls_q.weight @ cell + block.mlp_cls_q.bias for cell in cells]
    key = [block.mlp_cls_k.weight @ cell + block.mlp_cls_k.bias for cell in cells]
    value = [block.mlp_v.weight @ cell + block.mlp_v.bias for cell in cells]
    mixed = []
    for cell, one in zip(cells, query):
        shares = torch.stack([(one * other).sum() for other in key]).exp()
        read = sum(share * each for share, each in zip(shares / shares.sum(), value))
        mixed.append(cell + block.gamma * (block.mlp_res.weight @ read + block.mlp_res.bias))
    return torch.stack(query), torch.stack(mixed)


@pytest.mark.parametrize("window", [0, 3])
def test_layer_is_its_definition(window):
    """Zeros pad the normalised map, and windows see them."""
    layer = randomize(SemanticLayer(4, 3, window_size=window, num_blocks=2)).double()
    maps = torch.randn(2, 4, 5, 4, dtype=torch.double)
    side = window or 5
    for image, features, semantic in zip(maps, *layer(maps)):
        normed = F.layer_norm(image, (4,), *layer.norm1.parameters())
        padded = torch.zeros(6 if window else 4, 6 if window else 5, 4, dtype=torch.double)
        padded[:4, :5] = normed
        for top in range(0, len(padded), side):
            for left in range(0, padded.shape[1], side):
                cut = padded[top : top + side, left : left + side]
                cells = cut.flatten(0, 1)
                for block in layer.class_injection:
                    query, cells = literal_attention(block, cells)
                inside = features[top : top + side, left : left + side]
                height, width = inside.shape[:2]
                expected = cells.unflatten(0, cut.shape[:2])[:height, :width]
                torch.testing.assert_close(inside, expected)
                expected = query.T.unflatten(1, cut.shape[:2])[:, :height, :width]
                inside = semantic[:, top : top + side, left : left + side]
                torch.testing.assert_close(inside, expected)


@pytest.mark.parametrize("file", ["swin_block", "swin_block_ns2"])
@pytest.mark.parametrize("kind", ["windowed", "global"])
def test_public_layer(reference, assert_near, file, kind):
    """Outputs and gradients."""
    data = reference(file)
    size = data.config
    layer = SemanticLayer(
        size["dim"],
        size["num_classes"],
        window_size=size["window_size"] if kind == "windowed" else 0,
        num_blocks=size["num_sem_blocks"],
    ).eval()
    layer.load_state_dict(data.group("state"))
    cells = data.tensors["input"].requires_grad_()
    shape = (size["height"], size["width"])
    features, semantic = layer(cells.unflatten(1, shape))
    features, semantic = features.flatten(1, 2), semantic.flatten(2).transpose(1, 2)
    expected = data.group(f"output/{kind}")
    assert_near(features, expected["features"])
    assert_near(semantic, expected["semantic"])
    weight = data.group("weight")
    ((features * weight["features"]).sum() + (semantic * weight["semantic"]).sum()).backward()
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    expected = data.group(f"gradient/{kind}")
    assert expected.keys() == {*gradients, "input"}
    for name, gradient in {**gradients, "input": cells.grad}.items():
        assert_near(gradient, expected[name])


def test_attention_in_parts():
    """The same, with gradients, for numbers of scores that the cells do not divide."""
    query, key = torch.randn(2, 2, 3, 7, 5, dtype=torch.double).requires_grad_().unbind(0)
    value = torch.randn(2, 3, 7, 4, dtype=torch.double, requires_grad=True)
    whole = attend(query, key, value)
    gradients = torch.autograd.grad(whole.square().sum(), (query, key, value))
    for most in (1, 130, 2 * 3 * 7 * 3):
        parts = attend(query, key, value, max_scores=most)
        torch.testing.assert_close(parts, whole)
        again = torch.autograd.grad(parts.square().sum(), (query, key, value))
        torch.testing.assert_close(again, gradients)


def test_attention_in_parts_holds_few_scores():
    """What autograd keeps for the backward pass."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    query = torch.randn(1, 1, 256, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        parts = attend(query, query, query, max_scores=256 * 16)
        assert sum(kept.values()) < 256 * 16
        whole = attend(query, query, query)
        assert sum(kept.values()) > 256 * 256
    torch.testing.assert_close(parts, whole)


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="needs a newer PyTorch")
def test_compiled_attention_in_parts_holds_few_scores():
    """As it is without compilation; only an exported program has no parts."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    compiled = torch.compile(attend, backend="eager", fullgraph=True)
    query = torch.randn(1, 1, 96, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        parts = compiled(query, query, query, 96 * 32)
    assert sum(kept.values()) < 96 * 32
    whole = attend(query, query, query)
    gradients = [torch.autograd.grad(each.square().sum(), query) for each in (parts, whole)]
    torch.testing.assert_close(*gradients)


def test_scores_are_exact_under_autocast():
    """Scores of hundreds: bfloat16 would choose another cell."""
    block = randomize(SemanticAttention(8, 6))
    for linear in (block.mlp_cls_q, block.mlp_cls_k):
        torch.nn.init.normal_(linear.weight, std=4.0)
    cells = torch.randn(1, 1, 40, 8)
    with torch.no_grad():
        exact = block(cells)
        assert (exact[0] @ exact[0].transpose(-1, -2)).abs().max() > 500
        with torch.autocast("cpu", torch.bfloat16):
            semantic, features = block(cells)
    assert torch.equal(semantic, exact[0])
    torch.testing.assert_close(features, exact[1], atol=0.05, rtol=0.02)


def test_dropout_and_start():
    """A tenth of the attention's result is dropped, as it is scaled; the cells are not."""
    block = SemanticAttention(64, 6)
    for linear in (block.mlp_cls_q, block.mlp_cls_k, block.mlp_v, block.mlp_res):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.15)
        assert linear.weight.abs().max() < 0.1 and linear.bias.abs().max() == 0
    torch.nn.init.constant_(block.gamma, 3.0)
    cells = torch.randn(1, 1, 300, 64)
    with torch.no_grad():
        kept = block.eval()(cells)[1] - cells
        found = block.train()(cells)[1] - cells
    is_dropped = found == 0
    assert is_dropped.float().mean().item() == pytest.approx(0.1, abs=0.01)
    torch.testing.assert_close(found, (kept / 0.9).where(~is_dropped, 0.0), atol=1e-6, rtol=1e-4)


def test_start_can_learn():
    """The scale has a gradient at once, what it scales in the second step."""
    layer = SemanticLayer(8, 5, window_size=2)
    block = layer.class_injection[0]
    maps = torch.randn(2, 4, 4, 8)
    torch.testing.assert_close(layer(maps)[0], F.layer_norm(maps, (8,)))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01)
    others = [linear.weight for linear in (block.mlp_v, block.mlp_cls_k, block.mlp_res)]
    target = torch.randn_like(maps)
    for step in range(2):
        optimizer.zero_grad()
        (layer(maps)[0] * target).sum().backward()
        assert block.gamma.grad.abs() > 1e-3
        for weight in others:
            assert bool(weight.grad.abs().sum() > 1e-6) == bool(step)
        optimizer.step()


def test_fixed_scale():
    layer = SemanticLayer(8, 5, learn_scale=False)
    assert layer.class_injection[0].gamma.item() == 1
    assert not layer.class_injection[0].gamma.requires_grad


def test_regions_are_the_softmax():
    layer = randomize(SemanticRegionLayer(4, 3, stride=8))
    output = layer(torch.randn(2, 5, 4, 4))
    regions = layer.concept_regions(output)
    assert regions.stride == 8
    torch.testing.assert_close(regions.probabilities, output[1].softmax(dim=1))


def test_regions_of_certain_maps():
    logits = torch.tensor([1e4, 0.0, -1e4]).view(1, 3, 1, 1)
    assert log_odds(logits).isfinite().all()
    torch.testing.assert_close(log_odds(logits).sigmoid(), logits.softmax(dim=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_size": -7}, "window_size is -7.*WINDOW_SIZES"),
        ({"num_blocks": 0}, r"num_blocks \(.*NUM_BLOCKS\) must be at"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        SemanticLayer(4, 3, **options)
