import importlib.util
import json
import os
import platform
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import MetadataCatalog
from PIL import Image

from sgr.engine import load_config
from tiny_model import CONFIG, tiny_options

TOOLS = Path(__file__).resolve().parents[2] / "tools"
SMALL = {
    "module": "--channels 16 8 --cells 4 6 --concepts 8 --token-dim 16 --batch 2",
    "matcher": "--batch 2 --concepts 12 --max-active 8 --cells 4 --stride 8 --components 3",
    "point-criterion": "--size 32 --masks 3 --queries 5 --layers 2 --points 40",
    "components": "--size 64 --classes 5 --maps 2",
    "token-metrics": "--size 40 54 --strides 16 4 --concepts 40 5 --classes 4",
    "deformable-attention": "--cells 6 3 --batch 2 --heads 2 --head-dim 4 --points 2",
    "mask-inference": "--size 100 150 --queries 9 --classes 4",
    "coco-ap": "--images 5 --classes 3 --instances 4 --detections 12",
    "multi-scale": "--size 60 90 --input 48 --queries 6 --classes 4",
    "input-path": "--images 1 --draws 2 --shrink 8",
}
ON_CPU_ONLY = ("components", "coco-ap", "input-path")
# In units of float32's rounding; for components, maps and masks the share of pixels.
ROUNDING = 1e-5
BFLOAT16_ROUNDING = 2**-8


@pytest.fixture(scope="module")
def tool():
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location("benchmark", TOOLS / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path


def run(tool, capsys, command, *options):
    """Status and table of a small run: a list of {header: cell}."""
    status = tool.main([command, *SMALL[command].split(), "--repeat", "2", *options])
    return status, tables(capsys.readouterr().out)[0]


def tables(text):
    """Each Markdown table in a text as a list of {header: cell}."""
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        if lines:
            cells = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)
            header, rule, *rows = cells
            assert all(set(cell) <= set(":-") for cell in rule)
            found.append([dict(zip(header, row, strict=True)) for row in rows])
    return found


@pytest.mark.parametrize("command", SMALL)
def test_both_versions_compute_the_same(tool, capsys, tmp_path, command):
    threads = torch.get_num_threads()
    file = tmp_path / "new" / "figures.json"
    status, table = run(tool, capsys, command, "--json", str(file))
    assert status == 0
    rows = {
        "module": 4,
        "matcher": 1,
        "point-criterion": 1,
        "mask-inference": 4,
        "deformable-attention": 4,
        "input-path": 6,
    }
    assert len(table) == rows.get(command, 2)
    assert torch.get_num_threads() == threads

    report = json.loads(file.read_text())
    assert report["command"] == command
    assert report["environment"]["threads"] == 1
    for row, printed in zip(report["rows"], table, strict=True):
        assert row["case"] == printed["case"]
        half = "bfloat16" in row["case"]
        assert row["deviation"] <= (BFLOAT16_ROUNDING if half else ROUNDING)
        for version, name in (("literal", "literal ms"), ("sgr", "SGR ms")):
            assert len(row["seconds"][version]) == 2
            mean = 1000 * sum(row["seconds"][version]) / 2
            assert float(printed[name]) == pytest.approx(mean, rel=0.01)
            if platform.system() == "Linux":
                assert row["mib"][version] >= 0


@pytest.mark.skipif(platform.system() != "Linux", reason="memory is measured in a forked process")
def test_memory_is_left_out_where_torch_does_not_run_in_a_forked_process(tool):
    """As beside a GPU, after a backward pass."""
    from benchmarks.measure import compare

    parent = os.getpid()

    def refused():
        if os.getpid() != parent:
            raise RuntimeError(
                "Unable to handle autograd's threading in combination with fork-based "
                "multiprocessing. See https://github.com/pytorch/pytorch/wiki/Autograd-and-Fork"
            )
        return [1.0]

    def broken():
        raise RuntimeError("something else")

    args = Namespace(device="cpu", threads=1, repeat=1, clock="wall")
    row = compare("case", refused, refused, args)
    assert row.mib == (None, None) and row.memory_ratio is None
    ((printed,),) = tables(tool.format_table([row]))
    assert printed["literal MiB"] == printed["SGR MiB"] == printed["memory ratio"] == "-"
    with pytest.raises(RuntimeError, match="ended with status 1"):
        compare("case", broken, broken, args)


