import math

import pytest
import torch
from fvcore.nn import FlopCountAnalysis

from sgr.modeling.layers.deformable_sampling import _read_by_grid_sample
from sgr.modeling.mask_classification import (
    DeformableAttention,
    multi_scale_deformable_attention,
)

SHAPES = [(5, 7), (3, 2), (1, 1)]
HEADS, CHANNELS, POINTS = 2, 3, 4


def _inputs(batch=2, queries=6, shapes=SHAPES, dtype=torch.float64, spread=0.4):
    """Random maps, locations (a good part of them outside) and weights."""
    per_point = (batch, queries, HEADS, len(shapes), POINTS)
    cells = sum(height * width for height, width in shapes)
    value = torch.randn(batch, cells, HEADS, CHANNELS, dtype=dtype)
    locations = 0.5 + spread * torch.randn(*per_point, 2, dtype=dtype)
    weights = torch.rand(per_point, dtype=dtype)
    return value, locations, weights


def _run(value, locations, weights, shapes=SHAPES):
    return multi_scale_deformable_attention(value, shapes, locations, weights)


def _literal(value, shapes, locations, weights):
    """The sum over levels and points, with bilinear interpolation written out."""
    batch, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    result = value.new_zeros(batch, queries, heads, channels)
    starts = [sum(h * w for h, w in shapes[:level]) for level in range(len(shapes))]
    for b in range(batch):
        for n in range(queries):
            for m in range(heads):
                for level, (height, width) in enumerate(shapes):
                    for p in range(points):
                        x, y = locations[b, n, m, level, p].tolist()
                        # Cell i covers [i, i + 1] of its map, its centre is at i + 1/2.
                        x, y = x * width - 0.5, y * height - 0.5
                        left, top = math.floor(x), math.floor(y)
                        for i in (top, top + 1):
                            for j in (left, left + 1):
                                if not (0 <= i < height and 0 <= j < width):
                                    continue
                                share = (1 - abs(y - i)) * (1 - abs(x - j))
                                cell = value[b, starts[level] + i * width + j, m]
                                result[b, n, m] += weights[b, n, m, level, p] * share * cell
    return result.flatten(2)


def _leaves(tensors):
    return [each.detach().clone().requires_grad_() for each in tensors]


def _gradients(function, inputs):
    leaves = _leaves(inputs)
    output = function(*leaves)
    return torch.autograd.grad((output.float() * torch.arange(output.shape[-1])).sum(), leaves)


@pytest.mark.parametrize(
    "shapes", [SHAPES, [(4, 4)], [(1, 1)], [(1, 6), (6, 1)], [(2, 3), (8, 9), (4, 4), (3, 3)]]
)
def test_equals_the_sum_written_out(shapes):
    value, locations, weights = _inputs(shapes=shapes)
    actual = multi_scale_deformable_attention(value, shapes, locations, weights)
    expected = _literal(value, shapes, locations, weights)
    assert actual.shape == (2, 6, HEADS * CHANNELS)
    torch.testing.assert_close(actual, expected)


def test_with_and_without_gradients_are_the_same():
    inputs = _inputs()
    assert torch.equal(_run(*_leaves(inputs)), _run(*inputs))


def test_other_numbers_of_queries_and_one_point():
    value, locations, weights = _inputs(queries=1)
    locations, weights = locations[..., :1, :], weights[..., :1]
    torch.testing.assert_close(
        _run(value, locations, weights), _literal(value, SHAPES, locations, weights)
    )


