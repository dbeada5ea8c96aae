"""Weights of Swin Transformers from elsewhere: other names, and windows of another size."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F


def adapt_swin_weights(
    own: Mapping[str, Tensor], prefix: str, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Fit the tensors of a file to a Swin Transformer.

    * Files of Swin classifiers, by the original release or by torchvision, are recognised by their
      names. Their tensors get the names of the model. Those that only a classifier has (its head,
      its last norm, stored shift masks) are left out.
    * Tables of relative positions, one entry for each offset and head, are resized bicubically to
      the model's window size. The indices into them are constants and become the model's.

    Args:
        own: the state of the Swin Transformer.
        prefix: what the model puts before these names.
        state: name -> tensor, as in the file.

    Returns:
        Name in the model -> tensor, of what changes its name or its size.
    """
    converted = _convert(own, prefix, state)
    return {**converted, **_resize_tables(own, prefix, {**state, **converted})}


def _convert(
    own: Mapping[str, Tensor], prefix: str, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Rename the tensors of a Swin classifier; nothing if the file is not one."""
    if not prefix and state.keys() <= own.keys():
        return {}
    # Version 2 of Swin, which is another network, has no such tables.
    table = "attn.relative_position_bias_table"
    if {"patch_embed.proj.weight", f"layers.0.blocks.0.{table}"} <= state.keys():
        kind = "the original Swin Transformer release"
        state = dict(state)
    elif {"features.0.0.weight", f"features.1.0.{table}"} <= state.keys():
        kind = "torchvision"
        state = {_rename_torchvision(name): value for name, value in state.items()}
    else:
        return {}
    logging.getLogger(__name__).info(
        "Recognised ImageNet weights of Swin, named as by %s; loading them into %s",
        kind,
        prefix.rstrip(".") or "the model",
    )
    positions = state.get("absolute_pos_embed")
    if positions is not None:
        state["absolute_pos_embed"] = _as_map(positions)
    return {
        prefix + name: value
        for name, value in state.items()
        if not name.startswith(("norm.", "head.")) and not name.endswith(".attn_mask")
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
    """(1, side^2, C) -> (1, C, side, side); positions that are no square stay as they are."""
    if positions.dim() != 3:
        return positions
    side = math.isqrt(positions.shape[1])
    if side**2 != positions.shape[1]:
        return positions
    return positions.transpose(1, 2).unflatten(2, (side, side))


def _resize_tables(
    own: Mapping[str, Tensor], prefix: str, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Tables of relative positions in the model's size, and the model's indices into them."""
    changed, sizes = {}, set()
    for name, tensor in own.items():
        old = state.get(prefix + name)
        if old is None:
            continue
        if name.endswith(".relative_position_index"):
            if old.shape != tensor.shape:
                changed[prefix + name] = tensor
        elif name.endswith(".relative_position_bias_table"):
            table = _resize_table(old, tensor)
            if table is not None:
                changed[prefix + name] = table
                sizes.add((_window_size(old), _window_size(tensor)))
    for old_size, new_size in sorted(sizes):
        logging.getLogger(__name__).info(
            "Resized Swin's relative positions from windows of %d patches to %d", old_size, new_size
        )
    return changed


def _resize_table(table: Tensor, own: Tensor) -> Tensor | None:
    """``table`` in the size of ``own``; None if it has that size or is no such table."""
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
