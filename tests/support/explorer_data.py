"""Reading what an explorer has written, as its page does."""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np


def read_script(path: Path, function: str) -> list[Any]:
    """The arguments of the call that a script consists of."""
    text = path.read_text(encoding="ascii")
    assert text.startswith(f"{function}(") and text.endswith(");\n")
    return json.loads(f"[{text[len(function) + 1 : -3]}]")


def unpack(packed: dict[str, Any]) -> np.ndarray:
    data = zlib.decompress(base64.b64decode(packed["data"]))
    return np.frombuffer(data, dtype=f"<{packed['type']}").reshape(packed["shape"])