@pytest.mark.parametrize("place", [-1e30, -1e4, -0.3, 1.3, 1e4, 1e30, math.inf, -math.inf])
@pytest.mark.parametrize("axis", [0, 1])
def test_outside_there_is_nothing(place, axis):
    value, locations, weights = _inputs(dtype=torch.float32)
    locations = locations.clamp(0, 1)
    # More than half a cell outside, for maps of more than one cell.
    shapes, locations, weights = [(5, 7)], locations[:, :, :, :1], weights[:, :, :, :1]
    value = value[:, :35]
    locations[..., axis] = place
    value, locations, weights = _leaves((value, locations, weights))
    output = multi_scale_deformable_attention(value, shapes, locations, weights)
    assert (output == 0).all()
    for gradient in torch.autograd.grad(output.sum(), (value, locations, weights)):
        assert (gradient == 0).all()


def test_on_borders_and_cell_centres():
    """At a map's border half of a cell is seen, in its corner a quarter; at centres one cell."""
    value = torch.arange(1.0, 13).view(1, 12, 1, 1)
    at = [(0, 1 / 6), (1, 5 / 6), (0, 0), (1, 1), (1 / 8, 1 / 6), (7 / 8, 5 / 6), (0.25, 0.5)]
    locations = torch.tensor(at).view(1, len(at), 1, 1, 1, 2)
    output = _run(value, locations, torch.ones(1, len(at), 1, 1, 1), [(3, 4)])
    expected = torch.tensor([1 / 2, 12 / 2, 1 / 4, 12 / 4, 1, 12, 5.5])
    torch.testing.assert_close(output.flatten(), expected)


def test_gradients_are_exact():
    inputs = _leaves(_inputs(batch=2, queries=3, shapes=[(3, 4), (1, 1), (2, 2)]))
    shapes = [(3, 4), (1, 1), (2, 2)]
    assert torch.autograd.gradcheck(lambda *each: _run(*each, shapes), inputs)


def test_any_layout():
    inputs = _inputs(queries=6)
    expected, gradients = _run(*inputs), _gradients(_run, inputs)
    # Queries before images, as an interface of sequences first has them.
    inputs = [each.transpose(0, 1).contiguous().transpose(0, 1) for each in inputs]
    assert not inputs[1].is_contiguous()
    assert torch.equal(_run(*inputs), expected)
    leaves = [each.requires_grad_() for each in inputs]
    output = _run(*leaves)
    scale = torch.arange(output.shape[-1])
    for each in zip(torch.autograd.grad((output.float() * scale).sum(), leaves), gradients):
        torch.testing.assert_close(*each)


@pytest.mark.parametrize("empty", [{"batch": 0}, {"queries": 0}])
def test_nothing_there(empty):
    inputs = _inputs(**empty)
    for function in (_run, lambda *each: _read_by_grid_sample(*each, SHAPES)):
        leaves = _leaves(inputs)
        output = function(*leaves)
        assert output.shape == (*inputs[1].shape[:2], HEADS * CHANNELS)
        for leaf, gradient in zip(leaves, torch.autograd.grad(output.sum(), leaves)):
            assert gradient.shape == leaf.shape and not gradient.any()


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_gradients_of_some_inputs(wanted):
    inputs = _inputs()
    everything = torch.autograd.grad(_run(*(leaves := _leaves(inputs))).square().sum(), leaves)
    some = list(inputs)
    for i in wanted:
        some[i] = leaves[i]
    gradients = torch.autograd.grad(_run(*some).square().sum(), [some[i] for i in wanted])
    for i, gradient in zip(wanted, gradients):
        assert torch.equal(gradient, everything[i])


def test_nan_is_passed_on():
    """A model that diverges must say so, not read outside of its memory."""
    value, locations, weights = _inputs(dtype=torch.float32)
    locations[0, 0, 0, 0, 0, 0] = math.nan
    value, locations, weights = _leaves((value, locations, weights))
    output = _run(value, locations, weights)
    assert output[0, 0, :CHANNELS].isnan().all() and output[1].isfinite().all()
    output.sum().backward()
    assert weights.grad[0, 0, 0, 0, 0].isnan() and weights.grad[1].isfinite().all()


