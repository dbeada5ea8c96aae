"""A small share of the cases of ``make fuzz``, and that it finds what it is for."""

import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tiny_model import CHECKOUT

TOOL = CHECKOUT / "tools" / "fuzz.py"


def run(*options):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(CHECKOUT / "projects" / "SGR"),
    }
    command = [sys.executable, "-W", "ignore", str(TOOL), *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_some_cases():
    done = run("--coco", "40", "--yaml", "30", "--config", "12", "--seed", "0", "--jobs", "1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    # Not all are refused at the door.
    assert all(int(n) > 0 for n in re.findall(r"cases, (\d+) accepted", done.stdout)), done.stdout


def test_a_case_again(tmp_path):
    done = run("--seed", "3", "--case", "yaml", "5", "--output", str(tmp_path))
    assert done.returncode == 0 and "yaml 5 of seed 3: all is well" in done.stdout
    assert (tmp_path / "a" / "b" / "data.yaml").is_file()


@pytest.fixture(scope="module")
def tool():
    sys.path.insert(0, str(TOOL.parent))
    yield runpy.run_path(str(TOOL))
    sys.path.remove(str(TOOL.parent))


def act(case):
    if case == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if case == "hang":
        while True:
            pass
    if case == "memory":
        bytearray(2**30)
    if case == "raw":
        return [int("raw")]
    if case == "print":
        print("printed")
    return [str(case)]


@pytest.mark.parametrize("jobs", [1, 2])
def test_faults_are_found_and_the_rest_goes_on(tool, jobs):
    cases = ["a", "crash", "b", "hang", "memory", "raw", "print", "c"]
    outcomes = tool["run_cases"](act, cases, jobs=jobs, seconds=0.5, memory=2**29)
    faults = {outcome.case: outcome.fault for outcome in outcomes}
    assert list(faults) == cases or jobs > 1
    assert [case for case in cases if faults[case] is None] == ["a", "b", "print", "c"]
    assert faults["crash"].startswith("crash: SIGSEGV")
    assert faults["hang"].startswith("hang: no end after 0.5 s")
    assert faults["memory"].startswith("memory: above 512 MiB")
    assert "error that is not ours" in faults["raw"] and "ValueError" in faults["raw"]


def test_what_is_ours(tool):
    ours = sys.modules["fuzzing.cases"].ours
    from sgr.data.texts import compose_yaml

    messages = []
    with ours(messages):
        compose_yaml(Path(__file__).with_name("none.yaml"))  # of the operating system
    with ours(messages):
        raise OSError(28, "No space left on device", "file")
    assert len(messages) == 2 and "none.yaml" in messages[0]
    with pytest.raises(ValueError), ours(messages):
        int("none")
    with pytest.raises(TypeError), ours(messages):
        raise TypeError


def test_the_same_case_is_the_same_file(tool, tmp_path):
    run_case = sys.modules["fuzzing.cases"].run_case
    case = sys.modules["fuzzing.cases"].Case("yaml", 1, 2)
    files = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        run_case(case, folder)
        files.append((folder / "a" / "b" / "data.yaml").read_bytes())
        time.sleep(0.01)
    assert files[0] == files[1]
