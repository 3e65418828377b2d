"""A video that somebody asked to forget is in no object any more, the others are as before, and the proof can fail."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest

from pipeline.checksum import file_sha256
from pipeline.errors import ForgottenError, StorageError, UnavailableError, VideoError
from pipeline.forget import UnderWay, _Removal, find_subject, forget, known_videos, undo
from pipeline.label import label_video
from pipeline.ledger import Ledger, forgotten_key
from pipeline.ledger_sql import SqlLedger
from pipeline.plan import plan_drop
from pipeline.retune import committed_videos, derive_all
from pipeline.settings import Settings, load_settings
from pipeline.snapshot import write
from pipeline.snapshot.write import SnapshotOptions, write_snapshot
from pipeline.source import video_sha256
from pipeline.storage.manifest import FileRecord
from pipeline.storage.objects import ObjectStore
from pipeline.traces import Trace, search
from pipeline.work import Item, WorkLog

KilledAfter = Callable[[int], AbstractContextManager[None]]
TWICE = ("again.mp4", "occlusion.mp4")
"""The same bytes under two names."""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(
        None, {"output.scratch_dir": tmp_path / "scratch", "output.tokens": True, "drops.settle_seconds": 0.0}
    )


@pytest.fixture
def store(lake: Path) -> ObjectStore:
    return ObjectStore(lake)


@pytest.fixture
def video_id(night: Path) -> str:
    return video_sha256(night / "night" / TWICE[0])


def forget_it(store: ObjectStore, settings: Settings, word: str, **more: Any) -> Any:
    subject = find_subject(store, word, settings, known_videos(store))
    return forget(store, Ledger(store), settings, subject, **more)


def digests(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in folder.rglob("*") if path.is_file()}


WORDS: dict[str, Callable[[str, Path], str]] = {
    "video_id": lambda video_id, drop: video_id,
    "beginning of it": lambda video_id, drop: video_id[:8],
    "path": lambda video_id, drop: str(drop / TWICE[0]),
    "path of its twin": lambda video_id, drop: str(drop / TWICE[1]),
    "file name": lambda video_id, drop: TWICE[1],
}


@pytest.mark.parametrize("by", WORDS)
def test_it_is_in_no_byte_and_the_others_are_as_they_were(
    store: ObjectStore, lake: Path, settings: Settings, night: Path, video_id: str, by: str
) -> None:
    before = digests(lake)
    done = forget_it(store, settings, WORDS[by](video_id, night / "night"))
    assert done.subject.video_id == video_id
    assert done.proof.traces == ()
    assert done.removed.keys() == {"labels", "review", "masks", "tokens", "commits", "work", "review_images"}
    assert (done.snapshots, done.blotted) == (("v1",), 1)
    assert done.proof.objects == len(digests(lake)) - 1  # all but the tombstone
    assert any(str(night / "night" / TWICE[0]) in words for words in done.unreached)
    tombstone = lake / forgotten_key(video_id)
    for path in (path for path in lake.rglob("*") if path.is_file() and path != tombstone):
        assert video_id not in str(path)
        for word in (video_id, *TWICE):
            assert word.encode() not in path.read_bytes(), path
    after = digests(lake)
    changed = {key.split("/")[0] for key in before.keys() & after.keys() if before[key] != after[key]}
    assert changed == {"plans", "snapshots"}
    assert all(video_id in key or key.startswith(("snapshots/", "work/")) for key in before.keys() - after.keys())
    plan = json.loads((lake / "plans/night.json").read_text())
    assert [Path(name).name for name in plan["done"]] == ["exit.mp4", "lookalike.mp4"]
    assert search(store, find_subject(store, "exit.mp4", settings, known_videos(store))).traces


@pytest.mark.parametrize(
    "layer", ["labels", "review", "masks", "tokens", "review_images", "work", "commits", "plans", "snapshots"]
)
def test_the_proof_fails_if_a_layer_is_left(
    store: ObjectStore, settings: Settings, video_id: str, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def but(method: Any) -> Any:
        return lambda self, trace: None if trace.layer == layer else method(self, trace)

    monkeypatch.setattr(_Removal, "_remove", but(_Removal._remove))
    monkeypatch.setattr(_Removal, "_take_out", but(_Removal._take_out))
    if layer == "snapshots":
        monkeypatch.setattr("pipeline.forget.remove_video", lambda *given, **more: 0)
    if layer == "commits":
        monkeypatch.setattr(Ledger, "remove", lambda self, video_id: None)
    done = forget_it(store, settings, video_id)
    assert {trace.layer for trace in done.proof.traces} == {layer}


@pytest.mark.parametrize("writes", [0, 1, 4, 8, 12])
def test_a_run_that_was_killed_is_ended_by_the_same_call(
    store: ObjectStore, settings: Settings, video_id: str, writes: int, killed_after: KilledAfter
) -> None:
    """By the file name: what the output knows of names goes last."""
    with killed_after(writes):
        forget_it(store, settings, TWICE[1])
    assert forget_it(store, settings, TWICE[1]).proof.traces == ()
    assert forget_it(store, settings, video_id).removed == {}


def test_it_cannot_be_labelled_again_until_that_is_undone(
    store: ObjectStore, settings: Settings, night: Path, video_id: str
) -> None:
    forget_it(store, settings, video_id)
    drop, work = ObjectStore(night / "night"), WorkLog(store, settings.drops)
    for _ in range(2):
        wanted = plan_drop(drop, store, settings, name="night").wanted
        for item in wanted:
            attempt = work.begin(item, "run")
            assert attempt is not None
            with pytest.raises(ForgottenError), attempt:
                label_video(item.video, item.prompts, store.url, settings, drop="night")
    assert not wanted  # set aside the first time
    assert video_id not in committed_videos(store)
    assert [one for one, _ in derive_all(store, [video_id], settings) if one == video_id] == [video_id]
    subject = find_subject(store, video_id, settings, known_videos(store))
    assert search(store, subject).traces == ()  # trying left nothing
    assert undo(store, settings, video_id)
    assert not undo(store, settings, video_id)
    assert [Path(item.video).name for item in plan_drop(drop, store, settings, name="night").wanted] == sorted(TWICE)


def test_an_attempt_under_way_is_waited_for_or_an_error(
    store: ObjectStore, settings: Settings, night: Path, video_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.forget.POLL_SECONDS", 0.02)
    item = Item(str(night / "night" / TWICE[0]), None, "day", "1" * 64)
    attempt = WorkLog(store, settings.drops).begin(item, "run")
    assert attempt is not None
    attempt.__enter__()
    with pytest.raises(UnderWay, match="can no longer commit"):
        forget_it(store, settings, video_id)
    assert store.exists(forgotten_key(video_id))
    told: list[str] = []
    ending = threading.Timer(0.2, attempt.__exit__, (None, ForgottenError("a", "b", "c"), None))
    ending.start()
    started = time.monotonic()
    done = forget_it(store, settings, video_id, wait=True, progress=told.append)
    assert time.monotonic() - started > 0.1
    assert told[0].startswith("waiting for an attempt on ")
    assert done.proof.traces == ()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("exlt.mp4", "did you mean .*/night/exit.mp4"),
        ("nothing like it", "name it by its path, address or video_id"),
        ("0" * 8, "name it by its path"),
        ("", "name it by its path"),
    ],
)
def test_a_video_that_nobody_knows_is_a_mistake_of_the_call(
    lake: Path, settings: Settings, word: str, said: str
) -> None:
    store = ObjectStore(lake)
    before = digests(lake)
    with pytest.raises(VideoError, match=said):
        find_subject(store, word, settings, known_videos(store))
    assert digests(lake) == before


def test_a_name_of_several_videos_is_refused(lake: Path, settings: Settings, night: Path) -> None:
    store = ObjectStore(lake)
    work = WorkLog(store, settings.drops)
    work.put(work.done_key(Item("/day/exit.mp4", None, "day", "1" * 64), "ab" * 32), {"video": "/day/exit.mp4"})
    with pytest.raises(VideoError, match="name it by its video_id"):
        find_subject(store, "exit.mp4", settings, known_videos(store))
    assert find_subject(store, "day/exit.mp4", settings, known_videos(store)).video_id == "ab" * 32


def test_a_video_that_was_never_labelled_goes_from_the_records(lake: Path, settings: Settings, night: Path) -> None:
    store = ObjectStore(lake)
    broken = night / "night/broken.mp4"
    done = forget_it(store, settings, str(broken))
    assert done.removed == {"work": 4}  # three attempts and the quarantine
    assert done.proof.traces == ()
    gone = Item("/day/gone.mp4", None, "day", "1" * 64)
    WorkLog(store, settings.drops).quarantine(gone)
    done = forget_it(store, settings, gone.video)
    assert (done.subject.video_id, done.removed) == (None, {"work": 1})
    assert "gone.mp4" not in "".join(path.read_text() for path in lake.rglob("*.json"))


def test_a_name_that_another_video_has_by_now_stays(lake: Path, settings: Settings, night: Path, video_id: str) -> None:
    """Somebody replaced the file, and both were labelled."""
    store, other = ObjectStore(lake), "ab" * 32
    name = str(night / "night" / TWICE[0])
    work = WorkLog(store, settings.drops)
    work.put(work.done_key(Item(name, None, "night", "1" * 64), other), {"video": name})
    known = known_videos(store)
    subject = known.subject(video_id)
    assert name in known.shared(subject)
    assert forget(store, Ledger(store), settings, subject).proof.traces == ()
    assert json.loads(store.get(work.done_key(Item(name, None, "night", "1" * 64), other)))["video"] == name


@pytest.mark.parametrize("name", ["exit.mp4", "ausgäng.mp4"])
def test_a_record_that_was_killed_while_it_was_written_goes_too(lake: Path, settings: Settings, name: str) -> None:
    store = ObjectStore(lake)
    item = Item(f"/day/{name}", None, "day", "1" * 64)
    work = WorkLog(store, settings.drops)
    work.put(work.done_key(item, "ab" * 32), {"video": item.video})
    half = json.dumps({"done": [item.video]})[:-2]
    staged = [lake / f"plans/.{one}.json.{'0' * 32}.tmp" for one in ("ours", "theirs")]
    for path, text in zip(staged, (half, half.replace("/day/", "/dusk/")), strict=True):
        path.write_text(text)
    assert forget_it(store, settings, item.video).proof.traces == ()
    assert [path.exists() for path in staged] == [False, True]


def test_what_a_person_wrote_stays_and_is_told(lake: Path, settings: Settings, video_id: str) -> None:
    (lake / "notes.md").write_text(f"look at {video_id} again")
    done = forget_it(ObjectStore(lake), settings, video_id)
    assert [(trace.key, trace.how) for trace in done.proof.traces] == [("notes.md", "text")]
    assert (lake / "notes.md").exists()


def test_what_jobs_left_on_this_machine_goes(lake: Path, settings: Settings, video_id: str) -> None:
    root = settings.output.scratch_dir
    assert root is not None
    for name, owner in (("ours", video_id), ("theirs", "ab" * 32)):
        (root / "checkpoints" / name).mkdir(parents=True)
        (root / "checkpoints" / name / "lock").write_text(owner)
    download = root / "masksieve-dead"
    download.mkdir()
    (download / ".masksieve-owner").touch()
    (download / "source.mp4").touch()
    assert forget_it(ObjectStore(lake), settings, video_id).checkpoints == 1
    assert [path.name for path in (root / "checkpoints").iterdir()] == ["theirs"]
    assert not download.exists()


def test_the_video_itself_goes_only_where_its_bytes_are_those(lake: Path, settings: Settings, tmp_path: Path) -> None:
    store, work = ObjectStore(lake), WorkLog(ObjectStore(lake), settings.drops)
    ours, changed = tmp_path / "ours.mp4", tmp_path / "changed.mp4"
    ours.write_bytes(b"a video")
    changed.write_bytes(b"another by now")
    work.put(work.done_key(Item(str(changed), None, "day", "1" * 64), video_sha256(ours)), {"video": str(changed)})
    done = forget_it(store, settings, str(ours), delete_source=True)
    assert (ours.exists(), changed.exists()) == (False, True)
    assert any("other bytes under its name" in words for words in done.unreached)


def test_in_a_bucket_too_and_what_it_keeps_is_said(lake: Path, settings: Settings, moto_s3: Any, video_id: str) -> None:
    url, storage = moto_s3.new_bucket(), moto_s3.settings()
    keys = {"aws_access_key_id": moto_s3.access_key_id, "aws_secret_access_key": moto_s3.secret_access_key}
    client = boto3.client("s3", endpoint_url=moto_s3.endpoint_url, region_name="us-east-1", **keys)
    client.put_bucket_versioning(Bucket=url[5:], VersioningConfiguration={"Status": "Enabled"})
    store = ObjectStore(f"{url}/out", storage)
    for key in digests(lake):
        store.put_atomic(key, lake / key)
    backend: Any = store._backend
    backend.call("create_multipart_upload", f"masks/drop=night/{video_id}-1.parquet", backend.patience())
    done = forget_it(store, settings.model_copy(update={"storage": storage}), TWICE[0])
    assert done.proof.traces == ()
    assert list(store.staged()) == []
    assert not [key for key in store.list() if video_id in key and not key.startswith("forgotten/")]
    assert any("keeps versions" in words for words in done.unreached)


def test_rows_of_a_ledger_in_sql_go_from_the_very_file(
    rclone_s3: Any, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = rclone_s3.settings()
    store = ObjectStore(rclone_s3.new_bucket(), storage)
    database, video_id = tmp_path / "commits.sqlite", "cd" * 32
    ledger = Ledger(store, database)
    facts = f"masks/drop=night/{video_id}-1.parquet"
    store.put_atomic(facts, b"facts")
    ledger.commit(
        video_id, parent=0, work_key="k", video_uri="s3://drops/secret-place.mp4", drop="night", run_id="r", attempt=1,
        files=[FileRecord("masks", facts, 1, 5, "00")], started_at=datetime.now(UTC),
    )  # fmt: skip
    assert b"secret-place" in database.read_bytes()
    remote = settings.model_copy(update={"storage": storage})
    subject = known_videos(store).subject(video_id)
    with monkeypatch.context() as patch:
        patch.setattr(SqlLedger, "delete", lambda self, *given: None)
        assert forget(store, ledger, remote, subject).proof.traces == (Trace(str(database), 0, "database"),)
    assert forget(store, ledger, remote, subject).proof.traces == ()
    for word in (b"secret-place", video_id.encode()):
        assert word not in database.read_bytes()


def test_a_snapshot_that_is_written_meanwhile_does_not_bring_it_back(
    store: ObjectStore, lake: Path, settings: Settings, video_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tombstone stands before anything is removed, and whoever publishes looks for it."""
    proofs: list[Any] = []
    put_cards = write.put_cards

    def late(*given: Any) -> Any:
        if not proofs:
            proofs.append(None)
            proofs[0] = forget_it(store, settings, video_id)
        return put_cards(*given)

    monkeypatch.setattr(write, "put_cards", late)
    options = SnapshotOptions("v2", decisions=("accept", "review"), image_quality=None)
    with suppress(StorageError):  # its parts went under its hands
        write_snapshot(str(lake), options, settings)
    assert proofs[0].proof.traces == ()
    assert search(store, find_subject(store, video_id, settings, known_videos(store))).traces == ()


