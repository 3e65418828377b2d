"""status, retry, gc and forget as a person calls them: what they print, what they change, how they end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.settings import DropSettings
from pipeline.source import video_sha256
from pipeline.storage.objects import ObjectStore
from pipeline.work import Item, WorkLog

from .conftest import Run


@pytest.fixture
def orphan(lake: Path) -> Path:
    """Facts of a worker that was killed, as old as the rest."""
    path = lake / f"masks/drop=night/{'ab' * 32}-000001-dead.parquet"
    path.write_bytes(b"x" * 1500)
    return path


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_status_tells_what_there_is_why_and_what_to_do(
    lake: Path, night: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("status", lake) == 0
    out = printed(capsys)
    for words in (
        "night 6 4 0 0 0 1 0 1",
        "night: 1 quarantined; `masksieve retry OUT VIDEO` once the cause is gone",
        f"{night}/night/broken.mp4 expected a readable video",
        "night: 1 without prompts; put STEM.prompts.json beside each, or set prompts.on_missing: auto",
        f"{night}/night/bare.mp4",
        "3 videos committed in",
    ):
        assert words in out
    assert run("status", lake, "--check") == 1
    capsys.readouterr()
    assert run("status", lake, "--json", "--drop", "night") == 0
    (one,) = json.loads(capsys.readouterr().out)["drops"]
    assert (one["listed"], one["done"], one["quarantined"], one["needs_prompts"]) == (6, 4, 1, 1)
    assert one["lines"][0]["state"] == "quarantined"
    (lake / "plans/night.json").unlink()
    assert run("status", lake) == 0
    assert "night - 4 0 - 0 0 0 1 no plan" in printed(capsys)


def test_status_names_what_is_running_failed_refused_and_forgotten(
    tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ObjectStore(tmp_path / "out")
    work = WorkLog(store, DropSettings())
    items = [Item(f"/d/{name}.mp4", None, "day", name[0] * 64) for name in ("a[b]", "bb", "cc")]
    work.put(work.attempt_key(items[0], "0-1", "failed"), {"video": items[0].video, "error": "a [reason]"})
    work.forget(items[1])
    attempt = work.begin(items[2], "run")
    assert attempt is not None
    with attempt:
        assert run("status", tmp_path / "out") == 0
    out = printed(capsys)
    assert "day: 1 running /d/cc.mp4 at start for " in out
    assert "day: 1 failed; the next plan tries again /d/a[b].mp4 attempt 1 of 3: a [reason]" in out
    assert "day: 1 video that was forgotten on request; take the files out of the drop" in out


def test_retry_lets_the_next_plan_begin_afresh(
    lake: Path, night: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("retry", lake, "broken.mp4") == 0
    assert "broken.mp4: out of quarantine, 3 attempts forgotten the next plan takes it up afresh" in printed(capsys)
    assert not list(lake.glob("work/*/*/quarantined.json"))
    assert len(list(lake.glob("work/*/*/done-*.json"))) == 4
    assert run("retry", lake, "--all") == 0
    assert printed(capsys) == "nothing is in quarantine"


def test_retry_leaves_alone_what_is_under_way_or_forgotten(
    tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    work = WorkLog(ObjectStore(tmp_path / "out"), DropSettings())
    running, forgotten, failed = (Item(f"/d/{name}.mp4", None, "day", name * 64) for name in "abc")
    work.forget(forgotten)
    work.quarantine(failed)
    attempt = work.begin(running, "run")
    assert attempt is not None
    with attempt:
        assert run("retry", tmp_path / "out", "a.mp4", "b" * 12, "--all") == 0
        assert work.standing(running).live
    out = printed(capsys)
    assert "/d/a.mp4: under way on " in out
    assert "bbbbbbbbbbbb: forgotten on request, left alone; `masksieve forget --undo`" in out
    assert "/d/c.mp4: out of quarantine" in out
    assert work.standing(forgotten).forgotten
    assert work.standing(failed).wanted


def test_gc_shows_first_and_removes_when_told(
    lake: Path, orphan: Path, run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = files(lake)
    scratch = tmp_path / "scratch"
    (scratch / "masksieve-dead").mkdir(parents=True)
    (scratch / "masksieve-dead/.masksieve-owner").touch()
    where = ("--set", f"output.scratch_dir={scratch}")
    assert run("gc", lake, *where) == 0
    assert "nothing to remove 1 object left alone that a writer may still need: younger than 24 h" in printed(capsys)
    assert run("gc", lake, "--older-than", 0, "--json", *where) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["key"] for one in told["orphans"]] == [orphan.relative_to(lake).as_posix()]
    assert (told["applied"], told["removed"], told["size_bytes"], told["videos"]) == (False, [], 1500, 3)
    assert run("gc", lake, "--older-than", 0, *where) == 0
    out = printed(capsys)
    assert "facts that no commit names 1 1.5 kB" in out
    assert "nothing removed; the same call with --apply frees 1.5 kB" in out
    assert files(lake) == before
    assert (scratch / "masksieve-dead").exists()
    assert run("gc", lake, "--older-than", 0, "--apply", *where) == 0
    assert "removed 1 object, 1.5 kB removed 1 scratch folder of dead jobs on this machine" in printed(capsys)
    assert files(lake) == before - {orphan.relative_to(lake).as_posix()}
    assert not (scratch / "masksieve-dead").exists()


def test_gc_removes_nothing_where_a_commit_cannot_be_read(
    lake: Path, orphan: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    next(lake.glob("commits/*/*.json")).write_text("{")
    before = files(lake)
    assert run("gc", lake, "--older-than", 0, "--apply") == 1
    error = capsys.readouterr().err
    assert "expected a readable commit" in error
    assert len(error.splitlines()) == 1
    assert files(lake) == before


@pytest.mark.parametrize("by", ["address", "file name", "video_id"])
def test_forget_removes_proves_and_says_what_it_cannot_reach(
    lake: Path, night: Path, run: Run, capsys: pytest.CaptureFixture[str], by: str
) -> None:
    video = night / "night/exit.mp4"
    word = {"address": str(video), "file name": video.name, "video_id": video_sha256(video)}[by]
    assert run("forget", word, "--out", lake, "--yes") == 0
    out = printed(capsys)
    assert "removed 1 from commits, 1 from labels, 1 from masks, 1 from review, " in out
    assert "written without it: snapshot v1" in out
    assert "opened: nothing left but the tombstone" in out.replace(" of them", "")
    assert "out of reach of this command:" in out
    assert f"{video} (the video or other bytes under its name); while it lies in a drop, plans name it" in out
    assert run("forget", video, "--out", lake, "--yes") == 0
    assert "removed nothing: there was nothing left" in printed(capsys)
    prompts = video.with_suffix(".prompts.json")
    assert run("label", video, "--prompts", prompts, "--out", lake, "--drop", "night") != 0
    assert "which was forgotten on request" in " ".join(" ".join(capsys.readouterr()).split())
    assert not [name for name in files(lake) if video_sha256(video) in name and not name.startswith("forgotten/")]
    assert run("forget", video, "--out", lake, "--undo") == 0
    assert "may be labelled again" in printed(capsys)


def test_forget_asks_before_anything_goes(
    lake: Path, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(lake)
    assert run("forget", "exit.mp4", "--out", lake) == 2  # nobody to ask
    assert "no terminal to ask at" in capsys.readouterr().err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda question, abort: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        main(["forget", "exit.mp4", "--out", str(lake)])
    said = " ".join(capsys.readouterr().err.split())
    assert "labels 1" in said
    assert "snapshots, checkpoints on this machine" in said
    assert files(lake) == before


def test_forget_fails_if_something_is_left(
    lake: Path, night: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    (lake / "notes.md").write_text("another file may be called exit.mp4")
    assert run("forget", "exit.mp4", "--out", lake, "--yes", "--json") == 0
    assert json.loads(capsys.readouterr().out)["proof"]["nothing_left"] is True
    video = night / "night/lookalike.mp4"
    (lake / "notes.md").write_text(f"look at {video}.")
    assert run("forget", video, "--out", lake, "--yes", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert told["video_id"] == video_sha256(video)
    assert (told["proof"]["nothing_left"], told["proof"]["traces"][0]["key"]) == (False, "notes.md")
    assert run("forget", video, "--out", lake, "--yes") == 1
    assert "1 object left notes.md by text" in printed(capsys)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("status", "nowhere"), 2, "no folder"),
        (("status", ""), 2, "an empty word"),
        (("status", "LAKE", "--drop", "nigth"), 2, "did you mean 'night'?"),
        (("retry", "LAKE"), 2, "a VIDEO or --all"),
        (("retry", "LAKE", "brokn.mp4"), 2, "night/broken.mp4?"),
        (("retry", "LAKE", "exit.mp4"), 2, "`masksieve status` lists those that failed"),
        (("gc", "nowhere"), 2, "no folder"),
        (("gc", "LAKE", "--older-than", "-1"), 2, "or equal to 0"),
        (("gc", "nope://bucket"), 2, "another address that fsspec knows"),
        (("forget", "exlt.mp4", "--out", "LAKE", "--yes"), 2, "night/exit.mp4?"),
        (("forget", "quite another", "--out", "LAKE", "--yes"), 2, "name it by its path, address or video_id"),
        (("forget", "exit.mp4", "--out", "LAKE", "--undo"), 2, "a video that was forgotten"),
        (("forget", "exit.mp4", "--out", "nowhere", "--yes"), 2, "no folder"),
    ],
)
def test_a_wrong_call_is_one_line_and_changes_nothing(
    lake: Path,
    run: Run,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    before = files(lake)
    monkeypatch.chdir(lake.parent)
    assert run(*(str(lake) if word == "LAKE" else word for word in words)) == code
    caught = capsys.readouterr()
    assert said in " ".join(caught.err.split())
    assert caught.out == ""
    if "equal" not in said:  # typer draws a box around what it finds itself
        assert len(caught.err.splitlines()) == 1
    assert files(lake) == before
