"""A tree of classes as tensors, and the tree that a config asks for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from torch import Tensor, nn

from sgr.data.class_tree import ClassTree
from sgr.inference import dataset_metadata


class NodeIndex(nn.Module):
    """The indices that losses and inference need, on the device of the model. It has no state.

    Logits of nodes have V channels: those of the classes, then level by level upwards.

    Args:
        tree: the tree.
    """

    groups: Tensor
    ancestors: Tensor

    def __init__(self, tree: ClassTree):
        super().__init__()
        self.tree = tree
        # (levels, C): the node of each class, counted in its level, and among all nodes.
        self.register_buffer("groups", torch.from_numpy(tree.groups), persistent=False)
        ancestors = torch.tensor(tree.ancestors)
        self.register_buffer("ancestors", ancestors, persistent=False)
        # For each level but the lowest, the children of all of its nodes one after the other. None
        # where they are in this order already, as in Cityscapes: logits need no copy then.
        self._numbers_of_children = []
        for level, parents in enumerate(tree.parents, 1):
            order = torch.from_numpy(parents).argsort(stable=True)
            in_order = bool((parents[1:] >= parents[:-1]).all())
            self.register_buffer(f"children{level}", None if in_order else order, persistent=False)
            numbers = torch.bincount(torch.from_numpy(parents), minlength=tree.sizes[level])
            self._numbers_of_children.append(numbers.tolist())

    @property
    def num_nodes(self) -> int:
        """V."""
        return len(self.tree.names)

    def split(self, logits: Tensor) -> Sequence[Tensor]:
        """Split (B, V, ...) logits into those of each level, from the classes upwards."""
        return logits.split(self.tree.sizes, dim=1)

    def children_of(self, level: int, lower: Tensor) -> Sequence[Tensor]:
        """Split (B, nodes, ...) of the level below into (B, children, ...) of each node.

        Args:
            level: at least 1.
        """
        order = getattr(self, f"children{level}")
        if order is not None:
            lower = lower.index_select(1, order)
        return lower.split(self._numbers_of_children[level - 1], dim=1)

    def path_scores(self, logits: Tensor, kind: str = "logits") -> Tensor:
        """Sum what the nodes on the path of each class have.

        Args:
            logits: (B, V, ...).
            kind: whether to sum the "logits", or the "scores" which are their sigmoids.

        Returns:
            (B, C, ...). The classes with the highest values, and their superclasses, never
            contradict one another.
        """
        values = logits.sigmoid() if kind == "scores" else logits
        total = values[:, : self.tree.num_classes]
        for nodes in self.ancestors[1:]:
            total = total + values.index_select(1, nodes)
        return total


def find_tree(cfg: CfgNode) -> ClassTree:
    """The tree of MODEL.HSSN.TREE, or else of the data that the config names.

    The data are those of DATASETS.TRAIN and TEST, or, where a model folder is used without them,
    what the folder knows of its data.

    Raises:
        ValueError: there is no tree, the names of the classes are not known, or the tree does not
            fit them; or the model has another number of classes.
    """
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    key = "MODEL.HSSN.TREE"
    own = list(cfg.MODEL.HSSN.TREE)

    def fits(metadata: Metadata) -> bool:
        has_tree = bool(own) or metadata.get("class_tree") is not None
        return has_tree and bool(metadata.get("stuff_classes"))

    registered = [MetadataCatalog.get(name) for name in names if name in DatasetCatalog]
    metadata = next(filter(fits, registered), None) or dataset_metadata(cfg)
    if not fits(metadata):
        missing = "no names of classes for MODEL.HSSN.TREE" if own else "no tree of classes"
        raise ValueError(
            f"there is {missing}: DATASETS.TRAIN and TEST name {names}. Give your data a 'tree' in "
            "their description (docs/your_data.md), set class_tree beside stuff_classes in the "
            f"metadata of the dataset, or set {key}"
        )
    try:
        tree = ClassTree.parse(own or metadata.class_tree, metadata.stuff_classes)
    except ValueError as error:
        raise ValueError(f"{key if own else f'class_tree of {metadata.name}'}: {error}") from error
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if tree.num_classes != num_classes:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}, but the tree of {metadata.name} has "
            f"{tree.num_classes} classes; set it to their number"
        )
    return tree
