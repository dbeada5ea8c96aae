"""Putting reasoning modules on any model, and taking them off again."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .build import ReasoningModule
from .features import replace_feature

# Height and width, in pixels, of the image that probes a model. They differ, so that the axes of a
# feature can be told apart, and are multiples of every usual stride.
PROBE_SIZE = (128, 192)

_NAME = re.compile(r"([^\[\]]*)((?:\[[^\[\]]+\])*)")


class ReasoningModules(nn.ModuleDict):
    """The reasoning modules of a model, its child ``reasoning``.

    As a module it is the identity. So a container that runs its children one after the other, such
    as ``nn.Sequential`` or timm's ``FeatureListNet``, passes it by.
    """

    def __init__(self, modules: Mapping[str, ReasoningModule]):
        super().__init__(modules)
        # They are kept for more than their removal: a model that is loaded in another process
        # brings the numbers of its hooks along, and only a handle reserves them there.
        self.handles: list[Any] = []

    def forward(self, x: Any, *_args: Any, **_kwargs: Any) -> Any:
        return x


class EnhanceFeature:
    """The forward hook by which a reasoning module enhances a feature of another module.

    It is an object, so that the model can be copied and pickled.

    Args:
        modules, name: the reasoning module.
        keys: the way to the feature, see :func:`replace_feature`.
        channels_last: whether the feature is (B, h, w, C) instead of (B, C, h, w).
    """

    def __init__(
        self, modules: ReasoningModules, name: str, keys: tuple[str, ...], channels_last: bool
    ):
        self.modules = modules
        self.name = name
        self.keys = keys
        self.channels_last = channels_last

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        return replace_feature(output, self.keys, self._enhance)

    def _enhance(self, feature: Tensor) -> Tensor:
        if self.channels_last:
            feature = feature.permute(0, 3, 1, 2)
        enhanced, _ = self.modules[self.name](feature)
        return enhanced.permute(0, 2, 3, 1) if self.channels_last else enhanced


class _Place(NamedTuple):
    owner: nn.Module  # whose output has the feature
    keys: tuple[str, ...]


class _Shape(NamedTuple):
    channels: int
    stride: int | None
    channels_last: bool = False


def add_reasoning(
    model: nn.Module,
    modules: Mapping[str, ReasoningModule | Callable[[int], ReasoningModule]],
    *,
    example: Any = None,
) -> nn.Module:
    """Let reasoning modules enhance features inside of a model, in place.

    A feature is named by the dotted path of the submodule that puts it out, such as "layer4" or
    "encoder.layer4"; "" is the model itself. If the output is no tensor but a list, a tuple, a
    dict or an object with ``feature_maps``, its last feature counts, or the one that is named in
    brackets: ``"backbone[aux]"``, ``"encoder[hidden_states][-1]"``. A Detectron2 backbone says by
    ``output_shape()`` what it puts out. There, "res5" is the feature of this name.

    The modules become the model's child ``reasoning``, under their names with "_" in the place of
    dots and brackets, and run in forward hooks. The model keeps its class and its parameter names.
    So its checkpoints load, and it goes wherever it went before. It can still be copied and
    pickled, and goes through ``torch.export``, ``torch.compile`` and DDP. Add the modules before
    the optimizer is made and before the model is wrapped. ``nn.DataParallel`` is not supported.

    Args:
        model: any module.
        modules: name of a feature -> the module for it, or what makes one of the number of
            channels: a class, or a ``functools.partial`` of it. The latter goes to the model's
            device.
        example: an input of the model, by which channels and strides of the features are found: one
            argument, a tuple of arguments or a dict of keyword arguments. Default: an image
            (1, 3, 128, 192) of zeros. The default is used only where a value of ``modules`` makes a
            module, and the model does not say the shape.

    Returns:
        The same model.

    Raises:
        ValueError: if there is no such submodule or feature, it is not a map of the module's
            ``in_channels``, the model does not run on the example, or it has a child ``reasoning``
            already.
        TypeError: if a value is, or makes, no reasoning module.

    Cost: with an example, one forward pass in evaluation mode that ends where the last feature has
    been seen. A pass of the model costs as much more as its modules do. Unless a module got a
    ``stride``, it is the sides of the example divided by those of the feature.

    Example::

        wide = functools.partial(SemanticGlobalReasoning, num_concepts=512)
        sgr.add_reasoning(model, {"backbone.layer4": wide})
    """
    if hasattr(model, "reasoning"):
        raise ValueError(
            f"{type(model).__name__} has a child 'reasoning' already; if it is of "
            "sgr.add_reasoning, sgr.remove_reasoning takes it off"
        )
    declared = _declared_shapes(model)
    places = {
        name: _Place(model, (name,)) if name in declared else _find_place(model, name, declared)
        for name in modules
    }
    shapes = {name: declared[name] for name in modules if name in declared}
    unknown = {name: place for name, place in places.items() if name not in shapes}
    if example is not None or any(not isinstance(modules[name], nn.Module) for name in unknown):
        shapes |= _probe(model, unknown, example)
    built = {name: _build(model, name, modules[name], shapes.get(name)) for name in modules}
    children = {name: re.sub(r"\W+", "_", name).strip("_") or "output" for name in modules}
    if len(set(children.values())) < len(children):
        raise ValueError(f"the names {', '.join(map(repr, modules))} differ by dots only")

    reasoning = ReasoningModules({children[name]: module for name, module in built.items()})
    for name, place in places.items():
        channels_last = name in shapes and shapes[name].channels_last
        hook = EnhanceFeature(reasoning, children[name], place.keys, channels_last)
        reasoning.handles.append(place.owner.register_forward_hook(hook))
    model.reasoning = reasoning
    return model


def remove_reasoning(model: nn.Module) -> nn.Module:
    """Take off what :func:`add_reasoning` put on a model or on its submodules, in place.

    Returns:
        The same model, as it was before.

    Raises:
        ValueError: if there is nothing to take off.
    """
    enhanced = [
        module
        for module in model.modules()
        # Not getattr, which wrappers such as those of torch.compile pass on.
        if isinstance(module._modules.get("reasoning"), ReasoningModules)
    ]
    if not enhanced:
        raise ValueError(f"{type(model).__name__} has no modules of sgr.add_reasoning")
    for module in enhanced:
        for handle in module.reasoning.handles:
            handle.remove()
        del module.reasoning
    return model


def _declared_shapes(model: nn.Module) -> dict[str, _Shape]:
    """What a model says by a method ``output_shape``, as Detectron2's backbones have it."""
    method = getattr(model, "output_shape", None)
    shapes = method() if callable(method) else None
    if not isinstance(shapes, Mapping):
        return {}
    return {name: _Shape(shape.channels, shape.stride) for name, shape in shapes.items()}


