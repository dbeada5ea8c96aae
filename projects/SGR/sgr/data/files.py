"""Files that are written as a whole, or not at all."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def draft_of(path: str | os.PathLike, *, sync: bool = False) -> Iterator[Path]:
    """Write a file so that it is either complete or, after an error, as it was before.

    With ``sync``, that holds after a crash of the machine as well: the draft is on the disk before
    it takes the place of the file. This costs the time that the disk takes.

    Example::

        with draft_of("results.json") as draft:
            draft.write_text(text)

    Yields:
        The path to write to, in the same folder. When the block ends, the draft takes the place of
        ``path``; after an error it is removed.
    """
    path = Path(path)
    # The suffix is not the file's own: loaders would take a draft for one of their files. File
    # systems allow names of 255 bytes, and the file's may have as many.
    name = path.name if len(os.fsencode(path.name)) <= 200 else path.name[:50]
    draft = path.with_name(f".{name}.{os.getpid()}-{threading.get_ident()}.tmp")
    with suppress(OSError):  # a process with the same number may have been killed
        draft.unlink()
    try:
        yield draft
        if sync:
            _sync(draft)
        os.replace(draft, path)
        if sync:
            _sync(path.parent)
    finally:
        # After success it still exists if it and ``path`` are links to the same file.
        with suppress(OSError):
            draft.unlink()


@contextmanager
def warn_unless_written(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file that others can do without, such as a picture, as :func:`draft_of` does.

    Where it cannot be written, because the disk is full or the folder is read-only, a warning says
    so, and the program goes on.

    Yields:
        The path to write to. Missing folders are made.
    """
    try:
        with suppress(OSError):  # the draft cannot be written either
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        with draft_of(path) as draft:
            yield draft
    except (OSError, RuntimeError) as error:  # PyTorch raises a RuntimeError on a full disk
        logging.getLogger(__name__).warning(
            "%s cannot be written: %s; results are in the log", path, str(error).splitlines()[0]
        )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # a file system that cannot
        pass
    finally:
        os.close(descriptor)
