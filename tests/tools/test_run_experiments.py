"""Several configs with several seeds: planning, processes, progress, and what comes out."""

import csv
import fcntl
import importlib
import importlib.util
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tiny_model import CHECKOUT, CONFIG, tiny_options

MIOU, S_C = "sem_seg/mIoU", "tokens/S_C"

# Stands for train_net.py: trains no model, but leaves the same files. It fails where its folder's
# parent has a file "fail", and waits to be stopped where there is a file "hang".
STAND_IN = """
import json, os, sys, time
from pathlib import Path

_, folder, _, seed, *_ = sys.argv[sys.argv.index("OUTPUT_DIR"):]
folder = Path(folder)
print("options:", *sys.argv[1:], "threads:", os.environ["OMP_NUM_THREADS"])
with (folder.parents[1] / "started").open("a") as file:
    file.write(f"{folder.parent.name}{seed}\\n")
with (folder / "metrics.json").open("a") as file:
    for iteration in (19, 39):
        print(json.dumps({"iteration": iteration, "total_loss": 1.0}), file=file, flush=True)
        (folder / "last_checkpoint").write_text("model.pth")
        if (folder.parent / "hang").exists():
            file.write('{"iteration": 99')
            file.flush()
            (folder.parent / "hangs").write_text(str(os.getpid()))
            time.sleep(60)
    if (folder.parent / "fail").exists():
        sys.exit("the reason why")
    miou = 50 + int(seed)
    print(json.dumps({"iteration": 40, "sem_seg/mIoU": miou, "tokens/S_C": 0.5}), file=file)
"""


