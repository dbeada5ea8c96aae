"""Results as JSON files that every JSON reader can read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.files import draft_of, warn_unless_written


def write_json(path: str | Path, content: Mapping, *, needed: bool = True) -> None:
    """Write a JSON file. After an error, the file is as it was before.

    Args:
        path: missing folders are made.
        content: dicts, lists, texts, numbers, and arrays of these. NaN and infinity become null,
            because JSON has no such numbers. Objects of other types are written as text.
        needed: False warns where the file cannot be written.

    Raises:
        OSError: the file cannot be written, and is needed.
    """
    path = Path(path)
    text = json.dumps(plain(content), indent=1, allow_nan=False, default=str)
    if needed:
        path.parent.mkdir(parents=True, exist_ok=True)
    with draft_of(path) if needed else warn_unless_written(path) as draft:
        draft.write_text(text + "\n", encoding="utf-8")


def plain(content: Any) -> Any:
    """Dicts, lists, texts and numbers that JSON can hold, as :func:`write_json` says."""
    if isinstance(content, Mapping):
        return {str(key): plain(value) for key, value in content.items()}
    if hasattr(content, "tolist"):  # of NumPy or PyTorch
        content = content.tolist()
    if isinstance(content, (list, tuple)):
        return [plain(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
