"""A batch: every video labelled once or set aside with its reason, faults of the machine never held against it."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prefect.exceptions import FailedRun

import flows.events
import flows.label
from flows.label import label_batch
from pipeline.device_slot import device_slot
from pipeline.errors import ModelError, SettingsError, StorageError, UnavailableError
from pipeline.label import Progress
from pipeline.ledger import forgotten_key
from pipeline.metrics import VideoClock
from pipeline.settings import DropSettings, load_settings
from pipeline.stages import EncodeStage
from pipeline.storage.objects import ObjectStore
from pipeline.work import Item, WorkLog

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

Items = Callable[[Path], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def _own_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKSIEVE_SLOTS", str(tmp_path / "slots"))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The events that were emitted."""
    seen: list[tuple[str, dict[str, Any]]] = []
    emit = flows.events.emit_event

    def spy(event: str, resource: dict[str, str], **more: Any) -> None:
        seen.append((event, {**more["payload"], "id": resource["prefect.resource.id"]}))
        emit(event, resource, **more)

    monkeypatch.setattr(flows.events, "emit_event", spy)
    return seen


def run(items: list[dict[str, Any]], out: Path, **overrides: Any) -> Any:
    """The final state."""
    settings = {"drops.retry_seconds": 0, "output.review_frames": False, "model.device": "cpu", **overrides}
    return label_batch(items, str(out), overrides=settings, return_state=True)


def statuses(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {Path(row["video"]).name: row["status"] for row in rows}


def records(out: Path) -> list[str]:
    return sorted(
        path.name.split(".", 1)[1] if "attempt" in path.name else path.name[:4] for path in out.rglob("work/*/*/*")
    )


def commits(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out / "commits"))[65:] for path in out.glob("commits/*/*"))


def test_every_video_is_labelled_once_and_told(
    drop: Path, items: Items, tmp_path: Path, told: list[tuple[str, dict[str, Any]]], artifacts: Callable[[str], str]
) -> None:
    out = tmp_path / "out"
    state = run(items(drop), out)
    assert state.is_completed()
    assert state.message == "3 labelled"
    assert set(statuses(state.result()).values()) == {"labelled"}
    assert commits(out) == ["000001.json"] * 3
    assert records(out) == ["done"] * 3
    labelled = [payload for event, payload in told if event == "video.labelled"]
    assert {payload["id"] for payload in labelled} == {f"masksieve.video.{path.name}" for path in out.glob("commits/*")}
    waiting = [payload for event, payload in told if event == "frames.need_review"]
    assert sum(payload["rows"] for payload in waiting) == sum(payload["review"] for payload in labelled)
    for video in items(drop):
        assert video["video"] in artifacts("label")
    picture = list(out.glob("review_images/*/000001/timeline.png"))
    assert len(picture) == 1
    assert picture[0].read_bytes().startswith(b"\x89PNG")
    assert "(data:image/png;base64," in artifacts("uncertainty-timeline")
    assert f"{out}/review/drop=night\n" in artifacts("review-list")
    told.clear()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    again = run(items(drop), out)
    assert again.message == "3 done"
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    assert told == []


def test_a_broken_video_is_tried_three_times_and_set_aside_the_others_are_done(
    drop: Path,
    items: Items,
    tmp_path: Path,
    told: list[tuple[str, dict[str, Any]]],
    artifacts: Callable[[str], str],
) -> None:
    out, broken = tmp_path / "out", drop / "aaa.mp4"
    broken.write_bytes(b"no video at all" * 100)
    (drop / "aaa.prompts.json").write_bytes(next(drop.glob("*.prompts.json")).read_bytes())
    state = run(items(drop), out)
    assert state.is_failed()
    assert str(broken) in state.message
    assert sorted(statuses(json.loads(artifacts("label"))).values()) == ["labelled"] * 3 + ["quarantined"]
    with pytest.raises(FailedRun, match="in quarantine"):
        state.result()
    (record,) = out.glob("work/drop=night/*/quarantined.json")
    body = json.loads(record.read_text())
    assert [one["number"] for one in body["attempts"]] == [1, 2, 3]
    assert body["attempts"][0]["stage"] == "probe"
    (event,) = (payload for event, payload in told if event == "video.quarantined")
    assert event["error"] == body["error"]
    assert str(broken) == event["video_uri"]
    again = run(items(drop), out)
    assert again.is_failed()
    assert sum(event == "video.quarantined" for event, _ in told) == 1  # it lay there already
    assert len(json.loads(record.read_text())["attempts"]) == 3


