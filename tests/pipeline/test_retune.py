"""Another policy over a whole output: every video decided anew from its facts, whatever becomes of the others."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import pipeline.retune
from pipeline.checksum import file_sha256
from pipeline.derive import Derived
from pipeline.errors import StorageError
from pipeline.retune import committed_videos, derive_all
from pipeline.scratch import OWNER
from pipeline.settings import Settings, load_settings
from pipeline.storage.objects import ObjectStore

STRICT = load_settings(None, {"policy.max_uncertainty": 0.0, "policy.absent": "review"})


def retune(out: Path, settings: Settings = STRICT, **more: Any) -> dict[str, Any]:
    store = ObjectStore(out)
    found = dict(derive_all(store, committed_videos(store), settings, **more))
    return {key: one.status if isinstance(one, Derived) else one for key, one in found.items()}


def decisions(out: Path) -> Counter[str]:
    files = out.glob("labels/*/*.parquet")
    return Counter(one for path in files for one in pq.read_table(path)["decision"].to_pylist())


def facts(out: Path) -> dict[Path, str]:
    return {path: file_sha256(path) for layer in ("masks", "commits") for path in (out / layer).rglob("*.*")}


def test_all_are_decided_anew_and_a_second_time_nothing_changes(lake: Path) -> None:
    before, rows, stored = facts(lake), decisions(lake).total(), committed_videos(ObjectStore(lake))
    assert len(stored) == 3
    assert retune(lake) == dict.fromkeys(stored, "written")
    assert decisions(lake)["accept"] == 0
    assert decisions(lake).total() == rows
    strict = {path: file_sha256(path) for path in lake.glob("labels/*/*.parquet")}
    assert set(retune(lake).values()) == {"unchanged"}
    assert {path: file_sha256(path) for path in lake.glob("labels/*/*.parquet")} == strict
    assert facts(lake) == before


def test_one_that_fails_is_told_and_the_others_are_done(lake: Path) -> None:
    damaged = next(lake.glob("masks/*/*.parquet"))
    damaged.write_bytes(b"no facts")
    found = retune(lake)
    video_id = damaged.name[:64]
    assert isinstance(found[video_id], StorageError)
    assert "facts with SHA-256" in str(found.pop(video_id))
    assert list(found.values()) == ["written"] * 2


def test_who_stops_half_way_starts_no_more(lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has begun comes to its end, so that no video is left with half of its labels."""
    derive, begun, ended, lock = pipeline.retune.derive, [], [], threading.Lock()

    def counting(*given: Any, **more: Any) -> Derived:
        with lock:
            begun.append(given[2])
        found = derive(*given, **more)
        with lock:
            ended.append(given[2])
        return found

    monkeypatch.setattr(pipeline.retune, "derive", counting)
    store = ObjectStore(lake)
    many = committed_videos(store) * 10
    walk = derive_all(store, many, STRICT, threads=1)
    next(walk)
    walk.close()  # type: ignore[attr-defined]
    assert begun == ended
    assert len(begun) <= 3


def test_scratch_lies_in_a_folder_that_is_swept_once_its_owner_is_gone(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch, derive, seen = tmp_path / "scratch", pipeline.retune.derive, []

    def looking(*given: Any, **more: Any) -> Derived:
        seen.append((Path(more["scratch_dir"]) / OWNER).is_file())
        return derive(*given, **more)

    monkeypatch.setattr(pipeline.retune, "derive", looking)
    settings = load_settings(None, {"output.scratch_dir": str(scratch), "policy.max_uncertainty": 0.0})
    assert set(retune(lake, settings).values()) == {"written"}
    assert seen == [True] * 3
    assert list(scratch.iterdir()) == []
