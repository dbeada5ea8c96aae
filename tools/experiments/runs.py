"""A run: one config trained with one seed, in a folder of its own.

Beside the files of train_net.py, the folder holds ``experiment.json`` with the config and the
status of the run, and ``console.txt`` with all that its processes printed.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from sgr.checkpoints.model_folder import WEIGHTS, digest
from sgr.data.files import draft_of
from sgr.engine import load_config
from sgr.engine.config_check import flat
from sgr.engine.setup import local_config
from sgr.visualization.curves import metrics_entry

# Keys that the tool sets for each run.
OWN_KEYS = ("OUTPUT_DIR", "SEED")
MAX_SHOWN_CHANGES = 5


@dataclass(frozen=True)
class Run:
    """One config with one seed.

    Attributes:
        name: the name of the config, the same for all seeds.
        config_file: as for train_net.py.
        seed: the value of SEED.
        folder: the value of OUTPUT_DIR.
        settings: the values of its config, as Python prints them, by their keys
            ("SOLVER.MAX_ITER"), and a checksum of the file of weights.
        max_iter: iterations of the whole training.
        weights: the value of MODEL.WEIGHTS; None keeps that of the config.
        mixins: configs that are merged over ``config_file``.
    """

    name: str
    config_file: Path
    seed: int
    folder: Path
    settings: dict[str, str]
    max_iter: int
    weights: Path | None = None
    mixins: Sequence[Path] = ()

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"

    @property
    def console(self) -> Path:
        """The file with all that the processes of this run printed."""
        return self.folder / "console.txt"

    @property
    def record(self) -> Path:
        return self.folder / "experiment.json"

    @property
    def own_opts(self) -> list[str]:
        """The options that change its config: KEY, VALUE, ..."""
        weights = [] if self.weights is None else ["MODEL.WEIGHTS", str(self.weights)]
        return ["OUTPUT_DIR", str(self.folder), "SEED", str(self.seed), *weights]

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint for ``--resume``."""
        tag = self.folder / "last_checkpoint"
        return tag.is_file() and bool(tag.read_text().strip())

    @property
    def iterations_saved(self) -> int:
        """Number of iterations that ``--resume`` does not repeat."""
        if not self.has_checkpoint:
            return 0
        # "model_0000249.pth" after 250 iterations, "model_final.pth" after all.
        name = (self.folder / "last_checkpoint").read_text().strip()
        number = re.search(r"_(\d+)\.", name)
        return int(number[1]) + 1 if number else self.max_iter


def parse_configs(texts: Sequence[str], *, allow_unsafe: bool = False) -> dict[str, list[Path]]:
    """Read "FILE", "FILE+MIXIN+..." or "NAME=..." arguments: name -> config file and its mixins.

    The default name is made of the names of the files: "fcn_sgr" for "fcn.yaml+sgr.yaml". A file is
    also what train_net.py takes for one: a model folder, or "configs/..." of this package, and with
    ``allow_unsafe`` a model of the hub.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if two configs have the same name, a name cannot be the name of a folder, or a
            folder is no model folder.
    """
    configs: dict[str, list[Path]] = {}
    for text in texts:
        before, equals, after = text.partition("=")
        files = [Path(part) for part in (after if equals else text).split("+")]
        name = before if equals else "_".join(file.stem for file in files)
        for file in files:
            if not Path(local_config(str(file), allow_unsafe=allow_unsafe)).is_file():
                raise FileNotFoundError(
                    f"there is no config file {str(file)!r} (changes of the configs, KEY VALUE, "
                    "come after --output DIR, or at the end behind --)"
                )
        if not name or name in (".", "..") or "/" in name or os.sep in name:
            raise ValueError(f"{name!r} of {text!r} cannot be the name of a folder")
        if name in configs:
            raise ValueError(
                f"two configs have the name {name!r}: {_join(configs[name])} and {_join(files)}; "
                "name one differently, as in NAME=FILE"
            )
        configs[name] = files
    return configs


def _join(files: Sequence[Path]) -> str:
    return "+".join(map(str, files))


def parse_weights(texts: Sequence[str], names: Collection[str]) -> dict[str, str]:
    """Read "NAME=FILE" arguments: name of a config -> file that its runs start from.

    Args:
        texts: the arguments. "{seed}" in FILE stands for the seed of a run.
        names: the names of the configs.

    Raises:
        ValueError: if a name is not among ``names``, or has two files.
    """
    weights: dict[str, str] = {}
    for text in texts:
        name, _, file = text.partition("=")
        if not file:
            raise ValueError(f"{text!r} is no NAME=FILE")
        if name not in names:
            raise ValueError(f"{name!r} of {text!r} is none of the configs: {', '.join(names)}")
        if name in weights:
            raise ValueError(f"{name!r} has two files: {weights[name]} and {file}")
        weights[name] = file
    return weights


