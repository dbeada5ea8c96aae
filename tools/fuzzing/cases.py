"""What is done with a mutated file: everything that a user would do with it."""

from __future__ import annotations

import json
import linecache
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import check_dataset
import numpy as np
import pycocotools.mask as mask_util
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances
from detectron2.utils.logger import setup_logger
from PIL import Image

import sgr
from sgr.data.datasets.descriptions import register_dataset_file
from sgr.data.loading import load_dataset
from sgr.engine import Trainer, argument_parser, load_config, setup_config
from sgr.evaluation import build_evaluator
from sgr.modeling.reasoning.concept_regions import ConceptRegions

from .mutations import deep_calls, mutated, mutated_text

ROOT = Path(__file__).resolve().parents[2]
_OURS = ROOT / "tools", Path(sgr.__file__).parent
_SIZE = 48, 64
_IMAGES = 3


class Case(NamedTuple):
    """One mutated file: it follows from these three alone.

    Attributes:
        kind: of :data:`KINDS`.
        seed, number: of the run, and of the case in it.
    """

    kind: str
    seed: int
    number: int

    def __str__(self) -> str:
        return f"{self.kind} {self.number} of seed {self.seed}"


def run_case(case: Case, folder: Path | None = None) -> list[str]:
    """Make the file of a case and use it.

    Args:
        folder: where the files are made and stay; None makes a folder and removes it.

    Returns:
        The messages of our own errors.

    Raises:
        BaseException: whatever is not an error of ours.
    """
    rng = Random(f"{case.kind} {case.seed} {case.number}")
    torch.manual_seed(case.number)
    known = set(DatasetCatalog)
    made = Path(tempfile.mkdtemp(prefix="fuzz")) if folder is None else folder
    try:
        work = made / "a" / "b"  # names with ".." stay inside of the folder
        shutil.copytree(_base_folder(), work)
        return [message for message in KINDS[case.kind](work, rng) if message]
    finally:
        for name in set(DatasetCatalog) - known:
            DatasetCatalog.remove(name)
            if name in MetadataCatalog.list():
                MetadataCatalog.remove(name)
        setup_logger.cache_clear()
        for name in ("sgr", "detectron2", "fvcore"):
            logging.getLogger(name).handlers.clear()
        if folder is None:
            shutil.rmtree(made, ignore_errors=True)


@contextmanager
def ours(messages: list[str]) -> Iterator[None]:
    """Keep the message of an error of ours; let every other one pass.

    Ours are those with a message that a ``raise`` of this project has raised, and those of the
    operating system, which name a file. PyTorch's allocator says itself how much memory it was
    asked for and did not get, so a config that asks for too much is no fault.
    """
    try:
        yield
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        assert trace is not None
        file = Path(trace.tb_frame.f_code.co_filename)
        line = linecache.getline(str(file), trace.tb_lineno).strip()
        raised = line.startswith("raise") and any(file.is_relative_to(one) for one in _OURS)
        named = isinstance(error, OSError) and error.filename is not None
        if not (raised or named) or not str(error).strip():
            raise
        messages.append(f"{type(error).__name__}: {error}")
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        messages.append(f"{type(error).__name__}: {error}")


@cache
def _base_folder() -> Path:
    """A folder with images, label maps and lists, from which every case begins."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-base"))
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    for index in range(_IMAGES):
        image = rng.integers(0, 256, (*_SIZE, 3)).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{index}.png")
        blocks = rng.integers(0, 3, (6, 8)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(blocks).save(folder / "labels" / f"{index}.png")
    (folder / "list.txt").write_text("0.png\n1.png\n")
    (folder / "classes.txt").write_text("sky\nroad\ncar\n")
    (folder / "coco.json").write_text(json.dumps(_coco()))
    return folder


def _coco() -> dict[str, Any]:
    """A small file of annotations in COCO's format, with all kinds of masks."""
    mask = np.zeros(_SIZE, np.uint8, order="F")
    mask[20:40, 10:30] = 1
    code = mask_util.encode(mask)
    code["counts"] = code["counts"].decode()
    masks = [
        [[5.0, 5.0, 40.0, 5.0, 40.0, 30.0, 5.0, 30.0]],
        [[10.0, 10.0, 30.0, 12.0, 20.0, 40.0], [40.0, 30.0, 60.0, 30.0, 60.0, 45.0]],
        code,
        {"size": list(_SIZE), "counts": [100, 30, 18, 30, _SIZE[0] * _SIZE[1] - 178]},
    ]
    annotations = []
    for index in range(2 * _IMAGES):
        annotation = {
            "id": index + 1,
            "image_id": index % _IMAGES + 1,
            "category_id": (1, 3, 7)[index % 3],
            "bbox": [5.0, 5.0, 35.0, 25.0],
            "area": 500.0,
            "iscrowd": int(index == 2),
            "segmentation": masks[index % len(masks)],
        }
        annotations.append(annotation)
    return {
        "info": {},
        "images": [
            {"id": index + 1, "file_name": f"{index}.png", "height": _SIZE[0], "width": _SIZE[1]}
            for index in range(_IMAGES)
        ],
        "categories": [{"id": id, "name": f"class{id}"} for id in (1, 3, 7)],
        "annotations": annotations,
    }