def _failing(monkeypatch: pytest.MonkeyPatch, error: Exception, times: int) -> list[int]:
    """The job fails so many times before it works."""
    job, tries = flows.label.label_video, [0]

    def fail(*args: Any, **more: Any) -> Any:
        tries[0] += 1
        if tries[0] <= times:
            raise error
        return job(*args, **more)

    monkeypatch.setattr(flows.label, "label_video", fail)
    return tries


def test_a_store_that_is_away_for_a_while_is_waited_for_and_not_held_against_the_video(
    drop: Path, items: Items, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _failing(monkeypatch, UnavailableError("a store", "nothing", "wait"), 2)
    state = run(items(drop)[:1], tmp_path / "out")
    assert state.message == "1 labelled"
    (commit,) = (tmp_path / "out").glob("commits/*/*")
    assert json.loads(commit.read_text())["attempt"] == 1


def test_a_store_that_stays_away_leaves_the_video_for_the_next_run(
    drop: Path, items: Items, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = _failing(monkeypatch, UnavailableError("a store", "nothing", "wait"), 4)
    out = tmp_path / "out"
    state = run(items(drop)[:1], out)
    assert state.is_completed()
    assert state.message == "1 unavailable"
    assert tries == [3]
    assert records(out) == ["unavailable.json"] * 2  # of those that do not count, only the last before is kept
    assert run(items(drop)[:1], out).message == "1 labelled"


def test_failures_count_over_runs(drop: Path, items: Items, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, RuntimeError("out of luck"), 2)
    state = run(items(drop)[:1], tmp_path / "out")
    assert state.message == "1 labelled"
    (commit,) = (tmp_path / "out").glob("commits/*/*")
    assert json.loads(commit.read_text())["attempt"] == 3


def test_what_is_wrong_with_the_run_counts_against_no_video(drop: Path, items: Items, tmp_path: Path) -> None:
    out = tmp_path / "out"
    state = run(items(drop), out, **{"model.name": "sam2_nothing"})
    assert state.is_failed()
    with pytest.raises(ModelError):
        state.result()
    assert not list(out.glob("work/**/*.json"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        run(items(drop), tmp_path / "file" / "out").result()


def test_a_forgotten_video_is_never_tried_again_and_leaves_no_name(drop: Path, items: Items, tmp_path: Path) -> None:
    out, video = tmp_path / "out", items(drop)[0]
    video_id = hashlib.sha256(Path(video["video"]).read_bytes()).hexdigest()
    ObjectStore(str(out)).put_atomic(forgotten_key(video_id), b"{}")
    for _ in range(2):
        assert run([video], out).message == "1 forgotten"
    (record,) = out.glob("work/**/*.json")
    assert record.name == "forgotten.json"
    assert Path(video["video"]).name not in record.read_text()


def test_the_same_bytes_under_two_names_are_labelled_once_and_listed_twice(
    drop: Path, items: Items, tmp_path: Path
) -> None:
    out, first = tmp_path / "out", items(drop)[0]
    twin = drop / "zzz.mp4"
    twin.write_bytes(Path(first["video"]).read_bytes())
    (drop / "zzz.prompts.json").write_bytes(Path(first["prompts"]).read_bytes())
    state = run([first, items(drop)[-1]], out)
    assert sorted(statuses(state.result()).values()) == ["labelled", "unchanged"]
    assert commits(out) == ["000001.json"]
    assert records(out) == ["done"] * 2


def test_one_under_way_elsewhere_is_left_alone(drop: Path, items: Items, tmp_path: Path) -> None:
    out, work = tmp_path / "out", items(drop)[:1]
    attempt = WorkLog(ObjectStore(str(out)), DropSettings()).begin(Item(**work[0]), "other")
    assert attempt is not None
    with attempt:
        assert run(work, out).message == "1 busy"


def test_a_video_waits_for_its_turn_on_the_device(
    drop: Path, items: Items, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    see, stages, taken, before = VideoClock.see, list[str](), threading.Event(), list[str]()

    def told(self: VideoClock, step: Progress) -> None:
        see(self, step)
        stages.append(step.stage)

    def hold() -> None:
        with device_slot(load_settings(None, {"model.device": "cpu"}))():
            taken.set()
            while "device" not in stages:
                time.sleep(0.01)
            time.sleep(1.0)
            before.extend(stages)

    monkeypatch.setattr(VideoClock, "see", told)
    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    assert taken.wait(10)
    assert run(items(drop)[:1], tmp_path / "out").message == "1 labelled"
    holder.join()
    assert before[-1] == "device"
    assert "propagate" in stages


def test_lost_labels_are_derived_again(drop: Path, items: Items, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(items(drop)[:1], out)
    (labels,) = out.glob("labels/*/*.parquet")
    before = labels.read_bytes()
    labels.unlink()
    state = label_batch(
        [], str(out), repairs=[labels.stem, "0" * 64], overrides={"model.device": "cpu"}, return_state=True
    )
    assert state.is_failed()
    assert state.message.startswith("1 repair failed, 1 repaired; labels missing: 000000000000 (")
    assert "label the video" in state.message
    assert labels.read_bytes() == before


@pytest.mark.parametrize("field", ["plan_key", "video", "drop"])
def test_parameters_that_are_no_work_are_refused(field: str, drop: Path, items: Items, tmp_path: Path) -> None:
    item = items(drop)[0] | {field: ""}
    with pytest.raises(SettingsError, match="plan_key"):
        run([item], tmp_path / "out").result()
    with pytest.raises(SettingsError, match="unexpected"):
        run([items(drop)[0] | {"more": 1}], tmp_path / "out").result()


# The time limit -------------------------------------------------------------------------------------------------------


def _stall(*args: Any, **more: Any) -> None:
    time.sleep(60)


@contextmanager
def _stalled_source(*args: Any, **more: Any) -> Iterator[None]:
    yield _stall()


def _stall_at_the_second_frame(submit: Any) -> Any:
    frames: list[int] = []

    def stalled(*args: Any) -> None:
        frames.append(1)
        submit(*args) if len(frames) < 2 else _stall()

    return stalled


@pytest.mark.parametrize("stage", ["download", "device", "propagate", "write", "route"])
def test_a_video_that_takes_too_long_ends_wherever_it_is(
    stage: str, drop: Path, items: Items, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    where, stall = {
        "download": ("pipeline.prefetch.local_video", _stalled_source),
        "device": ("pipeline.stages._Run._prepare", _stall),
        "propagate": ("pipeline.stages.EncodeStage.submit", _stall_at_the_second_frame(EncodeStage.submit)),
        "write": ("pipeline.label.write_facts", _stall),
        "route": ("pipeline.label.derive", _stall),
    }[stage]
    monkeypatch.setattr(where, stall)
    limit = 8 if stage in ("write", "route") else 3  # until there, all of it is real
    started = time.monotonic()
    out = tmp_path / "out"
    state = run(
        items(drop)[:1],
        out,
        **{"drops.video_seconds": limit, "drops.max_attempts": 1, "output.scratch_dir": str(scratch)},
    )
    assert time.monotonic() - started < 20
    assert state.is_failed()
    (record,) = out.glob("work/**/quarantined.json")
    assert f"took longer than {limit} s at {stage}" in json.loads(record.read_text())["error"]
    assert [path for path in scratch.rglob("*") if path.is_file() and "checkpoints" not in path.parts] == []
    assert _decoders() == []
    assert not list(out.glob("masks/**/*.parquet")) or stage == "route"


def _decoders() -> list[int]:
    """Processes that this one started to decode."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"pipeline.video" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except (OSError, ValueError):
            continue
    return found
