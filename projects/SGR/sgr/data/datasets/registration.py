"""How datasets get into Detectron2's catalogs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin

__all__ = ["add_metadata", "register", "replace_builtin", "set_paths"]


def register(name: str, load: Callable[[], list[dict]], **metadata: Any) -> None:
    """Put a dataset into the catalogs, unless one of this name is there already."""
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(**metadata)


def replace_builtin(name: str, load: Callable[[], list[dict]], **paths: str) -> None:
    """Put another loader of the same data in the place of Detectron2's own; its metadata stay.

    A dataset that somebody else has registered under this name is left as it is.

    Args:
        paths: paths in the metadata, under the root of all datasets; for kinds of datasets that
            users register by the function that Detectron2 registers its own by.
    """
    loader = DatasetCatalog.data.get(name)
    if not (getattr(loader, "__module__", None) or "").startswith("detectron2.data.datasets."):
        return
    # The root as it was when Detectron2 was imported; in some versions with "~" expanded.
    root = getattr(builtin, "_root", os.getenv("DETECTRON2_DATASETS", "datasets"))
    metadata = MetadataCatalog.get(name)
    if all(metadata.get(key) == os.path.join(root, path) for key, path in paths.items()):
        DatasetCatalog.remove(name)
        DatasetCatalog.register(name, load)


def add_metadata(name: str, **metadata: Any) -> None:
    """Set those of the metadata that a dataset does not have yet."""
    known = MetadataCatalog.get(name)
    known.set(**{key: value for key, value in metadata.items() if key not in known.as_dict()})


def set_paths(name: str, **paths: Path) -> None:
    """Set paths in a dataset's metadata, anew each time it is loaded.

    Metadata do not let a value change, but ``$DETECTRON2_DATASETS`` may have changed since the
    import of this package.
    """
    vars(MetadataCatalog.get(name)).update({key: str(path) for key, path in paths.items()})
