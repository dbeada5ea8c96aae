"""The files that a command line asks to read, and the files to write."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path


def find_files(inputs: Iterable[str], suffixes: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """Find the files that a command line names. Each file is listed once.

    Args:
        inputs: files, folders, and patterns of ``glob`` (``**`` for any depth). A file is taken
            whatever its suffix is. In folders and patterns, files with one of ``suffixes`` are
            taken, sorted by name, without hidden files and without subfolders.
        suffixes: in lower case, with a dot. The files may have them in upper case.

    Returns:
        The files, in the order of the inputs, and for each input without a file the reason.
    """
    found: dict[Path, Path] = {}
    problems: dict[str, str] = {}
    for name in inputs:
        path = Path(name).expanduser()
        # A file may have a name that looks like a pattern.
        if path.is_file():
            files, problem = [path], ""
        elif path.is_dir():
            files = _with_suffix(path.iterdir(), suffixes)
            problem = f"the folder holds no file with {', '.join(suffixes)}"
        elif glob.has_magic(name):
            matches = glob.glob(str(path), recursive=True)
            files = _with_suffix(map(Path, matches), suffixes)
            problem = f"no file with {', '.join(suffixes)} matches the pattern"
        else:
            files, problem = [], "no such file"
        if not files:
            problems[name] = problem
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values()), problems


def looks_like_key(name: str) -> bool:
    """Whether what a command line has among the names of files is the key of a config."""
    return bool(re.fullmatch(r"[A-Z0-9_]+(\.[A-Z0-9_]+)+", name)) and not Path(name).exists()


def output_files(
    files: Sequence[Path], folder: Path, keep: Sequence[str], other: str
) -> list[Path]:
    """Choose where the result of each file goes: into one folder, under the name of the file.

    If two files have the same name, the results keep the folders below the folder that all files
    share. If two results still have the same name (of a.tif and a.gif), the later one gets a
    number.

    Args:
        folder: the folder for the results.
        keep: suffixes that a result keeps, in lower case.
        other: the suffix of the results of other files.

    Returns:
        A path for each file. All paths differ, also where a file system ignores upper case.
    """
    names = [file.name if file.suffix.lower() in keep else f"{file.stem}{other}" for file in files]
    results = [Path(name) for name in names]
    if len({_folded(result) for result in results}) < len(files):
        # Without "..", which would lead out of the folder.
        parents = [Path(os.path.abspath(file.parent)) for file in files]
        common = os.path.commonpath(parents)
        results = [parent.relative_to(common) / name for parent, name in zip(parents, names)]
    seen: Counter[str] = Counter()
    unique = []
    for result in results:
        candidate = result
        while seen[_folded(candidate)]:
            seen[_folded(result)] += 1
            candidate = result.with_stem(f"{result.stem}_{seen[_folded(result)]}")
        seen[_folded(candidate)] += 1
        unique.append(folder / candidate)
    return unique


def output_stems(files: Sequence[str | os.PathLike]) -> list[str]:
    """Choose a stem for the results of each file, as :func:`output_files` does; all differ."""
    named = output_files([Path(file).expanduser() for file in files], Path(), (), ".png")
    return [str(file.with_suffix("")) for file in named]


def refuse_overwriting(files: Iterable[Path], results: Iterable[Path]) -> None:
    """Raise a ValueError if a result is one of the files to read, under any of its names."""
    read = {(status.st_dev, status.st_ino): file for file in files for status in [file.stat()]}
    for result in results:
        if not result.exists():
            continue
        status = result.stat()
        if (status.st_dev, status.st_ino) in read:
            raise ValueError(
                f"the result {result} would overwrite the input "
                f"{read[status.st_dev, status.st_ino]}; name another output"
            )


def _with_suffix(paths: Iterable[Path], suffixes: Sequence[str]) -> list[Path]:
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )


def _folded(path: Path) -> str:
    return str(path).casefold()
