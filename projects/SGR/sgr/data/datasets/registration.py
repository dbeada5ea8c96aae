"""How datasets get into Detectron2's catalogs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin

Paths = Callable[[], dict[str, Path]]


def register(
    name: str, load: Callable[[], list[dict]], paths: Paths | None = None, **metadata: Any
) -> None:
    """Put a dataset into the catalogs, unless one of this name is there already.

    Args:
        name: for DATASETS.TRAIN and DATASETS.TEST.
        paths: gives the paths of the dataset for its metadata. They are asked for at every load,
            because ``$DETECTRON2_DATASETS`` may change.
    """
    if name in DatasetCatalog:
        return
    DatasetCatalog.register(name, partial(_load, name, load, paths, {}))
    MetadataCatalog.get(name).set(**metadata)
    _set_paths(name, paths)


def replace_builtin(
    name: str,
    load: Callable[[], list[dict]],
    paths: Paths | None = None,
    *,
    only_at: Mapping[str, str] | None = None,
    **metadata: Any,
) -> None:
    """Replace the loader of a dataset that Detectron2 has registered. Its metadata stay.

    A dataset that somebody else has registered under this name is left as it is.

    Args:
        name, load, paths: see :func:`register`.
        only_at: paths in the metadata, relative to the root of all datasets. Datasets of users,
            which are registered by the same function as Detectron2's own, differ in these.
        metadata: added when the dataset is loaded, if it does not have them. Metadata cannot be
            changed, so setting them earlier would keep others (Mask2Former) from setting theirs.
    """
    loader = DatasetCatalog.data.get(name)
    if not (getattr(loader, "__module__", None) or "").startswith("detectron2.data.datasets."):
        return
    # The root at the time when Detectron2 was imported; some versions expand "~" in it.
    root = getattr(builtin, "_root", os.getenv("DETECTRON2_DATASETS", "datasets"))
    known = MetadataCatalog.get(name)
    if all(known.get(key) == os.path.join(root, path) for key, path in (only_at or {}).items()):
        DatasetCatalog.remove(name)
        DatasetCatalog.register(name, partial(_load, name, load, paths, metadata))


def add_metadata(name: str, **metadata: Any) -> None:
    """Set the metadata that a dataset does not have yet."""
    known = MetadataCatalog.get(name)
    known.set(**{key: value for key, value in metadata.items() if key not in known.as_dict()})


def _load(
    name: str, load: Callable[[], list[dict]], paths: Paths | None, metadata: dict[str, Any]
) -> list[dict]:
    _set_paths(name, paths)
    add_metadata(name, **metadata)
    return load()


def _set_paths(name: str, paths: Paths | None) -> None:
    # Not by Metadata.set, which does not let a value change.
    vars(MetadataCatalog.get(name)).update(
        {key: str(path) for key, path in (paths() if paths else {}).items()}
    )
