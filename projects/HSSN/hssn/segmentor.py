"""A meta-architecture that also puts out what the nodes of each higher level say by themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, SemanticSegmentor
from detectron2.modeling.postprocessing import sem_seg_postprocess

import sgr
from sgr.modeling.outputs import outputs_of
from sgr.modeling.per_pixel.losses import upsample

from .pixel_loss import TreeLoss

_OUTPUTS: Any = outputs_of(SemanticSegmentor)


class TreeSegmentor(SemanticSegmentor):
    """Detectron2's ``SemanticSegmentor``, for a head with a :class:`TreeLoss`.

    In evaluation, the output of an image has in addition ``levels``, (levels - 1, H, W) int64: for
    each level above the classes the best node, counted in its level. This is what the level says by
    itself. "sem_seg" has the classes of the best paths, which may be under other nodes.

    Cost: one map of the image's size for each node of the higher levels, one level at a time.

    Attributes:
        levels_in_output: whether there is ``levels``.

    Raises:
        ValueError: the config asks for the loss of a tree, but the head has another one. A mask
            classifier has, and so have Detectron2's heads.
    """

    outputs = replace(_OUTPUTS, alone={**_OUTPUTS.alone, "levels_in_output": False})
    levels_in_output = True

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        parts = super().from_config(cfg)
        head = cfg.MODEL.SEM_SEG_HEAD
        if head.LOSS_TYPE == "hssn" and not isinstance(
            getattr(parts["sem_seg_head"], "loss", None), TreeLoss
        ):
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.LOSS_TYPE is 'hssn', which {head.NAME} does not read: scores "
                "of nodes are for per-pixel heads such as FCNHead. For another model there is the "
                "tree-triplet loss alone, mixins/triplet.yaml"
            )
        return parts

    def forward(self, batched_inputs: list[dict[str, Any]]):
        head = self.sem_seg_head
        loss = getattr(head, "loss", None)
        if self.training or not self.levels_in_output or not isinstance(loss, TreeLoss):
            return super().forward(batched_inputs)
        predictions = []
        hook = head.predictor.register_forward_hook(
            lambda module, inputs, output: predictions.append(output.logits)
        )
        try:
            outputs = super().forward(batched_inputs)
        finally:
            hook.remove()
        (logits,) = predictions
        for index, (image, output) in enumerate(zip(batched_inputs, outputs)):
            size = tuple(image["image"].shape[-2:])
            height, width = image.get("height", size[0]), image.get("width", size[1])
            best = [
                sem_seg_postprocess(
                    upsample(level, head.common_stride)[0], size, height, width
                ).argmax(dim=0)
                for level in loss.index.split(logits[index : index + 1])[1:]
            ]
            output["levels"] = torch.stack(best) if best else logits.new_zeros((0, height, width))
        return outputs


ConceptTreeSegmentor = sgr.supervise(TreeSegmentor)
META_ARCH_REGISTRY.register(ConceptTreeSegmentor)
