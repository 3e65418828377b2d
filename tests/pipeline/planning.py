"""What tests of planning share: drops in miniature, and records of what became of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from pipeline.errors import VideoError
from pipeline.plan import Plan, plan_drop
from pipeline.report import VideoReport
from pipeline.settings import Settings, StorageSettings
from pipeline.storage.download import Entry
from pipeline.storage.objects import ObjectStore
from pipeline.work import WorkLog

NOW = 1_800_000_000.0


class S3Server(Protocol):
    """The server of the fixture `moto_s3`."""

    def new_bucket(self) -> str: ...
    def settings(self) -> StorageSettings: ...


class Listed(ObjectStore):
    """A bucket of which only the listing exists."""

    def __init__(self, entries: list[Entry]) -> None:
        super().__init__("/nowhere")
        self.url, self._entries = "s3://drops/night", entries

    def uri(self, key: str) -> str:
        return f"{self.url}/{key}"

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        yield from self._entries


def make(**drops: Any) -> Settings:
    drops = {"settle_seconds": 60.0, "lease_seconds": 300.0} | drops
    missing = drops.pop("on_missing", "refuse")
    return Settings.model_validate({"drops": drops, "prompts": {"on_missing": missing}})


def add(drop: Path, name: str, data: bytes = b"video", *, prompts: bool = True) -> Path:
    video = drop / name
    video.parent.mkdir(parents=True, exist_ok=True)
    video.write_bytes(data)
    if prompts:
        video.with_name(f"{video.stem}.prompts.json").write_text("{}")
    return video


def plan_later(drop: Path, out: ObjectStore, settings: Settings | None = None, seconds: float = 1000.0) -> Plan:
    """The plan some time after the last file was written."""
    return plan_drop(ObjectStore(drop), out, settings or make(), now=time.time() + seconds)


def names(plan: Plan) -> dict[str, list[str]]:
    """The buckets that are not empty, by names in the drop."""
    return {
        bucket: [item.video.removeprefix(f"{plan.root}/") for item in items]
        for bucket, items in plan.buckets.items()
        if items
    }


def commit(out: ObjectStore, video_id: str) -> None:
    """A committed video with labels, as far as names go."""
    for key in (
        f"commits/{video_id}/000001.json",
        f"labels/drop=x/{video_id}.parquet",
        f"review/drop=x/{video_id}.parquet",
    ):
        out.put_atomic(key, b"{}")


def finish(plan: Plan, out: ObjectStore, settings: Settings | None = None) -> None:
    """Do all that is wanted, as far as the records go."""
    commit(out, "ab" * 32)
    report = VideoReport(
        video="v", video_id="ab" * 32, status="labelled", frames=1, objects=1, rows=1, accepted=1, review=0,
        hold=0, absent=0, untracked=0, wall_seconds=1.0, frames_per_second=1.0, generation=1, error=None,
        labels_uri="", review_uri="", certified=False, score_source="",
    )  # fmt: skip
    for item in plan.wanted:
        attempt = WorkLog(out, (settings or make()).drops).begin(item, "run")
        assert attempt is not None
        with attempt:
            attempt.done(report)


def fail(plan: Plan, out: ObjectStore, settings: Settings) -> None:
    """One failed attempt at all that is wanted."""
    for item in plan.wanted:
        attempt = WorkLog(out, settings.drops).begin(item, "run")
        if attempt is not None:
            with pytest.raises(VideoError), attempt:
                raise VideoError("a video", "noise", "cut it again")
