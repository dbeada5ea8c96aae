"""Pictures of a model's output for one image."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.structures import BitMasks, Instances
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import Visualizer
from torch import Tensor

from ..inspection import Tokens, inspect_tokens
from ..modeling.outputs import panoptic_classes, predicted_labels, regions_of
from ..visualization import draw_regions_beside, region_tile_size, upsample_regions
from ..visualization.figure import add_fallback_fonts, plain

# Of the colours of segments: so that one still sees the image below them.
OPACITY = 0.45


def draw_output(
    image: np.ndarray,
    output: dict[str, Any],
    metadata: Metadata,
    *,
    score_threshold: float = 0.5,
    video: VideoVisualizer | None = None,
) -> np.ndarray:
    """Draw a model's output over its image, with Detectron2's ``Visualizer``.

    If the output has several results, the first of ``panoptic_seg``, ``instances`` and ``sem_seg``
    is drawn. This takes a few tenths of a second, and more if segments are in many pieces, because
    Matplotlib draws each piece.

    Args:
        image: (H, W, 3) uint8, RGB.
        output: the output of a Detectron2 model, on any device, at the size of the image.
            ``sem_seg`` are (C, H, W) scores or (H, W) integer labels. Labels without a name are not
            drawn.
        metadata: of the model's classes; see ``BatchPredictor.metadata``.
        score_threshold: instances with a lower score are left out.
        video: for the frames of a video, one object for the whole video with the same metadata. It
            remembers the instances, so that they keep their colours.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ValueError: if the output has none of these results.
    """
    # A video's visualizer would hide the frame below labels, and remembers nothing of them.
    if video is None or not {"panoptic_seg", "instances"} & output.keys():
        visualizer = Visualizer(image, _with_plain_names(metadata))
    else:
        visualizer = video
    frame = () if video is None else (image,)
    if "panoptic_seg" in output:
        ids, segments = output["panoptic_seg"]
        drawn = visualizer.draw_panoptic_seg_predictions(*frame, ids.cpu(), segments, alpha=OPACITY)
    elif "instances" in output:
        instances = shown_instances(output["instances"], score_threshold)
        drawn = visualizer.draw_instance_predictions(*frame, instances)
    elif "sem_seg" in output:
        labels = _known_labels(output["sem_seg"], len(metadata.stuff_classes))
        drawn = visualizer.draw_sem_seg(labels, alpha=OPACITY)
    else:
        raise ValueError(
            f"the output has {sorted(output)}, but none of panoptic_seg, instances and sem_seg "
            "to draw"
        )
    add_fallback_fonts(drawn.fig)
    return drawn.get_image()


def _with_plain_names(metadata: Metadata) -> Metadata:
    kinds = ("stuff_classes", "thing_classes")
    names = {kind: list(map(plain, metadata.get(kind))) for kind in kinds if metadata.get(kind)}
    return Metadata(**{**metadata.as_dict(), **names})


def choose_concepts(output: dict[str, Any], count: int) -> np.ndarray:
    """The indices of the ``count`` concepts that an image uses most, see ``Tokens.most_used``.

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
    """Draw the regions of some concepts beside a picture.

    The title of a region names the predicted class that has the largest share of its weight. For
    instances, which do not give a class to every pixel, it has the largest probability of the
    region instead.

    Args:
        picture: (H, W, 3) uint8, RGB, from :func:`draw_output`.
        image, output, metadata: see :func:`draw_output`.
        input_size: (h, w) of the network's input, without padding.
        concepts: (T,) indices, for example from :func:`choose_concepts`.

    Returns:
        (height, width, 3) uint8, RGB; see :func:`sgr.visualization.draw_regions_beside`.

    Raises:
        ValueError: if the output has no ``concept_regions``.
    """
    tokens, names = inspect_output(output, metadata, input_size)
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


def inspect_output(
    output: dict[str, Any], metadata: Metadata, input_size: tuple[int, int]
) -> tuple[Tokens, list[str] | None]:
    """The tokens, with their histograms over the predicted classes, and the names of these.

    Of instances, which do not give a class to every pixel, there are neither histograms nor names.
    For arguments and errors, see :func:`draw_output_regions`.
    """
    labels, names = class_map(output, metadata) or (None, None)
    return inspect_tokens(regions_of(output), input_size, labels=labels), names


def shown_instances(instances: Instances, score_threshold: float) -> Instances:
    """The instances to draw, on the CPU, in the form that both visualizers of Detectron2 accept."""
    if instances.has("scores"):
        instances = instances[instances.scores >= score_threshold]
    instances = instances.to("cpu")  # a copy, on the CPU too
    if instances.has("pred_masks"):
        masks = instances.pred_masks
        masks = masks.tensor if isinstance(masks, BitMasks) else masks
        instances.pred_masks = masks
        # Some mask classifiers put out boxes of zeros. Names would be drawn there, and videos would
        # lose their tracks.
        if not (instances.has("pred_boxes") and instances.pred_boxes.nonempty().any()):
            instances.pred_boxes = BitMasks(masks).get_bounding_boxes()
    return instances


def _known_labels(sem_seg: Tensor, num_classes: int) -> Tensor:
    """(H, W) labels on the CPU; ``num_classes`` stands for no label and for unknown ones."""
    labels = predicted_labels(sem_seg).cpu().long()
    return labels.where((labels >= 0) & (labels < num_classes), num_classes)


def class_map(output: dict[str, Any], metadata: Metadata) -> tuple[np.ndarray, list[str]] | None:
    """(H, W) labels, -1 for no label, and the names of the classes; None for instances."""
    if "panoptic_seg" in output:
        # Things and stuff may have numbers of their own: here the things come after the stuff.
        labels = panoptic_classes(output["panoptic_seg"], len(metadata.stuff_classes))
        return labels.cpu().numpy(), [*metadata.stuff_classes, *metadata.thing_classes]
    if "instances" in output or "sem_seg" not in output:
        return None
    names = list(metadata.stuff_classes)
    labels = _known_labels(output["sem_seg"], len(names)).numpy()
    return np.where(labels < len(names), labels, -1), names
