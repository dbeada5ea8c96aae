"""What the keys of a config may hold: types from the defaults, ranges and values from one table."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, NamedTuple

import torch
from detectron2 import modeling
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import get_norm
from fvcore.common.registry import Registry

from ..config import add_sgr_config
from ..data.augmentations.build import check_crop_size
from ..data.mappers import MAPPER_REGISTRY
from ..data.truth.image_files import SIXTEEN_BIT
from ..evaluation.build import EVALUATOR_REGISTRY
from ..modeling.layers.checks import find_registered
from ..modeling.mask_classification.criteria.set_criterion import CRITERION_REGISTRY
from ..modeling.mask_classification.inference import PANOPTIC_MERGE_REGISTRY
from ..modeling.mask_classification.predictors.base import PREDICTOR_REGISTRY
from ..modeling.per_pixel import PIXEL_CLASSIFIER_REGISTRY, PIXEL_LOSS_REGISTRY
from ..modeling.reasoning import REASONING_REGISTRY
from ..modeling.reasoning.sgr import TOKEN_POOLINGS
from ..modeling.supervision.criterion import UNIONS
from ..modeling.supervision.side_criteria import SIDE_CRITERION_REGISTRY
from ..visualization.metric_names import higher_is_better

_TYPES: dict[type, str] = {
    bool: "True or False",
    int: "an integer",
    float: "a number with a point, such as 1.0",
    str: "a text",
    list: "a list",
    tuple: "a list",
}
_NUMBERS = (int, float)
_THREE_CHANNELS = ("BGR", "RGB", "YUV-BT.601", "YCbCr", "HSV", "LAB")
_CHANNELS = {"L": 1, **dict.fromkeys(_THREE_CHANNELS, 3), "RGBA": 4, "CMYK": 4}


class _Rule(NamedTuple):
    expected: str
    fits: Callable[[Any], bool]


def _at_least(least: float) -> _Rule:
    return _Rule(f"at least {least}", lambda value: value >= least)


def _above(bound: float) -> _Rule:
    return _Rule(f"above {bound}", lambda value: value > bound)


def _one_of(*values: Any) -> _Rule:
    return _Rule(f"one of {', '.join(map(repr, values))}", lambda value: value in values)


def _each(rule: _Rule, count: int | None = None) -> _Rule:
    many = "at least one value" if count is None else f"{count} values"
    return _Rule(
        f"{many}, each {rule.expected}",
        lambda values: (
            (len(values) > 0 if count is None else len(values) == count)
            and all(map(rule.fits, values))
        ),
    )


def _is_device(value: str) -> bool:
    try:
        torch.device(value)
    except RuntimeError:
        return False
    return True


def _is_norm(value: str) -> bool:
    try:
        get_norm(value, 32)
    except KeyError:
        return False
    return True


_SHARE = _Rule("from 0 to 1", lambda value: 0 <= value <= 1)
_DROPOUT = _Rule("at least 0 and below 1", lambda value: 0 <= value < 1)
_NAMES = _Rule("a list of names", lambda value: all(isinstance(v, str) and v for v in value))
_SIZES = _Rule("an integer of at least 1", lambda value: type(value) is int and value >= 1)
_SIZES_OR_0 = _Rule("an integer of at least 0", lambda value: type(value) is int and value >= 0)

# Rule -> the keys that it holds for; "*" stands for any characters. Names in registries are not
# here, because projects may register theirs later: see check_names.
_RULES: list[tuple[_Rule, str]] = [
    (_Rule("the path of a folder", bool), "OUTPUT_DIR"),
    (_Rule("'cpu', 'cuda', 'cuda:0' or another device of PyTorch", _is_device), "MODEL.DEVICE"),
    (_NAMES, "DATASETS.TRAIN DATASETS.TEST DATASETS.FILES TEST.EVALUATORS MODEL.SIDE_CRITERIA"),
    (
        _Rule("'', 'BN', 'SyncBN', 'FrozenBN', 'GN' or another norm of Detectron2", _is_norm),
        "MODEL.*.NORM",
    ),
    (_DROPOUT, "MODEL.*DROPOUT MODEL.SWIN.*DROP*_RATE MODEL.TIMM.DROP_PATH_RATE"),
    (_at_least(0), "MODEL.*_WEIGHT MODEL.SGR.SUPERVISION.WEIGHT MODEL.*_GAMMA"),
    (_at_least(1), "MODEL.ROI_HEADS.NUM_CLASSES MODEL.RETINANET.NUM_CLASSES"),
    # Reasoning.
    (
        _at_least(1),
        "MODEL.SGR.NUM_CONCEPTS MODEL.SGR.TOKEN_DIM MODEL.SGR.NUM_LAYERS MODEL.SGR.NUM_HEADS "
        "MODEL.SGR.DIM_FEEDFORWARD",
    ),
    (_one_of("transformer", "graph"), "MODEL.SGR.TOKEN_MIXER"),
    (_one_of(*TOKEN_POOLINGS), "MODEL.SGR.TOKEN_POOLING"),
    (
        _Rule("between 0 and 1", lambda value: 0 < value < 1),
        "MODEL.SGR.CONCEPT_PRIOR TEST.BOUNDARY_IOU.DILATION_RATIO",
    ),
    # Components are numbered in 16 bits.
    (
        _Rule("at least 1 and at most 32767", lambda value: 1 <= value <= 32767),
        "MODEL.SGR.SUPERVISION.MAX_ACTIVE",
    ),
    (_SHARE, "MODEL.SGR.SUPERVISION.FOCAL_ALPHA MODEL.RETINANET.FOCAL_LOSS_ALPHA"),
    (_one_of(*UNIONS), "MODEL.SGR.SUPERVISION.UNION"),
    # Backbones.
    (_one_of(18, 34, 50, 101, 152), "MODEL.RESNETS.DEPTH"),
    (
        _at_least(1),
        "MODEL.RESNETS.NUM_GROUPS MODEL.RESNETS.WIDTH_PER_GROUP MODEL.RESNETS.*_CHANNELS "
        "MODEL.RESNETS.*_DILATION MODEL.FPN.OUT_CHANNELS MODEL.SWIN.PRETRAIN_IMG_SIZE "
        "MODEL.SWIN.PATCH_SIZE MODEL.SWIN.EMBED_DIM MODEL.SWIN.WINDOW_SIZE",
    ),
    (_one_of("basic", "deeplab"), "MODEL.RESNETS.STEM_TYPE"),
    (_each(_one_of("stem", "res2", "res3", "res4", "res5")), "MODEL.RESNETS.OUT_FEATURES"),
    (_one_of("sum", "avg"), "MODEL.FPN.FUSE_TYPE"),
    (_at_least(0), "MODEL.BACKBONE.FREEZE_AT"),
    (_each(_at_least(1)), "MODEL.SWIN.DEPTHS MODEL.SWIN.NUM_HEADS"),
    (_above(0), "MODEL.SWIN.MLP_RATIO MODEL.SWIN.QK_SCALE"),
    (_one_of(8, 16, 32), "MODEL.TIMM.OUTPUT_STRIDE"),
    # Heads.
    (
        _Rule("at most 1000", lambda value: value <= 1000),  # more are built until memory ends
        "MODEL.MASK_FORMER.DEC_LAYERS MODEL.MASK_FORMER.ENC_LAYERS MODEL.SGR.NUM_LAYERS "
        "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS",
    ),
    (
        _at_least(1),
        "MODEL.MASK_FORMER.NHEADS MODEL.MASK_FORMER.DIM_FEEDFORWARD MODEL.MASK_FORMER.DEC_LAYERS "
        "MODEL.MASK_FORMER.HIDDEN_DIM MODEL.MASK_FORMER.NUM_OBJECT_QUERIES "
        "MODEL.MASK_FORMER.TRAIN_NUM_POINTS MODEL.MASK_FORMER.OVERSAMPLE_RATIO "
        "MODEL.SEM_SEG_HEAD.MASK_DIM MODEL.SEM_SEG_HEAD.*_N_POINTS MODEL.SEM_SEG_HEAD.*_N_HEADS "
        "MODEL.SEM_SEG_HEAD.CONVS_DIM MODEL.SEM_SEG_HEAD.COMMON_STRIDE "
        "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS MODEL.SEM_SEG_HEAD.AUX_CHANNELS "
        "MODEL.R*.BATCH_SIZE_PER_IMAGE MODEL.RPN.*_TOPK_* MODEL.RETINANET.TOPK_CANDIDATES_TEST",
    ),
    (_at_least(0), "MODEL.MASK_FORMER.ENC_LAYERS MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS"),
    (
        _SHARE,
        "MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO MODEL.MASK_FORMER.TEST.*_THRESHOLD "
        "MODEL.R*.POSITIVE_FRACTION MODEL.R*.*NMS_THRESH* MODEL.R*.SCORE_THRESH_TEST",
    ),
    (_one_of("scores", "labels"), "MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT"),
    (_each(_SIZES), "MODEL.SEM_SEG_HEAD.POOL_SCALES"),
    # Input.
    (_one_of(*_CHANNELS), "INPUT.FORMAT"),
    (_each(_above(0)), "MODEL.PIXEL_STD"),
    (_each(_SIZES_OR_0), "INPUT.MIN_SIZE_TRAIN"),
    (_one_of("choice", "range"), "INPUT.MIN_SIZE_TRAIN_SAMPLING"),
    (_at_least(0), "INPUT.MIN_SIZE_TEST INPUT.MAX_SIZE_TEST DATALOADER.NUM_WORKERS"),
    (_at_least(1), "INPUT.MAX_SIZE_TRAIN INPUT.IMAGE_SIZE"),
    (_above(0), "INPUT.MIN_SCALE INPUT.MAX_SCALE"),
    (_one_of("none", "horizontal", "vertical"), "INPUT.RANDOM_FLIP"),
    (_at_least(-1), "INPUT.SIZE_DIVISIBILITY"),
    (_one_of(*SIXTEEN_BIT), "INPUT.SIXTEEN_BIT"),
    (_SHARE, "INPUT.COMPONENTS.MIN_AREA_RATIO"),
    (
        _Rule("odd and at least 1", lambda value: value >= 1 and value % 2 == 1),
        "INPUT.COMPONENTS.KERNEL_SIZE",
    ),
    (_one_of("random", "center"), "INPUT.CROP.POSITION"),
    (_one_of("polygon", "bitmask"), "INPUT.MASK_FORMAT"),
    (
        _one_of("TrainingSampler", "RepeatFactorTrainingSampler"),
        "DATALOADER.SAMPLER_TRAIN",
    ),
    # Training.
    (
        _Rule("iterations in ascending order", lambda steps: list(steps) == sorted(steps)),
        "SOLVER.STEPS",
    ),
    (_at_least(1), "SOLVER.MAX_ITER SOLVER.IMS_PER_BATCH SOLVER.CHECKPOINT_PERIOD"),
    (
        _at_least(0),
        "SOLVER.BASE_LR SOLVER.WEIGHT_DECAY* SOLVER.GAMMA SOLVER.WARMUP_ITERS "
        "SOLVER.BIAS_LR_FACTOR SOLVER.BACKBONE_MULTIPLIER SOLVER.TOKEN_MIXER_MULTIPLIER "
        "SOLVER.REFERENCE_WORLD_SIZE SOLVER.POLY_LR_POWER VIS_PERIOD",
    ),
    (_SHARE, "SOLVER.WARMUP_FACTOR SOLVER.POLY_LR_CONSTANT_ENDING"),
    (_DROPOUT, "SOLVER.MOMENTUM"),
    (_one_of("constant", "linear"), "SOLVER.WARMUP_METHOD"),
    (_one_of("SGD", "ADAMW"), "SOLVER.OPTIMIZER"),
    (
        _one_of("WarmupMultiStepLR", "WarmupCosineLR", "WarmupPolyLR"),
        "SOLVER.LR_SCHEDULER_NAME",
    ),
    (_one_of("value", "norm", "full_model"), "SOLVER.CLIP_GRADIENTS.CLIP_TYPE"),
    (_above(0), "SOLVER.CLIP_GRADIENTS.CLIP_VALUE SOLVER.CLIP_GRADIENTS.NORM_TYPE"),
    (_Rule("below 2147483648", lambda value: value < 2**31), "SEED"),
    # Tests.
    (_at_least(0), "TEST.EVAL_PERIOD TEST.CHECK_FILES TEST.PICTURES"),
    (_at_least(1), "TEST.DETECTIONS_PER_IMAGE TEST.AUG.MAX_SIZE TEST.PRECISE_BN.NUM_ITER"),
    (
        _Rule("the side of a square in pixels, or 0 to test on whole images", lambda v: v >= 0),
        "TEST.CENTER_CROP_SIZE",
    ),
    (_each(_SIZES, 2), "TEST.SLIDING_WINDOW.SIZE TEST.SLIDING_WINDOW.STRIDE"),
]


_REGISTRIES = {
    "MODEL.META_ARCHITECTURE": modeling.META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": modeling.BACKBONE_REGISTRY,
    "MODEL.SGR.BACKBONE_NAME": modeling.BACKBONE_REGISTRY,
    "MODEL.SGR.NAME": REASONING_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": modeling.ANCHOR_GENERATOR_REGISTRY,
    "MODEL.RPN.HEAD_NAME": modeling.RPN_HEAD_REGISTRY,
    "MODEL.ROI_HEADS.NAME": modeling.ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": modeling.ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_MASK_HEAD.NAME": modeling.ROI_MASK_HEAD_REGISTRY,
    "MODEL.SIDE_CRITERIA": SIDE_CRITERION_REGISTRY,
    "TEST.EVALUATORS": EVALUATOR_REGISTRY,
}
# A meta-architecture of another package may have registries of its own for these.
_REGISTRIES_OF_PARTS = {
    "MODEL.SEM_SEG_HEAD.NAME": modeling.SEM_SEG_HEADS_REGISTRY,
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": modeling.SEM_SEG_HEADS_REGISTRY,
    "MODEL.SEM_SEG_HEAD.CLASSIFIER_NAME": PIXEL_CLASSIFIER_REGISTRY,
    "MODEL.SEM_SEG_HEAD.LOSS_TYPE": PIXEL_LOSS_REGISTRY,
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": PREDICTOR_REGISTRY,
    "MODEL.MASK_FORMER.CRITERION_NAME": CRITERION_REGISTRY,
    "MODEL.MASK_FORMER.TEST.PANOPTIC_MERGE": PANOPTIC_MERGE_REGISTRY,
    "INPUT.DATASET_MAPPER_NAME": MAPPER_REGISTRY,
}


def check_names(cfg: CfgNode) -> None:
    """Check that the parts that a config names are registered, before anything is written.

    Call it when all projects have registered theirs. "" is no name. The heads, their parts and the
    mapper of a meta-architecture of another package are not checked.

    Raises:
        ValueError: a name is unknown. The message has the closest known one.
    """
    values = dict(flat(cfg))

    def check(registries: Mapping[str, Registry]) -> None:
        for key, registry in registries.items():
            value = values.get(key, "")
            for name in [value] if isinstance(value, str) else value:
                if name:
                    find_registered(registry, name, key)

    check(_REGISTRIES)
    classes = modeling.META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE).__mro__
    packages = {cls.__module__.partition(".")[0] for cls in classes}
    if packages <= {"sgr", "detectron2", "torch", "builtins", "abc"}:
        check(_REGISTRIES_OF_PARTS)


def check_config(cfg: CfgNode) -> None:
    """Check the types, ranges and allowed values of a config's keys.

    The types are those of the defaults. Keys that only other projects know are not checked.

    Raises:
        ValueError: values do not fit. The message has a line for each, with the key, the value
            and what is expected.
    """
    values = dict(flat(cfg))
    faults: list[str] = []
    for key, default in _defaults().items():
        if key in values:
            faults += _faults(key, values[key], default)
    faults = faults or list(_faults_of_several(cfg))
    if faults:
        raise ValueError("\n".join(faults))


def flat(node: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The (key, value) pairs of a config or of a config file's content, with full keys."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def entry_fault(cfg: CfgNode, key: str, value: Any) -> str | None:
    """Say why a value cannot be merged into a config; None if it can.

    Args:
        cfg: the config that it is to be merged into.
        key: such as "MODEL.SGR.NUM_CONCEPTS".
        value: as of the command line or of a file. Texts stand for what they mean in Python.
    """
    node: Any = cfg
    for part in key.split("."):
        if isinstance(node, CfgNode) and part not in node and node.is_new_allowed():
            return None
        if not isinstance(node, CfgNode) or part not in node:
            return f"there is no key {key}{_hint(cfg, key)}"
        node = node[part]
    try:
        value = cfg._decode_cfg_value(value)
    except (TypeError, MemoryError, RecursionError) as error:
        return f"{key} is {value!r}, which cannot be read: {error}"
    if isinstance(node, CfgNode):
        if isinstance(value, Mapping):
            return None
        return f"{key} is {value!r}, but it is a group of keys: {', '.join(node)}"
    expected = _TYPES.get(type(node))
    same = type(value) is type(node) or {type(value), type(node)} == {list, tuple}
    if expected is None or value is None or same:
        return None
    return f"{key} is {value!r}; it must be {expected}"


def _hint(cfg: CfgNode, key: str) -> str:
    known = [name for name, _ in flat(cfg)]
    last = key.rpartition(".")[2]
    close = [name for name in known if name.rpartition(".")[2] == last]
    close = difflib.get_close_matches(key, close or known, n=1, cutoff=0.0 if close else 0.6)
    return f"; did you mean {close[0]}?" if close else ""


@cache
def _defaults() -> dict[str, Any]:
    cfg = get_cfg()
    add_sgr_config(cfg)
    return dict(flat(cfg))


@cache
def _rules_of(key: str) -> list[_Rule]:
    return [
        rule
        for rule, patterns in _RULES
        if any(fnmatchcase(key, pattern) for pattern in patterns.split())
    ]


def _faults(key: str, value: Any, default: Any) -> Iterator[str]:
    """What is wrong with the value of one key."""
    if default is None and value is None:
        return
    for rule in (*_type_rules(key, default), *_rules_of(key)):
        try:
            fits = rule.fits(value)
        except TypeError:  # a text in the place of a number
            fits = False
        if not fits:
            yield f"{key} is {value!r}; it must be {rule.expected}"
            return


def _type_rules(key: str, default: Any) -> Iterator[_Rule]:
    kind = type(default)
    if kind in (list, tuple):
        yield _Rule("a list", lambda value: isinstance(value, (list, tuple)))
        kinds = {float if type(one) in _NUMBERS else type(one) for one in default}
        if len(kinds) == 1:
            yield _elements_rule(*kinds)
    elif kind in _TYPES:
        yield _Rule(_TYPES[kind], lambda value: type(value) is kind)
    if kind is float and key == "SOLVER.CLIP_GRADIENTS.NORM_TYPE":  # inf is the largest element
        yield _Rule("a number, not nan", lambda value: not math.isnan(value))
    elif kind is float:
        yield _Rule("a finite number", math.isfinite)
    if kind is str:
        yield _Rule("text that UTF-8 can hold", _is_utf8)


def _elements_rule(kind: type) -> _Rule:
    if kind is float:
        return _Rule("a list of finite numbers", lambda values: all(map(_is_finite, values)))
    expected = {str: "a list of texts", bool: "a list of True and False"}.get(
        kind, "a list of lists"
    )
    return _Rule(
        f"a list of {expected}", lambda values: all(_is_kind(value, kind) for value in values)
    )


def _is_kind(value: Any, kind: type) -> bool:
    return isinstance(value, (list, tuple) if kind in (list, tuple) else kind)


def _is_finite(value: Any) -> bool:
    return type(value) in _NUMBERS and math.isfinite(value)


def _is_utf8(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _faults_of_several(cfg: CfgNode) -> Iterator[str]:
    """What is wrong with values that fit one by one, but not together."""
    model, given, aug = cfg.MODEL, cfg.INPUT, cfg.TEST.AUG
    channels = _CHANNELS[given.FORMAT]
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        if len(model[key]) != channels:
            yield (
                f"MODEL.{key} is {list(model[key])}; it must be {channels} values, one for each "
                f"channel of INPUT.FORMAT {given.FORMAT!r}"
            )
    if given.CROP.ENABLED:
        try:
            check_crop_size(given.CROP.TYPE, given.CROP.SIZE)
        except ValueError as error:
            yield str(error)
    sides = list(given.MIN_SIZE_TRAIN)
    if given.MIN_SIZE_TRAIN_SAMPLING == "range" and (len(sides) != 2 or sides[0] > sides[1]):
        yield (
            f"INPUT.MIN_SIZE_TRAIN is {given.MIN_SIZE_TRAIN}; with MIN_SIZE_TRAIN_SAMPLING "
            "'range' it must be 2 values, the smallest and the largest"
        )
    if given.MIN_SCALE > given.MAX_SCALE:
        yield (
            f"INPUT.MIN_SCALE is {given.MIN_SCALE}; it must be at most MAX_SCALE {given.MAX_SCALE}"
        )
    if given.MAX_SIZE_TEST == 0 and given.MIN_SIZE_TEST and not cfg.TEST.CENTER_CROP_SIZE:
        yield "INPUT.MAX_SIZE_TEST is 0; it must be at least 1, or MIN_SIZE_TEST 0 for no resize"
    solver = cfg.SOLVER
    if solver.REFERENCE_WORLD_SIZE and solver.IMS_PER_BATCH % solver.REFERENCE_WORLD_SIZE:
        yield (
            f"SOLVER.REFERENCE_WORLD_SIZE is {solver.REFERENCE_WORLD_SIZE}; it must divide "
            f"IMS_PER_BATCH {solver.IMS_PER_BATCH}, or be 0 for no scaling"
        )
    best = cfg.TEST.BEST_METRIC
    if best and higher_is_better(best) is None:
        yield (
            f"TEST.BEST_METRIC is {best!r}; it must be the name of a metric in metrics.json, such "
            "as 'sem_seg/mIoU' or 'tokens/S_C'"
        )
    if best and not cfg.TEST.EVAL_PERIOD:
        yield (
            f"TEST.EVAL_PERIOD is 0; with TEST.BEST_METRIC {best!r} it must be at least 1, so that "
            "there are evaluations to compare"
        )
    if aug.ENABLED:
        if not len(aug.SCALES) and not len(aug.MIN_SIZES):
            yield (
                "TEST.AUG.SCALES is [] and MIN_SIZES is (); with TEST.AUG.ENABLED one of them must "
                "have values"
            )
        for key, rule in {"SCALES": _above(0), "MIN_SIZES": _SIZES}.items():
            if not all(map(rule.fits, aug[key])):
                yield f"TEST.AUG.{key} is {aug[key]}; each value must be {rule.expected}"
    # A class with the number of the pixels without one would never be learned.
    head = model.SEM_SEG_HEAD
    if 0 <= head.IGNORE_VALUE < head.NUM_CLASSES:
        yield (
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {head.NUM_CLASSES}, so IGNORE_VALUE "
            f"{head.IGNORE_VALUE} is one of the classes; set MODEL.SEM_SEG_HEAD.IGNORE_VALUE, and "
            "the ignore_label of the datasets, to a number that is no class, such as 65535"
        )
