"""``module``: the reasoning module, and one that builds X' (Eq. 1 to 4)."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from sgr.modeling.reasoning import ConceptRegions, SemanticGlobalReasoning, sine_encoding

from .measure import Results, Row, compare

COMPARES = (
    "SemanticGlobalReasoning beside two 1x1 convolutions on X' of 2C channels, on the same "
    "parameters; GFLOPs as fvcore counts, without attention's two products (the same in both)."
)


class LiteralReasoning(nn.Module):
    """The function of a module, with the module's own parameters, step by step as in the paper.

    Args:
        module: has the layers. It must have sum pooling and both embeddings, which are defaults.

    Shape: ``x`` (B, C, h, w) -> (B, C, h, w).
    """

    def __init__(self, module: SemanticGlobalReasoning):
        super().__init__()
        self.concepts = module.concepts
        self.reduction = module.reduction
        self.mixer = module.mixer
        self.projection = module.projection

    def forward(self, x: Tensor) -> Tensor:
        channels, height, width = x.shape[1:]
        rows = torch.arange(1, height + 1, device=x.device, dtype=x.dtype)
        columns = torch.arange(1, width + 1, device=x.device, dtype=x.dtype)

        encoded_x = sine_encoding(columns, channels).T[:, None, :]  # (C, 1, w)
        encoded_y = sine_encoding(rows, channels).T[:, :, None]  # (C, h, 1)
        positional = torch.cat((x + encoded_x, x + encoded_y), dim=1)  # Eq. 1
        regions = self.concepts(positional).sigmoid()  # Eq. 2
        features = self.reduction(positional)
        tokens = torch.einsum("bkhw,bdhw->bkd", regions, features)  # Eq. 3

        mass = regions.sum(dim=(2, 3))
        center_x = torch.einsum("bkhw,w->bk", regions, columns) / mass  # Eq. 4
        center_y = torch.einsum("bkhw,h->bk", regions, rows) / mass
        half = tokens.shape[-1] // 2
        encoded = torch.cat((sine_encoding(center_x, half), sine_encoding(center_y, half)), dim=-1)
        refined = self.mixer(tokens + encoded)
        return x + self.projection(torch.einsum("bkd,bkhw->bdhw", refined, regions))


def add_options(option) -> None:
    option("--channels", nargs="+", default=[2048, 512], help="C of each case")
    option("--cells", nargs="+", default=[16, 64], help="side of each case's feature map")
    option("--batch", default=1, help="images")
    option("--concepts", default=512, help="K")
    option("--token-dim", default=512, help="D, a multiple of 8")


def run(args: argparse.Namespace) -> Iterator[Row]:
    if len(args.channels) != len(args.cells):
        raise ValueError(
            "--channels and --cells go together, one of each for a case; they have "
            f"{len(args.channels)} and {len(args.cells)} values"
        )
    for channels, cells in zip(args.channels, args.cells):
        # Without dropout, so that results can be compared.
        module = SemanticGlobalReasoning(
            channels, num_concepts=args.concepts, token_dim=args.token_dim, dropout=0.0
        ).to(args.device)
        plain = LiteralReasoning(module)
        x = torch.randn(args.batch, channels, cells, cells, device=args.device)
        gflops = {"literal GFLOPs": _gflops(plain, x[:1]), "SGR GFLOPs": _gflops(module, x[:1])}
        for name, measured in (("forward", _forward), ("forward + backward", _forward_backward)):
            row = compare(
                f"{name}, {args.batch}x{channels}x{cells}x{cells}",
                partial(measured, plain, x),
                partial(measured, module, x),
                args,
            )
            row.extra.update(gflops)
            yield row


def _forward(module: nn.Module, x: Tensor) -> Results:
    module.eval()
    with torch.no_grad():
        return [_features(module(x))]


def _forward_backward(module: nn.Module, x: Tensor) -> Results:
    """Compute the output, and the gradients of the input and of every parameter."""
    module.train()
    x = x.detach().requires_grad_()
    output = _features(module(x))
    gradients = torch.autograd.grad(output.square().mean(), [x, *module.parameters()])
    return [output.detach(), *gradients]


def _features(output: Tensor | tuple[Tensor, ConceptRegions]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


class _FeaturesOnly(nn.Module):
    """The traced function: from a tensor to a tensor."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return _features(self.module(x))


def _gflops(module: nn.Module, image: Tensor) -> str:
    # In training mode: torch's fast path for evaluation hides operations from the count.
    counter = FlopCountAnalysis(_FeaturesOnly(module).train(), image)
    counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    with torch.no_grad():
        return f"{counter.total() / 1e9:.2f}"