def _find_place(model: nn.Module, name: str, declared: Mapping[str, _Shape]) -> _Place:
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise ValueError(
            f"{name!r} is no name of a feature; write the path of a submodule, and keys of its "
            'output in brackets: "backbone.body[out]"'
        )
    path, keys = parts[1], tuple(re.findall(r"\[([^\[\]]+)\]", parts[2]))
    known = {known: module for known, module in model.named_modules()}
    if path in known:
        return _Place(known[path], keys)
    parent, wrong = path, ""
    while parent not in known:
        parent, _, wrong = parent.rpartition(".")
    children = [child for child, _ in known[parent].named_children()]
    near = difflib.get_close_matches(wrong, children, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    if declared:
        hint += f"The model puts out: {', '.join(declared)}. "
    raise ValueError(
        f"{type(model).__name__} has no submodule {path!r}; {hint}The submodules of "
        f"{parent or 'the model'} are: {', '.join(children) or 'none'}"
    )


class _Ended(Exception):
    """Ends a probing pass."""


def _probe(model: nn.Module, places: Mapping[str, _Place], example: Any) -> dict[str, _Shape]:
    """The shapes of features, by one forward pass."""
    anywhere = next(model.parameters(), torch.zeros(()))
    given = example is not None
    if not given:
        example = anywhere.new_zeros(1, 3, *PROBE_SIZE)
    image = _find_image(example)
    shapes: dict[str, _Shape] = {}
    faults: list[str] = []
    handles = []

    def watch(name: str, place: _Place) -> None:
        def look(feature: Tensor) -> Tensor:
            shapes[name] = _shape_of(name, feature, image)
            return feature

        def hook(_module, _inputs, output) -> None:
            try:
                replace_feature(output, place.keys, look)
            except ValueError as error:
                faults.append(f"{name!r} names no feature map: {error}")
                raise _Ended from error
            if len(shapes) == len(places):
                raise _Ended

        handles.append(place.owner.register_forward_hook(hook))

    modes = {module: module.training for module in model.modules()}
    try:
        for name, place in places.items():
            watch(name, place)
        model.eval()
        with torch.no_grad():
            if isinstance(example, Mapping):
                model(**example)
            else:
                model(*(example if isinstance(example, tuple) else (example,)))
    except _Ended:
        if faults:
            raise ValueError(faults[0]) from None
        return shapes
    except Exception as error:
        what = "the example" if given else f"an image {tuple(example.shape)} of zeros"
        raise ValueError(
            f"{type(model).__name__} does not run on {what}, by which the channels of its features "
            f"are to be found: {type(error).__name__}: {error}. Give an example that it takes "
            "(example=...), or modules that are built (SemanticGlobalReasoning(channels, ...))"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    missing = ", ".join(repr(name) for name in places if name not in shapes)
    raise ValueError(
        f"{missing} did not run in a forward pass of {type(model).__name__}; name a submodule that "
        "it calls"
    )


def _find_image(example: Any) -> tuple[int, int] | None:
    """(H, W) of the first tensor of three axes or more in an example."""
    if isinstance(example, Tensor):
        return tuple(example.shape[-2:]) if example.dim() >= 3 else None  # type: ignore
    if isinstance(example, Mapping):
        example = list(example.values())
    if isinstance(example, (list, tuple)):
        return next(filter(None, map(_find_image, example)), None)
    return None


def _shape_of(name: str, feature: Tensor, image: tuple[int, int] | None) -> _Shape:
    if feature.dim() != 4:
        raise ValueError(
            f"it is a tensor {tuple(feature.shape)}, and not a map (B, C, h, w) or (B, h, w, C)"
        )
    height, width = image or (1, 1)

    def fits(h: int, w: int) -> bool:
        return h * width == w * height

    # The axes of a map have the ratio of the image.
    channels_last = fits(*feature.shape[1:3]) and not fits(*feature.shape[2:])
    h, w = feature.shape[1:3] if channels_last else feature.shape[2:]
    exact = image is not None and height % h == 0 and height // h * w == width
    return _Shape(
        feature.shape[3 if channels_last else 1], height // h if exact else None, channels_last
    )


def _build(model: nn.Module, name: str, value: Any, shape: _Shape | None) -> ReasoningModule:
    if isinstance(value, nn.Module) or shape is None:
        module = value
    else:
        module = value(shape.channels)
        if isinstance(module, nn.Module):
            parameter = next(model.parameters(), None)
            module = module.train(model.training).to(getattr(parameter, "device", "cpu"))
    if not isinstance(module, ReasoningModule):
        raise TypeError(
            f"for {name!r}, give a ReasoningModule, or a class or functools.partial that makes one "
            f"of the number of channels; got {type(module).__name__}"
        )
    if shape is not None:
        if module.in_channels != shape.channels:
            raise ValueError(
                f"the reasoning module for {name!r} takes {module.in_channels} channels, "
                f"the feature has {shape.channels}"
            )
        if module.stride is None:
            module.stride = shape.stride
    return module
