"""The attention between tokens, recorded while a model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..modeling.outputs import REGIONS
from ..modeling.reasoning import ReasoningModule
from ..modeling.recording import makes_regions


@contextmanager
def record_attention(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Record how the tokens of ``model`` attend to one another inside the ``with`` block.

    Recorded is the self-attention (``nn.MultiheadAttention``) inside of each module that makes
    regions: between the tokens in the mixer of a reasoning module, and between the queries of a
    mask classifier. Graph convolutions have no attention, and are left out.

    Yields:
        A dict with the keys of a model's output, :data:`~sgr.modeling.outputs.REGIONS`, filled as
        the model runs: (B, layers, heads, K, K) float32. A row sums to 1: token i attends to token
        j with the weight ``[..., i, j]``. Of several modules of a kind, the one with the largest
        stride counts, as in a model's output, and of several passes the latest.

    Cost: the weights are computed once more, ``layers * K * D * (D + K)`` multiply-adds.
    """
    calls: list[tuple[nn.MultiheadAttention, tuple[Tensor, Tensor, Tensor]]] = []
    found: dict[bool, tuple[int, nn.Module, Tensor | None]] = {}

    def before_attention(module, inputs, options):
        query, key, value = [*inputs, *(options[n] for n in _NAMES[len(inputs) :])][:3]
        if query is key:  # else it reads a feature map
            calls.append((module, (query, key, value)))

    def after_regions(module, _inputs, output):
        regions = module.concept_regions(output)
        layers = [
            attention.forward(*inputs, need_weights=True, average_attn_weights=False)[1]
            for attention, inputs in calls
            if inputs[0].shape[1] == regions.logits.shape[1]
        ]
        calls.clear()
        is_query, stride = not isinstance(module, ReasoningModule), regions.stride or 0
        largest, source, _ = found.get(is_query, (-1, None, None))
        if stride > largest or module is source:  # of its passes, the latest counts
            # Regions without attention keep their key, so that queries do not get it.
            weights = torch.stack(layers, dim=1).float() if layers else None
            found[is_query] = stride, module, weights
        kinds = [found[kind][2] for kind in (False, True) if kind in found]
        recorded.clear()
        recorded.update((k, one) for k, one in zip(REGIONS.values(), kinds) if one is not None)

    recorded: dict[str, Tensor] = {}
    handles = []
    try:
        for module in model.modules():
            if not makes_regions(module):
                continue
            handles.append(module.register_forward_hook(after_regions))
            for part in module.modules():
                if isinstance(part, nn.MultiheadAttention) and part.batch_first:
                    # PyTorch's encoder calls its attention only where there is such a hook.
                    hook = part.register_forward_pre_hook(before_attention, with_kwargs=True)
                    handles.append(hook)
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


_NAMES = ("query", "key", "value")
