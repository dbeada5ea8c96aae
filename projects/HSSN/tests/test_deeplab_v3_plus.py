"""The head by its public names: a literal forward pass, and the names of released checkpoints."""

from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from torch.nn import functional as F

from hssn import AnySizeDeepLabV3PlusHead
from sgr.checkpoints.checkpointer import SafeCheckpointer
from sgr.engine import load_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SHAPES = {
    "res2": ShapeSpec(8, stride=4),
    "res4": ShapeSpec(12, stride=8),
    "res5": ShapeSpec(16, stride=8),
}


def conv(name, out_channels, in_channels, side=1):
    """Name -> shape of a convolution without bias and its batch norm, as in MMSegmentation."""
    norm = {f"{name}.bn.{part}": (out_channels,) for part in ("weight", "bias", "running_mean")}
    norm |= {f"{name}.bn.running_var": (out_channels,), f"{name}.bn.num_batches_tracked": ()}
    return {f"{name}.conv.weight": (out_channels, in_channels, side, side), **norm}


def separable(name, out_channels, in_channels):
    return {
        **conv(f"{name}.depthwise_conv", in_channels, 1, 3),
        **conv(f"{name}.pointwise_conv", out_channels, in_channels),
    }


def public_head(fine, coarse, width, c1, classes, nodes, aux):
    """Name -> shape of the head and the auxiliary head of a released checkpoint."""
    own = {
        **conv("image_pool.1", width, coarse),
        **conv("aspp_modules.0", width, coarse),
        **conv("bottleneck", width, 5 * width, 3),
        **conv("c1_bottleneck", c1, fine),
        **separable("sep_bottleneck.0", width, width + c1),
        **separable("sep_bottleneck.1", width, width),
        "conv_seg.weight": (nodes, width, 1, 1),
        "conv_seg.bias": (nodes,),
        "step": (1,),
        "proj_head.proj.0.weight": (coarse, coarse, 1, 1),
        "proj_head.proj.0.bias": (coarse,),
        "proj_head.proj.3.weight": (256, coarse, 1, 1),
        "proj_head.proj.3.bias": (256,),
    }
    for branch in (1, 2, 3):
        own |= separable(f"aspp_modules.{branch}", width, coarse)
    norm = conv("proj_head.proj.1", coarse, 1)
    own |= {name.replace("1.bn.", "1."): shape for name, shape in norm.items() if ".bn." in name}
    auxiliary = {
        **conv("convs.0", *aux, 3),
        "conv_seg.weight": (classes, aux[0], 1, 1),
        "conv_seg.bias": (classes,),
    }
    return {f"decode_head.{name}": shape for name, shape in own.items()} | {
        f"auxiliary_head.{name}": shape for name, shape in auxiliary.items()
    }


