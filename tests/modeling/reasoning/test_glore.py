"""GloRe against a literal float64 oracle of the unit's formulas, and within models."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import Instances
from fvcore.nn import FlopCountAnalysis
from torch import nn

import sgr
from foreign import ForeignModel, TinyBackbone, tiny_inputs, tiny_resnet_config
from sgr.engine.solver import parameter_groups
from sgr.evaluation.token_metrics import token_histograms
from sgr.modeling.reasoning import ConceptRegions, GloRe
from sgr.modeling.supervision import ConceptCriterion, ConceptMatcher
from tiny_model import tiny_config


def convolve(convolution, vector):
    """A 1x1 convolution of one cell."""
    out = convolution.weight.flatten(1) @ vector
    return out if convolution.bias is None else out + convolution.bias


def literal_glore(module, x):
    """The unit word by word: features, nodes and regions."""
    batch, channels, height, width = x.shape
    cells = [(i, j) for i in range(height) for j in range(width)]
    back, all_nodes, regions = torch.zeros_like(x), [], []
    for b in range(batch):
        projection = {(i, j): convolve(module.conv_proj, x[b, :, i, j]) for i, j in cells}
        states = {(i, j): convolve(module.conv_state, x[b, :, i, j]) for i, j in cells}
        nodes = [
            sum(projection[cell][n] * states[cell] for cell in cells) / len(cells)
            for n in range(module.num_concepts)
        ]
        adjacency, bias = module.gcn.conv1.weight[:, :, 0], module.gcn.conv1.bias
        refined = []
        for n, node in enumerate(nodes):
            neighbours = sum(adjacency[n, m] * other for m, other in enumerate(nodes))
            mixed = (node + neighbours + bias[n]).clamp_min(0)
            refined.append(module.gcn.conv2.weight[:, :, 0] @ mixed)
        for i, j in cells:
            spread = sum(projection[i, j][n] * node for n, node in enumerate(refined))
            back[b, :, i, j] = convolve(module.conv_extend, spread)
        all_nodes.append(torch.stack(nodes))
        weights = torch.stack([projection[cell] for cell in cells], dim=1).abs()
        weights = weights / weights.max(dim=1, keepdim=True).values
        regions.append(weights.clamp(1e-6, 1 - 1e-6).view(-1, height, width))
    norm = module.blocker
    if norm.training:
        mean = back.mean(dim=(0, 2, 3))
        variance = back.var(dim=(0, 2, 3), unbiased=False)
    else:
        mean, variance = norm.running_mean, norm.running_var
    scale = norm.weight / (variance + 1e-4).sqrt()
    normalized = (back - mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
    return x + normalized, torch.stack(all_nodes), torch.stack(regions)


def small(**arguments) -> GloRe:
    arguments = {"num_concepts": 4, "token_dim": 6, "init_as_identity": False, **arguments}
    module = GloRe(10, **arguments)
    nn.init.normal_(module.blocker.bias)
    nn.init.uniform_(module.blocker.running_var, 0.01, 0.1)
    nn.init.normal_(module.blocker.running_mean, std=0.1)
    return module


def relative_error(actual, expected):
    return (actual.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-12)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("size", [(3, 4), (2, 1)])
def test_equals_the_formulas(training, size):
    module = small().double().train(training)
    x = torch.randn(2, 10, *size, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*module.named_parameters())
    expected, nodes, regions = literal_glore(module, x)
    gradient_of = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * gradient_of).sum(), (x, *parameters))

    out, found = module(x)
    gradients = torch.autograd.grad((out * gradient_of).sum(), (x, *parameters))
    assert relative_error(out, expected) < 1e-10
    assert relative_error(found.tokens, nodes) < 1e-10
    assert relative_error(found.probabilities, regions) < 1e-10
    assert found.centroids is None
    for name, gradient, want in zip(("x", *names), gradients, wanted):
        assert want.any() and relative_error(gradient, want) < 1e-9, name


def test_in_float32():
    module = small().eval()
    x = torch.randn(2, 10, 5, 7)
    out, found = module(x)
    expected, nodes, _ = literal_glore(module.double(), x.double())
    assert out.dtype == found.tokens.dtype == torch.float32
    assert relative_error(out, expected) < 1e-5 and relative_error(found.tokens, nodes) < 1e-5


def test_names_and_shapes_of_the_public_unit():
    shapes = {name: tuple(each.shape) for name, each in GloRe(32).state_dict().items()}
    assert shapes == {
        "conv_state.weight": (128, 32, 1, 1),
        "conv_state.bias": (128,),
        "conv_proj.weight": (64, 32, 1, 1),
        "conv_proj.bias": (64,),
        "gcn.conv1.weight": (64, 64, 1),
        "gcn.conv1.bias": (64,),
        "gcn.conv2.weight": (128, 128, 1),
        "conv_extend.weight": (32, 128, 1, 1),
        "blocker.weight": (32,),
        "blocker.bias": (32,),
        "blocker.running_mean": (32,),
        "blocker.running_var": (32,),
        "blocker.num_batches_tracked": (),
    }


def test_starts_as_the_identity_and_learns():
    module = GloRe(10, num_concepts=4, token_dim=6)
    x = torch.randn(2, 10, 4, 5)
    goal = torch.randn_like(x)
    out, _ = module(x)
    assert torch.equal(out, x)
    assert torch.equal(module.eval()(x)[0], x)

    optimizer = torch.optim.SGD(module.train().parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (module(x)[0] - goal).square().mean().backward()
        optimizer.step()
    for name, parameter in module.named_parameters():
        assert parameter.grad.any(), name  # the second step reaches them all


def test_regions_do_not_depend_on_the_scale_of_the_projection():
    module = small().eval()
    x = torch.randn(1, 10, 6, 6)
    _, regions = module(x)
    weights = module.conv_proj(x)[0].flatten(1).abs()
    labels = torch.randint(0, 9, (36, 5)).float()
    expected = token_histograms(weights, labels)
    histograms = token_histograms(regions.probabilities[0].flatten(1), labels)
    torch.testing.assert_close(histograms, expected, rtol=0, atol=1e-4)
    assert regions.probabilities.amax(dim=(2, 3)).min() > 0.99  # all of them are active
    with torch.no_grad():
        module.conv_proj.weight *= 1e-3
        module.conv_proj.bias *= 1e-3
    torch.testing.assert_close(module(x)[1].logits, regions.logits, rtol=1e-3, atol=1e-3)


def test_a_projection_of_zeros():
    module = small()
    with torch.no_grad():
        module.conv_proj.weight.zero_()
        module.conv_proj.bias.zero_()
    x = torch.randn(2, 10, 3, 3, requires_grad=True)
    out, regions = module(x)
    (out.square().sum() + regions.probabilities.sum()).backward()
    assert out.isfinite().all() and regions.logits.isfinite().all() and x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def test_one_image_does_not_see_another():
    module = small().eval()
    x = torch.randn(3, 10, 4, 4)
    together, _ = module(x)
    alone, _ = module(x[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("channels", "cells"), [(2048, 16), (512, 64)], ids=["res5", "dilated"])
def test_cost(channels, cells):
    module = GloRe(channels).eval()
    count = FlopCountAnalysis(module, torch.zeros(1, channels, cells, cells))
    count.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    counted = sum(n for name, n in count.by_operator().items() if name != "batch_norm")
    nodes, dim, area = 64, 128, cells * cells
    shared = nodes * dim * (nodes + dim)
    assert counted == 3 * area * channels * nodes + 2 * channels * dim * nodes + shared
    literal = area * (channels * (nodes + 2 * dim) + 2 * nodes * dim) + shared
    assert counted < 0.8 * literal


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_autocast_does_not_overflow(dtype, scale):
    module = GloRe(32, num_concepts=16, token_dim=24, init_as_identity=False)
    x = scale * torch.randn(2, 32, 24, 24)
    with torch.no_grad():
        expected, exact = module(x)
        with torch.autocast("cpu", dtype=dtype):
            out, regions = module(x)
    assert out.dtype == x.dtype and regions.tokens.dtype == torch.float32
    assert relative_error(out, expected) < 0.05
    assert relative_error(regions.tokens, exact.tokens) < 0.05
    assert module.blocker.running_var.isfinite().all()
    # A half-precision map, as a convolution before would give it.
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        assert module(x.to(dtype))[0].dtype == dtype


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sync", [False, True])
def test_on_a_gpu_without_waiting(dtype, sync):
    module = GloRe(32, init_as_identity=False, sync_batch_norm=sync)
    x = torch.randn(2, 32, 24, 24)
    with torch.no_grad():
        expected, _ = module(x)
        module, x = module.cuda(), x.cuda()
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.autocast("cuda", dtype=dtype or torch.float16, enabled=dtype is not None):
                out, _ = module(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert relative_error(out.cpu(), expected) < (1e-3 if dtype is None else 0.05)


def test_exports_for_any_batch_and_size():
    module = small().eval()
    batch, height, width = (torch.export.Dim(name, min=2, max=64) for name in ("b", "h", "w"))
    program = torch.export.export(
        module, (torch.randn(2, 10, 5, 7),), dynamic_shapes=({0: batch, 2: height, 3: width},)
    )
    x = torch.randn(3, 10, 6, 4)
    out, regions = program.module()(x)
    expected, expected_regions = module(x)
    assert isinstance(regions, ConceptRegions)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(regions.logits, expected_regions.logits)


@pytest.mark.parametrize("name", ["num_concepts", "token_dim"])
def test_wrong_arguments(name):
    with pytest.raises(ValueError, match=f"{name}.*0"):
        small(**{name: 0})


def test_synchronised_norms_have_the_same_parameters():
    plain, synchronised = GloRe(8), GloRe(8, sync_batch_norm=True)
    assert isinstance(synchronised.blocker, nn.SyncBatchNorm)
    synchronised.load_state_dict(plain.state_dict())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(GloRe(8))
    assert isinstance(converted.blocker, nn.SyncBatchNorm)
    assert converted.blocker.eps == synchronised.blocker.eps == 1e-4
    x = torch.randn(2, 8, 3, 3)
    torch.testing.assert_close(synchronised(x)[0], plain(x)[0])  # in one process


def test_from_a_config():
    cfg = tiny_resnet_config()
    cfg.MODEL.SGR.NAME = "GloRe"
    cfg.MODEL.BACKBONE.NAME = "build_sgr_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4", "res5"]
    cfg.MODEL.SEM_SEG_HEAD.NORM = "SyncBN"
    backbone = build_backbone(cfg, ShapeSpec(channels=3))
    module = backbone.reasoning["res5"]
    assert isinstance(module, GloRe)
    assert (module.in_channels, module.stride) == (512, 32)
    assert (module.num_concepts, module.token_dim) == (6, 8)
    assert isinstance(module.blocker, nn.SyncBatchNorm) and module.blocker.weight.all()

    cfg.MODEL.SGR.INIT_AS_IDENTITY = True
    cfg.MODEL.SEM_SEG_HEAD.NORM = "GN"
    backbone = build_backbone(cfg, ShapeSpec(channels=3)).eval()
    module = backbone.reasoning["res5"]
    assert type(module.blocker) is nn.BatchNorm2d and not module.blocker.weight.any()
    with torch.no_grad(), sgr.record_concepts(backbone) as record:
        features = backbone(torch.randn(2, 3, 64, 96))
    assert features["res5"].shape == (2, 512, 2, 3)
    regions = record["reasoning.res5"]
    assert regions.stride == 32 and regions.logits.shape == (2, 6, 2, 3)
    assert regions.tokens.shape == (2, 6, 8)


def test_learns_at_the_heads_rate():
    cfg = tiny_resnet_config()
    cfg.SOLVER.BASE_LR, cfg.SOLVER.BACKBONE_MULTIPLIER = 1e-3, 0.1
    cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_NORM = 0.05, 0.01
    module = GloRe(16, sync_batch_norm=True)
    model = ForeignModel(sgr.add_reasoning(TinyBackbone(), {"stride4": module}))
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in parameter_groups(cfg, model)
        for parameter in group["params"]
    }
    assert found[id(model.backbone.first.weight)] == (1e-4, 0.05)
    for name, parameter in module.named_parameters():
        decay = 0.01 if name.startswith("blocker") else 0.05
        assert found[id(parameter)] == (1e-3, decay), name


def test_maskformer(tmp_path):
    """One step without concept losses; nodes are the tokens, and queries stand beside them."""
    cfg = tiny_config(
        tmp_path,
        MODEL__SGR__NAME="GloRe",
        MODEL__SGR__NUM_CONCEPTS=12,
        MODEL__SGR__INIT_AS_IDENTITY=False,
        MODEL__SGR__SUPERVISION__WEIGHT=0.0,
    )
    model = build_model(cfg)
    batch = tiny_inputs(sizes=((64, 96), (50, 70)))
    for image in batch:
        size = tuple(image["image"].shape[-2:])
        image["instances"] = Instances(
            size, gt_classes=torch.tensor([1, 4]), gt_masks=torch.rand(2, *size) > 0.5
        )
        del image["component_map"], image["component_classes"]
    losses = model(batch)
    assert losses and not [name for name in losses if "concept" in name]
    sum(losses.values()).backward()
    for name, parameter in model.backbone.reasoning.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name

    with torch.no_grad():
        result = model.eval()(batch)[1]
    nodes, queries = result["concept_regions"], result["query_regions"]
    assert nodes.stride == 8 and nodes.logits.shape == (1, 12, 7, 9)
    assert queries.stride == 4 and queries.logits.shape == (1, 10, 13, 18)


def test_tokens_are_the_nodes_where_queries_are_as_coarse():
    class Queries(nn.Module):
        def forward(self, features):
            return features[:, :3]

        def concept_regions(self, output):
            return ConceptRegions(output, stride=8)

    class ModelWithQueries(ForeignModel):
        def __init__(self, backbone):
            super().__init__(backbone)
            self.queries = Queries()
            self.classifier.register_forward_pre_hook(lambda _, inputs: self._ask(inputs[0]))

        def _ask(self, features):
            self.queries(features)

    backbone = sgr.add_reasoning(TinyBackbone(), {"stride4": GloRe(16, num_concepts=5, stride=4)})
    model = sgr.supervise(ModelWithQueries)(backbone, concepts_in_output=True).eval()
    with torch.no_grad():
        output = model(tiny_inputs())[0]
    assert output["concept_regions"].logits.shape[1] == 5
    assert output["query_regions"].logits.shape[1] == 3


def test_learns_without_concept_losses(caplog):
    backbone = sgr.add_reasoning(TinyBackbone(), {"stride4": GloRe(16, stride=4)})
    with caplog.at_level("INFO"):
        model = sgr.supervise(ForeignModel)(
            backbone, concept_criterion=ConceptCriterion(ConceptMatcher())
        )
    assert "No concept losses: GloRe learns without them" in caplog.text
    assert model.concept_criterion is None
    assert model(tiny_inputs()).keys() == {"loss_sem_seg"}
