"""A model's tokens in the images of a dataset, beside the ground truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from torch import nn

from ..data.components import ComponentMap, connected_components
from ..data.mappers.plain import FileNamingMapper
from ..data.truth.image_files import read_image
from ..data.truth.records import has_classes, has_instances, read_class_map, read_instance_map
from ..modeling.outputs import REGIONS, outputs_of, panoptic_classes, predicted_labels, regions_of
from ..modeling.supervision.matcher import ConceptMatcher
from .tokens import Tokens, inspect_tokens


@dataclass(frozen=True)
class InspectedImage:
    """An image, its ground truth, its prediction and its tokens. What is not known is None.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        input_size: (height, width) of the network's input, without padding.
        tokens: of the reasoning module; of a mask classifier without one, its queries. None if the
            config does not ask for tokens (TEST.TOKENS.ENABLED) and the model puts out none.
        queries: of a mask classifier with a reasoning module.
        labels: (H, W) int32, the class of each pixel, -1 for none.
        components: the connected components of the labels.
        instance_names: the class of each instance in ``tokens.instances.labels``.
        prediction: (H, W) integers, the predicted class of each pixel, of a model with as many
            classes as the dataset; of a detector, -1 where it finds no instance.
    """

    image: np.ndarray
    input_size: tuple[int, int]
    tokens: Tokens | None
    queries: Tokens | None
    labels: np.ndarray | None
    components: ComponentMap | None
    instance_names: list[str] | None
    prediction: np.ndarray | None


class Inspector:
    """Runs a model on records of a dataset and inspects its tokens there.

    The model sees whole images, whatever TEST.CENTER_CROP_SIZE says.

    Args:
        model: in evaluation mode, of the config.
        cfg: its config, which says how images are resized, and how components are made and matched.
        metadata: of the dataset.

    Attributes:
        class_names: of the ground truth; empty if the dataset has none.
    """

    def __init__(self, model: nn.Module, cfg: CfgNode, metadata: Metadata):
        self.class_names = list(
            metadata.get("stuff_classes") or metadata.get("thing_classes") or []
        )
        self._model = model
        self._mapper = FileNamingMapper(cfg, is_train=False)
        self._metadata = metadata
        self._needs_tokens = cfg.TEST.TOKENS.ENABLED
        self._matcher = ConceptMatcher.from_config(cfg)
        self._component_options = {
            "ignore_label": -1,
            "min_area_ratio": cfg.INPUT.COMPONENTS.MIN_AREA_RATIO,
            "kernel_size": cfg.INPUT.COMPONENTS.KERNEL_SIZE,
            "max_components": self._matcher.max_active,
        }

    def __call__(self, record: dict) -> InspectedImage:
        """
        Args:
            record: in Detectron2's standard dataset format.

        Raises:
            FileNotFoundError, OSError: if a file of the record is missing or damaged.
            ValueError: if the config asks for tokens and the model puts out no regions, or the
                ground truth does not fit the dataset's classes or the image.
        """
        sixteen_bit = self._mapper.sixteen_bit
        image = read_image(record["file_name"], "RGB", sixteen_bit=sixteen_bit)
        labels = components = instances = instance_names = None
        if self.class_names and has_classes(record):
            labels = read_class_map(
                record,
                num_classes=len(self.class_names),
                ignore_label=self._metadata.get("ignore_label", 255),
            )
            components = connected_components(labels, **self._component_options)
        if has_instances(record):
            thing_ids = self._metadata.get("thing_dataset_id_to_contiguous_id", {}).values()
            instances = read_instance_map(record, image.shape[:2], set(thing_ids))

        input_ = self._mapper(record)
        input_size = tuple(input_["image"].shape[-2:])
        # Not inference_mode: what a module keeps then would be of no use to a training.
        with torch.no_grad():
            output = self._model([input_])[0]

        def inspect(key: str) -> Tokens:
            return inspect_tokens(
                regions_of(output, key),
                input_size,
                labels=labels,
                instances=instances,
                components=components,
                matcher=self._matcher,
            )

        wanted = self._needs_tokens or REGIONS["tokens"] in output
        tokens = inspect(REGIONS["tokens"]) if wanted else None
        queries = inspect(REGIONS["queries"]) if REGIONS["queries"] in output else None
        if tokens is not None and tokens.instances is not None:
            instance_names = self._instance_names(record, tokens.instances.labels)
        prediction = self._predicted_classes(output)
        return InspectedImage(
            image, input_size, tokens, queries, labels, components, instance_names, prediction
        )

    def _predicted_classes(self, output: dict) -> np.ndarray | None:
        outputs = outputs_of(self._model)
        joint = outputs is None or outputs.joint_classes
        number = None if outputs is None else outputs.num_classes(self._model)
        if number not in (None, len(self.class_names)):  # a model of other data
            return None
        if "sem_seg" in output and joint:
            return predicted_labels(output["sem_seg"]).cpu().numpy()
        if "panoptic_seg" in output and joint:
            return panoptic_classes(output["panoptic_seg"]).cpu().numpy()
        if "instances" in output and (joint or not self._metadata.get("stuff_classes")):
            return _paint_instances(output["instances"])
        return None

    def _instance_names(self, record: dict, indices: np.ndarray) -> list[str]:
        # The categories of annotations count over the things, those of segments over all classes.
        key, names = "segments_info", self.class_names
        if "annotations" in record:
            key, names = "annotations", self._metadata.get("thing_classes") or names
        return [names[record[key][index]["category_id"]] for index in indices]


def _paint_instances(instances: Instances, score_threshold: float = 0.5) -> np.ndarray | None:
    """(H, W) classes of instances with masks, the surest on top; -1 where there is none."""
    if not instances.has("pred_masks"):
        return None
    instances = instances[instances.scores >= score_threshold].to("cpu")
    classes = np.full(instances.image_size, -1)
    masks = getattr(instances.pred_masks, "tensor", instances.pred_masks).bool().numpy()
    for index in instances.scores.argsort().tolist():
        classes[masks[index]] = instances.pred_classes[index]
    return classes