def plan_runs(
    configs: Mapping[str, Sequence[Path]],
    seeds: Sequence[int],
    output: Path,
    opts: Sequence[str] = (),
    *,
    weights: Mapping[str, str] = MappingProxyType({}),
    allow_unsafe: bool = False,
) -> list[Run]:
    """Plan all runs, seed by seed, so that each config soon has a first result.

    It reads the file of weights of each run for a checksum. This takes about a second for 500 MB.

    Args:
        configs: from :func:`parse_configs`.
        seeds: different numbers, none of them negative.
        output: the folder of a run is ``output/NAME/seed_SEED``.
        opts: KEY, VALUE, ...: options for all configs.
        weights: from :func:`parse_weights`.
        allow_unsafe: whether to accept ``!!python`` tags in the configs.

    Raises:
        ValueError: if seeds or options are wrong, or a config cannot be loaded.
    """
    for seed, count in Counter(seeds).items():
        if seed < 0:
            raise ValueError(f"seed {seed} is negative, which stands for a random one")
        if count > 1:
            raise ValueError(f"seed {seed} is given {count} times")
    for key in OWN_KEYS:
        if key in opts[::2]:
            raise ValueError(f"{key} belongs to each run; use --output and --seeds instead")
    if weights and "MODEL.WEIGHTS" in opts[::2]:
        raise ValueError("MODEL.WEIGHTS and --weights contradict each other")
    loaded = {name: _load(files, opts, allow_unsafe) for name, files in configs.items()}
    runs = []
    for seed in seeds:
        for name, cfg in loaded.items():
            start = None
            settings = {key: repr(value) for key, value in flat(cfg) if key not in OWN_KEYS}
            settings["SEED"] = repr(seed)
            if name in weights:
                start = Path(weights[name].replace("{seed}", str(seed)))
                settings.update(_describe_weights(start))
            runs.append(
                Run(
                    name=name,
                    config_file=configs[name][0],
                    seed=seed,
                    folder=output / name / f"seed_{seed}",
                    settings=settings,
                    max_iter=cfg.SOLVER.MAX_ITER,
                    weights=start,
                    mixins=configs[name][1:],
                )
            )
    return runs


def _load(files: Sequence[Path], opts: Sequence[str], allow_unsafe: bool):
    try:
        return load_config(list(map(str, files)), list(opts), allow_unsafe=allow_unsafe)
    # For an unknown key, yacs raises a KeyError in a file and an AssertionError in options.
    except (AssertionError, KeyError) as error:
        raise ValueError(f"{_join(files)}: {error.args[0]}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{_join(files)}: {error}") from error


def _describe_weights(file: Path) -> dict[str, str]:
    """Path and checksum of a file of weights; the path alone if the file is missing."""
    described = {"MODEL.WEIGHTS": repr(str(file.resolve()))}
    content = _file_of_weights(file)
    if content.is_file():
        described["SHA-256 of MODEL.WEIGHTS"] = digest(content)
    return described


def _file_of_weights(path: Path) -> Path:
    """The file that has the weights: in a model folder, or the path itself."""
    return path / WEIGHTS if path.is_dir() else path


def status(run: Run) -> str:
    """The status of a run: "finished", "failed", "started" (or interrupted) or "new"."""
    return _read_record(run).get("status", "new")


def write_record(run: Run, status: str) -> None:
    """Write the status and the config of a run to its record."""
    with draft_of(run.record) as draft:
        draft.write_text(json.dumps({"status": status, "settings": run.settings}, indent=1) + "\n")


def check_weights(runs: Sequence[Run]) -> None:
    """Check that the weights exist for all runs that will start from them.

    Raises:
        FileNotFoundError: if a file is missing.
    """
    for run in runs:
        # The other runs have checkpoints of their own.
        starts = status(run) != "finished" and not run.has_checkpoint
        if starts and run.weights is not None and not _file_of_weights(run.weights).is_file():
            raise FileNotFoundError(f"there are no weights {str(run.weights)!r} for {run.name!r}")


def check_unchanged(runs: Sequence[Run]) -> None:
    """Check that the trainings in the folders of the runs had the same configs.

    A folder without a checkpoint holds nothing to keep, so its config may change. A key that only
    one of the two configs has does not count, because it came or went with the code.

    Raises:
        ValueError: with the folders and their changes.
    """
    problems = []
    for run in runs:
        record = _read_record(run)
        if not record and (run.has_checkpoint or (run.folder / "metrics.json").exists()):
            problems.append(f"{run.folder} holds a training that was not started by this tool")
        elif status(run) == "finished" or run.has_checkpoint:
            changes = _changes(record["settings"], run.settings)
            if changes:
                problems.append(f"{run.folder} was trained with another config: {changes}")
    if problems:
        advice = "delete these folders to train anew, or name another one by --output"
        raise ValueError("\n".join([*problems, advice]))


def _changes(old: dict[str, str], new: dict[str, str]) -> str:
    """The changes as text; "" if there are none."""
    changed = [key for key in new if key in old and old[key] != new[key]]
    shown = [f"{key} {old[key]} -> {new[key]}" for key in changed[:MAX_SHOWN_CHANGES]]
    if len(changed) > len(shown):
        shown.append(f"and {len(changed) - len(shown)} more")
    return ", ".join(shown)


def prepare(run: Run) -> None:
    """Prepare the folder of a run for a start, or for going on after an interruption."""
    run.folder.mkdir(parents=True, exist_ok=True)
    metrics = run.folder / "metrics.json"
    if not run.has_checkpoint:
        metrics.unlink(missing_ok=True)  # the writer would append to it
    elif metrics.is_file():
        # The writer appends. Delete what the run will repeat, and half a line of a killed process.
        lines = metrics.read_bytes().splitlines(keepends=True)
        entries = [(line, metrics_entry(line)) for line in lines if line.endswith(b"\n")]
        kept = [
            line for line, entry in entries if entry and entry["iteration"] < run.iterations_saved
        ]
        metrics.write_bytes(b"".join(kept))


def _read_record(run: Run) -> dict[str, Any]:
    if not run.record.is_file():
        return {}
    try:
        return json.loads(run.record.read_text())
    except ValueError as error:
        raise ValueError(f"{run.record} is damaged ({error}); delete its folder") from error