def test_gradients_do_not_depend_on_the_layout():
    value, locations, weights = _inputs()
    strided = value.transpose(0, 1).contiguous().transpose(0, 1)
    gradient = torch.randn(6, 2, HEADS * CHANNELS, dtype=value.dtype).transpose(0, 1)
    plain, other = (
        torch.autograd.grad(_run(*leaves), leaves, gradient)
        for leaves in (_leaves((value, locations, weights)), _leaves((strided, locations, weights)))
    )
    for first, second in zip(plain, other):
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_only_inputs_and_output(dtype):
    inputs = [each.to(dtype) for each in _inputs()]
    exact = _run(*(each.double() for each in inputs))
    output = _run(*inputs)
    assert output.dtype == dtype
    scale = exact.abs().max()
    assert (output - exact).abs().max() <= torch.finfo(dtype).eps * scale
    expected = _gradients(_run, [each.float() for each in inputs])
    for gradient, other in zip(_gradients(_run, inputs), expected, strict=True):
        assert gradient.dtype == dtype
        error = (gradient.float() - other).abs().max() / other.abs().max()
        assert error <= 2 * torch.finfo(dtype).eps


def test_values_of_half_precision_keep_precise_locations():
    value, locations, weights = _inputs(dtype=torch.float32)
    output = _run(value.bfloat16(), locations, weights)
    exact = _run(value.bfloat16().float(), locations, weights)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, exact.bfloat16(), rtol=0, atol=0)


def test_grid_sample_gives_the_same():
    inputs = _inputs()
    torch.testing.assert_close(_read_by_grid_sample(*inputs, SHAPES), _run(*inputs))
    for each in zip(
        _gradients(lambda *leaves: _read_by_grid_sample(*leaves, SHAPES), inputs),
        _gradients(_run, inputs),
    ):
        torch.testing.assert_close(*each)


def test_compiles_as_one_graph():
    """Tracing forward and backward; the code generator takes long and needs a C++ compiler."""
    compiled = torch.compile(_run, fullgraph=True, backend="aot_eager")
    inputs = _inputs(dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs), _run(*inputs))
    for each in zip(_gradients(compiled, inputs), _gradients(_run, inputs)):
        torch.testing.assert_close(*each)


def test_exports_with_any_batch():
    model = _attention()
    query, reference, maps = _tokens(batch=2)
    program = torch.export.export(
        _Exported(model),
        (query, reference, maps),
        dynamic_shapes=({0: torch.export.Dim("batch")}, None, {0: torch.export.Dim("batch")}),
    )
    query, reference, maps = _tokens(batch=3)
    torch.testing.assert_close(
        program.module()(query, reference, maps), model(query, reference, maps, SHAPES)
    )


@pytest.mark.parametrize("with_gradients", [False, True])
def test_operations_can_be_counted(with_gradients):
    model = _attention().requires_grad_(with_gradients)
    counter = FlopCountAnalysis(_Exported(model), _tokens(batch=2))
    counter.unsupported_ops_warnings(False).tracer_warnings("none")
    linear = sum(
        each.weight.numel() * 2 * rows
        for each, rows in (
            (model.sampling_offsets, 6),
            (model.attention_weights, 6),
            (model.value_proj, 42),
            (model.output_proj, 6),
        )
    )
    assert counter.total() >= linear


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda v, x, a: (v[:, 1:], x, a), r"have 42 cells, value has 41"),
        (lambda v, x, a: (v[0], x, a), r"value must be \(B, S, heads, D\)"),
        (lambda v, x, a: (v, x[:, :, :, :2], a[:, :, :, :2]), "L 3, got"),
        (lambda v, x, a: (v, x[:, :, :1], a[:, :, :1]), "heads 2 and L 3, got"),
        (lambda v, x, a: (v, x, a[..., :2]), "attention_weights must be"),
    ],
)
def test_shapes_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        _run(*change(*_inputs()))


