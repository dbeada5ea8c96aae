"""A training that was interrupted goes on as if nothing had happened."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine import TrainerBase
from detectron2.engine.hooks import EvalHook

from sgr.engine import Trainer
from sgr.engine.lock import lock_folder
from sgr.engine.preemption import PREEMPTED, PreemptionHook
from sgr.engine.resume import check_optimizer_state
from tiny_model import CHECKOUT, CONFIG, tiny_config, tiny_options
from two_processes import found_when_ended, run_twice

# Dropout in the model and random crops, flips and colours in the data.
RANDOM = {"SEED": 3, "SOLVER__CHECKPOINT_PERIOD": 1, "MODEL__SGR__DROPOUT": 0.2}


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def run(folder, start=1, **options):
    """Train or go on in a folder, with initial weights that follow from ``start``."""
    torch.manual_seed(start)
    trainer = Trainer(tiny_config(folder, **{**RANDOM, **options}))
    trainer.resume_or_load(resume=True)
    trainer.train()
    return weights(trainer)


def forget_after(folder, iteration):
    """What a process leaves that is killed after saving the checkpoint of an iteration."""
    for file in folder.glob("model_*.pth"):
        if file.stem == "model_final" or int(file.stem.split("_")[1]) > iteration:
            file.unlink()
    (folder / "last_checkpoint").write_text(f"model_{iteration:07d}.pth")


@pytest.fixture(scope="module")
def whole(tiny_shapes_root, tmp_path_factory):
    """The folder and the weights of a training of 5 iterations that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(tiny_shapes_root))
        return folder, run(folder, SOLVER__MAX_ITER=5)


@pytest.mark.parametrize("killed_after, workers", [(0, 0), (3, 0), (2, 2)])
def test_resumed_weights_are_equal_to_the_last_bit(
    whole, tiny_shapes, tmp_path, killed_after, workers
):
    run(tmp_path, SOLVER__MAX_ITER=5)
    forget_after(tmp_path, killed_after)
    resumed = run(tmp_path, start=2, SOLVER__MAX_ITER=5, DATALOADER__NUM_WORKERS=workers)
    for name, value in whole[1].items():
        assert torch.equal(value, resumed[name]), name


def test_the_state_of_the_process_does_not_matter(whole, tiny_shapes, tmp_path):
    """Random numbers follow from SEED and the iteration alone."""
    torch.manual_seed(99)
    cfg = tiny_config(tmp_path, **RANDOM, SOLVER__MAX_ITER=5)
    trainer = Trainer(cfg)
    trainer.model.load_state_dict(Trainer(tiny_config(tmp_path, **RANDOM)).model.state_dict())
    torch.rand(17)
    first = next(trainer._trainer._data_loader_iter)
    torch.rand(5)
    second = next(iter(Trainer.build_train_loader(cfg)))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, second, strict=True))


class TestCheckpoints:
    def test_the_last_one_is_damaged(self, whole, tiny_shapes, tmp_path, caplog):
        run(tmp_path, SOLVER__MAX_ITER=5)
        forget_after(tmp_path, 3)
        file = tmp_path / "model_0000003.pth"
        file.write_bytes(file.read_bytes()[:1000])
        draft = tmp_path / ".model_0000004.pth.1-2.tmp"
        draft.write_bytes(b"half")
        resumed = run(tmp_path, SOLVER__MAX_ITER=5)
        assert all(torch.equal(value, resumed[name]) for name, value in whole[1].items())
        assert not draft.exists()
        assert "Going on from" in caplog.text and "model_0000003.pth' is damaged" in caplog.text

    @pytest.mark.parametrize("content", ["", "model_0000099.pth"])
    def test_the_name_of_the_last_one_is_lost(self, tiny_shapes, tmp_path, content):
        run(tmp_path, SOLVER__MAX_ITER=2)
        tag = tmp_path / "last_checkpoint"
        tag.write_text(content) if content else tag.unlink()
        trainer = Trainer(tiny_config(tmp_path, **RANDOM, SOLVER__MAX_ITER=3))
        trainer.resume_or_load(resume=True)
        assert trainer.start_iter == 2

    def test_none_is_intact(self, tiny_shapes, tmp_path):
        (tmp_path / "model_final.pth").write_bytes(b"")
        trainer = Trainer(tiny_config(tmp_path, **RANDOM))
        with pytest.raises(ValueError, match="no checkpoint in .* is intact: .*model_final"):
            trainer.resume_or_load(resume=True)

    def test_a_failure_while_saving_leaves_the_old_one(self, tiny_shapes, tmp_path, monkeypatch):
        trainer = Trainer(tiny_config(tmp_path, **RANDOM))
        trainer.checkpointer.save("model_final", iteration=0)
        before = (tmp_path / "model_final.pth").read_bytes()

        def full(data, path):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="model_final.pth cannot be written .*No space"):
            trainer.checkpointer.save("model_final", iteration=1)
        assert (tmp_path / "model_final.pth").read_bytes() == before
        assert {file.name for file in tmp_path.iterdir() if file.suffix == ".tmp"} == set()


