"""Work in threads: its order, and what an error leaves undone. Workers that get signals."""

import signal
import subprocess
import threading

import pytest
from torch.utils.data import DataLoader

from sgr.data.threads import available_cores, outlive_signals, work_in_threads


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_results_come_in_order_and_in_this_thread(workers, count):
    results = []

    def add(result):
        results.append((result, threading.current_thread()))

    work_in_threads(lambda item: item**2, list(range(count)), add, workers=workers)
    assert results == [(item**2, threading.current_thread()) for item in range(count)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_after_an_error_the_rest_is_not_begun(error):
    begun = []
    gate = threading.Event()

    def work(item):
        begun.append(item)
        if item > 0:
            gate.wait(5)
        return item

    def add(item):
        threading.Timer(0.2, gate.set).start()
        raise error

    with pytest.raises(error):
        work_in_threads(work, range(100), add, workers=1)
    assert begun in ([0], [0, 1])


def test_errors_of_the_work():
    with pytest.raises(ZeroDivisionError):
        work_in_threads(lambda item: 1 // item, [0, 1], print)


def test_cores():
    assert available_cores() >= 1


class TestSignalsToDataWorkers:
    @pytest.fixture
    def batches(self):
        return iter(DataLoader(range(50), num_workers=1, worker_init_fn=outlive_signals))

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
    def test_that_of_others_changes_nothing(self, batches, number):
        next(batches)  # the worker has begun
        subprocess.run(["kill", f"-{int(number)}", str(batches._workers[0].pid)], check=True)
        assert len(list(batches)) == 49

    def test_that_of_the_main_process_ends_the_worker_without_an_error(self, batches):
        next(batches)
        worker = batches._workers[0]
        worker.terminate()
        worker.join(30)
        assert worker.exitcode == 0
