#!/usr/bin/env python
"""Train or evaluate the public Mask2Former with SGR, without editing a line of it.

    export PYTHONPATH=/path/to/Mask2Former
    python examples/public_mask2former/train_public_mask2former.py --num-gpus 8 \\
        --config-file /path/to/Mask2Former/configs/.../maskformer2_R50_bs16_160k.yaml \\
        --allow-pickle --allow-unsafe-yaml [--resume] [--eval-only] [--without-sgr] [KEY VALUE]

See docs/public_mask2former.md.
"""

import argparse

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.projects.deeplab import add_deeplab_config

import sgr
from sgr.engine import argument_parser, launch, setup_config, train_or_evaluate

try:
    from mask2former import MaskFormer, add_maskformer2_config
except ModuleNotFoundError as error:
    if error.name != "mask2former":  # something that Mask2Former needs; its message says what
        raise
    raise SystemExit(
        "There is no package mask2former. Clone github.com/facebookresearch/Mask2Former, follow "
        "its INSTALL.md, and put the clone on the path: export PYTHONPATH=/path/to/Mask2Former"
    ) from None

# The same model and parameters; it trains and puts out the concept regions.
ConceptMaskFormer = sgr.supervise(MaskFormer)
META_ARCH_REGISTRY.register(ConceptMaskFormer)

# Their functions assign, ours keeps what it finds: theirs come first.
PUBLIC_CONFIGS = (add_deeplab_config, add_maskformer2_config)


def put_sgr_in(cfg: CfgNode) -> None:
    """Turn a config of the public Mask2Former, in place, into that of the same model with SGR.

    A config that has been here before, such as the config.yaml that a run leaves, stays as it is.
    """
    model = cfg.MODEL
    if not model.BACKBONE.NAME.startswith("build_sgr_"):
        model.SGR.BACKBONE_NAME = model.BACKBONE.NAME
        model.BACKBONE.NAME = "build_sgr_backbone"
    if model.META_ARCHITECTURE == "MaskFormer":
        model.META_ARCHITECTURE = "ConceptMaskFormer"
    use_own_mapper(cfg)


def leave_sgr_out(cfg: CfgNode) -> None:
    """The baseline, in place: the public model on the data and evaluators of :func:`put_sgr_in`.

    Undoes what :func:`put_sgr_in` has done to a config, such as the config.yaml that a run leaves.
    """
    model = cfg.MODEL
    if model.BACKBONE.NAME == "build_sgr_backbone":
        model.BACKBONE.NAME = model.SGR.BACKBONE_NAME
    if model.META_ARCHITECTURE == "ConceptMaskFormer":
        model.META_ARCHITECTURE = "MaskFormer"
    if model.BACKBONE.NAME.startswith("build_sgr_"):
        raise ValueError(
            f"--without-sgr, but MODEL.BACKBONE.NAME is {model.BACKBONE.NAME!r}; name the backbone "
            "that it builds on"
        )
    model.SGR.SUPERVISION.WEIGHT = 0.0  # so that the mapper makes no components
    cfg.TEST.TOKENS.ENABLED = False
    use_own_mapper(cfg)


def use_own_mapper(cfg: CfgNode) -> None:
    """The counterpart of a public mapper that adds the components: NAME -> NAME_concept."""
    if not cfg.INPUT.DATASET_MAPPER_NAME.endswith("_concept"):
        cfg.INPUT.DATASET_MAPPER_NAME += "_concept"


def parser() -> argparse.ArgumentParser:
    result = argument_parser()
    result.add_argument(
        "--without-sgr",
        action="store_true",
        help="the public model as it is: the baseline, on the same data and evaluators",
    )
    return result


def main(args):
    cfg = setup_config(args, add_configs=PUBLIC_CONFIGS)
    cfg.defrost()
    if args.without_sgr:
        leave_sgr_out(cfg)
    else:
        put_sgr_in(cfg)
    cfg.freeze()
    return train_or_evaluate(cfg, args)


if __name__ == "__main__":
    launch(main, parser().parse_args())