def _json_text(content: Any) -> bytes:
    with deep_calls():
        return json.dumps(content).encode()


def _fuzz_coco(work: Path, rng: Random) -> list[str]:
    """Check the dataset, make a batch of training and evaluate on it."""
    file = work / "coco.json"
    text = _json_text(mutated(_coco(), rng)) if rng.random() < 0.9 else file.read_bytes()
    file.write_bytes(text if rng.random() < 0.9 else mutated_text(text, rng))
    register_coco_instances("fuzz", {}, str(file), str(work / "images"))
    messages: list[str] = []
    _check(work, ["fuzz"], rng)
    for learns in rng.sample(("detection_concept", "mask_former_instance_concept"), 1):
        with ours(messages):
            next(iter(Trainer.build_train_loader(_instance_config(learns))))
    with ours(messages):
        _evaluate(_instance_config("mask_former_instance_concept"), work, rng)
    return messages


@cache
def _instance_config(mapper: str):
    return load_config(
        "",
        [
            *("MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", "ConceptGeneralizedRCNN"),
            *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3", "MODEL.ROI_HEADS.NUM_CLASSES", "3"),
            *("DATASETS.TRAIN", "['fuzz']", "DATASETS.TEST", "['fuzz']", "MODEL.MASK_ON", "True"),
            *("INPUT.DATASET_MAPPER_NAME", mapper, "INPUT.MIN_SIZE_TRAIN", "[32]"),
            *("INPUT.IMAGE_SIZE", "32", "DATALOADER.NUM_WORKERS", "0"),
            *("SOLVER.IMS_PER_BATCH", str(_IMAGES), "TEST.TOKENS.ENABLED", "True"),
        ],
    )