def test_guard_tells_what_is_not_as_expected(tool, capsys, tmp_path):
    file = tmp_path / "expected.yaml"
    case = "1 maps of 64x64, 5 classes"
    file.write_text(
        f"components --size 64 --classes 5 --maps 1 --repeat 1:\n"
        f"  {case}, smooth: {{time: [1.0e+3, 2.0e+3], memory: [0, 1.0e+9]}}\n"
    )
    assert tool.main(["guard", str(file)]) == 0
    smooth, noisy = tables(capsys.readouterr().out)[0]
    ratio = smooth["time ratio"]
    assert smooth["case"] == f"{case}, smooth" and float(ratio) > 0
    assert smooth["verdict"] == f"slower than expected: {ratio}, expected 1000 to 2000"
    assert noisy["verdict"] == "a new case: give it ranges"

    row = tool.Row("", ([6.0, 2.0, 3.0], [1.0]), (8.0, 4.0), 0.0)
    assert tool.judge(row, {"time": (2, 3), "memory": (2, 2)}) == "as expected"
    assert tool.judge(row, {"time": (1, 2.5), "memory": (2.5, 4)}) == (
        "faster than expected: 3.00, expected 1 to 2.5; "
        "more memory than expected: 2.00, expected 2.5 to 4"
    )


def test_guard_has_every_benchmark_beside_a_literal_version(tool):
    expected = yaml.safe_load(tool.EXPECTED.read_text())
    assert {line.split()[0] for line in expected} == {*tool.COMMANDS} - {"step", "deploy"}
    for ranges in (each for cases in expected.values() for each in cases.values()):
        assert {*ranges} <= {"time", "memory"} and all(low < high for low, high in ranges.values())


def test_growth(tool, capsys, tmp_path, monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(tool.growth.time, "process_time", lambda: next(clock))
    monkeypatch.setattr(tool.growth, "CURVES", tool.growth.CURVES[1::3])  # one of each part
    picture = tmp_path / "growth.png"
    assert tool.main(["growth", "--points", "2", "--repeat", "1", "--output", str(picture)]) == 0
    table = tables(capsys.readouterr().out)[0]
    for row, (part, axis, size) in zip(table, tool.growth.CURVES, strict=True):
        assert (row["part"], row["against"]) == (part.__name__, axis)
        assert row["sizes"] == f"{size}, {2 * size}" and row["ms"] == "1000, 1000"
        assert float(row["exponent"]) == float(row["of the last step"]) == 0
    assert Image.open(picture).size[0] > 500

    curve = tool.growth.Curve("", "", [1, 2, 4], [3.0, 12.0, 96.0])
    assert curve.last_exponent == pytest.approx(3) and curve.exponent == pytest.approx(2.5)


def test_sides_of_an_area(tool):
    assert [tool.growth._sides(1 << power) for power in (6, 7, 8)] == [(8, 8), (8, 16), (16, 16)]


def test_gflops_of_the_paper(tool):
    """Behind res5 at 512x512: the literal module takes MaskFormer from 75 GFLOPs to 80."""
    from benchmarks import module

    ours = module.SemanticGlobalReasoning(2048)
    x = torch.zeros(1, 2048, 16, 16)
    assert module._gflops(ours, x) == "4.23"
    assert module._gflops(module.LiteralReasoning(ours), x) == "4.70"


def test_compiled_deformable_attention_has_rows_of_its_own(tool, capsys, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    status, table = run(tool, capsys, "deformable-attention", "--compile")
    assert status == 0
    assert ["compiled" in row["case"] for row in table] == [False, False, True] * 2


def test_disagreement_is_an_error(tool, capsys, monkeypatch):
    from benchmarks import token_metrics

    monkeypatch.setattr(token_metrics, "_metrics", lambda *_: [torch.zeros(()), torch.zeros(())])
    status, table = run(tool, capsys, "token-metrics")
    assert status == 1
    assert {row["deviation"] for row in table} == {"1.0e+00"}


def test_parts_of_the_input_path(tool, capsys):
    assert tool.main(["input-path", *SMALL["input-path"].split(), "--repeat", "2"]) == 0
    whole, parts = tables(capsys.readouterr().out)
    assert all(row["deviation"] == "0.0e+00" for row in whole)
    cases = [row["case"] for row in whole if "no components" not in row["case"]]
    assert cases == list(dict.fromkeys(row["case"] for row in parts))
    for case in cases:
        mine = {each["part"]: each for each in parts if each["case"] == case}
        assert ("draw the crop" in mine) == ("75 %" in case)
        for part in ("decode image", "decode labels", "resize, crop"):
            assert "-" not in (mine[part]["literal ms"], mine[part]["SGR ms"])
        assert mine["components"]["literal ms"] == "-" != mine["components"]["SGR ms"]
        for version in ("literal", "SGR"):
            shares = [each[f"{version} share"].rstrip("%") for each in mine.values()]
            assert sum(float(each) for each in shares if each != "-") == pytest.approx(100, abs=1)


def test_input_path_of_a_dataset(tool, capsys, tmp_path):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    rng = np.random.default_rng(0)
    for index in range(5):
        image, labels = rng.integers(0, 256, (40, 50, 3)), rng.integers(0, 3, (40, 50))
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / f"{index}.jpg")
        Image.fromarray(labels.astype(np.uint8)).save(tmp_path / f"{index}.png")
    records = [
        {
            "file_name": str(tmp_path / f"{index}.jpg"),
            "sem_seg_file_name": str(tmp_path / f"{index}.png"),
        }
        for index in range(5)
    ]
    name = "test_benchmark_input_path"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=["a", "b", "c"], ignore_label=255)
    try:
        status, table = run(tool, capsys, "input-path", "--dataset", name)
        assert status == 0 and [row["deviation"] for row in table] == ["0.0e+00"] * 3
        assert all(row["case"].startswith(name) for row in table)
        (tmp_path / "0.png").unlink()
        with pytest.raises(SystemExit, match="2"):
            run(tool, capsys, "input-path", "--dataset", name)
        assert "0.png does not exist" in capsys.readouterr().err
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_clock(tool, monkeypatch):
    from benchmarks import input_path

    class Work:
        def outer(self, long):
            return self.inner() + 1

        def inner(self):
            return 1

    now = iter(range(100))
    monkeypatch.setattr(input_path.time, "perf_counter", lambda: float(next(now)))
    places = [
        input_path.Place(Work, "outer", lambda self, long: "long" if long else "short"),
        input_path.Place(Work, "inner", "inner"),
    ]
    before = Work.outer
    with input_path.clocked(places) as seconds:
        assert [Work().outer(True), Work().outer(long=False), Work().outer(True)] == [2] * 3
        assert seconds == {"long": 2.0, "short": 1.0}
        Work().inner()
    assert seconds == {"long": 2.0, "short": 1.0, "inner": 1.0} and Work.outer is before


