import logging

import pytest

from sgr.engine.console import setup_loggers


@pytest.fixture
def loggers():
    """Detectron2's logger and this package's, which lose what the test gives them."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "sgr")]
    before = [(list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    yield loggers
    for logger, (handlers, level, propagate) in zip(loggers, before):
        logger.handlers[:], logger.level, logger.propagate = handlers, level, propagate


def test_what_is_long_goes_to_the_file_only(loggers, tmp_path, capsys):
    setup_loggers(str(tmp_path))
    setup_loggers(str(tmp_path))  # as in each run of a process; the second one changes nothing
    loggers[0].info("Running with full config:\nMODEL:\n  DEVICE: %s", "cpu")
    loggers[0].info("Evaluation results:\nmIoU 50")
    loggers[0].info("Evaluation results for shapes in csv format:")
    loggers[0].info("copypaste: %s", "Task: sem_seg")
    loggers[1].info("Model:\nnot of Detectron2")
    for logger in loggers:
        for handler in logger.handlers:
            handler.flush()
    console = capsys.readouterr().out
    assert console.count("Running with full config: 2 lines in log.txt\n") == 1
    assert "DEVICE" not in console and "csv" not in console and "sem_seg" not in console
    assert "Evaluation results:\nmIoU 50\n" in console and "not of Detectron2" in console
    log = (tmp_path / "log.txt").read_text()
    assert "Running with full config:\nMODEL:\n  DEVICE: cpu\n" in log
    assert "in csv format:\n" in log and "copypaste: Task: sem_seg\n" in log
