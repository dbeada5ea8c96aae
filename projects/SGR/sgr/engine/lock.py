"""One training at a time in a folder."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def lock_folder(folder: str) -> Iterator[None]:
    """Keep other trainings out of a folder inside the ``with`` block.

    The lock is that of the operating system on a file ``.lock``. It ends with the process, however
    that ends, and its data workers do not have it. It does not keep this process out: a second lock
    of the same folder would end the first one.

    Raises:
        ValueError: if another process trains in the folder.
    """
    if fcntl is None:
        yield
        return
    path = Path(folder, ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            # Not flock, whose lock the data workers would share, and keep for seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise ValueError(
                f"another training writes to OUTPUT_DIR {folder!r} ({file.read().strip()}); wait "
                "for it, or set another OUTPUT_DIR"
            ) from None
        except OSError:  # a file system without locks
            yield
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
