"""A GPU that is none: tensors that refuse to be mixed with those of the CPU, and compute there.

It does not see everything: a scalar of the CPU passes everywhere, and in a backward pass every new
tensor counts as one on the GPU.
"""

from typing import Any
from unittest import mock

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from sgr.engine import Trainer

GPU = torch.device("cuda", 0)
# These take an index, or a source, of another device.
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
_COPYING = {"copy_", "_to_copy"}


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU. PyTorch's core takes it for one of the CPU."""

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @staticmethod
    def __new__(cls, held):
        options = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        return cls._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, **options)

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _compute(operation, args, kwargs or {})

    def to(self, *args, **kwargs):
        if args and isinstance(args[0], torch.Tensor):
            args = (args[0].device, args[0].dtype)
        device = kwargs.pop("device", None)
        if args and isinstance(args[0], (str, torch.device)):
            device, *args = args
        kwargs.pop("non_blocking", None)
        moved = super().to(*args, **kwargs) if args or kwargs else self
        return moved if device is None or _is_gpu(device) else _ToCpu.apply(moved)

    def cpu(self):
        return self.to("cpu")

    def tolist(self):
        return self.held.tolist()

    def numpy(self, *_args, **_kwargs):
        raise TypeError("a tensor on a GPU is no array")

    __array__ = numpy

    def unsqueeze_(self, dim):  # the shape of this object is fixed
        return self.unsqueeze(dim)


class _ToCpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        return values.held.clone()

    @staticmethod
    def backward(ctx, gradient):
        return OnGpu(gradient)


class PretendedGpu(TorchDispatchMode):
    """A context in which ``device="cuda:0"`` makes tensors :class:`OnGpu`.

    Attributes:
        in_backward: set it for a backward pass, where PyTorch's core makes tensors on what it takes
            for their device.
    """

    in_backward = False

    def __enter__(self):
        self._patches = [
            mock.patch.object(torch.cuda, "_lazy_init", lambda: None),
            mock.patch.object(torch, "tensor", _made(torch.tensor)),
            mock.patch.object(torch, "as_tensor", _made(torch.as_tensor)),
        ]
        for patch in self._patches:
            patch.start()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        for patch in self._patches:
            patch.stop()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _compute(operation, args, kwargs or {}, self.in_backward)


def put_on_gpu(model: nn.Module) -> nn.Module:
    """Put the parameters and buffers of a model on the pretended GPU, in place."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                moved = OnGpu(parameter.detach())
                module._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = OnGpu(buffer)
    return model


def step_and_evaluate(cfg: CfgNode) -> dict[str, Any]:
    """Compute the gradients of a batch on the pretended GPU, and evaluate the model there.

    Returns:
        The results of the evaluation, by task.
    """
    trainer = Trainer(cfg)
    batch = next(iter(trainer.data_loader))
    with PretendedGpu() as gpu, EventStorage():
        losses = put_on_gpu(trainer.model)(batch)
        assert all(isinstance(loss, OnGpu) for loss in losses.values())
        gpu.in_backward = True
        sum(losses.values()).backward()
        gpu.in_backward = False
        for name, parameter in trainer.model.named_parameters():
            assert isinstance(parameter.grad, OnGpu) or not parameter.requires_grad, name
        return trainer._evaluate(trainer.tests[0])


def _is_gpu(device) -> bool:
    return torch.device(device).type == "cuda"


def _made(function):
    """``torch.tensor`` or ``torch.as_tensor``, whose device PyTorch's core would ask for."""

    def make(*args, device=None, **kwargs):
        if device is None or not _is_gpu(device):
            return function(*args, device=device, **kwargs)
        made = function(*args, **kwargs)
        return made if isinstance(made, OnGpu) else OnGpu(made)

    return make


def _check_devices(name, args, tensors):
    """Raise PyTorch's error where tensors of both devices meet; scalars of the CPU may."""
    if name in _COPYING:
        return
    if name in _INDEXING:  # a GPU takes indices of the CPU
        indices = [each for each in tree_leaves(args[1]) if isinstance(each, OnGpu)]
        tensors = [*args[:1], *args[2:3], *indices]
    on_gpu = [each for each in tensors if isinstance(each, OnGpu)]
    if on_gpu and any(each.dim() for each in tensors if not isinstance(each, OnGpu)):
        raise RuntimeError(f"Expected all tensors to be on the same device, cuda:0 or cpu: {name}")


def _compute(operation, args, kwargs, in_backward=False):
    name = operation.overloadpacket.__name__
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    _check_devices(name, args, tensors)
    on_gpu = [each for each in tensors if isinstance(each, OnGpu)]
    device = kwargs.get("device")
    if in_backward:
        goes_to_gpu = True
    elif device is not None and not (on_gpu and name.startswith("new_")):
        goes_to_gpu = _is_gpu(device)
    elif name == "copy_" or name in _INDEXING:
        goes_to_gpu = isinstance(args[0], OnGpu)
    else:
        goes_to_gpu = bool(on_gpu)
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args, kwargs = tree_map_only(OnGpu, lambda each: each.held, (args, kwargs))
    result = operation(*args, **kwargs)
    if not goes_to_gpu:
        return result
    known = {id(each.held): each for each in on_gpu}  # what works in place returns its argument

    def wrap(each):
        return known[id(each)] if id(each) in known else OnGpu(each)

    return tree_map_only(torch.Tensor, wrap, result)