def _attention():
    model = DeformableAttention(8, num_levels=3, num_heads=HEADS, num_points=POINTS).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False)


def _tokens(batch):
    return torch.randn(batch, 6, 8), torch.rand(1, 6, 2), torch.randn(batch, 42, 8)


class _Exported(torch.nn.Module):
    """The sizes of the maps are constants of the exported model."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, query, reference_points, maps):
        return self.attention(query, reference_points, maps, SHAPES)


def test_module_is_its_formula():
    model, (query, reference, maps) = _attention(), _tokens(batch=2)
    offsets = model.sampling_offsets(query).view(2, 6, HEADS, 3, POINTS, 2)
    locations = torch.empty_like(offsets)
    for level, (height, width) in enumerate(SHAPES):
        scale = torch.tensor([width, height])
        locations[..., level, :, :] = (
            reference[:, :, None, None] + offsets[..., level, :, :] / scale
        )
    weights = model.attention_weights(query).view(2, 6, HEADS, -1).softmax(-1)
    value = model.value_proj(maps).view(2, 42, HEADS, -1)
    read = _literal(value, SHAPES, locations, weights.view(2, 6, HEADS, 3, POINTS))
    torch.testing.assert_close(model(query, reference, maps, SHAPES), model.output_proj(read))


def test_starts_looking_around():
    model = DeformableAttention(32, num_levels=2, num_heads=8, num_points=3)
    offsets = model.sampling_offsets(torch.randn(1, 32)).view(8, 2, 3, 2)
    expected = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for point in range(3):
        for level in range(2):
            torch.testing.assert_close(
                offsets[:, level, point], (point + 1) * torch.tensor(expected).float()
            )
    assert (model.attention_weights(torch.randn(4, 32)) == 0).all()
    assert (model.value_proj.bias == 0).all() and (model.output_proj.bias == 0).all()


def test_autocast_leaves_locations_precise():
    """A point 200 cells away stays in its place; bfloat16 would round it to the next cell."""
    torch.manual_seed(0)
    model = DeformableAttention(8, num_levels=1, num_heads=1, num_points=1)
    torch.nn.init.constant_(model.sampling_offsets.bias, 0)
    with torch.no_grad():
        model.sampling_offsets.bias[0] = 200.25
    maps, query = torch.randn(1, 256, 8), torch.randn(1, 1, 8)
    reference = torch.tensor([[[0.5 / 256, 0.5]]])
    precise = model(query, reference, maps, [(1, 256)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(query, reference, maps, [(1, 256)])
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), precise, rtol=0.03, atol=0.03)
    half = model.bfloat16()(query.bfloat16(), reference, maps.bfloat16(), [(1, 256)])
    assert half.dtype == torch.bfloat16 and half.isfinite().all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_heads": 3}, "3 heads .* do not divide 32 channels"),
        ({"num_heads": 0}, "0 heads .* do not divide 32 channels"),
        ({"num_points": 0}, "num_points must be at least 1, got 0"),
    ],
)
def test_sizes_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        DeformableAttention(32, **options)


def test_maps_must_be_as_many_as_levels():
    query, reference, maps = _tokens(batch=1)
    with pytest.raises(ValueError, match="made for 3 maps, got 2"):
        _attention()(query, reference, maps, SHAPES[:2])


@pytest.mark.gpu
def test_on_a_gpu():
    inputs = _inputs(dtype=torch.float32)
    on_gpu = [each.cuda() for each in inputs]
    torch.testing.assert_close(_run(*on_gpu).cpu(), _run(*inputs))
    torch.cuda.set_sync_debug_mode("error")
    try:
        leaves = _leaves(on_gpu)
        gradients = torch.autograd.grad(_run(*leaves).sum(), leaves)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    leaves = _leaves(inputs)
    for each in zip(gradients, torch.autograd.grad(_run(*leaves).sum(), leaves)):
        torch.testing.assert_close(each[0].cpu(), each[1])
