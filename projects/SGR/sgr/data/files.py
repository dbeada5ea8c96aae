"""Text files that users write, folders that they fill, and files that are written as a whole."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml


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


def compose_yaml(path: str | os.PathLike) -> yaml.Node | None:
    """The nodes of a YAML file, of which no value is made yet; None if the file is empty.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is not UTF-8 or no valid YAML; or its values are nested more than 50 levels
            deep, or are more than a million with what its references repeat.
    """
    text = read_text(path)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        number = 0 if node is None else _num_values(node, {})
    except (yaml.YAMLError, RecursionError) as error:
        deep = "its values are nested too deeply"
        why = error if isinstance(error, yaml.YAMLError) else deep
        raise ValueError(f"the file is no valid YAML: {why}") from error
    if number > 1_000_000:
        raise ValueError("the file has references (*) that make millions of values; write them out")
    return node


def _num_values(node: yaml.Node, known: dict[int, int | None], depth: int = 0) -> int:
    """The number of nodes at and below a node; each reference counts as often as it is made."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = None  # until it is known
        below = node.value
        if isinstance(node, yaml.MappingNode):
            below = [one for pair in node.value for one in pair]
        if depth > 50:
            raise RecursionError
        known[id(node)] = 1 + sum(_num_values(one, known, depth + 1) for one in below)
    number = known[id(node)]
    if number is None:
        raise ValueError("the file has a reference (*) to a value that holds the reference itself")
    return number


def visible_files(folder: Path) -> list[Path]:
    """The files of a folder and of its subfolders, sorted by path, without hidden ones.

    It follows links to folders and does not enter hidden folders. It reads each folder once, by its
    own name if it has one in ``folder``. A link to a folder that is read already, or that holds
    ``folder``, is left out with a warning.

    Args:
        folder: may be missing; then there are no files.
    """
    files: list[Path] = []
    real = Path(os.path.realpath(folder))
    seen = {str(parent) for parent in real.parents}
    pending = [str(folder)]
    links: list[str] = []  # they come last
    while pending or links:
        parent = pending.pop() if pending else links.pop(0)
        real_parent = os.path.realpath(parent)
        if real_parent in seen:
            logging.getLogger(__name__).warning(
                f"{parent} is left out: it is a link to {real_parent}, which is read already, or "
                f"holds {folder}"
            )
            continue
        seen.add(real_parent)
        try:
            entries = list(os.scandir(parent))
        except OSError:  # missing, or not to be read
            continue
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                (links if entry.is_symlink() else pending).append(entry.path)
            else:
                files.append(Path(entry.path))
    return sorted(files)


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
    # The suffix is not the file's own: loaders would take a draft for one of their files.
    draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
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
