"""Weights of Swin Transformers from elsewhere: other names, and windows of another size."""

from __future__ import annotations

import logging
import math
import re

from torch import Tensor, nn
from torch.nn import functional as F

from .swin import SwinTransformer

__all__ = ["convert_imagenet_weights", "resize_position_tables"]


def convert_imagenet_weights(
    model: nn.Module, state: dict[str, Tensor]
) -> dict[str, Tensor] | None:
    """Name the weights of a Swin classifier as ``model`` names those of its SwinTransformer.

    Recognised, by their names, are the files of the original release and torchvision's. What only
    a classifier has, its head, last norm and stored shift masks, is left out.

    Args:
        model: any, with a :class:`SwinTransformer` at any place in it.
        state: name -> tensor, as in the file.

    Returns:
        Name in ``model`` -> tensor, or None where ``model`` has no SwinTransformer, ``state`` has
        names of the model already, or is not recognised.
    """
    places = _swin_transformers(model)
    if not places or state.keys() <= model.state_dict().keys():
        return None
    # Version 2 of Swin, which is another network, has no such tables.
    table = "attn.relative_position_bias_table"
    if {"patch_embed.proj.weight", f"layers.0.blocks.0.{table}"} <= state.keys():
        kind = "the original Swin Transformer release"
        state = dict(state)
    elif {"features.0.0.weight", f"features.1.0.{table}"} <= state.keys():
        kind = "torchvision"
        state = {_rename_torchvision(name): value for name, value in state.items()}
    else:
        return None
    logging.getLogger(__name__).info(
        "Recognised ImageNet weights of Swin, named as by %s; loading them into %s",
        kind,
        " and ".join(prefix.rstrip(".") or "the model" for prefix in places),
    )
    positions = state.get("absolute_pos_embed")
    if positions is not None:
        state["absolute_pos_embed"] = _as_map(positions)
    return {
        prefix + name: value
        for prefix in places
        for name, value in state.items()
        if not name.startswith(("norm.", "head.")) and not name.endswith(".attn_mask")
    }


def resize_position_tables(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Fit relative positions of windows of another size to ``model``, in place.

    The tables, one entry per offset and head, are resized bicubically; the indices into them,
    which are constants, become the model's.

    Args:
        model: any; what is not in a :class:`SwinTransformer` is left alone.
        state: name in ``model`` -> tensor.
    """
    resized = set()
    for prefix, swin in _swin_transformers(model).items():
        for name, own in swin.state_dict().items():
            name = prefix + name
            if name not in state:
                continue
            if name.endswith(".relative_position_index"):
                state[name] = own
            elif name.endswith(".relative_position_bias_table"):
                table = _resize_table(state[name], own)
                if table is not None:
                    resized.add((_window_size(state[name]), _window_size(own)))
                    state[name] = table
    for old, new in sorted(resized):
        logging.getLogger(__name__).info(
            "Resized Swin's relative positions from windows of %d patches to %d", old, new
        )


def _swin_transformers(model: nn.Module) -> dict[str, SwinTransformer]:
    """Prefix of its parameters' names -> module."""
    return {
        f"{name}." if name else "": module
        for name, module in model.named_modules()
        if isinstance(module, SwinTransformer)
    }


def _rename_torchvision(name: str) -> str:
    name = re.sub(r"^features\.0\.0\.", "patch_embed.proj.", name)
    name = re.sub(r"^features\.0\.2\.", "patch_embed.norm.", name)
    # Stages and the steps between them take turns in one list.
    match = re.match(r"features\.(\d+)\.(.*)", name)
    if match is None:
        return name
    stage, step = divmod(int(match[1]) - 1, 2)
    if step:
        return f"layers.{stage}.downsample.{match[2]}"
    block = match[2].replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.3.", ".mlp.fc2.")
    return f"layers.{stage}.blocks.{block}"


def _as_map(positions: Tensor) -> Tensor:
    """(1, side^2, C) -> (1, C, side, side), the form in which the backbone has them.

    Positions that are no square, which no model has, stay as they are.
    """
    if positions.dim() != 3:
        return positions
    side = math.isqrt(positions.shape[1])
    if side**2 != positions.shape[1]:
        return positions
    return positions.transpose(1, 2).unflatten(2, (side, side))


def _resize_table(table: Tensor, own: Tensor) -> Tensor | None:
    """``table`` in the size of ``own``, None where that is its size or it is not of its kind."""
    if table.shape == own.shape or table.dim() != 2 or table.shape[1] != own.shape[1]:
        return None
    old, new = math.isqrt(table.shape[0]), math.isqrt(own.shape[0])
    if old**2 != table.shape[0] or old % 2 == 0:
        return None
    maps = table.float().T.unflatten(1, (old, old))[None]
    maps = F.interpolate(maps, (new, new), mode="bicubic", align_corners=False)
    return maps[0].flatten(1).T.to(table.dtype)


def _window_size(table: Tensor) -> int:
    return (math.isqrt(table.shape[0]) + 1) // 2
