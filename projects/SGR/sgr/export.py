"""Export of a model's semantic segmentation to a ``torch.export`` program or an ONNX file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from os import PathLike
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .modeling.outputs import BatchScores, outputs_of


class SemanticExport(nn.Module):
    """Semantic inference of a meta-architecture between plain tensors, at a fixed image size.

    A meta-architecture itself cannot be exported: it has lists of dicts, images of several sizes
    and recorded concept regions. Here a batch of images of one size goes through the same backbone
    and head, and the scores are the same. The modules of the model are shared, not copied.

    Args:
        model: a mask classifier (:class:`MaskFormerSegmentor`, :class:`Mask2FormerSegmentor`, the
            public MaskFormer and Mask2Former), or a per-pixel model with a head of Detectron2's
            interface (``SemanticSegmentor``); with concept supervision or without.
        size: height and width of the images, pixels. If they are no multiple of the model's size
            divisibility, the images are padded inside and the scores are cut.
        labels: give the best class of every pixel instead of the scores of all classes.

    Raises:
        ValueError: the model gives no semantic segmentation, or ``size`` is not two positive
            integers.
    """

    def __init__(self, model: nn.Module, size: Sequence[int], *, labels: bool = False):
        super().__init__()
        batch_scores = _check_semantic(model)
        if len(size) != 2 or any(not isinstance(side, int) or side < 1 for side in size):
            raise ValueError(
                f"the size must be a positive height and width in pixels, got {tuple(size)}"
            )
        self.model = model
        self._batch_scores = batch_scores
        self.size = (size[0], size[1])
        self.labels = labels
        divisibility = getattr(model, "size_divisibility", model.backbone.size_divisibility)
        self.padded_size = tuple(_round_up(side, divisibility) for side in size)

    def forward(self, images: Tensor) -> Tensor:
        """
        Args:
            images: (B, 3, H, W) float or uint8, in the channel order of the config's INPUT.FORMAT,
                values 0 to 255.

        Returns:
            (B, C, H, W) scores as in the model's "sem_seg" at the size of the image: sums of
            probabilities from mask classifiers, logits from per-pixel models. With ``labels``
            (B, H, W) int64 classes. A mask classifier needs memory for (B, Q, H, W) masks.
        """
        (height, width), (padded_height, padded_width) = self.size, self.padded_size
        if tuple(images.shape[-2:]) != self.size:
            raise ValueError(
                f"images are {tuple(images.shape[-2:])}, but this module is for {self.size}"
            )
        images = (images - self.model.pixel_mean) / self.model.pixel_std
        images = F.pad(images, (0, padded_width - width, 0, padded_height - height))
        scores = self._batch_scores(self.model, images, self.size)
        return scores.argmax(dim=1) if self.labels else scores


def export_program(
    model: nn.Module,
    size: Sequence[int],
    *,
    labels: bool = False,
    batch: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.export.ExportedProgram:
    """Export a model's semantic inference with ``torch.export``.

    It takes seconds to minutes and about the memory of one forward pass. The program runs on the
    device of the model.

    Args:
        model, size, labels: as for :class:`SemanticExport`. The model is put into evaluation mode.
        batch: images in a batch; None for any number.
        dtype: type of the images, torch.float32 or torch.uint8. The program takes only this type.

    Returns:
        A program ``images (B, 3, H, W) -> scores (B, C, H, W)``, or ``labels (B, H, W)``.
        ``torch.export.save`` writes it, and ``program.module()`` gives a function.

    Raises:
        ValueError: as for :class:`SemanticExport`, or ``dtype`` is another, or ``batch`` is not
            positive, or ``batch`` is None and the model works at one batch size only.
    """
    if dtype not in (torch.float32, torch.uint8):
        raise ValueError(f"images are torch.float32 or torch.uint8, not {dtype}")
    if batch is not None and batch < 1:
        raise ValueError(f"the batch must be at least 1 image, or None for any, got {batch}")
    module = SemanticExport(model, size, labels=labels).eval()
    # An example of one image would fix the batch at one: torch.export takes 0 and 1 as constants.
    shape = (batch or 2, len(model.pixel_mean), *module.size)
    images = torch.zeros(shape, dtype=dtype, device=model.pixel_mean.device)
    try:
        with torch.no_grad():
            # Not strict: the reasoning modules of a backbone run in a forward hook.
            return torch.export.export(
                module, (images,), dynamic_shapes=_dynamic_shapes(batch), strict=False
            )
    except RuntimeError as error:
        if batch is None and "Constraints violated" in str(error):
            raise ValueError(
                f"{type(model).__name__} does not export for any batch size (see above); name "
                "the one that you need, as in batch=1"
            ) from error
        raise


def export_onnx(
    model: nn.Module,
    size: Sequence[int],
    path: str | PathLike,
    *,
    labels: bool = False,
    batch: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Export a model's semantic inference to an ONNX file, weights included.

    It takes seconds to minutes, and memory for two copies of the weights. The input is named
    "images", the output "sem_seg" or, with ``labels``, "labels". The axis of a batch of any size is
    named "batch".

    Args:
        model, size, labels, batch, dtype: as for :func:`export_program`.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        ValueError: as for :func:`export_program`.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"the export to ONNX needs {' and '.join(missing)}: "
            "pip install 'sgr-segmentation[export]'"
        )
    program = export_program(model, size, labels=labels, batch=batch, dtype=dtype)
    # ONNX gets attention as products and a softmax. With a fused kernel the exporter would keep the
    # strides of its result, and views of these strides do not work on plain products.
    with sdpa_kernel(SDPBackend.MATH):
        torch.onnx.export(
            program,
            f=path,
            dynamo=True,
            input_names=["images"],
            output_names=["labels" if labels else "sem_seg"],
            dynamic_shapes=_dynamic_shapes(batch),  # again: here they name the axis
            external_data=False,  # one file
            verbose=False,
        )


def quantize_onnx(path: str | PathLike, images: Iterable[Tensor]) -> None:
    """Turn the convolutions and matrix products of an ONNX file into int8, in place.

    This is onnxruntime's static quantisation. Weights have a scale for each output channel, and
    activations the range that they have on ``images``.

    Args:
        path: a file of :func:`export_onnx`.
        images: batches as the file takes them, (B, 3, H, W), of some dozens of images such as the
            file will see.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: there are no images.
    """
    if find_spec("onnxruntime") is None:
        raise ImportError("int8 needs onnxruntime: pip install 'sgr-segmentation[export]'")
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        batches = iter(images)

        def get_next(self) -> dict | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    with TemporaryDirectory() as folder:
        prepared = os.path.join(folder, "prepared.onnx")
        quant_pre_process(path, prepared)  # infers shapes, and merges what can be merged
        quantize_static(
            prepared,
            path,
            Reader(),
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )


def _dynamic_shapes(batch: int | None) -> tuple | None:
    return ({0: torch.export.Dim("batch", min=1)},) if batch is None else None


def _round_up(length: int, divisibility: int) -> int:
    return -(-length // divisibility) * divisibility if divisibility > 1 else length


def _check_semantic(model: nn.Module) -> BatchScores:
    """The model's ``batch_scores``; a ValueError if it has no such results."""
    name = type(model).__name__
    outputs = outputs_of(model)
    parts = ("backbone", "sem_seg_head", "pixel_mean", "pixel_std")
    missing = [part for part in parts if not hasattr(model, part)]
    if missing or outputs is None or outputs.batch_scores is None:
        reason = f"has no {' and no '.join(missing)}" if missing else "declares no batch_scores"
        raise ValueError(
            f"{name} {reason}; only models of semantic segmentation can be exported: "
            "MaskFormerSegmentor, Mask2FormerSegmentor, SemanticSegmentor, their Concept variants, "
            "and those that declare sgr.modeling.outputs.Outputs with batch_scores"
        )
    if not getattr(model, "semantic_on", True):
        raise ValueError(
            f"{name} is built without semantic results; set MODEL.MASK_FORMER.TEST.SEMANTIC_ON to "
            "True"
        )
    return outputs.batch_scores
