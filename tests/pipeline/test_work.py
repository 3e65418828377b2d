"""Records of unattended work: who may take a video up, what counts as an attempt, and when it is set aside."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DiskSpaceError, ForgottenError, StorageError, UnavailableError, VideoError
from pipeline.report import VideoReport
from pipeline.settings import DropSettings
from pipeline.storage.download import Entry
from pipeline.storage.objects import ObjectStore
from pipeline.work import Item, WorkLog, plan_key

VIDEO_ID = "ab" * 32
ITEM = Item("s3://drops/night/a.mp4", None, "night", "1" * 64)


def report() -> VideoReport:
    return VideoReport(
        video=ITEM.video, video_id=VIDEO_ID, status="labelled", frames=1, objects=1, rows=1, accepted=1, review=0,
        hold=0, absent=0, untracked=0, wall_seconds=1.0, frames_per_second=1.0, generation=1, error=None,
        labels_uri="", review_uri="", certified=False, score_source="",
    )  # fmt: skip


@pytest.fixture
def work(tmp_path: Path) -> WorkLog:
    return WorkLog(ObjectStore(tmp_path / "out"), DropSettings(lease_seconds=0.6))


def commit(work: WorkLog) -> None:
    work.store.put_atomic(f"commits/{VIDEO_ID}/000001.json", b"{}")


def keys(work: WorkLog) -> list[str]:
    return [key.rsplit("/", 1)[1].split(".", 1)[-1] for key in work.store.list("work/")]


def try_and_fail(work: WorkLog, error: BaseException) -> Any:
    attempt = work.begin(ITEM, "run")
    assert attempt is not None
    with pytest.raises(type(error)), attempt:
        raise error
    return attempt


def test_work_that_is_done_is_taken_up_no_more_and_leaves_one_record(work: WorkLog) -> None:
    attempt = work.begin(ITEM, "run")
    assert attempt is not None
    with attempt:
        assert not work.standing(ITEM).wanted
        attempt.done(report())
    commit(work)
    assert work.store.list("work/") == [f"work/drop=night/{ITEM.plan_key}/done-{VIDEO_ID}.json"]
    assert work.standing(ITEM).done == VIDEO_ID
    assert work.begin(ITEM, "other") is None
    body = json.loads(work.store.get(work.done_key(ITEM, VIDEO_ID)))
    assert (body["video"], body["generation"], body["status"]) == (ITEM.video, 1, "labelled")


def test_nobody_else_takes_up_what_is_under_way_as_long_as_it_gives_signs_of_life(work: WorkLog) -> None:
    attempt = work.begin(ITEM, "run")
    assert attempt is not None
    with attempt:
        time.sleep(1.0)  # longer than the lease: without its signs of life the work would be up for grabs
        assert list(work.standing(ITEM).live) == [attempt.id]
        assert work.begin(ITEM, "other") is None
        attempt.done(report())


@pytest.mark.parametrize("speaks_for_it", [None, f"commits/{VIDEO_ID}/000002.json", f"forgotten/{VIDEO_ID}.json"])
def test_work_is_only_done_while_what_it_made_is_committed_or_forgotten(
    work: WorkLog, speaks_for_it: str | None
) -> None:
    work.put(work.done_key(ITEM, VIDEO_ID), {})
    if speaks_for_it is not None:
        work.store.put_atomic(speaks_for_it, b"{}")
    assert (work.begin(ITEM, "run") is None) == (speaks_for_it is not None)


def test_the_third_failure_sets_it_aside_with_every_reason(work: WorkLog) -> None:
    for number, reason in enumerate(("one", "two", "three"), 1):
        attempt = try_and_fail(work, VideoError("a video", reason, "cut it again"))
        assert attempt.number == number
        assert attempt.quarantined == (number == 3)
    assert work.begin(ITEM, "run") is None
    standing = work.standing(ITEM)
    assert standing.quarantined
    assert not standing.wanted
    body = json.loads(work.store.get(f"work/drop=night/{ITEM.plan_key}/quarantined.json"))
    assert body["error"] == "expected a video, got three; cut it again"
    assert [one["error"].split("got ")[1][:3] for one in body["attempts"]] == ["one", "two", "thr"]


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (UnavailableError("a store", "nothing", "wait"), "unavailable"),
        (DiskSpaceError("room", "none", "free some"), "unavailable"),
        (OSError(errno.ENOSPC, "No space left on device"), "unavailable"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "unavailable"),
        (KeyboardInterrupt(), "cancelled"),
        (SystemExit(143), "cancelled"),
    ],
)
def test_what_is_not_the_videos_fault_never_sets_it_aside(work: WorkLog, error: BaseException, state: str) -> None:
    for _ in range(5):
        assert not try_and_fail(work, error).quarantined
    standing = work.standing(ITEM)
    assert set(standing.states.values()) == {state}
    assert standing.wanted
    assert standing.counted == 0


def test_of_attempts_that_do_not_count_only_the_last_is_kept(work: WorkLog) -> None:
    """A store that is away for days would leave thousands, and every plan lists them."""
    try_and_fail(work, VideoError("a video", "noise", "cut it again"))
    for _ in range(4):
        try_and_fail(work, UnavailableError("a store", "nothing", "wait"))
    assert sorted(keys(work)) == ["failed.json", "unavailable.json", "unavailable.json"]
    assert try_and_fail(work, VideoError("a video", "noise", "cut it again")).number == 2


def test_who_may_only_read_goes_by_its_own_clock(work: WorkLog, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = work.begin(ITEM, "run")
    assert attempt is not None

    def refuse(error: StorageError) -> Any:
        def put(key: str, source: object) -> None:
            raise error

        return put

    with attempt:
        reader = WorkLog(ObjectStore(work.store.url), work.settings)
        monkeypatch.setattr(reader.store, "put_atomic", refuse(UnavailableError("a store", "nothing", "wait")))
        with pytest.raises(UnavailableError):  # it is not that it may not
            reader.standings()
        monkeypatch.setattr(reader.store, "put_atomic", refuse(StorageError("a store", "no right to write", "ask")))
        assert list(reader.standing(ITEM).live) == [attempt.id]


def test_an_unforeseen_error_counts_and_is_named(work: WorkLog) -> None:
    try_and_fail(work, RuntimeError("CUDA went away"))
    (found,) = work.attempts("night", ITEM.plan_key)
    assert (found["state"], found["error"]) == ("failed", "RuntimeError: CUDA went away")


def test_retry_starts_afresh(work: WorkLog) -> None:
    for _ in range(3):
        try_and_fail(work, VideoError("a video", "noise", "cut it again"))
    work.retry("night", ITEM.plan_key)
    assert work.store.list("work/") == []
    attempt = work.begin(ITEM, "run")
    assert attempt is not None
    assert attempt.number == 1


KILLED = """
import sys, time
from pipeline.settings import DropSettings
from pipeline.storage.objects import ObjectStore
from pipeline.work import Item, WorkLog
work = WorkLog(ObjectStore(sys.argv[1]), DropSettings(lease_seconds=0.6))
with work.begin(Item("s3://drops/night/a.mp4", None, "night", "1" * 64), "run") as attempt:
    attempt.stage = "propagate"
    attempt.records.put(attempt._key("running"), attempt._about())
    print("up", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_worker_that_is_killed_three_times_sets_its_video_aside(work: WorkLog, tmp_path: Path) -> None:
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, tmp_path / "out"], stdout=subprocess.PIPE, env={**os.environ}
        ) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"up\n"
            worker.kill()
        assert not work.standing(ITEM).wanted  # it may still be at it
        time.sleep(0.8)
        assert work.standing(ITEM).wanted
    assert work.begin(ITEM, "run") is None
    body = json.loads(work.store.get(f"work/drop=night/{ITEM.plan_key}/quarantined.json"))
    assert "was lost while at propagate" in body["error"]
    assert [one["state"] for one in body["attempts"]] == ["lost"] * 3


