"""Putting reasoning modules on a backbone."""

from __future__ import annotations

from collections.abc import Mapping

from detectron2.modeling import Backbone
from torch import Tensor, nn

from ..reasoning import ReasoningModule, build_reasoning


def add_reasoning(backbone: Backbone, modules: Mapping[str, ReasoningModule]) -> Backbone:
    """Let reasoning modules enhance output features of a backbone, in place.

    The modules become the backbone's child ``reasoning`` and run in a forward hook. The backbone
    keeps its class, its methods and its parameter names. So its checkpoints load, and it goes
    wherever it went before, for example under a feature pyramid.

    Args:
        backbone: any Detectron2 backbone.
        modules: name of an output feature -> the module for it. The output keeps its names,
            channels and strides.

    Returns:
        The same backbone.

    Raises:
        ValueError: if the backbone does not put out a feature, a feature has not the module's
            ``in_channels``, or the backbone has reasoning modules already.
    """
    shapes = backbone.output_shape()
    _check_feature_names(modules, shapes)
    if hasattr(backbone, "reasoning"):
        raise ValueError(f"{type(backbone).__name__} has reasoning modules already")
    for name, module in modules.items():
        if module.in_channels != shapes[name].channels:
            raise ValueError(
                f"the reasoning module for {name!r} takes {module.in_channels} channels, "
                f"the feature has {shapes[name].channels}"
            )
    backbone.reasoning = nn.ModuleDict(modules)
    backbone.register_forward_hook(_reason)
    return backbone


def add_reasoning_from_config(backbone: Backbone, cfg) -> Backbone:
    """Put the reasoning module of ``cfg.MODEL.SGR`` on each feature of its IN_FEATURES.

    Where the backbone does not put these features out, but the network below it does (a feature
    pyramid's ``bottom_up``), they are enhanced there, before the pyramid reads them.

    Returns:
        The same backbone.

    Raises:
        ValueError: for a feature that neither puts out.
    """
    names = cfg.MODEL.SGR.IN_FEATURES
    place = backbone
    if not set(names) <= backbone.output_shape().keys():
        place = getattr(backbone, "bottom_up", backbone)
    shapes = place.output_shape()
    _check_feature_names(names, shapes)
    modules = {
        name: build_reasoning(cfg, shapes[name].channels, stride=shapes[name].stride)
        for name in names
    }
    add_reasoning(place, modules)
    return backbone


def _check_feature_names(names, shapes) -> None:
    unknown = [name for name in names if name not in shapes]
    if unknown:
        raise ValueError(
            f"unknown feature {', '.join(map(repr, unknown))} in MODEL.SGR.IN_FEATURES; "
            f"the backbone puts out: {', '.join(shapes)}"
        )


def _reason(backbone: nn.Module, _inputs, features: dict[str, Tensor]) -> dict[str, Tensor]:
    enhanced = {name: module(features[name])[0] for name, module in backbone.reasoning.items()}
    return {**features, **enhanced}
