"""One process, those of a launcher, and two "nodes" on one machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm

from sgr.engine import argument_parser
from sgr.engine.launch import Place, _first_node, launch, place_of, process_group
from sgr.engine.preemption import PREEMPTED
from tiny_model import CHECKOUT, CONFIG, tiny_options

TASKS = Path("/proc/self/task")
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SRUN = {
    "SLURM_JOB_ID": "12",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
}


class TestPlace:
    def test_no_launcher(self):
        assert place_of({}) is None
        # A batch script, whose tasks srun has not started yet; and srun with one task.
        assert place_of({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) is None
        assert place_of({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}) is None

    def test_torchrun(self):
        assert place_of(TORCHRUN) == Place(3, 4, 1, 2, "env://")
        assert place_of({**SRUN, **TORCHRUN}) == Place(3, 4, 1, 2, "env://")

    def test_srun(self):
        assert place_of(SRUN) == Place(5, 8, 1, 4, "tcp://gpu007:20012")
        own = {**SRUN, "MASTER_ADDR": "head", "MASTER_PORT": "7"}
        assert place_of(own).init_method == "tcp://head:7"

    def test_uneven_nodes(self):
        with pytest.raises(ValueError, match="8 tasks on 3 nodes.*--ntasks-per-node"):
            place_of({**SRUN, "SLURM_STEP_NUM_NODES": "3"})

    @pytest.mark.parametrize(
        "nodes, first",
        [("gpu[007-009,12]", "gpu007"), ("a1,a2", "a1"), ("n[3,5],m1", "n3"), ("x", "x")],
    )
    def test_first_node(self, nodes, first):
        assert _first_node(nodes) == first


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    match = r"8 processes were asked for on this machine, and this one sees 2 GPU\(s\)"
    with pytest.raises(ValueError, match=match):
        launch(print, argument_parser().parse_args(["--num-gpus", "8"]))
    with pytest.raises(ValueError, match=match), process_group(Place(0, 8, 0, 8)):
        pass


@pytest.mark.skipif(not TASKS.is_dir(), reason="the threads are read as Linux shows them")
@pytest.mark.parametrize("end", [nullcontext, partial(pytest.raises, SystemExit)])
def test_no_thread_outlives_the_process_group(tmp_path, end):
    def threads():
        return {task.name for task in TASKS.iterdir() if "gloo" in (task / "comm").read_text()}

    before = threads()
    with end(), process_group(Place(0, 1, 0, 1, f"file://{tmp_path}/store"), backend="gloo"):
        comm._get_global_gloo_group()  # comm.gather keeps it for its next call
        assert threads() - before  # of which some may end just now
        if end is not nullcontext:
            raise SystemExit(PREEMPTED)
    assert threads() <= before


# Without what differs between processes: statistics of batches, dropout.
OPTIONS = {
    "SEED": 1,
    "MODEL__RESNETS__NORM": "FrozenBN",
    "MODEL__SEM_SEG_HEAD__NORM": "GN",
    "MODEL__SEM_SEG_HEAD__DROPOUT": 0.0,
    "MODEL__SGR__DROPOUT": 0.0,
    "SOLVER__OPTIMIZER": "SGD",
    "SOLVER__BASE_LR": 0.01,
    "SOLVER__MAX_ITER": 3,
}


def start(folder, root, launcher, *flags, name="fcn_R50_sgr", **options):
    options = {"OUTPUT_DIR": folder, **OPTIONS, **options}
    config = CONFIG.with_name(f"{name}.yaml")
    environment = {
        **os.environ,
        "DETECTRON2_DATASETS": str(root),
        "PYTHONPATH": str(CHECKOUT / "projects" / "SGR"),
        "OMP_NUM_THREADS": "1",
    }
    script = ["train_net.py", "--config-file", str(config), *flags, *tiny_options(**options)]
    # Not a pipe, which would be full after some lines.
    with (folder / "output.txt").open("a") as output:
        return subprocess.Popen(
            [sys.executable, *launcher, *script],
            cwd=CHECKOUT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def finish(folder, *processes):
    for process in processes:
        assert process.wait(200) == 0, (folder / "output.txt").read_text()[-3000:]


def wait_for_iterations(folder, process):
    """Return when the training has logged some."""
    deadline = time.monotonic() + 200
    while "iter: " not in (folder / "output.txt").read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)


def torchrun(processes):
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]


def weights(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


@pytest.fixture(scope="module")
def alone(tiny_shapes_root, tmp_path_factory):
    """The folder of a training in one process."""
    folder = tmp_path_factory.mktemp("alone")
    finish(folder, start(folder, tiny_shapes_root, []))
    return folder


def assert_equal_runs(one, other):
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(other)[name], value, rtol=1e-4, atol=1e-6)
    results = [
        json.loads((folder / "inference" / "results.json").read_text()) for folder in (one, other)
    ]
    assert results[0].keys() == results[1].keys()
    for block, values in results[0].items():
        values = {name: value for name, value in values.items() if value is not None}
        others = {name: results[1][block][name] for name in values}
        assert others == pytest.approx(values, rel=1e-3), block


@pytest.mark.parametrize("processes", [2, 4])
def test_torchrun_trains_as_one_process_does(alone, tiny_shapes_root, tmp_path, processes):
    finish(tmp_path, start(tmp_path, tiny_shapes_root, torchrun(processes)))
    assert_equal_runs(alone, tmp_path)


def test_two_machines_on_cpus(alone, tiny_shapes_root, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--num-machines", "2", "--dist-url", f"tcp://127.0.0.1:{port}", "--machine-rank"]
    machines = [start(tmp_path, tiny_shapes_root, [], *flags, str(rank)) for rank in range(2)]
    finish(tmp_path, *machines)
    assert_equal_runs(alone, tmp_path)


def kill_one_of(process):
    """Kill the last process that torchrun has started."""
    command = ["pgrep", "--parent", str(process.pid)]
    children = subprocess.run(command, capture_output=True, text=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)


def test_a_restart_goes_on_to_the_same_weights(tiny_shapes_root, tmp_path):
    """torchrun keeps its store, with the addresses of the processes that have died."""
    options = {"SOLVER__MAX_ITER": 12, "SOLVER__CHECKPOINT_PERIOD": 2, "MODEL__SGR__DROPOUT": 0.2}
    options["DATASETS__TEST"] = "()"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    folders = {whole: "0", killed: "2"}
    processes = {}
    for folder, restarts in folders.items():
        folder.mkdir()
        launcher = [*torchrun(2), "--max-restarts", restarts]
        processes[folder] = start(folder, tiny_shapes_root, launcher, "--resume", **options)
    for checkpoint in ("model_0000001.pth", "model_0000007.pth"):
        deadline = time.monotonic() + 200
        while not (killed / checkpoint).exists():
            assert processes[killed].poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        kill_one_of(processes[killed])
    for folder, process in processes.items():
        finish(folder, process)
    assert (killed / "output.txt").read_text().count("exitcode: -9") == 2
    for name, value in weights(whole).items():
        assert torch.equal(weights(killed)[name], value), name


def test_the_death_of_one_process_ends_all(tiny_shapes_root, tmp_path):
    process = start(tmp_path, tiny_shapes_root, torchrun(2), SOLVER__MAX_ITER=10000)
    wait_for_iterations(tmp_path, process)
    kill_one_of(process)
    assert process.wait(100) != 0
    assert "SIGKILL" in (tmp_path / "output.txt").read_text()


def test_a_signal_to_the_launcher_saves_and_ends(tiny_shapes_root, tmp_path):
    endless = {"SOLVER__MAX_ITER": 10000, "SOLVER__CHECKPOINT_PERIOD": 10000}
    process = start(tmp_path, tiny_shapes_root, torchrun(2), **endless)
    wait_for_iterations(tmp_path, process)
    process.terminate()  # torchrun passes it on to its processes
    process.wait(100)
    (checkpoint,) = tmp_path.glob("model_*.pth")
    assert (tmp_path / "last_checkpoint").read_text() == checkpoint.name
