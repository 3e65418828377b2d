"""The flow over a drop: every video gets its task, failures are told and do not stop the others."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

import flows.label_drop
from flows.label_drop import label_drop, label_one
from pipeline.errors import PromptError, StorageError
from pipeline.report import VideoReport
from pipeline.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


def _report(video: str) -> VideoReport:
    return VideoReport(
        video=video, video_id="ab", status="labelled", frames=10, objects=2, rows=20, accepted=15, review=5, hold=0,
        absent=4, untracked=0, wall_seconds=2.0, frames_per_second=5.0, generation=1, error=None, labels_uri="",
        review_uri="", certified=False, score_source="iou_tracked",
    )  # fmt: skip


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand in for the job: bad.mp4 has wrong prompts, shaky.mp4 meets a store that fails once."""
    seen: list[str] = []

    def job(video: str, prompts: object, out: str, settings: Settings, **more: Any) -> VideoReport:
        name = Path(video).name
        seen.append(name)
        if name == "bad.mp4":
            raise PromptError("a foreground point", "none", "add one")
        if name == "shaky.mp4" and seen.count(name) == 1:
            raise StorageError("a store that answers", "a timeout", "try again")
        return _report(video)

    monkeypatch.setattr(flows.label_drop, "label_video", job)
    monkeypatch.setattr(flows.label_drop, "load_model", lambda *name, **more: None)
    monkeypatch.setattr(flows.label_drop, "label_one", label_one.with_options(retry_delay_seconds=0))
    return seen


def _drop(folder: Path, *names: str) -> str:
    for name in names:
        (folder / f"{name}.mp4").write_bytes(b"x")
        (folder / f"{name}.prompts.json").write_text("{}")
    return str(folder)


def _artifact() -> str:
    async def read() -> str:
        async with get_client() as client:
            wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["label-drop"]))
            found = await client.read_artifacts(artifact_filter=wanted)
            return str(max(found, key=lambda artifact: artifact.created).data)

    return asyncio.run(read())


def test_every_video_is_labelled_and_listed(tries: list[str], tmp_path: Path) -> None:
    rows = label_drop(_drop(tmp_path, "a", "b"), str(tmp_path / "out"))
    assert isinstance(rows, list)
    assert [(Path(row["video"]).name, row["status"], row["accepted"]) for row in rows] == [
        ("a.mp4", "labelled", 0.75),
        ("b.mp4", "labelled", 0.75),
    ]
    assert "a.mp4" in _artifact()


def test_a_store_is_tried_again_and_bad_prompts_are_not(tries: list[str], tmp_path: Path) -> None:
    state: Any = label_drop(_drop(tmp_path, "bad", "good", "shaky"), str(tmp_path / "out"), return_state=True)
    assert state.is_failed()
    assert "1 of 3 videos failed" in state.message
    assert tries == ["bad.mp4", "good.mp4", "shaky.mp4", "shaky.mp4"]
    assert "expected a foreground point, got none; add one" in _artifact()


@pytest.mark.slow
def test_the_flow_labels_a_real_drop(tmp_path: Path) -> None:
    """Nothing replaced: three drawn clips, the embedded model, the real job."""
    import pandas as pd

    from pipeline.demo import make_drop

    make_drop(tmp_path / "drop", num_frames=4)
    rows = label_drop(str(tmp_path / "drop"), str(tmp_path / "out"))
    assert isinstance(rows, list)
    assert [row["status"] for row in rows] == ["labelled"] * 3
    assert pd.read_parquet(tmp_path / "out" / "labels").frame_index.nunique() == 4