def test_an_outcome_counts_even_if_its_writer_died_before_it_removed_the_running_record(work: WorkLog) -> None:
    work.put(work.attempt_key(ITEM, "0-1", "running"), {})
    work.put(work.attempt_key(ITEM, "0-1", "failed"), {"error": "x"})
    standing = work.standing(ITEM)
    assert standing.wanted
    assert standing.counted == 1


def test_a_store_that_fails_while_the_outcome_is_recorded_does_not_hide_the_error(
    work: WorkLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = work.begin(ITEM, "run")
    assert attempt is not None

    def refuse(key: str, body: dict[str, Any]) -> None:
        raise StorageError("a store", "nothing", "wait")

    attempt.__enter__()
    monkeypatch.setattr(work, "put", refuse)
    attempt.__exit__(VideoError, VideoError("a video", "noise", "cut it again"), None)  # raises nothing of its own
    assert keys(work) == ["running.json"]


def test_two_at_once_never_both_find_it_done_undone(work: WorkLog) -> None:
    """Both may take it up at the same instant (the commit decides then), but the record ends as done."""
    barrier = threading.Barrier(2)
    commit(work)

    def one() -> None:
        barrier.wait()
        attempt = work.begin(ITEM, "run")
        if attempt is not None:
            with attempt:
                attempt.done(report())

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert work.standing(ITEM).done == VIDEO_ID
    assert work.begin(ITEM, "run") is None


entries = st.builds(Entry, st.just("a.mp4"), st.integers(0, 10**12), st.none() | st.text(max_size=8), st.floats(0, 2e9))


@given(entries, entries, st.none() | entries, st.text(max_size=5))
def test_a_plan_key_changes_with_whatever_a_listing_shows(
    entry: Entry, other: Entry, prompts: Entry | None, digest: str
) -> None:
    key = plan_key("v", entry, "p" if prompts else None, prompts, digest)
    assert key == plan_key("v", entry, "p" if prompts else None, prompts, digest)
    same = (entry.size_bytes, entry.tag or entry.modified) == (other.size_bytes, other.tag or other.modified)
    assert (plan_key("v", other, "p" if prompts else None, prompts, digest) == key) == same
    assert plan_key("v", entry, "p", other, digest) != plan_key("v", entry, None, None, digest)
    assert plan_key("v", entry, None, None, digest + "x") != plan_key("v", entry, None, None, digest)


@pytest.mark.parametrize("wrong_by", [-3600.0, 3600.0])
def test_leases_go_by_the_stores_clock(work: WorkLog, monkeypatch: pytest.MonkeyPatch, wrong_by: float) -> None:
    """A machine whose clock is an hour off neither robs the others of their work nor waits an hour for the dead."""
    attempt = work.begin(ITEM, "run")
    assert attempt is not None
    real = time.time
    with attempt:
        monkeypatch.setattr("pipeline.work.time.time", lambda: real() + wrong_by)
        other = WorkLog(work.store, work.settings)
        assert list(other.standing(ITEM).live) == [attempt.id]
        attempt._end_beats()
        time.sleep(0.8)
        assert other.standing(ITEM).lapsed == [attempt.id]
        attempt.done(report())
    assert not work.store.list("probes/")


def test_drops_with_odd_names_keep_their_records_apart(work: WorkLog) -> None:
    for name in ("a/b", "a b", "ä", "a%2Fb"):
        work.put(work.done_key(Item("v", None, name, "2" * 64), VIDEO_ID), {})
    for name in ("a/b", "a b", "ä", "a%2Fb"):
        assert {one.drop for one in work.standings(name).values()} == {name}
    assert work.standings("a") == {}


def test_an_outcome_that_could_not_be_written_is_written_when_the_store_is_back(
    work: WorkLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next try in this process would meet its own forerunner, seemingly under way."""

    def refuse(key: str, body: dict[str, Any]) -> None:
        raise UnavailableError("a store", "nothing", "wait")

    first = work.begin(ITEM, "run")
    assert first is not None
    first.__enter__()
    monkeypatch.setattr(work, "put", refuse)
    first.__exit__(UnavailableError, UnavailableError("a store", "nothing", "wait"), None)
    assert keys(work) == ["running.json"]
    monkeypatch.undo()
    attempt = work.begin(ITEM, "run")
    assert attempt is not None
    assert attempt.number == 1
    assert keys(work) == ["unavailable.json"]


def test_a_forgotten_video_is_set_aside_and_its_name_goes(work: WorkLog) -> None:
    try_and_fail(work, VideoError("a video", "noise", "cut it again"))
    try_and_fail(work, ForgottenError("a video", "one that was forgotten", "remove it"))
    standing = work.standing(ITEM)
    assert (standing.forgotten, standing.quarantined, standing.wanted) == (True, False, False)
    assert work.begin(ITEM, "run") is None
    (key,) = work.store.list("work/")
    assert ITEM.video.encode() not in work.store.get(key)
