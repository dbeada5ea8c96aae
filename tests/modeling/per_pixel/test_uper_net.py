import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import nn
from torch.nn import functional as F

from sgr.modeling.backbone.swin import SwinTransformer
from sgr.modeling.per_pixel import PyramidPooling, UperNetHead


def pool(x, scale):
    """Means over the cells of a grid, from the definition of adaptive pooling."""
    height, width = x.shape[-2:]
    out = x.new_empty(*x.shape[:2], scale, scale)
    for i in range(scale):
        for j in range(scale):
            top, bottom = i * height // scale, -(-(i + 1) * height // scale)
            left, right = j * width // scale, -(-(j + 1) * width // scale)
            out[..., i, j] = x[..., top:bottom, left:right].mean(dim=(2, 3))
    return out


def resize(x, size):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("size", [(6, 6), (7, 10), (4, 2), (1, 1), (1, 9)])
def test_pyramid_pooling(size):
    """Also of maps with fewer cells than a grid."""
    pooling = PyramidPooling(6, 8, scales=(1, 2, 3, 6), norm="BN").eval()
    x = torch.randn(2, 6, *size)
    levels = [x]
    for scale, projection in zip((1, 2, 3, 6), pooling.projections):
        pooled = pool(x, scale)
        torch.testing.assert_close(pooled, F.adaptive_avg_pool2d(x, scale))
        y = projection.norm(torch.einsum("oc,bchw->bohw", projection.weight[..., 0, 0], pooled))
        levels.append(resize(y.clamp_min(0), size))
    y = F.conv2d(torch.cat(levels, dim=1), pooling.bottleneck.weight, padding=1)
    torch.testing.assert_close(pooling(x), pooling.bottleneck.norm(y).clamp_min(0))


def test_without_grids_it_is_a_convolution():
    pooling = PyramidPooling(6, 8, scales=(), norm="")
    assert pooling.bottleneck.weight.shape == (8, 6, 3, 3)
    assert pooling(torch.randn(1, 6, 4, 5)).shape == (1, 8, 4, 5)


def test_grids_have_cells():
    with pytest.raises(ValueError, match="scales .*POOL_SCALES. must be at least 1, got 0"):
        PyramidPooling(6, 8, scales=(1, 0), norm="")


def identity(layer, *, blocks=1):
    """Make a convolution add up its input's ``blocks`` of channels, cell by cell."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    out_channels, in_channels, *kernel = layer.weight.shape
    assert in_channels == blocks * out_channels
    for block in range(blocks):
        for channel in range(out_channels):
            layer.weight.data[
                channel, block * out_channels + channel, kernel[0] // 2, kernel[1] // 2
            ] = 1


def test_with_identities_it_adds_up_the_pyramid():
    shapes = {f"res{i}": ShapeSpec(channels=4, stride=2**i) for i in (2, 3, 4)}
    head = UperNetHead(
        shapes, in_features=list(shapes), num_classes=4, conv_dim=4, pool_scales=(1, 2), norm=""
    ).eval()
    for layer in (*head.pooling.projections, *head.laterals, *head.outputs, head.predictor):
        identity(layer)
    identity(head.pooling.bottleneck, blocks=3)
    identity(head.fuse, blocks=3)
    # Positive, so that no ReLU cuts.
    sizes = {"res2": (11, 14), "res3": (6, 7), "res4": (3, 4)}
    features = {name: torch.rand(2, 4, *size) for name, size in sizes.items()}

    coarse = features["res4"]
    p4 = coarse + coarse.mean(dim=(2, 3), keepdim=True) + resize(pool(coarse, 2), (3, 4))
    p3 = features["res3"] + resize(p4, (6, 7))
    p2 = features["res2"] + resize(p3, (11, 14))
    fused = p2 + resize(p3, (11, 14)) + resize(p4, (11, 14))
    torch.testing.assert_close(head.decode(features), fused)
    torch.testing.assert_close(head(features)[0], resize(fused, (44, 56)))


def test_order_of_the_features_does_not_matter(input_shape):
    names = ["res4", "res2", "res5", "res3"]
    head = UperNetHead(input_shape, in_features=names, num_classes=5, conv_dim=16, norm="")
    assert head.in_features == ["res2", "res3", "res4", "res5"]
    assert [layer.in_channels for layer in head.laterals] == [8, 12, 16]
    assert head.pooling.projections[0].in_channels == 24


def test_one_feature_is_enough(input_shape, features):
    head = UperNetHead(input_shape, in_features=["res3"], num_classes=5, conv_dim=16, norm="")
    assert head.eval()(features)[0].shape == (2, 5, 64, 96)


class TestOneImage:
    """Batch norm cannot train on the one cell that is left of it."""

    def head(self, norm):
        shapes = {"res4": ShapeSpec(channels=8, stride=16)}
        return UperNetHead(shapes, in_features=["res4"], num_classes=3, conv_dim=64, norm=norm)

    @pytest.mark.parametrize("norm", ["BN", "SyncBN"])
    def test_says_what_to_do(self, norm):
        head, features = self.head(norm), {"res4": torch.randn(1, 8, 3, 3)}
        labels = torch.zeros(1, 48, 48, dtype=torch.long)
        with pytest.raises(ValueError, match="at least two images .*IMS_PER_BATCH.*SyncBN.* GN"):
            head(features, labels)
        assert head.eval()(features)[0].shape == (1, 3, 48, 48)

    @pytest.mark.parametrize("norm", ["GN", "FrozenBN", ""])
    def test_other_norms_can(self, norm):
        labels = torch.zeros(1, 48, 48, dtype=torch.long)
        losses = self.head(norm)({"res4": torch.randn(1, 8, 3, 3)}, labels)[1]
        assert losses["loss_sem_seg"].isfinite()


def test_on_swin():
    swin = SwinTransformer(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=4)
    shapes = swin.output_shape()
    head = UperNetHead(
        shapes,
        in_features=list(shapes),
        num_classes=5,
        conv_dim=16,
        norm="BN",
        aux_in_feature="res4",
        aux_channels=16,
    )
    _, losses = head(swin(torch.randn(2, 3, 70, 50)), torch.randint(0, 5, (2, 70, 50)))
    sum(losses.values()).backward()
    parameters = [*swin.named_parameters(), *head.named_parameters()]
    assert [name for name, parameter in parameters if parameter.grad is None] == []
