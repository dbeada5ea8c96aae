"""How the page gets its data: scripts that call a function, and arrays in them.

A browser refuses to read files beside a page that is opened from the file system, but it loads
scripts.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.json_file import plain


def pack(array: np.ndarray) -> dict[str, Any]:
    """An array as the page unpacks it: compressed by zlib (the "deflate" of browsers), in base64.

    Args:
        array: of bool, uint8, uint16, int16 or floats, which become float32.
    """
    if array.dtype == bool:
        array = array.astype(np.uint8)
    elif array.dtype.kind == "f":
        array = array.astype("<f4")
    kind = array.dtype.newbyteorder("<")
    data = zlib.compress(np.ascontiguousarray(array, dtype=kind).tobytes(), 6)
    return {
        "type": kind.str[1:],
        "shape": array.shape,
        "data": base64.b64encode(data).decode("ascii"),
    }


def pack_shares(shares: np.ndarray) -> dict[str, Any]:
    """Numbers in [0, 1] in steps of 1/255."""
    return pack(np.rint(255 * shares).astype(np.uint8))


def pack_fractions(shares: np.ndarray) -> dict[str, Any]:
    """Numbers in [0, 1] in steps of 1/65535."""
    return pack(np.rint(65535 * shares).astype(np.uint16))


def pack_labels(labels: np.ndarray) -> dict[str, Any]:
    """Labels of at least -1, plus one, so that 0 stands for none."""
    largest = int(labels.max(initial=0)) + 1
    return pack((labels + 1).astype(np.uint8 if largest < 256 else np.uint16))


def write_script(path: Path, function: str, *arguments: Any) -> int:
    """Write a script that calls ``window.function(...arguments)``; the number of its bytes.

    It is plain ASCII: no name of a file or class can leave its string.
    """
    texts = (
        json.dumps(plain(argument), separators=(",", ":"), allow_nan=False)
        for argument in arguments
    )
    return path.write_bytes(f"{function}({','.join(texts)});\n".encode("ascii"))


def rounded(value: Any, digits: int = 4) -> Any:
    """The numbers in dicts and lists with that many digits, which makes their JSON short."""
    if isinstance(value, Mapping):
        return {key: rounded(one, digits) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(one, digits) for one in value]
    return float(f"{value:.{digits}g}") if isinstance(value, (float, np.floating)) else value