@pytest.fixture(scope="module")
def tool():
    """The script as a module, with the parts of its package as attributes."""
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location(
        "run_experiments", CHECKOUT / "tools" / "run_experiments.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for part in ("runs", "processes", "progress", "results"):
        setattr(module, part, importlib.import_module(f"experiments.{part}"))
    yield module
    sys.path[:] = path


@pytest.fixture
def stand_in(tool, tmp_path, monkeypatch):
    """No real training, and no long waits."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(tool.processes, "TRAIN_NET", script)
    monkeypatch.setattr(tool, "SECONDS_BETWEEN_LOOKS", 0.05)


@pytest.fixture
def configs(tmp_path):
    """Two config files, a.yaml and b.yaml."""
    files = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    for file in files:
        file.write_text(f"_BASE_: {CONFIG}\nSOLVER:\n  MAX_ITER: 40\n")
    return [str(file) for file in files]


@pytest.fixture
def arguments(configs, tmp_path):
    return ["--configs", *configs, "--seeds", "0", "1", "--output", str(tmp_path / "out")]


def mark(tmp_path, config, name):
    folder = tmp_path / "out" / config
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
    return folder / name


def error_of(tool, capsys, arguments):
    """What a call that ends at once with an error says."""
    with pytest.raises(SystemExit, match="2"):
        tool.main(arguments)
    return capsys.readouterr().err


def cells_of(text):
    """The cells of the Markdown table in a text, without the rule below the headers."""
    rows = [line[1:-1].split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for index, row in enumerate(rows) if index != 1]


def outcome(tool, name, seed, status="finished", **values):
    names = {"miou": MIOU, "s_c": S_C, "queries": "queries/S_C"}
    values = {names[key]: value for key, value in values.items()}
    return tool.results.Outcome(name, seed, status, values)


def run_in(tool, folder, max_iter=40, **settings):
    return tool.runs.Run("a", Path("a.yaml"), 0, folder, settings, max_iter)


# Planning


def test_runs_go_seed_by_seed_in_folders_of_their_own(tool, configs, tmp_path):
    named = tool.parse_configs([configs[0], f"long name={configs[1]}"])
    runs = tool.plan_runs(named, [3, 5], tmp_path, ["SOLVER.BASE_LR", "0.5"])
    assert [(run.name, run.seed) for run in runs] == [
        *(("a", 3), ("long name", 3), ("a", 5), ("long name", 5))
    ]
    assert runs[3].folder == tmp_path / "long name" / "seed_5"
    assert runs[3].config_file == Path(configs[1]) and runs[3].max_iter == 40
    assert runs[3].settings["SOLVER.BASE_LR"] == "0.5" and runs[3].settings["SEED"] == "5"
    assert "OUTPUT_DIR" not in runs[3].settings


def test_mixins_are_merged_over_a_config(tool, configs, tmp_path):
    mixin = tmp_path / "mixin.yaml"
    mixin.write_text("SOLVER: {BASE_LR: 0.25}\nVERSION: 2\n")
    named = tool.parse_configs([f"{configs[0]}+{mixin}", f"other={configs[1]}+{mixin}"])
    runs = tool.plan_runs(named, [0], tmp_path)
    assert [run.name for run in runs] == ["a_mixin", "other"]
    assert {run.settings["SOLVER.BASE_LR"] for run in runs} == {"0.25"}
    command = tool.Launcher().command(runs[1])
    place = command.index("--config-file")
    assert command[place + 1 : place + 4] == [configs[1], "--with", str(mixin)]


def test_runs_of_a_config_start_from_weights_of_their_seed(tool, configs, tmp_path):
    named = tool.parse_configs(configs)
    pattern = str(tmp_path / "s{seed}.pth")
    for seed in (3, 5):
        Path(pattern.format(seed=seed)).touch()
    weights = tool.parse_weights([f"b={pattern}"], named)
    runs = tool.plan_runs(named, [3, 5], tmp_path, weights=weights)
    assert [run.weights for run in runs] == [None, tmp_path / "s3.pth", None, tmp_path / "s5.pth"]
    assert tool.Launcher().command(runs[3])[-2:] == ["MODEL.WEIGHTS", str(tmp_path / "s5.pth")]


def test_weights_are_known_again(tool, configs, tmp_path, monkeypatch):
    """By what is in the file, and by where it lies, however that is spelled."""
    named, file = tool.parse_configs(configs[:1]), tmp_path / "s.pth"

    def plan(weights):
        return tool.plan_runs(named, [0], tmp_path / "out", weights={"a": str(weights)})

    file.write_text("stage one")
    (run,) = plan(file)
    run.folder.mkdir(parents=True)
    tool.runs.write_record(run, "finished")
    monkeypatch.chdir(tmp_path)
    tool.runs.check_unchanged(plan("s.pth"))
    file.write_text("stage 0ne")
    with pytest.raises(ValueError, match="SHA-256 of MODEL.WEIGHTS .* -> "):
        tool.runs.check_unchanged(plan(file))
    file.unlink()
    tool.runs.check_unchanged(plan(file))
    with pytest.raises(ValueError, match="MODEL.WEIGHTS '.*s.pth' -> '.*other.pth'"):
        tool.runs.check_unchanged(plan("other.pth"))


def test_configs_are_found_where_train_net_finds_them(tool, tmp_path, monkeypatch):
    """Those of the package from any folder, and model folders."""
    monkeypatch.chdir(tmp_path)
    name = "configs/shapes/fcn_R50.yaml"
    assert tool.parse_configs([name, f"sgr={name}+configs/mixins/sgr.yaml"]) == {
        "fcn_R50": [Path(name)],
        "sgr": [Path(name), Path("configs/mixins/sgr.yaml")],
    }
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(ValueError, match="'model' is a folder, but no model folder"):
        tool.parse_configs(["model"])
    for file in ("config.yaml", "model.safetensors", "model.json"):
        (folder / file).touch()
    assert tool.parse_configs(["model"]) == {"model": [Path("model")]}


def test_runs_start_from_a_model_folder(tool, configs, tmp_path):
    """It is known again by its weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    named = tool.parse_configs(configs[:1])

    def plan():
        return tool.plan_runs(named, [0], tmp_path / "out", weights={"a": str(folder)})

    with pytest.raises(FileNotFoundError, match="no weights '.*model' for 'a'"):
        tool.check_weights(plan())
    (folder / "model.safetensors").write_text("stage one")
    (run,) = plan()
    tool.check_weights([run])
    assert run.weights == folder
    run.folder.mkdir(parents=True)
    tool.runs.write_record(run, "finished")
    (folder / "model.safetensors").write_text("stage 0ne")
    with pytest.raises(ValueError, match="SHA-256 of MODEL.WEIGHTS .* -> "):
        tool.runs.check_unchanged(plan())


def test_weights_are_wanted_only_by_runs_that_start(
    tool, stand_in, arguments, configs, tmp_path, capsys
):
    weights = tmp_path / "s.pth"
    weights.touch()
    command = [*arguments, "--configs", configs[0], "--weights", f"a={weights}", "--seeds"]
    failing = mark(tmp_path, "a", "fail")
    assert tool.main([*command, "0"]) == 1
    weights.unlink()
    failing.unlink()
    assert tool.main([*command, "0"]) == 0  # from its own checkpoint
    assert tool.main([*command, "0"]) == 0
    assert "1 of them finished earlier" in capsys.readouterr().out
    assert tool.main([*command, "0", "1", "--report-only"]) == 0
    assert "no weights" in error_of(tool, capsys, [*command, "0", "1"])


@pytest.mark.parametrize(
    "change, message",
    [
        (["--configs", "nowhere.yaml"], "no config file 'nowhere.yaml'"),
        (["--configs", f"{CONFIG}+nowhere.yaml"], "no config file 'nowhere.yaml'"),
        (["--configs", str(CONFIG), f"{CONFIG.stem}={CONFIG}"], "two configs have the name"),
        (["--configs", f"x/y={CONFIG}"], "'x/y' of .* cannot be the name of a folder"),
        (["--seeds"], "--seeds: expected at least one argument"),
        (["--seeds", "0", "0"], "seed 0 is given 2 times"),
        (["--seeds", "-1"], "seed -1 is negative"),
        (["--weights", "nowhere.pth"], "'nowhere.pth' is no NAME=FILE"),
        (["--weights", "c=nowhere.pth"], "'c' of 'c=nowhere.pth' is none of the configs: a, b"),
        (["--weights", "a=x.pth", "a=y.pth"], "'a' has two files: x.pth and y.pth"),
        (["--weights", "a=s{seed}.pth"], r"no weights 's\d\.pth' for 'a'"),
        (["--weights", "a=x.pth", "--", "MODEL.WEIGHTS", "y.pth"], "contradict each other"),
        (["--jobs", "0"], "must be at least 1, not 0"),
        (["--", "SEED", "1"], "SEED belongs to each run; use --output and --seeds"),
        (
            ["--", "SOLVER.MAX_ITERS", "1"],
            "there is no key SOLVER.MAX_ITERS; did you mean",
        ),
        (["--", "SOLVER.MAX_ITER"], "the last option 'SOLVER.MAX_ITER' has no value"),
    ],
)
def test_mistakes_are_found_before_anything_runs(
    tool, capsys, arguments, tmp_path, change, message
):
    assert re.search(message, error_of(tool, capsys, [*arguments, *change]))
    assert not (tmp_path / "out").exists()


def test_a_config_with_an_unknown_key_is_named(tool, capsys, arguments, configs):
    Path(configs[1]).write_text(f"_BASE_: {CONFIG}\nSOLVER:\n  EPOCHS: 3\n")
    message = error_of(tool, capsys, arguments)
    assert re.search("b.yaml.*there is no key SOLVER.EPOCHS", message)


@pytest.mark.parametrize(
    ("text", "message"),
    [("_BASE_: nowhere.yaml\n", "there is no .*nowhere.yaml"), ("MODEL: [1\n", "expected")],
)
def test_a_config_that_cannot_be_read_is_named(tool, capsys, arguments, configs, text, message):
    Path(configs[1]).write_text(text)
    assert re.search(f"b.yaml: .*{message}", error_of(tool, capsys, arguments), re.DOTALL)


def test_changed_configs_are_noticed(tool, tmp_path):
    run = run_in(tool, tmp_path, A="1", B="2")
    changed = run_in(tool, tmp_path, A="1", B="3")
    tool.runs.check_unchanged([changed])
    tool.runs.write_record(run, "failed")
    tool.runs.check_unchanged([changed])  # there is nothing to lose
    tool.runs.write_record(run, "finished")
    # A key that came with newer code.
    tool.runs.check_unchanged([run_in(tool, tmp_path, A="1", B="2", C="new")])
    with pytest.raises(ValueError, match="another config: B 2 -> 3\ndelete these folders"):
        tool.runs.check_unchanged([changed])
    tool.runs.write_record(run, "started")
    (tmp_path / "last_checkpoint").write_text("model_0000019.pth")
    with pytest.raises(ValueError, match="another config: B 2 -> 3"):
        tool.runs.check_unchanged([changed])


def test_many_changes_are_cut_short(tool):
    old, new = ({str(key): value for key in range(9)} for value in "xy")
    assert tool.runs._changes(old, new).endswith("4 x -> y, and 4 more")


def test_a_foreign_training_is_left_alone(tool, tmp_path):
    (tmp_path / "metrics.json").touch()
    with pytest.raises(ValueError, match="not started by this tool"):
        tool.runs.check_unchanged([run_in(tool, tmp_path)])


def test_a_new_start_forgets_old_metrics_and_a_resumed_one_what_it_repeats(tool, tmp_path):
    run, metrics = run_in(tool, tmp_path), tmp_path / "metrics.json"
    metrics.write_text('{"itera\n{"iteration": 19}\n{"iteration": 29}\n{"itera')
    (tmp_path / "last_checkpoint").write_text("model_0000019.pth")
    tool.runs.prepare(run)
    assert metrics.read_text() == '{"iteration": 19}\n'
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    assert run.iterations_saved == 40
    (tmp_path / "last_checkpoint").unlink()
    tool.runs.prepare(run)
    assert not metrics.exists()


# Processes


def test_command_and_environment(tool, tmp_path):
    launcher = tool.Launcher(
        opts=["A", "1"], flags=["--allow-pickle"], num_gpus=2, threads=3, gpus=["4", "5", "6", "7"]
    )
    run = run_in(tool, tmp_path)
    command = launcher.command(run)
    assert command[3].endswith("train_net.py") and Path(command[3]).is_file()
    assert command[4:] == [
        *("--config-file", "a.yaml", "--num-gpus", "2", "--dist-url", "auto", "--allow-pickle"),
        *("OUTPUT_DIR", str(tmp_path), "SEED", "0", "A", "1"),
    ]
    tag = tmp_path / "last_checkpoint"
    tag.touch()  # a training has replaced an earlier one, and saved nothing
    assert "--resume" not in launcher.command(run)
    tag.write_text("model_0000019.pth")
    assert "--resume" in launcher.command(run)

    environments = [launcher.environment(slot) for slot in range(3)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in environments] == ["4,5", "6,7", "4,5"]
    assert environments[0]["OMP_NUM_THREADS"] == "3"


def test_how_a_process_ended(tool):
    assert tool.describe_end(3) == "exit status 3"
    assert tool.describe_end(-9) == "killed by SIGKILL, perhaps for want of memory"
    assert tool.describe_end(-11) == "killed by SIGSEGV"


def test_a_failing_run_leaves_the_others_alone_and_is_tried_again(
    tool, stand_in, arguments, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(tool.progress, "SECONDS_BETWEEN_LINES", 0)
    output, failing = tmp_path / "out", mark(tmp_path, "b", "fail")
    assert tool.main([*arguments, "--jobs", "2", "--threads", "1"]) == 1
    printed = capsys.readouterr().out
    assert f"FAILED b, seed 1 (exit status 1); the end of {output}/b/seed_1/console" in printed
    assert "the reason why" in printed
    assert "2 of 4 runs done, 2 failed: 100%" in printed
    # There is nothing to be the best among.
    assert cells_of(printed)[1:] == [
        ["a", "2", "50.5 ± 0.7", "0.500 ± 0.000"],
        ["b", "0 of 2, 2 failed", "", ""],
    ]
    assert cells_of((output / "results.md").read_text()) == cells_of(printed)
    assert Image.open(output / "results.png").mode == "RGB"
    with (output / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["config"], row["seed"], row["status"], row[MIOU]) for row in rows] == [
        *(("a", "0", "finished", "50.0"), ("b", "0", "failed", "")),
        *(("a", "1", "finished", "51.0"), ("b", "1", "failed", "")),
    ]
    console = (output / "a" / "seed_0" / "console.txt").read_text()
    assert console.startswith("$ ") and "--num-gpus 1" in console and "threads: 1" in console
    started = (output / "started").read_text().split()
    assert sorted(started) == ["a0", "a1", "b0", "b1"]

    failing.unlink()
    assert tool.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "2 of them finished earlier" in printed and "Resuming b, seed 0" in printed
    # The configs are equal here, so both are the best.
    assert [row[2] for row in cells_of(printed)[1:]] == 2 * ["**50.5** ± 0.7"]
    started = (output / "started").read_text().split()
    assert sorted(started) == ["a0", "a1", "b0", "b0", "b1", "b1"]


def test_never_more_than_so_many_at_a_time(tool, stand_in, arguments, monkeypatch):
    going, collect = [], tool.Pool.collect

    def watch(pool):
        going.append(len(pool.active))
        return collect(pool)

    monkeypatch.setattr(tool.Pool, "collect", watch)
    assert tool.main([*arguments, "--jobs", "3"]) == 0
    assert max(going) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_stops_the_children_and_can_be_resumed(
    tool, stand_in, arguments, tmp_path, capsys, monkeypatch, number
):
    hanging = mark(tmp_path, "a", "hang")
    pid_file = hanging.with_name("hangs")
    sleep = tool.time.sleep

    def interrupt(seconds):
        sleep(seconds)
        if pid_file.exists() and pid_file.read_text():
            os.kill(os.getpid(), number)
            sleep(1)  # where the signal arrives

    monkeypatch.setattr(tool, "time", SimpleNamespace(sleep=interrupt))
    assert tool.main([*arguments, "--seeds", "0"]) == 130
    assert "Stopped. The same command goes on" in capsys.readouterr().out
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
    metrics = tmp_path / "out" / "a" / "seed_0" / "metrics.json"
    assert metrics.read_text().endswith('{"iteration": 99')

    hanging.unlink()
    monkeypatch.setattr(tool, "time", SimpleNamespace(sleep=sleep))
    assert tool.main([*arguments, "--seeds", "0"]) == 0
    assert "Resuming a, seed 0" in capsys.readouterr().out
    assert [json.loads(line)["iteration"] for line in metrics.read_text().splitlines()] == [
        *(19, 19, 39, 40)
    ]


# Stands for a training with a data worker. Told to end, it needs the worker, saves and ends; where
# there is a file "stubborn", it goes on.
SAVING = """
import signal, subprocess, sys, time
from pathlib import Path

folder = Path(sys.argv[sys.argv.index("OUTPUT_DIR") + 1])
worker = subprocess.Popen(["sleep", "60"])

def save(*_):
    time.sleep(0.3)
    (folder / ("saved" if worker.poll() is None else "broken")).touch()
    if not (folder / "stubborn").exists():
        sys.exit(75)

signal.signal(signal.SIGTERM, save)
(folder / "worker").write_text(str(worker.pid))
time.sleep(60)
"""


@pytest.fixture
def saving(tool, tmp_path, monkeypatch):
    """A pool with a training that saves when it is told to end."""
    script = tmp_path / "saving.py"
    script.write_text(SAVING)
    monkeypatch.setattr(tool.processes, "TRAIN_NET", script)
    (tmp_path / "run").mkdir()
    pool = tool.Pool(tool.Launcher(), 1)
    pool.start(run_in(tool, tmp_path / "run"))
    worker = tmp_path / "run" / "worker"
    while not (worker.exists() and worker.read_text()):
        time.sleep(0.05)
    return pool


def is_alive(pid):
    """Whether a process runs; one that has ended may wait for a parent that asks for it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def has_ended(pid):
    end = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not is_alive(pid)


def test_a_training_that_is_stopped_can_save(saving, tmp_path):
    """Its data workers live until it has ended, and no longer."""
    with saving:
        pass
    assert (tmp_path / "run" / "saved").exists()
    assert has_ended(int((tmp_path / "run" / "worker").read_text()))


def test_a_second_interruption_ends_the_trainings_at_once(saving, tmp_path):
    (tmp_path / "run" / "stubborn").touch()
    (_, process), *_ = saving._active.values()
    timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt), saving:
        pass
    assert process.poll() == -signal.SIGKILL
    assert has_ended(int((tmp_path / "run" / "worker").read_text()))


def test_two_tools_do_not_share_a_folder(tool, arguments, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another process is at work in" in error_of(tool, capsys, arguments)
        assert tool.main([*arguments, "--report-only"]) == 0


def test_a_report_between(tool, stand_in, arguments, tmp_path, capsys):
    assert tool.main([*arguments, "--report-only"]) == 0
    assert cells_of(capsys.readouterr().out)[1:] == [["a", "0 of 2"], ["b", "0 of 2"]]
    assert not (tmp_path / "out" / "results.png").exists()
    assert tool.main([*arguments, "--seeds", "1"]) == 0
    capsys.readouterr()
    options = ["--report-only", "--metrics", S_C, "bbox/AP"]
    assert tool.main([*arguments, *options]) == 0
    printed = capsys.readouterr().out
    assert cells_of(printed)[:2] == [["config", "seeds", "S_C ↓"], ["a", "1 of 2", "**0.500**"]]
    assert "No run that has finished has bbox/AP" in printed


# Progress


def test_iterations_done(tool, tmp_path):
    run, metrics = run_in(tool, tmp_path), tmp_path / "metrics.json"
    assert tool.progress.iterations_done(run) == 0
    metrics.write_text("")
    assert tool.progress.iterations_done(run) == 0
    metrics.write_text('{"iteration": 9}\n{"iteration": 19, "x": 1}\n{"iteration": 3')
    assert tool.progress.iterations_done(run) == 20
    metrics.write_text('{"iteration": 9}\n{"itera\n')
    assert tool.progress.iterations_done(run) == 10
    metrics.write_text('{"iteration": 39}\n{"iteration": 40, "sem_seg/mIoU": 1}\n')
    assert tool.progress.iterations_done(run) == 40
    many = "".join(f'{{"iteration": {i}, "x": "{"y" * 5000}"}}\n' for i in range(30))
    metrics.write_text(many)
    assert metrics.stat().st_size > tool.progress.TAIL_BYTES
    assert tool.progress.iterations_done(run) == 30


def test_progress_of_all_runs(tool, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tool.progress, "SECONDS_BETWEEN_LINES", 0)
    runs = [run_in(tool, tmp_path / str(index)) for index in range(3)]
    for run, iteration in zip(runs, (9, 19, 29)):
        run.folder.mkdir()
        (run.folder / "metrics.json").write_text(f'{{"iteration": {iteration}}}\n')
    # 10 iterations are done; the others start anew
    (runs[0].folder / "last_checkpoint").write_text("model_0000009.pth")

    def last_line():
        return capsys.readouterr().out.split("\r")[-1]

    with tool.progress.Progress(runs, finished=2) as progress:
        progress.update([])
        assert re.match("2 of 5 runs done: .* 10/120 .*", last_line())
        (runs[0].folder / "metrics.json").write_text('{"iteration": 29}\n')
        progress.update(runs[:1])
        assert re.match("2 of 5 runs done: .* 30/120 .*, a, seed 0: 30/40", last_line())
        progress.end(runs[0], failed=True)
        progress.say("message")
        assert re.search(r"00:00  message\n", capsys.readouterr().out)
        progress.update([])
        # What a failed run would still have done is not waited for.
        assert re.match("2 of 5 runs done, 1 failed: .* 30/110 .*", last_line())


# Results


def test_only_the_last_evaluation_and_iteration_count(tool, tmp_path):
    lines = [
        {"iteration": 19, MIOU: 70.0, "bbox/AP": 3.0, "total_loss": 9.0, "sgr/past": 1.0},
        {"iteration": 39, "total_loss": 1.0},
        {"iteration": 40, MIOU: 60.0, S_C: float("nan")},
    ]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert tool.results.final_values(tmp_path) == {MIOU: 60.0, "total_loss": 1.0}


def test_mean_and_spread_over_the_seeds(tool):
    outcomes = [
        outcome(tool, "a", 0, miou=70.0, s_c=0.5),
        outcome(tool, "b", 0, miou=72.04),
        outcome(tool, "a", 1, miou=74.0, s_c=0.5),
        outcome(tool, "b", 1, "failed"),
        outcome(tool, "c", 0, "started"),
        outcome(tool, "c", 1, "new"),
    ]
    assert tool.results.measured(outcomes, ["bbox/AP", S_C, MIOU]) == [S_C, MIOU]
    summaries = tool.results.summarize(outcomes)
    assert [each.name for each in summaries] == ["a", "b", "c"]
    assert summaries[0].values == {MIOU: [70.0, 74.0], S_C: [0.5, 0.5]}
    # The spread is sqrt((2^2 + 2^2) / 1); the means are equal to one digit.
    assert cells_of(tool.results.format_table(summaries, [MIOU, S_C])) == [
        ["config", "seeds", "mIoU ↑", "S_C ↓"],
        ["a", "2", "**72.0** ± 2.8", "0.500 ± 0.000"],
        ["b", "1 of 2, 1 failed", "**72.0**", ""],
        ["c", "0 of 2", "", ""],
    ]


def test_how_many_runs_have_a_value_is_said(tool):
    """Where a value was not finite, the others are fewer than the seeds that have finished."""
    outcomes = [outcome(tool, "a", seed, miou=70.0) for seed in (0, 1)]
    outcomes += [outcome(tool, "a", 2, miou=70.0, s_c=0.5), outcome(tool, "b", 0, miou=60.0)]
    table = tool.results.format_table(tool.results.summarize(outcomes), [MIOU, S_C])
    assert cells_of(table)[1:] == [
        ["a", "3", "**70.0** ± 0.0", "0.500 (1 of 3)"],
        ["b", "1", "60.0", ""],
    ]


def test_the_best_is_the_lowest_where_lower_is_better(tool):
    outcomes = [outcome(tool, "a", 0, miou=9.0, s_c=0.3), outcome(tool, "b", 0, miou=10, s_c=0.4)]
    table = tool.results.format_table(tool.results.summarize(outcomes), [MIOU, S_C])
    assert cells_of(table)[1:] == [["a", "1", "9.0", "**0.300**"], ["b", "1", "**10.0**", "0.400"]]


def test_of_an_unknown_metric_none_is_the_best(tool):
    outcomes = [tool.results.Outcome(name, 0, "finished", {"x/new": 1.0}) for name in "ab"]
    table = tool.results.format_table(tool.results.summarize(outcomes), ["x/new"])
    assert cells_of(table) == [["config", "seeds", "new"], ["a", "1", "1.0"], ["b", "1", "1.0"]]


def test_a_cosine_is_not_in_percent(tool):
    outcomes = [tool.results.Outcome("a", 0, "finished", {"sgr/token_similarity": 0.9876})]
    table = tool.results.format_table(tool.results.summarize(outcomes), ["sgr/token_similarity"])
    assert cells_of(table)[1] == ["a", "1", "0.988"]


def test_token_metrics_are_explained_where_there_are_any(tool, tmp_path):
    outcomes = [outcome(tool, "a", 0, miou=9.0, s_c=0.3)]
    for metrics, explained in (([MIOU], False), ([MIOU, S_C], True)):
        tool.results.write_report(outcomes, metrics, tmp_path)
        text = (tmp_path / "results.md").read_text()
        assert ("S is how mixed the labels under a token are" in text) == explained


def test_headers_are_short_where_that_is_clear(tool):
    outcomes = [outcome(tool, "a", 0, miou=9.0, s_c=0.3, queries=0.6)]
    table = tool.results.format_table(tool.results.summarize(outcomes), [MIOU, S_C, "queries/S_C"])
    assert cells_of(table)[0][2:] == ["mIoU ↑", "tokens/S_C ↓", "queries/S_C ↓"]


# With real trainings


def test_trains_reports_and_resumes(tool, tiny_shapes, tmp_path, capsys):
    """The config "after" starts from what "before" learns, so it fails at first."""
    output, after = tmp_path / "out", tmp_path / "after.yaml"
    weights = output / "before" / "seed_1" / "model_final.pth"
    after.write_text(f"_BASE_: {CONFIG}\nMODEL:\n  WEIGHTS: {weights}\n")
    arguments = ["--configs", str(after), f"before={CONFIG}", "--seeds", "1"]
    arguments += ["--output", str(output), "--threads", "1"]
    options = tiny_options(SOLVER__MAX_ITER=2, MODEL__SGR__SUPERVISION__MAX_ACTIVE=8)

    assert tool.main([*arguments, *options]) == 1
    printed = capsys.readouterr().out
    assert "FAILED after, seed 1 (exit status 1)" in printed
    assert "FileNotFoundError: there is no checkpoint" in printed
    assert "Finished before, seed 1" in printed

    assert tool.main([*arguments, *options]) == 0
    assert "Resuming" not in capsys.readouterr().out  # it had learned nothing
    table = cells_of((output / "results.md").read_text())
    assert table[0][2:] == ["mIoU ↑", "S_C ↓", "D_C ↑", "S_I ↓", "D_I ↑"]
    assert [row[:2] for row in table[1:]] == [["after", "1"], ["before", "1"]]
    with (output / "results.csv").open() as file:
        values = np.array([list(row.values())[3:] for row in csv.DictReader(file)], float)
    assert values.shape == (2, 5) and np.isfinite(values).all()
    assert (output / "results.png").is_file()

    error = error_of(tool, capsys, [*arguments, *options, "SOLVER.MAX_ITER", "4"])
    assert "before/seed_1 was trained with another config: SOLVER.MAX_ITER 2 -> 4" in error
