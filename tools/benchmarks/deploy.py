"""``deploy``: inference by an exported file, and by the model that it was made from."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from sgr.export import export_onnx, export_program
from sgr.load import load_model

from .measure import Results, Row, compare

COMPARES = (
    "A model with random weights beside an exported form of it, from the same random images to "
    "scores. ONNX Runtime works without its arena, so that its memory can be measured."
)
VERSIONS = ("model", "exported")
CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "shapes"


def torch_export(model: nn.Module, args: argparse.Namespace) -> Callable[[Tensor], Results]:
    program = export_program(model, args.size).module()
    return lambda images: [program(images)]


def onnx_runtime(model: nn.Module, args: argparse.Namespace) -> Callable[[Tensor], Results]:
    import onnxruntime

    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it names each step that it left out
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    options.enable_cpu_mem_arena = False
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        export_onnx(model, args.size, file)
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})


FORMS = {"torch.export": torch_export, "onnxruntime": onnx_runtime}


def add_options(option) -> None:
    option(
        "--configs",
        type=str,
        nargs="+",
        metavar="FILE[+MIXIN...]",
        default=[
            str(CONFIGS / f"{name}_R50_sgr.yaml") for name in ("maskformer", "mask2former", "fcn")
        ],
        help="of semantic models, each with the mixins that are merged over it",
    )
    option(
        "--forms", type=str, nargs="+", choices=FORMS, default=list(FORMS), help="what to export"
    )
    option("--size", nargs=2, metavar=("H", "W"), default=[160, 160], help="of the images, pixels")
    option("--images", nargs="+", default=[1, 4], help="images of a batch, of each case")


def run(args: argparse.Namespace) -> Iterator[Row]:
    with torch.inference_mode():
        for config, form in product(args.configs, args.forms):
            model, _ = load_model(
                config.split("+"),
                "",
                *("MODEL.DEVICE", args.device, "TEST.TOKENS.ENABLED", False),
                *("MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT", "scores"),
            )
            exported = FORMS[form](model, args)
            for count in args.images:
                images = torch.randint(0, 256, (count, 3, *args.size)).float()
                row = compare(
                    f"{Path(config).stem}, {form}, {count}x{args.size[0]}x{args.size[1]}",
                    partial(_scores, model, images),
                    partial(exported, images),
                    args,
                )
                for version, seconds in zip(VERSIONS, row.seconds):
                    row.extra[f"{version} images/s"] = f"{count / median(seconds):.1f}"
                yield row


def _scores(model: nn.Module, images: Tensor) -> Results:
    outputs = model([{"image": image} for image in images])
    return [torch.stack([output["sem_seg"] for output in outputs])]
