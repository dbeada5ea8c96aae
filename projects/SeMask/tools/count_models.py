#!/usr/bin/env python
"""Count parameters and multiply-adds of the configs for ADE20K beside the numbers of the paper.

    python projects/SeMask/tools/count_models.py
    python projects/SeMask/tools/count_models.py semask_swin_tiny_fpn_bs16_80k

A multiply-add is one flop. Two counts stand side by side. Hooks on convolutions, linear layers and
norms see what has parameters, and no products inside attention, as the count of the public code
does. fvcore counts upsampling too, and the two products of the semantic attention; it does not see
those of Swin and of MiT, which are one fused operator. The last column has the products of the
semantic attention: ``n m (K + C)`` for n cells, padding included, in groups of m.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from fvcore.nn import FlopCountAnalysis
from tabulate import tabulate
from torch import Tensor, nn

from semask import SemanticLayer
from sgr.load import load_model

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "ade20k-150"
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
# Config -> side of the crop, and the paper's parameters (M) and flops (G), Tables 2 and 6.
PAPER = {
    "swin_tiny_fpn_bs16_80k": (512, "33", "38"),
    "semask_swin_tiny_fpn_bs16_80k": (512, "35", "40"),
    "swin_small_fpn_bs16_80k": (512, "54", "61"),
    "semask_swin_small_fpn_bs16_80k": (512, "56", "63"),
    "swin_base_fpn_bs16_80k": (512, "93", "103"),
    "semask_swin_base_fpn_bs16_80k": (512, "96", "107"),
    "swin_large_fpn_bs16_80k": (640, "204", "343"),
    "semask_swin_large_fpn_bs16_80k": (640, "212", "356"),
    "semask_swin_large_maskformer_bs16_160k": (640, "219", ""),
    "semask_swin_large_mask2former_bs16_160k": (640, "222", ""),
    "semask_swin_large_fapn_bs16_160k": (640, "227", ""),
    "semask_swin_large_msfapn_bs16_160k": (640, "224", ""),
    "mit_b4_segformer_bs16_160k": (512, "", ""),
    "semask_mit_b4_segformer_bs16_160k": (512, "", ""),
}


class Network(nn.Module):
    """Backbone and head of a model, from an image to tensors."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.backbone, self.head = model.backbone, model.sem_seg_head

    def forward(self, images: Tensor):
        output = self.head(self.backbone(images))
        return output[0] if isinstance(output, tuple) else tuple(output.values())[:2]


def count_with_hooks(network: nn.Module, images: Tensor) -> tuple[float, float]:
    """Multiply-adds that hooks on modules see, and those of semantic attention; in 10^9."""
    seen, attention = [0], [0]

    def hook(module: nn.Module, inputs, output) -> None:
        if isinstance(module, nn.Conv2d):
            output = output if isinstance(output, Tensor) else output[0]
            taps = module.in_channels // module.groups * math.prod(module.kernel_size)
            seen[0] += output.numel() * (taps + (module.bias is not None))
        elif isinstance(module, nn.Linear):
            seen[0] += inputs[0].numel() * module.out_features
        elif isinstance(module, NORMS):
            seen[0] += 2 * inputs[0].numel()
        elif isinstance(module, SemanticLayer):
            height, width, dim = inputs[0].shape[1:]
            side, classes = module.window_size, output[1].shape[1]
            if side:
                height, width = (-(-cells // side) * side for cells in (height, width))
            group = side**2 or height * width
            attention[0] += len(module.class_injection) * height * width * group * (classes + dim)

    handles = [module.register_forward_hook(hook) for module in network.modules()]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return seen[0] / 1e9, attention[0] / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="*", default=list(PAPER), help="of configs/ade20k-150")
    rows = []
    for name in parser.parse_args().configs:
        side, paper_params, paper_flops = PAPER[name]
        model, _ = load_model(str(CONFIGS / f"{name}.yaml"), "", "MODEL.DEVICE", "cpu")
        network = Network(model)
        images = torch.zeros(1, 3, side, side)
        hooks, attention = count_with_hooks(network, images)
        analysis = FlopCountAnalysis(network, images)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        params = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        fvcore = analysis.total() / 1e9
        rows.append((name, side, params, paper_params, hooks, fvcore, paper_flops, attention))
        print(tabulate(rows[-1:], tablefmt="plain", floatfmt=".2f"), flush=True)
    headers = ("config", "crop", "params M", "paper", "hooks G", "fvcore G", "paper", "attention G")
    print(tabulate(rows, headers, tablefmt="pipe", floatfmt=".2f", disable_numparse=[3, 6]))


if __name__ == "__main__":
    main()
