"""Errors that say all there is to say are logged in one line: a broken video is no fault of the code."""

from __future__ import annotations

import logging

from prefect.exceptions import FailedRun

from flows.rows import SetAside
from pipeline.errors import MasksieveError

LOGGERS = ("prefect.flow_runs", "prefect.task_runs", "prefect.engine")
"""Where Prefect tells with a traceback that a run failed."""


class OneLine(logging.Filter):
    """Takes the traceback off a record whose message or exception is meant for people."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if isinstance(error, MasksieveError | SetAside | FailedRun):
            record.exc_info = None
            if str(error) not in record.getMessage():
                record.msg, record.args = f"{record.getMessage()}: {error}", None
        return True


def log_in_one_line() -> None:
    """From now on, in this process; a second call changes nothing."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(one, OneLine) for one in logger.filters):
            logger.addFilter(OneLine())