def test_other_components_count(tool):
    from benchmarks.components import _share_of_other_components as share

    classes = np.array([3, 3])
    one = np.array([[0, 0, 1, 1, -1]], np.int16)
    swapped = np.array([[1, 1, 0, 0, -1]], np.int16)
    larger = np.array([[0, 0, 1, 1, 1]], np.int16)
    assert share([(one, classes)], [(swapped, classes)]) == 0
    assert share([(one, classes)], [(larger, classes)]) == pytest.approx(0.2)
    assert share([(one, classes)], [(swapped, np.array([3, 4]))]) == 1


@pytest.mark.skipif(platform.system() != "Linux", reason="memory is measured on Linux")
def test_peak_memory_is_that_of_the_run(tool):
    from benchmarks.measure import compare

    def temporary(mib):
        return [np.ones(mib << 17).sum() * 0]  # eight bytes each

    def tensor(mib):
        return [torch.ones(mib << 18).sum() * 0]  # four bytes each

    args = Namespace(device="cpu", threads=1, repeat=1, clock="wall")
    row = compare("memory", lambda: temporary(48), lambda: tensor(16), args)
    assert row.mib == pytest.approx((48, 16), abs=3)  # the system may hand out pages of 2 MiB


@pytest.mark.parametrize(
    "command, options, message",
    [
        ("module", ["--cells", "4"], "have 2 and 1 values"),
        ("module", ["--token-dim", "6"], "multiple of 4, got 6"),
        ("matcher", ["--max-active", "13"], "--concepts 12 is less than --max-active 13"),
        ("components", ["--classes", "256"], "at most 255 labels, not 256"),
        ("components", ["--device", "cuda"], "invalid choice: 'cuda'"),
        ("coco-ap", ["--device", "cuda"], "invalid choice: 'cuda'"),
        ("input-path", ["--dataset", "nowhere"], "no dataset nowhere is registered"),
        ("token-metrics", ["--strides", "4"], "have 1 and 2 values"),
        ("token-metrics", ["--threads", "0"], "must be at least 1, not 0"),
    ],
)
def test_options_that_make_no_sense(tool, capsys, command, options, message):
    with pytest.raises(SystemExit, match="2"):
        tool.main([command, *SMALL[command].split(), *options])
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_device_that_is_not_there(tool, capsys):
    with pytest.raises(SystemExit, match="2"):
        tool.main(["module", "--device", "cuda"])
    assert "no CUDA device" in capsys.readouterr().err