class TestChangedConfigs:
    @pytest.fixture
    def resume(self, tiny_shapes, tmp_path):
        run(tmp_path, SOLVER__MAX_ITER=2, SOLVER__BASE_LR=1e-3)

        def resume(**options):
            options = {"SOLVER__MAX_ITER": 4, "SOLVER__BASE_LR": 1e-3, **options}
            trainer = Trainer(tiny_config(tmp_path, **{**RANDOM, **options}))
            trainer.resume_or_load(resume=True)
            return trainer

        return resume

    def test_rates_of_the_config_hold(self, resume, caplog):
        rates = [group["lr"] for group in resume()._trainer.optimizer.param_groups]
        assert "SOLVER.BASE_LR" not in caplog.text
        changed = resume(SOLVER__BASE_LR=1e-2, SOLVER__WEIGHT_DECAY=0.5)._trainer.optimizer
        assert [group["lr"] for group in changed.param_groups] == pytest.approx(
            [10 * rate for rate in rates]
        )
        assert max(group["weight_decay"] for group in changed.param_groups) == 0.5
        assert re.search(r"SOLVER.BASE_LR +\| +0.001 +\| +0.01 ", caplog.text)

    def test_another_optimizer(self, resume):
        match = "another kind of optimizer.*SOLVER.OPTIMIZER was ADAMW and is SGD.*Set SOLVER.OPTIM"
        with pytest.raises(ValueError, match=match):
            resume(SOLVER__OPTIMIZER="SGD")

    def test_a_state_of_another_version_of_torch(self, resume):
        optimizer = resume()._trainer.optimizer
        state = optimizer.state_dict()
        for group in state["param_groups"]:
            group.pop("decoupled_weight_decay", None)
            group["option_of_old"] = True
        check_optimizer_state(optimizer, state, {})

    def test_another_seed(self, resume):
        assert resume(SEED=7)._trainer.data_loader.state_dict()["seed"] == 7

    def test_other_frozen_stages(self, resume):
        match = r"has \d+ parameters, and this training \d+ .*MODEL.BACKBONE.FREEZE_AT was 0 and is"
        with pytest.raises(ValueError, match=match):
            resume(MODEL__BACKBONE__FREEZE_AT=3)

    def test_another_rate_of_the_transformer(self, resume):
        with pytest.raises(ValueError, match="in other groups.*Set SOLVER.TOKEN_MIXER_MULTIPLIER"):
            resume(SOLVER__TOKEN_MIXER_MULTIPLIER=0.1)

    def test_another_number_of_concepts(self, resume):
        with pytest.raises(ValueError, match="that of another model.*without --resume(?s:.*)conc"):
            resume(MODEL__SGR__NUM_CONCEPTS=40)

    def test_fewer_iterations_than_are_done(self, resume):
        with pytest.raises(ValueError, match="has done 2 iterations, and SOLVER.MAX_ITER is 1"):
            resume(SOLVER__MAX_ITER=1)

    def test_another_batch_size(self, resume, caplog):
        resume(SOLVER__IMS_PER_BATCH=2).train()
        assert "IMS_PER_BATCH was 4 and is 2: the order of the images goes on" in caplog.text


class Toy(TrainerBase):
    """A training that gets a signal in one of its iterations."""

    def __init__(self, signalled, eval_period):
        super().__init__()
        self.saved, self.evaluated, self.signalled = [], [], signalled
        self.checkpointer = SimpleNamespace(
            save=lambda name, **_: self.saved.append(name), save_dir="output"
        )
        self.hook = PreemptionHook(eval_period)
        evaluation = EvalHook(eval_period, lambda: self.evaluated.append(self.iter))
        self.register_hooks([self.hook, evaluation])

    def run_step(self):
        if self.iter == self.signalled:
            self.hook._handle(signal.SIGTERM, None)


