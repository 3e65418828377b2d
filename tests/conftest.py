"""What all tests share: a model cache of their own, and on CI no test may be left out for a missing service."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings as hypothesis_settings

if TYPE_CHECKING:
    from usam.heads import HeadBank
    from usam.shard import Shard

hypothesis_settings.register_profile("masksieve", deadline=None)  # machines here are shared; a benchmark times
hypothesis_settings.load_profile("masksieve")

ON_CI = os.environ.get("CI", "").lower() in ("1", "true")
MAY_BE_MISSING = ("gpu", "cuda", "real clips")
SEVEN = ("iou_tiny", "iou_large", "iou_dense_prompt", "iou_unsupervised", "model_gap", "prompt_gap", "task_gap")


@pytest.fixture(autouse=True)
def own_model_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests away from the user's checkpoints: an empty cache for each test."""
    monkeypatch.setenv("MASKSIEVE_CACHE", str(tmp_path / "masksieve-cache"))
    monkeypatch.delenv("MASKSIEVE_MIRROR", raising=False)


@pytest.fixture(autouse=True)
def own_logging() -> Generator[None]:
    """A command of the command line that a test calls logs to that test's stderr, not to what comes after it."""
    yield
    for name in ("pipeline", "usam"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.NOTSET)


@pytest.fixture
def judged_shard(tmp_path: Path) -> Callable[..., Shard]:
    """A harvest whose tokens hold the IoU columns: token j of the mask is a wide copy of what one head predicts."""

    import numpy as np

    from usam.features import FEATURES
    from usam.shard import Plan, ShardWriter

    def make(name: str = "shard", kind: str = "frames", videos: int = 12, seed: int = 0, **changes: Any) -> Shard:
        plan = Plan(
            kind,
            {"tiny": {"name": "sam2_nano", "sha256": "a" * 64}, "large": {"name": "sam2_micro", "sha256": "b" * 64}},
            "tiny", changes.pop("dataset", "synthetic"), "test", {"seed": seed},
        )  # fmt: skip
        writer = ShardWriter(tmp_path / name, plan)
        rng = np.random.default_rng(seed)
        ids = [f"{changes.get('prefix', 'v')}{i}" for i in range(videos)]
        for video in ids:
            n = 24
            iou = {head: rng.random(n) for head in ("iou", "iou_tiny", "iou_large", "iou_dense_prompt")}
            chosen = iou["iou"] * rng.random(n)
            tokens = np.zeros((n, 5, 4), np.float32)
            tokens[:, 0] = np.stack([iou["iou_tiny"], iou["iou_large"], iou["iou_dense_prompt"], iou["iou"]], 1)
            tokens[:, 1:, 0] = rng.random((n, 4))
            which = rng.integers(1, 4, n)
            tokens[np.arange(n), which + 1, 0] = chosen
            columns: dict[str, Any] = {
                "frame_index": np.arange(n), "object_id": np.ones(n, int), "size": ["tiny"] * n,
                "prompted": np.arange(n) == 0, "visible": np.arange(n) % 7 != 6, "predicted": np.arange(n) % 8 != 7,
                "chosen": which, "best": rng.integers(1, 4, n), "iou_chosen": chosen, "iou_unsupervised": chosen,
                "sam_score": 0.5 + 0.2 * chosen + rng.normal(0, 0.05, n), "H_Std": 1 - chosen**2, **iou,
                **{f"candidate_score_{j}": rng.random(n) for j in range(3)},
            }  # fmt: skip
            if kind == "tracked":
                columns |= {feature: rng.random(n) for feature in FEATURES} | {"iou_tracked": chosen}
                columns["sam_score"] = 0.5 + 0.2 * chosen + rng.normal(0, 0.05, n)
            columns |= {k: v for k, v in changes.items() if k not in ("prefix", "dataset")}
            writer.add(video, columns, tokens)
        return writer.finish(ids)

    return make


@pytest.fixture
def reading_bank() -> Callable[..., HeadBank]:
    """Heads that read their target off the tokens that `judged_shard` writes: sigmoid of 8 (x - 1/2), or of a gap."""
    import torch

    from usam.heads import HeadBank, HeadCard

    def make(heads: tuple[str, ...] = SEVEN, sha256: str = "a" * 64, offset: int = 1) -> HeadBank:
        tiny, large, dense, best, chosen = range(5)
        terms = {
            "iou_tiny": {tiny: 1}, "iou_large": {large: 1}, "iou_dense_prompt": {dense: 1},
            "iou_unsupervised": {chosen: 1}, "model_gap": {large: 1, tiny: -1}, "prompt_gap": {dense: 1, best: -1},
            "task_gap": {best: 1, chosen: -1},
            "iou_tracked": {chosen: 1},
        }  # fmt: skip
        states = []
        for head in heads:
            state = {f"layers.{i}.weight": torch.zeros(8, 8) for i in (0, 1)}
            state |= {f"layers.{i}.bias": torch.zeros(8) for i in (0, 1)}
            state["layers.0.weight"][:5, :5] = torch.eye(5)
            state["layers.1.weight"][:5, :5] = torch.eye(5)
            state["layers.2.weight"] = torch.zeros(1, 8)
            for column, sign in terms[head].items():
                state["layers.2.weight"][0, column] = 8.0 * sign
            state["layers.2.bias"] = torch.tensor([0.0 if head.endswith("gap") else -4.0])
            states.append(state)
        return HeadBank(heads, states, HeadCard("sam2_nano", sha256, offset))

    return make


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a server, or the fixtures of a file, stay in one process when several run them."""
    for item in items:
        shared = "prefect" if "prefect_server" in getattr(item, "fixturenames", ()) else item.nodeid.split("::")[0]
        item.add_marker(pytest.mark.xdist_group(shared))


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