def test_made_up_data_have_the_tree_of_the_configs_data(tool, tmp_path):
    args = Namespace(size=64, images=1, options=[], device="cpu")
    plain = str(TOOLS.parent / "configs/shapes/small_fcn.yaml")
    cfg = tool.step.step_config(f"{plain}+SOLVER.BASE_LR=0.5", tmp_path, args)
    assert cfg.SOLVER.BASE_LR == 0.5
    tree = MetadataCatalog.get("shapes_sem_seg_train").class_tree
    assert MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).class_tree == tree


def test_a_compiled_config_takes_one_case(tool, capsys):
    plain = str(TOOLS.parent / "configs/shapes/small_fcn.yaml")
    options = ["--configs", plain, f"{plain}+MODEL.COMPILE=True", "--size", "64"]
    with pytest.raises(SystemExit, match="2"):
        tool.main(["step", *options, "--precision", "float32", "autocast"])
    assert "2 cases with MODEL.COMPILE: give one --work and" in capsys.readouterr().err


def test_steps_of_two_models(tool, capsys):
    plain = str(TOOLS.parent / "configs/shapes/small_fcn.yaml")
    with_sgr = f"{plain}+{TOOLS.parent / 'configs/mixins/sgr_in_head.yaml'}"
    plain += "+INPUT.MIN_SIZE_TRAIN=(64,96)+INPUT.MIN_SIZE_TRAIN_SAMPLING=range"
    options = ["--configs", with_sgr, plain, "--size", "64", "--images", "1", "--repeat", "2"]
    assert tool.main(["step", *options, "--work", "training", "inference"]) == 0
    rows, parts = tables(capsys.readouterr().out)
    for row in rows:
        first, second = float(row["first ms"]), float(row["second ms"])
        assert float(row["time ratio"]) == pytest.approx(first / second, rel=0.02)
        assert float(row["second images/s"]) == pytest.approx(1000 / second, rel=0.02)
    always = {"backbone", "head", "reasoning", "predictor", "rest"}
    training_only = {"ConceptSupervision", "backward pass", "optimizer"}
    for row, more in zip(rows, (training_only, set()), strict=True):
        named = {part["part"]: part for part in parts if part["case"] == row["case"]}
        assert set(named) == always | more
        for name, part in named.items():
            # Only the first model has SGR.
            assert (part["second ms"] == "-") == (name in ("reasoning", "ConceptSupervision"))
            assert float(part["first ms"]) > 0


def test_exported_forms_of_a_model(tool, capsys, tmp_path):
    pytest.importorskip("onnxruntime")
    # The least model there is.
    options = {
        "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
        "MODEL.SEM_SEG_HEAD.NAME": "SemSegFPNHead",
        "MODEL.BACKBONE.NAME": "build_resnet_backbone",
        "MODEL.RESNETS.DEPTH": "18",
        "MODEL.RESNETS.RES2_OUT_CHANNELS": "64",
        "MODEL.RESNETS.OUT_FEATURES": "['res2']",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": "['res2']",
    }
    flat = [one for pair in options.items() for one in pair]
    config = tmp_path / "least.yaml"
    config.write_text(load_config(str(CONFIG), [*tiny_options(), *flat]).dump())
    small = ["--configs", str(config), "--size", "32", "64", "--images", "2", "--repeat", "1"]
    assert tool.main(["deploy", *small, "--clock", "processor"]) == 0
    table = tables(capsys.readouterr().out)[0]
    forms = ("torch.export", "onnxruntime")
    assert [row["case"] for row in table] == [f"least, {form}, 2x32x64" for form in forms]
    for row in table:
        assert float(row["model images/s"]) == pytest.approx(2000 / float(row["model ms"]), 0.02)
        assert float(row["deviation"]) < 1e-4


def test_time_of_the_processor_does_not_count_waiting(tool):
    from benchmarks import measure

    args = Namespace(device="cpu", threads=1, repeat=1, clock="processor")
    assert measure._seconds(lambda: measure.time.sleep(0.2), args) < 0.1
    args.clock = "wall"
    assert measure._seconds(lambda: measure.time.sleep(0.2), args) >= 0.2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("command", [each for each in SMALL if each not in ON_CPU_ONLY])
def test_on_a_gpu(tool, capsys, command):
    status, table = run(tool, capsys, command, "--device", "cuda")
    assert status == 0 and all(row["SGR MiB"] != "-" for row in table)
