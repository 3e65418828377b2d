"""A log says of a video's fault one line, and of a fault of the code where it was."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from flows.one_line import LOGGERS, log_in_one_line
from flows.rows import SetAside
from pipeline.errors import VideoError


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What reaches the handlers, as text."""
    log_in_one_line()
    seen: list[str] = []

    class Seen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(self.format(record))

    handler = Seen()
    logger = logging.getLogger(LOGGERS[0])
    logger.addHandler(handler)
    yield seen
    logger.removeHandler(handler)


@pytest.mark.parametrize("error", [SetAside("no video"), VideoError("a video", "none", "look for it")])
def test_what_people_can_mend_is_told_without_a_traceback(error: Exception, lines: list[str]) -> None:
    for message in ("it failed", f"it failed with {error!s}"):
        try:
            raise error
        except type(error):
            logging.getLogger(LOGGERS[0]).exception(message)
    assert all(str(error) in line and "Traceback" not in line and "\n" not in line for line in lines)
    assert lines[1].count(str(error)) == 1


def test_a_fault_of_the_code_keeps_its_traceback(lines: list[str]) -> None:
    try:
        raise RuntimeError("a bug")
    except RuntimeError:
        logging.getLogger(LOGGERS[0]).exception("it failed")
    assert "Traceback" in lines[0]
