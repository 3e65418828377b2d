"""Planning a drop: one bucket per video, batches that keep equal bytes together, and wanted again only for a reason."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

import pipeline.plan
from pipeline.drops import FILM_SUFFIX
from pipeline.errors import SettingsError, VideoError
from pipeline.plan import plan_document, plan_drop, write_plan
from pipeline.plan_summary import plan_rows
from pipeline.settings import Settings
from pipeline.status import output_status
from pipeline.storage.download import Entry
from pipeline.storage.objects import ObjectStore
from pipeline.work import WorkLog

from .planning import NOW, Listed, S3Server, add, commit, fail, finish, make, names, plan_later


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    folder = tmp_path / "night"
    folder.mkdir()
    return folder


@pytest.fixture
def out(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "out")


def test_what_is_done_is_not_wanted_until_its_bytes_or_prompts_change(drop: Path, out: ObjectStore) -> None:
    a = add(drop, "a.mp4")
    b = add(drop, "deep/b.mp4", b"other", prompts=False)
    plan = plan_later(drop, out)
    assert (plan.drop, plan.root) == ("night", str(drop))
    assert names(plan) == {"wanted": ["a.mp4"], "needs_prompts": ["deep/b.mp4"]}
    assert (plan.wanted[0].video, plan.wanted[0].drop) == (str(a), "night")
    finish(plan, out)
    assert names(plan_later(drop, out)) == {"done": ["a.mp4"], "needs_prompts": ["deep/b.mp4"]}
    b.with_name("b.prompts.json").write_text("{}")  # prompts arrive
    assert names(plan_later(drop, out)) == {"done": ["a.mp4"], "wanted": ["deep/b.mp4"]}
    a.write_bytes(b"again")  # uploaded anew
    assert names(plan_later(drop, out)) == {"wanted": ["a.mp4", "deep/b.mp4"]}
    finish(plan_later(drop, out), out)
    (drop / "a.prompts.json").write_text("{ }")
    assert names(plan_later(drop, out)) == {"wanted": ["a.mp4"], "done": ["deep/b.mp4"]}


def test_another_setting_model_or_heads_make_it_wanted_again_and_a_policy_does_not(
    drop: Path, out: ObjectStore
) -> None:
    add(drop, "a.mp4")
    finish(plan_later(drop, out), out)
    settings = make()
    other: list[dict[str, Any]] = [{"decode": {"stride": 2}}, {"model": {"name": "sam2_micro"}}]
    for change in other:
        changed = Settings.model_validate({**settings.model_dump(), **change})
        assert names(plan_later(drop, out, changed)) == {"wanted": ["a.mp4"]}
    policy = Settings.model_validate({**settings.model_dump(), "policy": {"max_uncertainty": 0.01}})
    auto = Settings.model_validate({**settings.model_dump(), "prompts": {"auto": {"max_objects": 2}}})
    for same in (policy, auto):
        assert names(plan_later(drop, out, same)) == {"done": ["a.mp4"]}


def test_without_prompts_it_waits_or_its_objects_are_found_as_the_settings_say(drop: Path, out: ObjectStore) -> None:
    add(drop, "a.mp4", prompts=False)
    assert names(plan_later(drop, out)) == {"needs_prompts": ["a.mp4"]}
    auto = make(on_missing="auto")
    plan = plan_later(drop, out, auto)
    assert plan.wanted[0].prompts is None
    finish(plan, out)
    assert names(plan_later(drop, out, auto)) == {"done": ["a.mp4"]}
    assert names(plan_later(drop, out)) == {"done": ["a.mp4"]}  # it has labels: nothing to ask for
    fewer = Settings.model_validate(
        {**auto.model_dump(), "prompts": {"on_missing": "auto", "auto": {"max_objects": 2}}}
    )
    assert names(plan_later(drop, out, fewer)) == {"wanted": ["a.mp4"]}


def test_other_rights_make_no_other_video(drop: Path, out: ObjectStore) -> None:
    video = add(drop, "a.mp4")
    finish(plan_later(drop, out), out)
    before = video.stat().st_ctime_ns
    time.sleep(0.02)
    for path in drop.iterdir():
        path.chmod(0o640)
    assert video.stat().st_ctime_ns > before
    assert names(plan_later(drop, out)) == {"done": ["a.mp4"]}


def test_a_file_that_still_grows_waits_until_it_has_settled(drop: Path, out: ObjectStore) -> None:
    video = add(drop, "a.mp4", b"half")
    assert names(plan_later(drop, out, seconds=30)) == {"settling": ["a.mp4"]}
    with video.open("ab") as file:
        file.write(b"the rest")
    os.utime(video.with_name("a.prompts.json"), (1, 1))
    assert names(plan_later(drop, out, seconds=30)) == {"settling": ["a.mp4"]}
    assert names(plan_later(drop, out, seconds=61)) == {"wanted": ["a.mp4"]}


def test_a_copy_that_keeps_old_times_settles_by_when_it_was_made(drop: Path, out: ObjectStore, tmp_path: Path) -> None:
    old = add(tmp_path, "old.mp4")
    os.utime(old, (1_000_000, 1_000_000))
    shutil.copy2(old, drop / "a.mp4")
    assert (drop / "a.mp4").stat().st_mtime == 1_000_000
    (drop / "a.prompts.json").write_text("{}")
    os.utime(drop / "a.prompts.json", (1, 1))
    assert names(plan_later(drop, out, seconds=1)) == {"settling": ["a.mp4"]}
    assert names(plan_later(drop, out, seconds=61)) == {"wanted": ["a.mp4"]}


def test_prompts_that_are_still_being_written_are_waited_for(out: ObjectStore) -> None:
    entries = [Entry("a.mp4", 5, "1", NOW - 900), Entry("a.prompts.json", 5, "1", NOW - 10)]
    assert names(plan_drop(Listed(entries), out, make(), now=NOW)) == {"settling": ["a.mp4"]}


@pytest.mark.parametrize("marked", ["x/a.mp4.done", "x/.done", "x/_SUCCESS", "_SUCCESS"])
def test_a_done_marker_ends_the_wait(out: ObjectStore, marked: str) -> None:
    settings = make(done_marker="_SUCCESS" if "_" in marked else ".done")
    entries = [Entry("x/a.mp4", 5, "1", NOW - 9), Entry("x/a.prompts.json", 5, "1", NOW - 9)]
    assert names(plan_drop(Listed(entries), out, settings, now=NOW)) == {"settling": ["x/a.mp4"]}
    entries = [dataclasses.replace(one, modified=one.modified - 10_000) for one in entries]
    assert names(plan_drop(Listed(entries), out, settings, now=NOW)) == {"settling": ["x/a.mp4"]}
    marker = Entry(marked, 0, "1", NOW - 8)
    if marked != "x/.done":  # hidden files are nobody's marker
        assert names(plan_drop(Listed([*entries, marker]), out, settings, now=NOW)) == {"wanted": ["x/a.mp4"]}
    for elsewhere in ("y/_SUCCESS", "y/a.mp4.done", "x/b.mp4.done"):
        other = Entry(elsewhere, 0, "1", NOW - 8)
        assert names(plan_drop(Listed([*entries, other]), out, settings, now=NOW)) == {"settling": ["x/a.mp4"]}


def test_a_marker_from_before_the_last_upload_counts_only_once_that_has_settled(out: ObjectStore) -> None:
    settings = make(done_marker=".done", on_missing="auto")
    marker = Entry("a.mp4.done", 0, "1", NOW - 500)
    for age, bucket in ((9, "settling"), (61, "wanted")):
        entries = [Entry("a.mp4", 5, "2", NOW - age), marker]
        assert names(plan_drop(Listed(entries), out, settings, now=NOW)) == {bucket: ["a.mp4"]}


def test_a_file_from_the_future_settles_or_is_told_of(out: ObjectStore, caplog: pytest.LogCaptureFixture) -> None:
    auto = make(on_missing="auto")
    soon = plan_drop(Listed([Entry("a.mp4", 5, "1", NOW + 50)]), out, auto, now=NOW)
    assert (names(soon), list(soon.ahead_of_clock)) == ({"settling": ["a.mp4"]}, [])
    never = plan_drop(Listed([Entry("a.mp4", 5, "1", NOW + 1e6)]), out, auto, now=NOW)
    assert names(never) == {"wanted": ["a.mp4"]}
    assert list(never.ahead_of_clock) == ["s3://drops/night/a.mp4"]
    assert "see to the clocks" in caplog.text


def test_an_attempt_under_way_is_left_alone_until_its_lease_runs_out(drop: Path, out: ObjectStore) -> None:
    add(drop, "a.mp4")
    settings = make(lease_seconds=0.5)
    plan = plan_later(drop, out, settings)
    records = WorkLog(out, settings.drops)
    running = records.attempt_key(plan.wanted[0], "0-1", "running")
    records.put(running, {"stage": "propagate"})
    assert names(plan_later(drop, out, settings)) == {"live": ["a.mp4"]}
    time.sleep(0.7)
    again = plan_later(drop, out, settings)
    assert names(again) == {"wanted": ["a.mp4"]}
    assert again.batches[0].key != plan.batches[0].key  # an attempt later: a run of its own


def test_three_failures_quarantine_it_and_a_retry_makes_it_wanted(drop: Path, out: ObjectStore) -> None:
    add(drop, "a.mp4")
    settings, keys = make(), set()
    for _ in range(3):
        plan = plan_later(drop, out, settings)
        keys.add(plan.batches[0].key)
        fail(plan, out, settings)
    assert len(keys) == 3
    plan = plan_later(drop, out, settings)
    assert names(plan) == {"quarantined": ["a.mp4"]}
    WorkLog(out, settings.drops).retry("night", plan.buckets["quarantined"][0].plan_key)
    assert names(plan_later(drop, out, settings)) == {"wanted": ["a.mp4"]}


def test_a_video_whose_commit_is_lost_is_labelled_again(drop: Path, out: ObjectStore) -> None:
    add(drop, "a.mp4")
    finish(plan_later(drop, out), out)
    commit(out, "cd" * 32)
    for key in out.list(f"commits/{'ab' * 32}/"):
        out.delete(key)
    plan = plan_later(drop, out)
    assert names(plan) == {"wanted": ["a.mp4"]}
    for _ in range(3):
        fail(plan, out, make())
    assert names(plan_later(drop, out)) == {"quarantined": ["a.mp4"]}
    assert output_status(out, make().drops).quarantined == 1  # whatever the old record says
    WorkLog(out, make().drops).retry("night", plan.wanted[0].plan_key)
    out.put_atomic(f"forgotten/{'ab' * 32}.json", b"{}")
    assert names(plan_later(drop, out)) == {"done": ["a.mp4"]}


def test_a_forgotten_video_is_nobodys_quarantine(drop: Path, out: ObjectStore) -> None:
    add(drop, "a.mp4")
    (item,) = plan_later(drop, out).wanted
    WorkLog(out, make().drops).forget(item)
    plan = plan_later(drop, out)
    assert names(plan) == {"forgotten": ["a.mp4"]}
    (row,) = plan_rows(plan)
    assert "take the files out of the drop" in row.what_to_do


ODD = ["ünï – 片.mp4", "a b#c?d%20e&f+.mp4", "it's [1] {x}*.mp4", "-n.mp4", "a.mp4.mp4", "UPPER.MP4", "\u202ertl.mp4"]
REFUSED = [
    "../a.mp4",
    "x/../../a.mp4",
    "x//a.mp4",
    "/a.mp4",
    "./a.mp4",
    "x\\..\\a.mp4",
    "a\nb.mp4",
    "a\0b.mp4",
    "a\x7f.mp4",
]


def test_odd_names_are_planned_and_those_that_cannot_be_handled_are_refused_with_the_reason(out: ObjectStore) -> None:
    entries = [Entry(name, size, str(size), NOW - 900) for size, name in enumerate([*ODD, *REFUSED, "b\udcff.mp4"], 1)]
    plan = plan_drop(Listed(entries), out, make(on_missing="auto"), now=NOW)
    assert [item.video for item in plan.wanted] == sorted(f"s3://drops/night/{name}" for name in ODD)
    assert len(plan.buckets["refused"]) == len(REFUSED) + 1
    write_plan(out, plan)
    written = json.loads(out.get(plan_document("night")))
    reasons = {one["video"].removeprefix("s3://drops/night/"): one["reason"] for one in written["refused"]}
    assert reasons["a\\nb.mp4"] == "its name has control characters"
    assert reasons["../a.mp4"].startswith("its name has empty or dot parts")
    assert reasons["b\\udcff.mp4"] == "its name is not UTF-8"


def test_odd_local_names_reach_the_worker_as_they_are(drop: Path, out: ObjectStore) -> None:
    for name in ODD:
        add(drop, name, name.encode())
    plan = plan_later(drop, out)
    assert sorted(Path(item.video).read_bytes().decode() for item in plan.wanted) == sorted(ODD)
    assert all(Path(item.prompts or "").is_file() for item in plan.wanted)


def test_films_hidden_files_and_layers_of_an_output_inside_are_no_videos(drop: Path) -> None:
    add(drop, "a.mp4")
    add(drop, f"show/a{FILM_SUFFIX}", prompts=False)
    add(drop, "._a.mp4")
    for name in ("commits/ab/000001.json", "labels/drop=x/ab.parquet", "masks/film.mp4"):
        add(drop / "labels", name, prompts=False)
    assert names(plan_later(drop, ObjectStore(drop / "labels"))) == {"wanted": ["a.mp4"]}


def test_a_folder_that_is_not_there_is_an_error_and_an_empty_one_is_not(drop: Path, out: ObjectStore) -> None:
    assert plan_later(drop, out).counts["wanted"] == 0
    with pytest.raises(VideoError, match="no folder"):
        plan_later(drop / "nope", out)
    with pytest.raises(SettingsError, match="a name of the drop"):
        plan_drop(ObjectStore(drop), out, make(), name=" ")


def test_committed_videos_without_labels_are_repaired(drop: Path, out: ObjectStore) -> None:
    whole, lacks, half, forgotten = ("ab" * 32, "bc" * 32, "cd" * 32, "de" * 32)
    for video_id in (whole, lacks, half, forgotten):
        for generation in (1, 2):
            out.put_atomic(f"commits/{video_id}/{generation:06d}.json", b"{}")
    for layer, video_ids in (("labels", (whole, half)), ("review", (whole, lacks))):
        for video_id in video_ids:
            out.put_atomic(f"{layer}/drop=first%20seen/{video_id}.parquet", b"x")
    out.put_atomic(f"forgotten/{forgotten}.json", b"{}")
    plan = plan_later(drop, out)
    assert list(plan.repairs) == [lacks, half]
    (batch,) = plan.batches
    assert (list(batch.items), list(batch.repairs)) == ([], [lacks, half])
    add(drop, "a.mp4")
    records, settings = WorkLog(out, make().drops), make()
    item = plan_later(drop, out, settings).wanted[0]
    records.put(records.attempt_key(item, "0-1", "running"), {})
    assert list(plan_later(drop, out, settings).repairs) == []  # somebody is at work and may be about to derive


def test_the_plan_that_is_written_caps_its_lists_and_counts_all(
    drop: Path, out: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.plan, "LISTED", 2)
    for number in range(4):
        add(drop, f"{number}.mp4", bytes(number))
    plan = plan_drop(ObjectStore(drop), out, make(), name="a/b ü", now=time.time() + 1000)
    write_plan(out, plan)
    written = json.loads(out.get("plans/a%2Fb%20%C3%BC.json"))
    assert (written["drop"], written["root"]) == ("a/b ü", str(drop))
    assert (written["counts"]["wanted"], written["wanted"]) == (4, [str(drop / "0.mp4"), str(drop / "1.mp4")])


def test_files_of_one_size_are_spread_over_batches_and_equal_ones_are_not_parted(drop: Path, out: ObjectStore) -> None:
    for number in range(12):  # a recorder that cuts files of one size; two are copies
        data = bytes([number if number != 7 else 3]) * 10
        add(drop, f"{number:02d}.mp4", data)
    plan = plan_later(drop, out, make(batch_videos=4))
    parts = [[Path(item.video).stem for item in batch.items] for batch in plan.batches]
    assert sorted(name for part in parts for name in part) == [f"{number:02d}" for number in range(12)]
    assert max(map(len, parts)) == 4
    assert next(part for part in parts if "03" in part).count("07") == 1


def test_files_of_one_size_are_only_read_as_far_as_there_is_room(
    drop: Path, out: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        add(drop, f"{number:02d}.mp4", bytes([number]) * 10)
    opened: list[str] = []
    store, real = ObjectStore(drop), ObjectStore.open
    monkeypatch.setattr(ObjectStore, "open", lambda self, key: (opened.append(key), real(self, key))[1])
    plan = plan_drop(store, out, make(batch_videos=2, max_batches=3), now=time.time() + 1000)
    assert sorted(opened) == [f"{number:02d}.mp4" for number in range(6)]
    assert [len(batch.items) for batch in plan.batches] == [2] * 6


@pytest.mark.slow
def test_a_bucket_is_planned_like_a_folder(moto_s3: S3Server) -> None:
    bucket, storage = moto_s3.new_bucket(), moto_s3.settings()
    drop, out = ObjectStore(f"{bucket}/in/night", storage), ObjectStore(f"{bucket}/out", storage)
    for name in ("a.mp4", "copy of ä.mp4", "a.prompts.json", "copy of ä.prompts.json"):
        drop.put_atomic(name, b"same")
    drop.put_atomic("deep/c.mkv", b"else")
    plan = plan_drop(drop, out, make(settle_seconds=0, batch_videos=1))
    assert plan.root == f"{bucket}/in/night"
    assert names(plan) == {"wanted": ["a.mp4", "copy of ä.mp4"], "needs_prompts": ["deep/c.mkv"]}
    assert [len(batch.items) for batch in plan.batches] == [2]  # one ETag
    finish(plan, out)
    write_plan(out, plan)
    assert plan_drop(drop, out, make()).counts["done"] == 2
    drop.put_atomic("a.mp4", b"more")
    assert names(plan_drop(drop, out, make())) == {"done": ["copy of ä.mp4"], "settling": ["a.mp4", "deep/c.mkv"]}
