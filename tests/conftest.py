"""What all tests share: a model cache of their own, and on CI no test may be left out for a missing service."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

ON_CI = os.environ.get("CI", "").lower() in ("1", "true")
MAY_BE_MISSING = ("gpu", "cuda", "real clips")


@pytest.fixture(autouse=True)
def own_model_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests away from the user's checkpoints: an empty cache for each test."""
    monkeypatch.setenv("MASKSIEVE_CACHE", str(tmp_path / "masksieve-cache"))
    monkeypatch.delenv("MASKSIEVE_MIRROR", raising=False)


def _not_on_ci(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure on CI, unless it is for want of a GPU or of the real clips."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if ON_CI and report.skipped and not hasattr(report, "wasxfail"):
        if any(word in reason.lower() for word in MAY_BE_MISSING):
            return
        report.outcome = "failed"
        report.longrepr = f"skipped on CI, where everything that tests need must be there: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _not_on_ci(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _not_on_ci(report)
    return report
