"""SGR against a literal float64 oracle that builds X' and follows the paper's Sec. 3.1 and 3.2."""

import copy
import math

import pytest
import torch
from fvcore.nn import FlopCountAnalysis

from sgr.modeling.reasoning import ConceptRegions, SemanticGlobalReasoning


def literal_encoding(position: float, channels: int) -> list[float]:
    code = []
    for i in range(channels // 2):
        angle = position / 10000 ** (2 * i / channels)
        code += [math.sin(angle), math.cos(angle)]
    return code


def literal_norm(layer, tokens):
    centered = tokens - tokens.mean(-1, keepdim=True)
    variance = centered.square().mean(-1, keepdim=True)
    return centered / (variance + 1e-5).sqrt() * layer.weight + layer.bias


def literal_sgr(module, x, xy=True, centroid=True, pooling="sum", norm=False):
    """The paper, word by word, in the dtype of ``x`` (float64)."""
    batch, channels, height, width = x.shape
    pe_x = torch.zeros(channels, height, width, dtype=x.dtype)
    pe_y = torch.zeros(channels, height, width, dtype=x.dtype)
    if xy:
        for i in range(height):
            for j in range(width):
                pe_x[:, i, j] = torch.tensor(literal_encoding(j + 1, channels), dtype=x.dtype)
                pe_y[:, i, j] = torch.tensor(literal_encoding(i + 1, channels), dtype=x.dtype)
    positional = torch.cat([x + pe_x, x + pe_y], dim=1)  # Eq. 1
    regions = torch.sigmoid(module.concepts(positional))  # Eq. 2
    reduced = module.reduction(positional)

    tokens, centroids = [], []
    for b in range(batch):
        for k in range(module.num_concepts):
            p = regions[b, k]
            token = sum(  # Eq. 3
                p[i, j] * reduced[b, :, i, j] for i in range(height) for j in range(width)
            )
            if pooling == "mean":
                token = token / p.sum()
            center = (
                sum(  # Eq. 4
                    p[i, j] * torch.tensor([j + 1, i + 1], dtype=x.dtype)
                    for i in range(height)
                    for j in range(width)
                )
                / p.sum()
            )
            tokens.append(token)
            centroids.append(center)
    tokens = torch.stack(tokens).view(batch, module.num_concepts, -1)
    centroids = torch.stack(centroids).view(batch, module.num_concepts, 2)

    located = tokens
    if centroid:
        half = module.token_dim // 2
        frequencies = torch.tensor([10000 ** (-2 * i / half) for i in range(half // 2)]).to(x)
        codes = []
        for axis in range(2):
            angles = centroids[..., axis, None] * frequencies
            codes.append(torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2))
        located = tokens + torch.cat(codes, dim=-1)
    if norm:
        located = literal_norm(module.token_norm, located)
    refined = module.mixer(located)
    back = torch.zeros(batch, module.token_dim, height, width, dtype=x.dtype)
    for k in range(module.num_concepts):
        back = back + regions[:, k, None] * refined[:, k, :, None, None]
    return x + module.projection(back), regions, tokens, centroids


def relative_error(actual, expected):
    return (actual.double() - expected).norm() / expected.norm().clamp_min(1e-12)


def small(**arguments) -> SemanticGlobalReasoning:
    arguments = {
        "num_concepts": 6,
        "token_dim": 8,
        "num_heads": 2,
        "dim_feedforward": 16,
        **arguments,
    }
    return SemanticGlobalReasoning(10, **arguments).eval()


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("xy", [True, False])
@pytest.mark.parametrize("centroid", [True, False])
@pytest.mark.parametrize("mixer", ["transformer", "graph"])
@pytest.mark.parametrize("size", [(4, 4), (3, 5), (1, 1)])
def test_equals_the_paper(pooling, xy, centroid, mixer, size):
    module = small(
        token_pooling=pooling, xy_embedding=xy, centroid_embedding=centroid, token_mixer=mixer
    )
    x = torch.randn(2, 10, *size, requires_grad=True)
    out, regions = module(x)
    gradient_of = torch.randn_like(out)
    names, parameters = zip(*module.named_parameters())
    gradients = torch.autograd.grad((out * gradient_of).sum(), (x, *parameters))

    oracle = copy.deepcopy(module).double()
    x64 = x.detach().double().requires_grad_()
    expected, probabilities, tokens, centroids = literal_sgr(oracle, x64, xy, centroid, pooling)
    expected_gradients = torch.autograd.grad(
        (expected * gradient_of.double()).sum(), (x64, *oracle.parameters())
    )

    assert relative_error(out, expected) < 1e-5
    assert relative_error(regions.probabilities, probabilities) < 1e-5
    assert relative_error(regions.tokens, tokens) < 1e-5
    assert relative_error(regions.centroids, centroids) < 1e-5
    scale = max(gradient.norm() for gradient in expected_gradients)
    for name, gradient, wanted in zip(("x", *names), gradients, expected_gradients):
        # Gradients that vanish, as those of a key's bias, are compared on the scale of the others.
        error = (gradient.double() - wanted).norm() / max(wanted.norm(), 1e-3 * scale)
        assert error < 1e-5, name


def test_parameters_are_those_of_the_papers_convolutions():
    module = SemanticGlobalReasoning(64, num_concepts=12, token_dim=16)
    assert module.concepts.weight.shape == (12, 128, 1, 1)
    assert module.reduction.weight.shape == (16, 128, 1, 1)
    assert module.projection.weight.shape == (64, 16, 1, 1)


@pytest.mark.parametrize(
    ("channels", "cells", "bound"), [(2048, 16, 4.3e9), (512, 64, 8.8e9)], ids=["res5", "dilated"]
)
def test_cost(channels, cells, bound):
    module = SemanticGlobalReasoning(channels).eval()
    count = FlopCountAnalysis(module, torch.zeros(1, channels, cells, cells))
    count.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert 0.9 * bound < count.total() <= bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("pooling", "norm"), [("sum", False), ("sum", True), ("mean", False)])
@pytest.mark.parametrize("mixer", ["transformer", "graph"])
def test_autocast_does_not_overflow(dtype, pooling, norm, mixer):
    module = SemanticGlobalReasoning(
        32,
        num_concepts=256,
        token_dim=64,
        token_pooling=pooling,
        token_norm=norm,
        token_mixer=mixer,
    )
    module.eval()
    x = 30 * torch.randn(1, 32, 64, 64)
    with torch.no_grad():
        expected, exact = module(x)
        with torch.autocast("cpu", dtype=dtype):
            out, regions = module(x)
    assert out.dtype == x.dtype and out.isfinite().all()
    assert regions.tokens.dtype == torch.float32
    assert relative_error(regions.tokens, exact.tokens.double()) < 0.05
    assert relative_error(out, expected.double()) < 0.05


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_on_a_gpu_without_waiting(dtype, pooling):
    module = SemanticGlobalReasoning(32, num_concepts=64, token_dim=64, token_pooling=pooling)
    module.eval()
    x = torch.randn(2, 32, 64, 64)
    with torch.no_grad():
        expected, _ = module(x)
        module, x = module.cuda(), x.cuda()
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.autocast("cuda", dtype=dtype or torch.float16, enabled=dtype is not None):
                out, _ = module(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert relative_error(out.cpu(), expected.double()) < (1e-4 if dtype is None else 0.05)


def test_float64_stays_float64():
    module = small().double()
    out, regions = module(torch.randn(1, 10, 3, 3, dtype=torch.float64))
    assert out.dtype == regions.tokens.dtype == regions.probabilities.dtype == torch.float64


def test_token_norm():
    """The layer norm follows the centroids' embedding, and hides the size of regions."""
    x = torch.randn(2, 10, 4, 5)
    module = small(token_norm=True, xy_embedding=False)
    torch.nn.init.uniform_(module.token_norm.weight, 0.5, 1.5)
    torch.nn.init.uniform_(module.token_norm.bias)
    out, regions = module(x)

    oracle = copy.deepcopy(module).double()
    expected, _, tokens, _ = literal_sgr(oracle, x.double(), xy=False, norm=True)
    assert relative_error(out, expected) < 1e-5
    assert relative_error(regions.tokens, tokens) < 1e-5  # those that are pooled

    module = small(token_norm=True, xy_embedding=False, centroid_embedding=False)
    out, _ = module(x)
    with torch.no_grad():
        module.reduction.weight *= 1000
        module.reduction.bias *= 1000
    assert relative_error(module(x)[0], out.double()) < 1e-3


@pytest.mark.parametrize("sync", [False, True])
def test_batch_norm(sync):
    """It norms what the module adds, behind the projection."""
    x = torch.randn(2, 10, 4, 5)
    module = small(batch_norm=True, sync_batch_norm=sync)
    norm = module.batch_norm
    assert isinstance(norm, torch.nn.SyncBatchNorm) == sync
    for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        torch.nn.init.uniform_(values, 0.5, 1.5)
    plain = small()
    plain.load_state_dict(module.state_dict(), strict=False)
    added = plain(x)[0] - x

    def per_channel(values):
        return values[:, None, None]

    scale = per_channel(norm.weight / (norm.running_var + 1e-4).sqrt())
    expected = x + (added - per_channel(norm.running_mean)) * scale + per_channel(norm.bias)
    assert relative_error(module(x)[0], expected.double()) < 1e-5


@pytest.mark.parametrize("norm", [False, True])
def test_init_as_identity(norm):
    x = torch.randn(2, 10, 4, 5)
    module = small(init_as_identity=True, batch_norm=norm).train()
    out, regions = module(x)
    assert torch.equal(out, x)
    out.square().sum().backward()  # and yet it learns
    last = module.batch_norm if norm else module.projection
    assert last.weight.grad.any()


def test_detached_regions_learn_from_losses_of_their_logits_alone():
    module, paper = small(detach_regions=True), small()
    paper.load_state_dict(module.state_dict())
    x = torch.randn(2, 10, 4, 5, requires_grad=True)
    out, regions = module(x)
    assert torch.equal(out, paper(x)[0])

    concepts = [*module.concepts.parameters()]
    main = torch.autograd.grad(out.square().sum(), (x, *concepts), retain_graph=True)
    assert main[0].any() and not main[1].any() and not main[2].any()
    supervision = torch.autograd.grad(regions.logits.square().sum(), (x, *concepts))
    assert all(gradient.any() for gradient in supervision)


def test_concept_prior():
    _, regions = small(concept_prior=0.02, xy_embedding=False)(torch.zeros(1, 10, 2, 2))
    assert torch.allclose(regions.probabilities, torch.tensor(0.02))


def test_regions_that_vanish_keep_gradients_finite():
    module = small()
    with torch.no_grad():
        module.concepts.bias.fill_(-200)
    x = torch.randn(1, 10, 3, 3, requires_grad=True)
    out, _ = module(x)
    out.square().sum().backward()
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in module.parameters())
    assert x.grad.isfinite().all()


def test_layers_start_different():
    first, second = small().mixer.layers
    assert not torch.equal(first.linear1.weight, second.linear1.weight)


def test_one_image_does_not_see_another():
    module = small()
    x = torch.randn(3, 10, 4, 4)
    together, _ = module(x)
    alone, _ = module(x[1:2])
    assert torch.allclose(together[1:2], alone, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"token_dim": 10}, "token_dim.*10"),
        ({"token_dim": 0}, "TOKEN_DIM.* 0"),
        ({"num_concepts": 0}, "NUM_CONCEPTS.* 0"),
        ({"token_dim": 12, "num_heads": 5}, "5 heads .*NUM_HEADS.* 12 channels .*TOKEN_DIM"),
        ({"num_heads": 0}, "0 heads .*NUM_HEADS"),
        ({"token_pooling": "max"}, "'max'.*sum, mean"),
        ({"token_mixer": "lstm"}, "'lstm'.*transformer, graph"),
        ({"concept_prior": 0.0}, "concept_prior"),
    ],
)
def test_wrong_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        small(**arguments)


def test_odd_channels():
    with pytest.raises(ValueError, match="in_channels.*7"):
        SemanticGlobalReasoning(7)


class TestConceptRegions:
    def test_crop(self):
        regions = ConceptRegions(
            torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5), torch.rand(2, 3, 8), None, stride=32
        )
        image = regions.crop(1, 65, 64)
        assert torch.equal(image.logits, regions.logits[1:2, :, :3, :2])
        assert torch.equal(image.tokens, regions.tokens[1:2])
        assert image.centroids is None and image.stride == 32

    def test_crop_needs_a_stride(self):
        with pytest.raises(ValueError, match="stride"):
            ConceptRegions(torch.zeros(1, 1, 2, 2)).crop(0, 32, 32)