class TestSignalBesideAnEvaluation:
    def test_a_due_evaluation_comes_first(self):
        training = Toy(signalled=1, eval_period=2)
        with pytest.raises(SystemExit, match=str(PREEMPTED)):
            training.train(0, 6)
        assert training.saved == ["model_0000001", "model_0000002"]
        assert training.evaluated == [1]

    def test_the_last_iteration_ends_by_itself(self):
        training = Toy(signalled=5, eval_period=2)
        training.train(0, 6)
        assert training.saved == [] and training.evaluated == [1, 3, 6]

    def test_no_evaluation_is_due(self):
        training = Toy(signalled=2, eval_period=2)
        with pytest.raises(SystemExit, match=str(PREEMPTED)):
            training.train(0, 6)
        assert training.saved == ["model_0000002"] and training.evaluated == [1]


def test_an_earlier_training_is_replaced_with_a_warning(tiny_shapes, tmp_path, caplog):
    run(tmp_path, SOLVER__MAX_ITER=1)
    assert "replace those of an earlier one" not in caplog.text
    later = Trainer(tiny_config(tmp_path, **RANDOM))
    later.resume_or_load(resume=False)
    assert f"replace those of an earlier one in {tmp_path}. --resume" in caplog.text
    assert later.checkpointer.has_checkpoint()  # it has not begun
    later.run_step = lambda: 1 / 0  # it dies before its first checkpoint
    with pytest.raises(ZeroDivisionError):
        later.train()
    again = Trainer(tiny_config(tmp_path, **RANDOM))
    again.resume_or_load(resume=True)
    assert again.start_iter == 0 and (tmp_path / "model_final.pth").exists()
    assert "starts anew. To go on with one of them, write its name" in caplog.text


class TestTwoTrainingsInOneFolder:
    def test_the_second_one_is_refused(self, tmp_path):
        hold = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, 2); print(); input()"
        (tmp_path / ".lock").write_text("process 1 on a machine")
        command = [sys.executable, "-c", hold, str(tmp_path / ".lock")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, **pipes) as first:
            first.stdout.readline()
            with pytest.raises(
                ValueError, match="another training .* .process 1 on a machine.; wait"
            ):
                with lock_folder(str(tmp_path)):
                    pass
            first.communicate(b"\n")
        with lock_folder(str(tmp_path)):
            assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")

    def test_data_workers_do_not_hold_it(self, tmp_path):
        with lock_folder(str(tmp_path)):
            worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
            worker.start()
        try:
            with lock_folder(str(tmp_path)):
                assert worker.is_alive()
        finally:
            worker.kill()
            worker.join()


def test_no_process_ends_before_the_checkpoint_is_written(tmp_path):
    """A launcher would stop the one that writes."""
    assert run_twice(found_when_ended, tmp_path, str(tmp_path)) == [(PREEMPTED, True)] * 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_save_and_end(tiny_shapes_root, tmp_path, number):
    """Also where the data workers get the signal, as from torchrun, srun and terminals."""
    options = tiny_options(
        OUTPUT_DIR=tmp_path,
        SOLVER__MAX_ITER=10000,
        SOLVER__CHECKPOINT_PERIOD=10000,
        DATALOADER__NUM_WORKERS=1,
    )
    command = [sys.executable, "train_net.py", "--config-file", str(CONFIG), "--resume", *options]
    environment = {
        **os.environ,
        "DETECTRON2_DATASETS": str(tiny_shapes_root),
        "PYTHONPATH": str(CHECKOUT / "projects" / "SGR"),
    }
    log = tmp_path / "log.txt"
    process = subprocess.Popen(
        command,
        cwd=CHECKOUT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (log.exists() and "iter: " in log.read_text()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(process.pid, number)
        assert process.wait(60) == PREEMPTED
    finally:
        process.kill()
    (checkpoint,) = tmp_path.glob("model_*.pth")
    assert (tmp_path / "last_checkpoint").read_text() == checkpoint.name
    assert f"the checkpoint is {checkpoint}: go on with --resume" in log.read_text()