Get = Callable[[ObjectStore, str], bytes]


def unreadable(monkeypatch: pytest.MonkeyPatch, key: Callable[[str], bool]) -> None:
    get: Get = ObjectStore.get

    def away(self: ObjectStore, asked: str) -> bytes:
        if key(asked):
            raise UnavailableError("an answer", "503", "try again later")
        return get(self, asked)

    monkeypatch.setattr(ObjectStore, "get", away)


@pytest.mark.parametrize("layer", ["commits/", "work/"])
def test_names_that_cannot_be_read_now_are_not_taken_for_none(
    store: ObjectStore, settings: Settings, video_id: str, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        unreadable(patch, lambda key: key.startswith(layer))
        with pytest.raises(UnavailableError):
            forget_it(store, settings, video_id)
    assert forget_it(store, settings, video_id).proof.traces == ()


def test_a_record_of_others_that_cannot_be_read_now_is_not_removed(
    store: ObjectStore, settings: Settings, video_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = known_videos(store).subject(video_id)
    removal = _Removal(store, Ledger(store), settings, subject)
    with monkeypatch.context() as patch:
        unreadable(patch, lambda key: key.startswith("plans/"))
        with pytest.raises(UnavailableError):
            removal._take_out(Trace("plans/night.json", 1, "text"))
    assert store.exists("plans/night.json")


def test_a_damaged_commit_that_names_nobody_is_said(lake: Path, settings: Settings, night: Path, video_id: str) -> None:
    store = ObjectStore(lake)
    for path in (lake / f"commits/{video_id}").iterdir():
        path.write_text("{")
    for path in lake.glob(f"work/**/done-{video_id}.json"):
        path.unlink()
    with pytest.raises(VideoError, match="a damaged one"):
        forget_it(store, settings, video_id)
    assert forget_it(store, settings, str(night / "night" / TWICE[0])).subject.uris


def test_what_it_writes_meanwhile_lies_where_the_scratch_of_killed_runs_is_swept(
    store: ObjectStore, settings: Settings, video_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []

    def remove(*given: Any, scratch_dir: Path) -> int:
        seen.append(scratch_dir)
        assert (scratch_dir / ".masksieve-owner").exists()
        return 0

    monkeypatch.setattr("pipeline.forget.remove_video", remove)
    forget_it(store, settings, video_id)
    assert {path.parent for path in seen} == {settings.output.scratch_dir}
