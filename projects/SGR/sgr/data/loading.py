"""Loading registered datasets, each one once."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from .truth.coco_file import explain_coco_errors
from .truth.records import check_sizes

_kept: ContextVar[dict[str, Any] | None] = ContextVar("kept", default=None)


def check_registered(name: str, where: str) -> None:
    """Check that there is a dataset of this name, before it is loaded.

    Args:
        name: of the dataset.
        where: the beginning of the message, which tells who names it.

    Raises:
        ValueError: there is none. The message has the closest name.
    """
    if name not in DatasetCatalog:
        close = difflib.get_close_matches(name, DatasetCatalog.list(), n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(
            f"{where} {name!r}, and no dataset is registered under this name{hint}. A dataset of "
            "your own is described by a file in DATASETS.FILES (see docs/your_data.md)"
        )


def load_dataset(name: str) -> Any:
    """The records of a registered dataset; the same object again inside :func:`keep_datasets`.

    Some datasets fill their metadata when they are loaded: load first, then read these.

    Raises:
        KeyError: if no dataset has this name.
        OSError, ValueError: if the dataset is missing or damaged; the message names the file.
    """
    kept = _kept.get()
    if kept is not None and name in kept:
        return kept[name]
    with explain_coco_errors([name]):
        records = DatasetCatalog.get(name)
        # Detectron2 takes the names of a COCO file as they are.
        metadata = MetadataCatalog.get(name)
        for key in ("thing_classes", "stuff_classes"):
            for class_name in metadata.get(key, None) or []:
                if not _can_be_shown(class_name):
                    raise ValueError(
                        f"a class of {name} has the name {class_name!r}; names are texts of Unicode"
                    )
    if isinstance(records, list):
        check_sizes(records)
    if kept is not None:
        kept[name] = records
    return records


def _can_be_shown(class_name: Any) -> bool:
    if isinstance(class_name, (list, dict, type(None))):
        return False
    try:
        str(class_name).encode()
    except UnicodeEncodeError:  # half of a pair, which no font and no file can hold
        return False
    return True


@contextmanager
def keep_datasets(kept: dict[str, Any]) -> Iterator[None]:
    """Inside the ``with`` block, :func:`load_dataset` keeps what it loads in ``kept``.

    The caller owns ``kept``, so the datasets live as long as the caller wants.
    """
    token = _kept.set(kept)
    try:
        yield
    finally:
        _kept.reset(token)
