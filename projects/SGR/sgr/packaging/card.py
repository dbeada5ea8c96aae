"""The model card: a README with a head that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from detectron2.config import CfgNode

from ..checkpoints.model_folder import LICENSE
from ..evaluation.build import declared_outputs
from ..modeling.outputs import REGIONS
from ..visualization.metric_names import TOKEN_METRICS, higher_is_better

# The kinds of results -> the tags of the hub.
_TAGS = {
    "semantic": "semantic-segmentation",
    "panoptic": "panoptic-segmentation",
    "instance": "instance-segmentation",
}


def model_card(description: Mapping[str, Any], cfg: CfgNode) -> str:
    """The text of a model card, Markdown below a head of YAML.

    Args:
        description: what ``model.json`` holds.
        cfg: the config of the model.
    """
    head = yaml.safe_dump(_head(description, cfg), sort_keys=False, allow_unicode=True)
    name, model = description["name"], cfg.MODEL
    backbone, reasoning = model.BACKBONE.NAME, "none"
    if backbone == "build_sgr_backbone":
        backbone = model.SGR.BACKBONE_NAME
    if "sgr" in model.BACKBONE.NAME or model.SEM_SEG_HEAD.get("REASONING"):
        reasoning = f"{model.SGR.NAME}, {model.SGR.NUM_CONCEPTS} concepts"
    settings = description["settings"]
    rows = {
        "meta-architecture": model.META_ARCHITECTURE,
        "backbone": backbone,
        "reasoning": reasoning,
        "parameters": f"{description['num_parameters'] / 1e6:.1f} million",
        "images": f"{settings['INPUT.FORMAT']}, mean {settings['MODEL.PIXEL_MEAN']}, "
        f"deviation {settings['MODEL.PIXEL_STD']}",
        "trained on": ", ".join(cfg.DATASETS.TRAIN) or "unknown",
        "weights from": description["source"] or "unknown",
        "licence of the weights": f"[{LICENSE}]({LICENSE})"
        if description["license"] == "other"
        else description["license"],
    }
    parts = [
        f"# {name}",
        "A model of Semantically-aware Global Reasoning (SGR) for segmentation: Hossain, Sigal, "
        "Little, *Framework-agnostic Semantically-aware Global Reasoning for Segmentation*.",
        _table(("", ""), rows.items()),
        "## Use",
        "```python\nimport sgr\n\n"
        'predictor = sgr.Predictor.load("FOLDER")  # the folder of this file\n'
        'result = predictor("image.jpg")\n'
        'result.save("predictions")\n```',
        'From the hub: `sgr.Predictor.load("hf-hub:OWNER/NAME", allow_unsafe_yaml=True)`.',
        "## Classes",
        _classes(description["classes"], description["num_classes"]),
        "## Last evaluation",
    ]
    found = list(_results(description["metrics"], cfg))
    arrows = {True: " ↑", False: " ↓", None: ""}
    cells = [
        (dataset, task, f"{metric}{arrows[higher_is_better(metric)]}", f"{value:.4g}")
        for dataset, task, metrics in found
        for metric, value in metrics.items()
    ]
    parts.append(
        _table(("dataset", "task", "metric", "value"), cells) if cells else "There is none."
    )
    if any(task in REGIONS for _, task, _ in found):
        parts.append(TOKEN_METRICS)
    return f"---\n{head}---\n\n" + "\n\n".join(parts) + "\n"


def _head(description: Mapping[str, Any], cfg: CfgNode) -> dict[str, Any]:
    outputs = declared_outputs(cfg)
    kinds = () if outputs is None else outputs.switched_on(cfg)
    is_detector = outputs is not None and not outputs.joint_classes
    only_boxes = is_detector and kinds == ("instance",) and not cfg.MODEL.MASK_ON
    pipeline = "object-detection" if only_boxes else "image-segmentation"
    head: dict[str, Any] = {"license": description["license"]}
    if description["license"] == "other":
        head |= {"license_name": "own", "license_link": LICENSE}
    tags = ["object-detection"] if only_boxes else [_TAGS[kind] for kind in kinds]
    head |= {
        "library_name": "sgr",
        "pipeline_tag": pipeline,
        "tags": [*tags, "semantically-aware-global-reasoning", "detectron2"],
    }
    results = [
        {
            "task": {"type": pipeline, "name": task},
            "dataset": {"type": dataset, "name": dataset},
            "metrics": [
                {"type": metric, "name": metric, "value": value}
                for metric, value in metrics.items()
            ],
        }
        for dataset, task, metrics in _results(description["metrics"], cfg)
    ]
    if results:
        head["model-index"] = [{"name": description["name"], "results": results}]
    return head


def _results(
    results: Mapping[str, Any], cfg: CfgNode
) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Dataset, task and metrics over all classes, of results by task or by dataset and task."""
    for key, values in results.items():
        if not isinstance(values, Mapping):
            continue
        if any(isinstance(value, Mapping) for value in values.values()):
            for task, metrics in values.items():
                yield from _metrics(key, task, metrics)
        else:
            yield from _metrics(next(iter(cfg.DATASETS.TEST), "unknown"), key, values)


def _metrics(dataset: str, task: str, values: Any) -> Iterator[tuple[str, str, dict[str, float]]]:
    found = {
        name: float(value)
        for name, value in (values.items() if isinstance(values, Mapping) else ())
        # Those of single classes have a hyphen, as "IoU-car". Counts are no metrics.
        if "-" not in name.replace("B-Iou", "")
        and higher_is_better(name) is not None
        and value is not None
    }
    if found:
        yield dataset, task, found


def _classes(classes: Mapping[str, Any], num_classes: Mapping[str, int]) -> str:
    names = classes.get("stuff_classes") or classes.get("thing_classes")
    if not names:
        number = next(iter(num_classes.values()))
        return f"{number} classes, whose names are not known."
    return ", ".join(f"{number} {_plain(name)}" for number, name in enumerate(names))


def _table(titles: tuple[str, ...], rows) -> str:
    lines = [titles, ("---",) * len(titles), *rows]
    return "\n".join("| " + " | ".join(_plain(str(cell)) for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    """A text without what Markdown would take for a table or a line."""
    return text.replace("\n", " ").replace("|", "\\|")
