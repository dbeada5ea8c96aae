"""A model's output for one image as a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.structures import BitMasks, Instances
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import Visualizer
from torch import Tensor

from ..inspection import inspect_tokens
from ..modeling.outputs import predicted_labels, regions_of
from ..visualization import draw_regions_beside, region_tile_size, upsample_regions

__all__ = ["choose_concepts", "draw_output", "draw_output_regions"]


def draw_output(
    image: np.ndarray,
    output: dict[str, Any],
    metadata: Metadata,
    *,
    score_threshold: float = 0.5,
    video: VideoVisualizer | None = None,
) -> np.ndarray:
    """Draw a model's output over its image, with Detectron2's ``Visualizer``.

    Of an output with several results the first of ``panoptic_seg``, ``instances`` and ``sem_seg``
    is drawn. Takes a few tenths of a second, more where segments are frayed: Matplotlib draws each
    of their pieces.

    Args:
        image: (H, W, 3) uint8, RGB.
        output: as Detectron2's models have it, on any device, at the image's size. ``sem_seg`` are
            (C, H, W) scores or (H, W) integer labels; those without a name are not drawn.
        metadata: of the model's classes; see ``BatchPredictor.metadata``.
        score_threshold: instances with a lower score are left out.
        video: of the video that the image is a frame of. It remembers instances, so that they keep
            their colours; one for each video, with the same metadata.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ValueError: if there is none of these.
    """
    visualizer = Visualizer(image, metadata) if video is None else video
    frame = () if video is None else (image,)
    if "panoptic_seg" in output:
        ids, segments = output["panoptic_seg"]
        drawn = visualizer.draw_panoptic_seg_predictions(*frame, ids.cpu(), segments)
    elif "instances" in output:
        instances = _shown_instances(output["instances"], score_threshold)
        drawn = visualizer.draw_instance_predictions(*frame, instances)
    elif "sem_seg" in output:
        labels = _known_labels(output["sem_seg"], len(metadata.stuff_classes))
        drawn = visualizer.draw_sem_seg(*frame, labels)
    else:
        raise ValueError(
            f"the output has {sorted(output)}, but none of panoptic_seg, instances and sem_seg "
            "to draw"
        )
    return drawn.get_image()


def choose_concepts(output: dict[str, Any], count: int) -> np.ndarray:
    """The indices of the ``count`` concepts whose regions carry most of an image's features.

    Raises:
        ValueError: if the output has no ``concept_regions``.
    """
    regions = regions_of(output)
    return inspect_tokens(regions).most_used(count)


def draw_output_regions(
    picture: np.ndarray,
    image: np.ndarray,
    output: dict[str, Any],
    metadata: Metadata,
    *,
    input_size: tuple[int, int],
    concepts: np.ndarray,
) -> np.ndarray:
    """A picture with the regions of some concepts beside.

    A region's title has the largest share of its weight that lies on one class of the prediction;
    where that gives no class to every pixel (instances), the region's largest probability.

    Args:
        picture: (H, W, 3) uint8, RGB, of :func:`draw_output`.
        image, output, metadata: as there.
        input_size: (h, w) of the network's input, without padding.
        concepts: (T,) indices, say of :func:`choose_concepts`.

    Returns:
        (height, width, 3) uint8, RGB; see :func:`sgr.visualization.draw_regions_beside`.

    Raises:
        ValueError: if the output has no ``concept_regions``.
    """
    labels = names = None
    if (named := _class_map(output, metadata)) is not None:
        labels, names = named
    tokens = inspect_tokens(regions_of(output), input_size, labels=labels)
    shown = upsample_regions(
        tokens.probabilities[concepts], tokens.stride, input_size, region_tile_size(image.shape[:2])
    )
    if names and tokens.classes is not None and len(tokens.classes.labels):
        shares = tokens.classes.values[concepts]
        best = tokens.classes.labels[shares.argmax(axis=1)]
        notes = [f"{names[label]} {100 * row.max():.0f} %" for label, row in zip(best, shares)]
    else:
        notes = [f"peak {peak:.2f}" for peak in tokens.peak[concepts]]
    titles = [f"concept {concept}: {note}" for concept, note in zip(concepts, notes)]
    return draw_regions_beside(picture, image, shown, titles)


def _shown_instances(instances: Instances, score_threshold: float) -> Instances:
    """Those that are sure enough, as ``Visualizer`` and ``VideoVisualizer`` want them."""
    if instances.has("scores"):
        instances = instances[instances.scores >= score_threshold]
    instances = instances.to("cpu")  # a copy, on the CPU too
    if instances.has("pred_masks"):
        masks = instances.pred_masks
        masks = masks.tensor if isinstance(masks, BitMasks) else masks
        instances.pred_masks = masks
        # Some mask classifiers put out boxes of zeros: names would go there, and tracks get lost.
        if not (instances.has("pred_boxes") and instances.pred_boxes.nonempty().any()):
            instances.pred_boxes = BitMasks(masks).get_bounding_boxes()
    return instances


def _known_labels(sem_seg: Tensor, num_classes: int) -> Tensor:
    """(H, W) labels on the CPU, ``num_classes`` where there is none or an unknown one."""
    labels = predicted_labels(sem_seg).cpu().long()
    return labels.where((labels >= 0) & (labels < num_classes), num_classes)


def _class_map(output: dict[str, Any], metadata: Metadata) -> tuple[np.ndarray, list[str]] | None:
    """(H, W) labels, -1 where there is none, and their names; None for instances."""
    if "panoptic_seg" in output:
        ids, segments = output["panoptic_seg"]
        ids = ids.cpu().numpy()
        # Things may be numbered apart from stuff: here they come after it.
        first_thing = len(metadata.stuff_classes)
        labels = np.full_like(ids, -1)
        for segment in segments:
            label = segment["category_id"] + (first_thing if segment["isthing"] else 0)
            labels[ids == segment["id"]] = label
        return labels, [*metadata.stuff_classes, *metadata.thing_classes]
    if "instances" in output or "sem_seg" not in output:
        return None
    names = list(metadata.stuff_classes)
    labels = _known_labels(output["sem_seg"], len(names)).numpy()
    return np.where(labels < len(names), labels, -1), names