def public_backbone():
    """Of ResNet-101 V1d."""

    def bare(name, norm, *shape):
        return {
            f"{name}.weight": shape,
            **{
                key.replace("x.bn", norm): value
                for key, value in conv("x", shape[0], 1).items()
                if ".bn." in key
            },
        }

    names = {
        **bare("stem.0", "stem.1", 32, 3, 3, 3),
        **bare("stem.3", "stem.4", 32, 32, 3, 3),
        **bare("stem.6", "stem.7", 64, 32, 3, 3),
    }
    channels = 64
    for stage, blocks in enumerate((3, 4, 23, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            place = f"layer{stage + 1}.{block}"
            names |= bare(f"{place}.conv1", f"{place}.bn1", width, channels, 1, 1)
            names |= bare(f"{place}.conv2", f"{place}.bn2", width, width, 3, 3)
            names |= bare(f"{place}.conv3", f"{place}.bn3", 4 * width, width, 1, 1)
            if block == 0:
                shortcut = f"{place}.downsample"
                names |= bare(f"{shortcut}.1", f"{shortcut}.2", 4 * width, channels, 1, 1)
            channels = 4 * width
    return {f"backbone.{name}": shape for name, shape in names.items()}


@pytest.mark.parametrize(
    ("config", "nodes"),
    [("hssn_deeplabv3plus_R101_bs8_80k", 26), ("deeplabv3plus_R101_bs8_80k", 19)],
)
def test_released_checkpoint_fits(config, nodes, tmp_path, caplog):
    """Names and shapes, without memory; the checkpointer would warn of any difference."""
    options = ["MODEL.DEVICE", "meta", "MODEL.SEM_SEG_HEAD.NORM", "BN", "MODEL.RESNETS.NORM", "BN"]
    cfg = load_config(str(CONFIGS / "cityscapes-19" / f"{config}.yaml"), options)
    with torch.device("meta"):
        model = build_model(cfg)
    shapes = {**public_backbone(), **public_head(256, 2048, 512, 48, 19, nodes, (256, 1024))}
    assert len(shapes) > 600
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    path = tmp_path / "public.pth"
    torch.save({"meta": {}, "state_dict": state, "optimizer": {"state": {}}}, path)
    with caplog.at_level("WARNING"):
        SafeCheckpointer(model).load(str(path))
    assert not caplog.text


def test_forward_of_public_weights():
    """Each step written out, with the tensors under their public names."""
    head = AnySizeDeepLabV3PlusHead(
        SHAPES,
        in_features=["res2", "res5"],
        aspp_channels=6,
        aspp_dilations=(2, 4, 6),
        fine_channels=5,
        num_classes=3,
        norm="BN",
        aux_in_feature="res4",
        aux_channels=7,
    ).eval()
    shapes = public_head(8, 16, 6, 5, 3, 3, (7, 12))
    public = {name: 0.5 * torch.randn(shape) for name, shape in shapes.items()}
    for name in public:
        if name.endswith("running_var"):
            public[name] = public[name].abs() + 0.5
        if name.endswith("num_batches_tracked"):
            public[name] = torch.tensor(7)
    head.load_state_dict(head.adapt_checkpoint("", public))

    def apply(name, maps, **options):
        place = f"decode_head.{name}"
        maps = F.conv2d(maps, public[f"{place}.conv.weight"], **options)
        statistics = [public[f"{place}.bn.running_{part}"] for part in ("mean", "var")]
        scale = [public[f"{place}.bn.{part}"] for part in ("weight", "bias")]
        return F.relu(F.batch_norm(maps, *statistics, *scale))

    def apply_separable(name, maps, dilation=1):
        groups = maps.shape[1]
        options = {"padding": dilation, "dilation": dilation, "groups": groups}
        return apply(f"{name}.pointwise_conv", apply(f"{name}.depthwise_conv", maps, **options))

    fine, coarse = torch.randn(2, 8, 18, 22), torch.randn(2, 16, 9, 11)
    pooled = apply("image_pool.1", coarse.mean(dim=(2, 3), keepdim=True))
    branches = [pooled.expand(-1, -1, 9, 11), apply("aspp_modules.0", coarse)]
    for branch, dilation in enumerate((2, 4, 6), 1):
        branches.append(apply_separable(f"aspp_modules.{branch}", coarse, dilation))
    y = apply("bottleneck", torch.cat(branches, dim=1), padding=1)
    y = F.interpolate(y, (18, 22), mode="bilinear", align_corners=False)
    y = torch.cat([y, apply("c1_bottleneck", fine)], dim=1)
    y = apply_separable("sep_bottleneck.1", apply_separable("sep_bottleneck.0", y))
    weights = public["decode_head.conv_seg.weight"], public["decode_head.conv_seg.bias"]
    expected = F.interpolate(F.conv2d(y, *weights), scale_factor=4, mode="bilinear")
    with torch.no_grad():
        logits, _ = head({"res2": fine, "res5": coarse})
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_training_step():
    head = AnySizeDeepLabV3PlusHead(
        SHAPES, in_features=["res2", "res5"], num_classes=3, aspp_channels=6, norm="BN"
    )
    features = {
        name: torch.randn(2, each.channels, 64 // each.stride, 64 // each.stride)
        for name, each in SHAPES.items()
    }
    _, losses = head(features, torch.randint(3, (2, 64, 64)))
    losses["loss_sem_seg"].backward()
    assert all(each.grad is not None for each in head.parameters())
    with pytest.raises(ValueError, match="one value per channel for a batch of one image"):
        head({name: each[:1] for name, each in features.items()}, torch.randint(3, (1, 64, 64)))


def test_mistakes():
    for names in (["res5"], ["res2", "res4", "res5"]):
        with pytest.raises(ValueError, match="reads two features"):
            AnySizeDeepLabV3PlusHead(SHAPES, in_features=names, num_classes=3, norm="BN")
    assert (
        AnySizeDeepLabV3PlusHead(
            SHAPES, in_features=["res2", "res5"], num_classes=3, norm="BN"
        ).adapt_checkpoint("sem_seg_head.", {"backbone.conv1.weight": torch.zeros(1)})
        == {}
    )
