"""Where drops stand: every video in one count, those that need a look with their names, causes and what to do."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ForgottenError, UnavailableError, VideoError
from pipeline.plan import plan_drop, write_plan
from pipeline.settings import DropSettings, Settings, load_settings
from pipeline.status import DropStatus, age, matching, nearest_video, output_status, tried_work
from pipeline.storage.objects import ObjectStore
from pipeline.work import Item, WorkLog

SETTINGS = DropSettings(lease_seconds=30, settle_seconds=0)


def item(name: str) -> Item:
    return Item(f"/drops/{name}", None, "day", name[0] * 64)


def fail(work: WorkLog, what: Item, error: BaseException, times: int = 1) -> None:
    for _ in range(times):
        attempt = work.begin(what, "run")
        assert attempt is not None
        with suppress(BaseException), attempt:
            raise error


@pytest.fixture
def work(tmp_path: Path) -> WorkLog:
    return WorkLog(ObjectStore(tmp_path / "out"), SETTINGS)


def only(store: ObjectStore, drop: str | None = None) -> DropStatus:
    (found,) = output_status(store, SETTINGS, drop).drops
    return found


def test_a_drop_that_is_worked_off_says_what_became_of_each_video(lake: Path, night: Path) -> None:
    found = output_status(ObjectStore(lake), SETTINGS)
    (one,) = found.drops
    assert (found.committed, found.quarantined) == (3, 1)
    assert (one.drop, one.root, one.listed, one.done) == ("night", str(night / "night"), 6, 4)
    assert (one.waiting, one.running, one.failed, one.quarantined, one.needs_prompts) == (0, 0, 0, 1, 1)
    assert one.without_prompts == (str(night / "night/bare.mp4"),)
    (line,) = one.lines
    assert (line.state, line.video, line.attempts, line.attempts_max) == (
        "quarantined", str(night / "night/broken.mp4"), 3, 3,
    )  # fmt: skip
    assert "no video that FFmpeg knows" in (line.error or "")
    assert one.planned_seconds is not None
    assert 0 <= one.planned_seconds < 60


def test_every_state_has_its_count_its_cause_and_its_place(work: WorkLog) -> None:
    fail(work, item("a.mp4"), VideoError("a video", "noise\nin two lines", "cut it again"), 2)
    fail(work, item("b.mp4"), UnavailableError("a store", "nothing", "wait"))
    fail(work, item("c.mp4"), KeyboardInterrupt())
    fail(work, item("d.mp4"), VideoError("a video", "noise", "cut it again"), 3)
    running = work.begin(item("e.mp4"), "run")
    assert running is not None
    running.stage = "propagate"
    with running:
        one = only(work.store)
    by_state = {line.state: line for line in one.lines}
    assert {line.state: line.video for line in one.lines} == {
        "failed": "/drops/a.mp4", "unavailable": "/drops/b.mp4", "cancelled": "/drops/c.mp4",
        "quarantined": "/drops/d.mp4", "running": "/drops/e.mp4",
    }  # fmt: skip
    assert [getattr(one, state) for state in by_state] == [1] * 5
    assert by_state["failed"].attempts == 2
    assert by_state["failed"].error == "expected a video, got noise in two lines; cut it again"
    assert by_state["running"].stage == "propagate"
    assert by_state["running"].seconds is not None
    assert by_state["running"].seconds < 30
    assert (one.listed, one.waiting, one.planned_seconds) == (None, None, None)  # nobody planned


def test_a_worker_that_was_lost_is_a_failure_that_says_where(work: WorkLog) -> None:
    attempt = work.begin(item("a.mp4"), "run")
    assert attempt is not None
    attempt.__enter__()
    attempt.stage = "decode"
    attempt._end_beats()
    work.put(attempt._key("running"), attempt._about())
    time.sleep(0.06)
    (one,) = output_status(work.store, DropSettings(lease_seconds=0.05)).drops
    (line,) = one.lines
    assert (line.state, line.attempts) == ("failed", 1)
    assert line.error is not None
    assert line.error.endswith("was lost while at decode")


def test_no_key_of_a_store_is_told(work: WorkLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t-of-the-store")
    from pipeline.storage.secrets import remember

    remember(["s3cr3t-of-the-store"])
    fail(work, item("a.mp4"), RuntimeError("the url had s3cr3t-of-the-store in it"))
    (line,) = only(work.store).lines
    assert line.error is not None
    assert "s3cr3t" not in line.error


@pytest.fixture
def planned(tmp_path: Path) -> tuple[WorkLog, Settings, ObjectStore]:
    """A drop of four videos that was planned and not begun."""
    folder = tmp_path / "day"
    folder.mkdir()
    for name in "abcd":
        (folder / f"{name}.mp4").write_bytes(name.encode())
        (folder / f"{name}.prompts.json").write_text("{}")
    settings = load_settings(None, {"drops.settle_seconds": 0.0})
    drop, out = ObjectStore(folder), ObjectStore(tmp_path / "out")
    write_plan(out, plan_drop(drop, out, settings))
    time.sleep(0.02)
    return WorkLog(out, settings.drops), settings, drop


def as_done(work: WorkLog, what: Item, video_id: str) -> None:
    work.put(work.done_key(what, video_id), {"video": what.video})
    work.store.put_atomic(f"commits/{video_id}/000001.json", b"{}")


def test_what_waits_is_what_the_plan_wanted_and_nobody_began(planned: tuple[WorkLog, Settings, ObjectStore]) -> None:
    work, settings, drop = planned
    wanted = plan_drop(drop, work.store, settings).wanted
    assert (only(work.store).waiting, only(work.store).done, only(work.store).listed) == (4, 0, 4)
    as_done(work, wanted[0], "0" * 64)
    fail(work, wanted[1], VideoError("a video", "noise", "cut it again"))
    fail(work, wanted[2], VideoError("a video", "noise", "cut it again"), 3)
    one = only(work.store)
    assert (one.waiting, one.done, one.failed, one.quarantined, one.listed) == (1, 1, 1, 1, 4)
    write_plan(work.store, plan_drop(drop, work.store, settings))  # right behind: nothing is counted twice
    again = only(work.store)
    assert (again.waiting, again.done, again.failed, again.quarantined) == (1, 1, 1, 1)


def test_a_file_that_was_replaced_is_no_failure_any_more(planned: tuple[WorkLog, Settings, ObjectStore]) -> None:
    work, settings, drop = planned
    wanted = plan_drop(drop, work.store, settings).wanted
    fail(work, wanted[0], VideoError("a video", "noise", "cut it again"), 3)
    Path(wanted[0].video).unlink()
    time.sleep(0.02)
    write_plan(work.store, plan_drop(drop, work.store, settings))
    one = only(work.store)
    assert (one.listed, one.quarantined, one.waiting, one.lines) == (3, 0, 3, ())


def test_a_forgotten_video_is_no_quarantine_however_long_its_record_stays(
    planned: tuple[WorkLog, Settings, ObjectStore],
) -> None:
    """Else `status --check` would be red for good."""
    work, settings, drop = planned
    wanted = plan_drop(drop, work.store, settings).wanted
    fail(work, wanted[0], ForgottenError("a video", "one that was forgotten", "remove it"))
    for unlink in (False, False, True):
        one = only(work.store)
        assert (one.forgotten, one.quarantined, one.waiting, one.lines) == (1, 0, 3, ())
        if unlink:
            Path(wanted[0].video).unlink()
        time.sleep(0.02)
        write_plan(work.store, plan_drop(drop, work.store, settings))
    assert output_status(work.store, SETTINGS).quarantined == 0
    assert only(work.store).waiting == 3


def test_forgotten_videos_are_counted_however_many_there_are(
    planned: tuple[WorkLog, Settings, ObjectStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.status.SHOWN", 2)
    work, settings, drop = planned
    wanted = plan_drop(drop, work.store, settings).wanted
    for one in wanted[:3]:
        work.forget(one)
    fail(work, wanted[3], VideoError("a video", "noise", "cut it again"), 3)
    for _ in range(2):
        found = only(work.store)
        assert (found.forgotten, found.quarantined, found.waiting, found.listed) == (3, 1, 0, 4)
        time.sleep(0.02)
        write_plan(work.store, plan_drop(drop, work.store, settings))


def test_two_drops_of_one_name_do_not_hide_each_others_quarantine(
    planned: tuple[WorkLog, Settings, ObjectStore], tmp_path: Path
) -> None:
    work, settings, drop = planned
    fail(work, plan_drop(drop, work.store, settings).wanted[0], VideoError("a video", "noise", "cut it again"), 3)
    other = tmp_path / "camera-2/day"
    other.mkdir(parents=True)
    (other / "e.mp4").write_bytes(b"e")
    (other / "e.prompts.json").write_text("{}")
    time.sleep(0.02)
    write_plan(work.store, plan_drop(ObjectStore(other), work.store, settings))
    one = only(work.store)
    assert (one.root, one.quarantined, one.waiting) == (str(other), 1, 1)
    assert [line.video for line in one.lines] == [f"{drop.url}/a.mp4"]


def test_a_plan_that_cannot_be_read_hides_nothing_else(lake: Path) -> None:
    (lake / "plans/night.json").write_text("{")
    (lake / "plans/old.json").write_text('["of another release"]')
    one = only(ObjectStore(lake))
    assert (one.done, one.quarantined, one.listed) == (4, 1, None)


def test_a_bucket_tells_the_same_as_a_folder(lake: Path, moto_s3: Any) -> None:
    bucket = ObjectStore(moto_s3.new_bucket(), moto_s3.settings())
    for path in sorted(lake.rglob("*.json")):
        bucket.put_atomic(path.relative_to(lake).as_posix(), path)
    plan = json.loads(bucket.get("plans/night.json"))  # the copies are younger than the plan
    plan["at"] = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() + 2))
    bucket.put_atomic("plans/night.json", json.dumps(plan).encode())
    here, there = only(ObjectStore(lake)), only(bucket)
    for name in ("drop", "root", "listed", "done", "waiting", "quarantined", "needs_prompts", "lines"):
        assert getattr(here, name) == getattr(there, name), name


def test_a_word_names_work_by_address_file_name_or_plan_key(work: WorkLog) -> None:
    for name in ("a.mp4", "b.mp4"):
        fail(work, item(name), VideoError("a video", "noise", "cut it again"))
    tried = list(tried_work(work))
    assert [line.video for line in tried] == ["/drops/a.mp4", "/drops/b.mp4"]
    for word in ("/drops/a.mp4", "a.mp4", "drops/a.mp4", "a" * 6):
        assert [line.video for line in matching(word, tried)] == ["/drops/a.mp4"]
    for word in (".mp4", "aaaaa", "", "c.mp4"):
        assert matching(word, tried) == []
    assert nearest_video("aa.mp4", tried) == "/drops/a.mp4"
    assert nearest_video("quite another", tried) is None


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (90, "90 s"), (600, "10 min"), (7200, "2.0 h"), (86_400, "24 h"), (9e5, "10 d")]
)
def test_a_length_of_time_is_told_in_one_unit(seconds: float, said: str) -> None:
    assert age(seconds) == said


def test_looking_leaves_nothing_behind(lake: Path) -> None:
    before = {path: os.stat(path).st_mtime_ns for path in lake.rglob("*") if path.is_file()}
    output_status(ObjectStore(lake), SETTINGS)
    assert {path: os.stat(path).st_mtime_ns for path in lake.rglob("*") if path.is_file()} == before
