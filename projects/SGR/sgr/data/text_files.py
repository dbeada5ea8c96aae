"""Text files that users write."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["read_text"]


def read_text(path: str | os.PathLike) -> str:
    """The text of a file, without the byte order mark that some editors put at its start.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8") from error
