"""The command line, called in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.cli.entry import main

Run = Callable[..., int]


@pytest.fixture
def run() -> Run:
    """Call the command line, give back its exit code."""

    def call(*words: object) -> int:
        with pytest.raises(SystemExit) as exited:
            main([str(word) for word in words])
        code = exited.value.code
        return code if isinstance(code, int) else int(code is not None)

    return call