def _evaluate(cfg: Any, work: Path, rng: Random) -> None:
    """Measure random regions, and one detection in each image."""
    load_dataset("fuzz")  # as the plan of a test does
    evaluator = build_evaluator(cfg, "fuzz", str(work / "out"))
    evaluator.reset()
    for record in Trainer.build_test_loader(cfg, "fuzz").dataset:
        height, width = record["height"], record["width"]
        found = Instances((height, width))
        found.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, rng.uniform(1, 40), rng.uniform(1, 40)]]))
        found.scores, found.pred_classes = torch.ones(1), torch.zeros(1, dtype=torch.int64)
        found.pred_masks = torch.ones(1, height, width, dtype=torch.bool)
        grid = [-(-side // 16) for side in record["image"].shape[-2:]]
        regions = ConceptRegions(torch.rand(1, 4, *grid), stride=16)
        evaluator.process([record], [{"instances": found, "concept_regions": regions}])
    evaluator.evaluate()


def _check(work: Path, arguments: list[str], rng: Random) -> None:
    """Run ``tools/check_dataset.py``, which tells every fault and raises nothing."""
    samples = str(int(rng.random() < 0.1))  # pictures take most of the time
    before = _files(work.parents[1], without=work / "out")
    options = ["--output", str(work / "out"), "--workers", "1", "--num-samples", samples]
    code = check_dataset.main([*arguments, *options])
    assert code in (0, 1, 2), f"check_dataset ends with {code}"
    after = _files(work.parents[1], without=work / "out")
    assert after == before, f"written outside of --output: {sorted(after - before)}"


def _files(folder: Path, without: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_relative_to(without)}


_DESCRIPTION: dict[str, Any] = {
    "name": "fuzzed",
    "classes": ["sky", "road", "car"],
    "ignore_label": 255,
    "colors": [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
    "label_suffix": "",
    "splits": {
        "train": {"images": "images", "labels": "labels", "instances": "coco.json"},
        "val": {"images": "images", "labels": "labels", "list": "list.txt"},
    },
}
_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi")
)
_YAML_TRAPS = (
    "classes: !!python/object/apply:os.getcwd []\n",
    "<<: [*a, *a]\n",
    "name: 2024-01-01\n",
    "classes: &c [*c, *c]\n",
    "? [a, b]\n: c\n",
    "--- \n...\n---\n",
    f"{_BOMB}classes: *i\n",
    f"{_BOMB}name: *i\n",
    f"{_BOMB}",
    "splits: &s {train: *s}\n",
    "ignore_label: 0x7fffffffffffffffffffffff\n",
    "classes: " + "[" * 3000 + "]" * 3000 + "\n",
)


def _yaml_text(content: Any, rng: Random) -> bytes:
    try:
        text = yaml.safe_dump(content, allow_unicode=True).encode("utf-8", "surrogatepass")
    except RecursionError:
        text = _json_text(content)  # also YAML
    if rng.random() < 0.1:
        text = text + rng.choice(_YAML_TRAPS).encode()
    return mutated_text(text, rng) if rng.random() < 0.15 else text


def _fuzz_yaml(work: Path, rng: Random) -> list[str]:
    """Register the datasets, check them and load a config that trains on them."""
    content = dict(_DESCRIPTION)
    if rng.random() < 0.3:
        content["classes"] = rng.choice(("classes.txt", 3))
    if rng.random() < 0.2:
        del content["splits"]
        content.update(images="images", labels="labels", val_share=0.3)
    file = work / "data.yaml"
    file.write_bytes(_yaml_text(mutated(content, rng), rng))
    messages: list[str] = []
    with ours(messages):
        names = register_dataset_file(file)
        options = ["DATASETS.FILES", f"['{file}']"]
        _check(work, [*names, *options], rng)
        with ours(messages):
            cfg = load_config(
                str(ROOT / "configs" / "your-data" / "maskformer_R50_sgr.yaml"),
                [*options, "DATASETS.TRAIN", str(names[:1]), "DATASETS.TEST", str(names[1:])]
                + ["SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"],
            )
            next(iter(Trainer.build_train_loader(cfg)))
    return messages


def _fuzz_config(work: Path, rng: Random) -> list[str]:
    """Load the config and train for an iteration, with an evaluation at its end."""
    name = rng.choice(("maskformer_R50_sgr", "mask2former_R50_sgr", "fcn_R50_sgr"))
    content = yaml.safe_load(_config(name, is_whole=rng.random() < 0.5))
    file = work / "config.yaml"
    file.write_bytes(_yaml_text(mutated(content, rng), rng))
    (work / "data.yaml").write_text(yaml.safe_dump(_DESCRIPTION))
    messages: list[str] = []
    with ours(messages):
        options = ["OUTPUT_DIR", str(work / "out"), "DATASETS.FILES", f"['{work / 'data.yaml'}']"]
        cfg = setup_config(argument_parser().parse_args(["--config-file", str(file), *options]))
        cfg.defrost()
        # A config that asks for much work is no fault.
        cfg.SOLVER.MAX_ITER, cfg.DATALOADER.NUM_WORKERS = 1, 0
        cfg.SOLVER.IMS_PER_BATCH = min(4, cfg.SOLVER.IMS_PER_BATCH)
        classifier = cfg.MODEL.MASK_FORMER
        classifier.NUM_OBJECT_QUERIES = min(1000, classifier.NUM_OBJECT_QUERIES)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
    return messages


_SMALL: dict[str, Any] = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 3,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 16,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 16,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 32,
    "MODEL.MASK_FORMER.DEC_LAYERS": 2,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 5,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 32,
    "MODEL.SGR.TOKEN_DIM": 16,
    "MODEL.SGR.DIM_FEEDFORWARD": 32,
    "DATASETS.TRAIN": ["fuzzed_train"],
    "DATASETS.TEST": ["fuzzed_val"],
    "INPUT.MIN_SIZE_TRAIN": [48],
    "INPUT.MIN_SIZE_TEST": 48,
    "SOLVER.IMS_PER_BATCH": 2,
    "DATALOADER.NUM_WORKERS": 0,
}


@cache
def _config(name: str, is_whole: bool) -> str:
    """A small config as YAML: all keys, or those of its file and what makes it small."""
    file = str(ROOT / "configs" / "shapes" / f"{name}.yaml")
    if is_whole:
        description = _base_folder() / "data.yaml"
        description.write_text(yaml.safe_dump(_DESCRIPTION))
        options = {**_SMALL, "DATASETS.FILES": [str(description)]}
        cfg = load_config(file, [str(each) for pair in options.items() for each in pair])
        return cfg.dump()
    content = CfgNode.load_yaml_with_base(file)
    for key, value in _SMALL.items():
        *groups, last = key.split(".")
        node = content
        for group in groups:
            node = node.setdefault(group, CfgNode())
        node[last] = value
    return CfgNode(content).dump()


KINDS: dict[str, Callable[[Path, Random], list[str]]] = {
    "coco": _fuzz_coco,
    "yaml": _fuzz_yaml,
    "config": _fuzz_config,
}
