"""Batches with connected components, made in the workers of a plain PyTorch loader."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate

from ..modeling.supervision import ComponentMaps
from .components import connected_components
from .threads import limit_opencv_threads


class ComponentCollate:
    """A ``collate_fn`` that adds the connected components of each image to a batch.

    Args:
        labels: where an item of the dataset has its (H, W) label map, a tensor, an array or a PIL
            image: an index or a key; or a function that makes it of the item, which then needs
            ``collate_fn``.
        collate_fn: makes the batch of the items. By default items are tuples or dicts, and those
            of their tensors that have the size of the label map are padded to the largest of the
            batch, at the bottom and at the right: label maps with ``ignore_label``, others with 0.
            Then ``torch.utils.data.default_collate`` puts them together.
        ignore_label: the label of pixels that belong to no class.
        size_divisibility: sides of padded tensors are multiples of it.
        **options: of :func:`sgr.data.components.connected_components`.

    Calling it with a list of items returns ``(batch, component_maps)``, the latter
    :class:`~sgr.modeling.supervision.ComponentMaps` for :class:`sgr.ConceptLoss`. Its maps are not
    padded: pixels beyond them carry no loss.

    Raises:
        ValueError: for a function without ``collate_fn``; on a call, for a label map that is not
            (H, W) integers, see :func:`sgr.data.components.connected_components`.

    Cost: that of ``connected_components`` for each image, in the worker's process.

    Example::

        loader = DataLoader(
            dataset, batch_size=8, num_workers=4, collate_fn=sgr.ComponentCollate(ignore_label=255)
        )
        for (images, labels), component_maps in loader:
            ...
    """

    def __init__(
        self,
        labels: int | str | Callable[[Any], Any] = 1,
        *,
        collate_fn: Callable[[list], Any] | None = None,
        ignore_label: int = 255,
        size_divisibility: int = 1,
        **options: Any,
    ):
        if callable(labels) and collate_fn is None:
            raise ValueError(
                "labels is a function, so that nobody knows which part of an item to pad as label "
                "map: give collate_fn as well"
            )
        self.labels = labels
        self.collate_fn = collate_fn
        self.ignore_label = ignore_label
        self.size_divisibility = size_divisibility
        self.options = options

    def __call__(self, items: list) -> tuple[Any, ComponentMaps]:
        limit_opencv_threads()
        maps = [
            np.asarray(self.labels(item) if callable(self.labels) else item[self.labels])
            for item in items
        ]
        components = [
            connected_components(labels, ignore_label=self.ignore_label, **self.options)
            for labels in maps
        ]
        component_maps = ComponentMaps(
            [torch.from_numpy(each.indices) for each in components],
            [len(each.classes) for each in components],
        )
        if self.collate_fn is not None:
            return self.collate_fn(items), component_maps
        sizes = [labels.shape for labels in maps]
        return default_collate(self._pad(items, sizes)), component_maps

    def _pad(self, items: list, sizes: Sequence[tuple[int, ...]]) -> list:
        """The items with tensors of one size."""
        step = self.size_divisibility
        height, width = (-(-max(side) // step) * step for side in zip(*sizes))

        def padded(value: Any, size: tuple[int, ...], is_label_map: bool) -> Any:
            if is_label_map:
                value = torch.as_tensor(np.asarray(value))
                kind = torch.iinfo(value.dtype)
                if not kind.min <= self.ignore_label <= kind.max:
                    value = value.long()
            if not isinstance(value, Tensor) or value.shape[-2:] != size:
                return value
            fill = self.ignore_label if is_label_map else 0
            return F.pad(value, (0, width - size[1], 0, height - size[0]), value=fill)

        result: list[Any] = []
        for item, size in zip(items, sizes):
            if isinstance(item, Mapping):
                pairs = item.items()
                result.append({key: padded(v, size, key == self.labels) for key, v in pairs})
            else:
                place = cast(int, self.labels) % len(item)
                result.append(tuple(padded(v, size, i == place) for i, v in enumerate(item)))
        return result
