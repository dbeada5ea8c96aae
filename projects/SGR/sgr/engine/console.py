"""What is long or repeated goes to log.txt only; names of files may have any bytes."""

from __future__ import annotations

import copy
import io
import logging
import re
import sys

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

# How messages of Detectron2 begin that are hundreds of lines long before a training's first one.
_IN_THE_FILE_ONLY = (
    "Environment info:",
    "Contents of args.config_file=",
    "Running with full config:",
    "Model:",
)


# What says the same as other messages, or the same at each evaluation.
_REPEATED = re.compile(
    r"copypaste: |Evaluation results for .* in csv format:$|Serializ(ing|ed) "
    r"|\[DatasetMapper\] Augmentations used in inference"
)


def is_news(record: logging.LogRecord) -> bool:
    """A filter for the console, without messages of Detectron2 that repeat others."""
    return not _REPEATED.match(record.getMessage())


class BriefFormatter(logging.Formatter):
    """Formats as another formatter does, but only the first line of some messages of Detectron2."""

    def __init__(self, formatter: logging.Formatter):
        super().__init__()
        self.formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if message.startswith(_IN_THE_FILE_ONLY):
            first, *more = message.splitlines()
            record = copy.copy(record)
            record.msg, record.args = f"{first} {len(more)} lines in log.txt", ()
        return self.formatter.format(record)


def show_any_name() -> None:
    """Let the console show names of files that are not UTF-8, as escapes instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def setup_loggers(output_dir: str) -> None:
    """Set up Detectron2's loggers and this package's, with a console that leaves things out.

    These are messages that are long or repeat others; log.txt has them.
    """
    show_any_name()
    rank = comm.get_rank()
    setup_logger(output_dir, distributed_rank=rank, name="sgr")
    # The same call as in Detectron2's default_setup, which gets the same logger then.
    for handler in setup_logger(output_dir, distributed_rank=rank).handlers:
        on_console = getattr(handler, "stream", None) is sys.stdout
        if on_console and not isinstance(handler.formatter, BriefFormatter):
            handler.addFilter(is_news)
            handler.setFormatter(BriefFormatter(handler.formatter or logging.Formatter()))
