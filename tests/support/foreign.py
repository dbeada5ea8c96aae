"""Stand-ins for the models of others: a backbone and a model that know nothing of SGR."""

import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import nn
from torch.nn import functional as F

from sgr import add_sgr_config


class TinyBackbone(Backbone):
    """Two strided convolutions: "stride2" (8 channels, stride 2) and "stride4" (16, stride 4)."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.second = nn.Conv2d(8, 16, 3, stride=2, padding=1)

    def forward(self, x):
        half = self.first(x).relu()
        return {"stride2": half, "stride4": self.second(half).relu()}

    def output_shape(self):
        return {
            "stride2": ShapeSpec(channels=8, stride=2),
            "stride4": ShapeSpec(channels=16, stride=4),
        }


class ForeignModel(nn.Module):
    """Segments by a 1x1 convolution; not configurable, and with arguments of its own."""

    def __init__(self, backbone, num_classes=3):
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Conv2d(16, num_classes, 1)

    def forward(self, batched_inputs):
        sizes = [image["image"].shape[-2:] for image in batched_inputs]
        height, width = (4 * -(-max(side) // 4) for side in zip(*sizes))
        images = torch.stack(
            [
                F.pad(image["image"].float() / 255, (0, width - w, 0, height - h))
                for image, (h, w) in zip(batched_inputs, sizes)
            ]
        )
        scores = F.interpolate(self.classifier(self.backbone(images)["stride4"]), scale_factor=4)
        if self.training:
            return {"loss_sem_seg": scores.square().mean()}
        return [{"sem_seg": score[:, :h, :w]} for score, (h, w) in zip(scores, sizes)]


def tiny_inputs(sizes=((32, 24), (30, 40)), num_components=2):
    """A batch of images of unequal sizes with component maps."""
    batch = []
    for height, width in sizes:
        component_map = torch.randint(-1, num_components, (height, width), dtype=torch.int16)
        batch.append(
            {
                "image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8),
                "height": height,
                "width": width,
                "sem_seg": component_map.long().clamp_min(0),
                "component_map": component_map,
                "component_classes": torch.arange(num_components),
            }
        )
    return batch


def tiny_resnet_config():
    """A config of a ResNet-18 with a reasoning module of six concepts."""
    cfg = get_cfg()
    add_sgr_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.SGR.NUM_CONCEPTS = 6
    cfg.MODEL.SGR.TOKEN_DIM = 8
    cfg.MODEL.SGR.NUM_HEADS = 2
    cfg.MODEL.SGR.DIM_FEEDFORWARD = 16
    cfg.MODEL.SGR.SUPERVISION.MAX_ACTIVE = 4
    return cfg
