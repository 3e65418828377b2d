"""A killed run goes on from its last checkpoint, and its files are byte for byte those of a run that was not killed."""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.encode import EncodeStage
from pipeline.errors import DiskSpaceError, PropagationError
from pipeline.job_checkpoint import JobCheckpoint
from pipeline.label import Progress
from pipeline.models import LoadedModel
from pipeline.propagate import Session
from pipeline.render.film import FilmWriter
from pipeline.settings import Settings, load_settings
from pipeline.video.stream import FrameStream

from .conftest import CUT, read_rows, run_label
from .test_unprompted import picture

LAYERS = ("masks", "candidates", "tokens")


def options(scratch: Path, **more: Any) -> dict[str, Any]:
    """Every sidecar, small chunks, and a checkpoint at every one of them."""
    return {
        "output.checkpoint_seconds": 0, "output.scratch_dir": str(scratch), "output.candidates": True,
        "output.tokens": True, "output.review_frames": False, "score.chunk_frames": 2, **more,
    }  # fmt: skip


def facts(out: Path) -> dict[str, bytes]:
    found = {layer: list((out / layer).rglob("*.parquet")) for layer in LAYERS}
    assert all(len(files) == 1 for files in found.values() if files)
    return {layer: files[0].read_bytes() for layer, files in found.items() if files}


class Killed(BaseException):
    """Ends a run as SIGKILL would: nothing gets to tidy up."""


def die_at(stage: str, done: int) -> Callable[[Progress], None]:
    def watch(progress: Progress) -> None:
        if (progress.stage, progress.done) == (stage, done):
            raise Killed

    return watch


def start_and_die(drop: Path, out: Path, nano: LoadedModel, settings: Settings, stage: str, done: int) -> None:
    with pytest.raises(Killed):
        run_label(drop, out, nano, settings, progress=die_at(stage, done))


@pytest.fixture(scope="module")
def whole(drop: Path, nano: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    settings = load_settings(None, options(tmp_path_factory.mktemp("scratch"), **{"output.checkpoint_seconds": None}))
    run_label(drop, out, nano, settings)
    return facts(out)


@pytest.mark.parametrize(
    ("stage", "done"), [("propagate", 3), ("propagate", 5), ("propagate", 12), ("backward", 1), ("backward", 3)]
)
def test_a_run_that_died_goes_on_and_ends_with_the_same_bytes(
    drop: Path, nano: LoadedModel, tmp_path: Path, whole: dict[str, bytes], stage: str, done: int
) -> None:
    settings, seen = load_settings(None, options(tmp_path / "scratch")), []
    start_and_die(drop, tmp_path / "out", nano, settings, stage, done)
    run_label(drop, tmp_path / "out", nano, settings, progress=lambda p: p.done and seen.append((p.stage, p.done)))
    assert seen[0] == (stage, (done - 1) // 2 * 2 + 1) or (done == 1 and seen[0] == ("propagate", 13))
    assert facts(tmp_path / "out") == whole
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_run_that_goes_on_says_so_and_counts_its_own_frames(
    drop: Path, nano: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = load_settings(None, options(tmp_path / "scratch"))
    start_and_die(drop, tmp_path / "out", nano, settings, "propagate", 9)
    with caplog.at_level(logging.WARNING):
        report = run_label(drop, tmp_path / "out", nano, settings)
    assert f"from a checkpoint: forward pass, frame 8 of {report.frames}" in caplog.text
    assert report.frames_per_second * report.wall_seconds == pytest.approx(report.frames - 8)


def test_it_goes_on_again_and_again(
    drop: Path, nano: LoadedModel, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    init = FrameStream.__init__

    def noting(self: FrameStream, *args: Any, **more: Any) -> None:
        decoded.append(more["start"])
        init(self, *args, **more)

    monkeypatch.setattr(FrameStream, "__init__", noting)
    settings = load_settings(None, options(tmp_path / "scratch"))
    for stage, done in [("propagate", 3), ("propagate", 7), ("propagate", 9), ("backward", 3), ("backward", 5)]:
        start_and_die(drop, tmp_path / "out", nano, settings, stage, done)
    run_label(drop, tmp_path / "out", nano, settings)
    assert facts(tmp_path / "out") == whole
    assert decoded == [0, 6, 6, 8]  # never again what is behind; in the backward pass nothing at all


@pytest.mark.parametrize("stage", ["propagate", "backward"])
@pytest.mark.parametrize("what", ["state", "frames", "masks/0.arrow", "tokens/0.arrow"])
def test_a_damaged_checkpoint_costs_time_and_nothing_else(
    drop: Path, nano: LoadedModel, tmp_path: Path, whole: dict[str, bytes], what: str, stage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    settings, seen = load_settings(None, options(tmp_path / "scratch")), []
    start_and_die(drop, tmp_path / "out", nano, settings, stage, 5)
    (path,) = (tmp_path / "scratch" / "checkpoints").glob(f"*/{what}")
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        run_label(drop, tmp_path / "out", nano, settings, progress=lambda p: p.done and seen.append((p.stage, p.done)))
    assert "starting over" in caplog.text
    assert seen[0] == ("propagate", 1)
    assert facts(tmp_path / "out") == whole


def test_other_settings_prompts_or_threads_do_not_go_on_from_it(drop: Path, nano: LoadedModel, tmp_path: Path) -> None:
    start_and_die(drop, tmp_path / "out", nano, load_settings(None, options(tmp_path / "scratch")), "propagate", 5)
    for number, more in enumerate([{"output.tokens": False}, {"propagate.on_cut": "ignore"}, {"model.threads": 2}]):
        seen: list[int] = []
        settings = load_settings(None, options(tmp_path / "scratch", **more))
        with pytest.raises(Killed):
            run_label(
                drop, tmp_path / f"out{number}", nano, settings,
                progress=lambda p, seen=seen: (p.done and seen.append(p.done), die_at("propagate", 1)(p)),
            )  # fmt: skip
        assert seen == [1]


def test_a_checkpoint_that_leads_to_a_failure_is_given_up(
    drop: Path, nano: LoadedModel, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(None, options(tmp_path / "scratch"))
    start_and_die(drop, tmp_path / "out", nano, settings, "propagate", 7)

    def broken(*_: object) -> None:
        raise PropagationError("finite numbers", "none", "try again")

    monkeypatch.setattr(Session, "forward", broken)
    with pytest.raises(PropagationError):
        run_label(drop, tmp_path / "out", nano, settings)
    monkeypatch.undo()
    assert list((tmp_path / "scratch").iterdir()) == []
    run_label(drop, tmp_path / "out", nano, settings)
    assert facts(tmp_path / "out") == whole


def test_a_sampled_video_goes_on_too(drop: Path, nano: LoadedModel, tmp_path: Path) -> None:
    settings = load_settings(None, options(tmp_path / "scratch", **{"decode.stride": 3}))
    run_label(drop, tmp_path / "whole", nano, settings)
    start_and_die(drop, tmp_path / "out", nano, settings, "propagate", 5)
    run_label(drop, tmp_path / "out", nano, settings)
    assert facts(tmp_path / "out") == facts(tmp_path / "whole")


@pytest.mark.parametrize(
    ("stage", "done"), [("propagate", CUT + 1), ("propagate", 13), ("backward", 3), ("backward", 5)]
)
def test_a_track_that_a_cut_stopped_stays_stopped(
    two_shots: Path, nano: LoadedModel, tmp_path: Path, stage: str, done: int
) -> None:
    settings = load_settings(None, options(tmp_path / "scratch", **{"propagate.on_cut": "stop"}))
    run_label(two_shots, tmp_path / "whole", nano, settings)
    start_and_die(two_shots, tmp_path / "out", nano, settings, stage, done)
    run_label(two_shots, tmp_path / "out", nano, settings)
    assert facts(tmp_path / "out") == facts(tmp_path / "whole")
    rows = read_rows(tmp_path / "out")
    followed = rows[rows.visibility != "untracked"].groupby("object_id").frame_index
    assert followed.max()[1] == CUT - 1
    assert followed.min()[2] == CUT


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_rows_that_cannot_be_written_fail_the_job_and_not_only_its_checkpoint(
    drop: Path, nano: LoadedModel, tmp_path: Path, whole: dict[str, bytes], nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = EncodeStage._encode, itertools.count(1)

    def full_for_a_moment(self: EncodeStage, chunk: Any) -> None:
        if next(calls) == nth:
            raise DiskSpaceError("room for the scratch rows", "a full disk", "free space")
        real(self, chunk)

    monkeypatch.setattr(EncodeStage, "_encode", full_for_a_moment)
    settings = load_settings(None, options(tmp_path / "scratch"))
    with pytest.raises(DiskSpaceError, match="scratch rows"):
        run_label(drop, tmp_path / "out", nano, settings)
    assert not list((tmp_path / "out").rglob("*.parquet"))
    assert run_label(drop, tmp_path / "out", nano, settings).status == "labelled"
    assert facts(tmp_path / "out") == whole


def test_checkpoints_that_cannot_be_written_cost_the_job_nothing(
    drop: Path, nano: LoadedModel, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise DiskSpaceError("room for a checkpoint", "a full disk", "free space")

    monkeypatch.setattr(JobCheckpoint, "save", full)
    run_label(drop, tmp_path / "out", nano, load_settings(None, options(tmp_path / "scratch")))
    assert facts(tmp_path / "out") == whole
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_run_killed_after_its_commit_leaves_a_checkpoint_that_the_next_one_removes(
    drop: Path, nano: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(_: object) -> None:
        raise Killed

    settings = load_settings(None, options(tmp_path / "scratch"))
    monkeypatch.setattr(JobCheckpoint, "discard", die)
    with pytest.raises(Killed):
        run_label(drop, tmp_path / "out", nano, settings)
    monkeypatch.undo()
    assert list((tmp_path / "scratch").rglob("state"))
    assert run_label(drop, tmp_path / "out", nano, settings).generation == 1
    assert list((tmp_path / "scratch").iterdir()) == []


def test_one_session_is_made_for_a_job_that_goes_on(
    drop: Path, nano: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, made, init = load_settings(None, options(tmp_path / "scratch")), [], Session.__init__
    start_and_die(drop, tmp_path / "out", nano, settings, "propagate", 7)
    monkeypatch.setattr(Session, "__init__", lambda self, *a, **more: (made.append(self), init(self, *a, **more))[1])
    run_label(drop, tmp_path / "out", nano, settings)
    assert len(made) == 1


def test_found_objects_go_on_too(nano: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from pipeline.label import label_video

    with FilmWriter(tmp_path / "discs.mp4", 25.0, quality=8) as film:
        for index in range(20):
            film.append(picture(index))  # one disc stays, one leaves, one enters
    more = {"prompts.on_missing": "auto", "prompts.auto.every_frames": 6, "prompts.auto.end_after_absent": 3}
    settings = load_settings(None, options(tmp_path / "scratch", **more))

    def run(out: str, **how: Any) -> None:
        label_video(str(tmp_path / "discs.mp4"), None, str(tmp_path / out), settings, model=nano, **how)

    run("whole")
    for stage, done in [("propagate", 5), ("propagate", 9), ("propagate", 15), ("propagate", 19), ("backward", 3)]:
        with pytest.raises(Killed):
            run("out", progress=die_at(stage, done))
    run("out")
    assert "starting over" not in caplog.text
    assert facts(tmp_path / "out") == facts(tmp_path / "whole")
    assert list((tmp_path / "scratch").iterdir()) == []


CHILD = (
    "import json, sys; from pipeline.label import label_video; from pipeline.settings import load_settings\n"
    "label_video(*sys.argv[1:4], load_settings(None, json.loads(sys.argv[4])),\n"
    "            progress=lambda p: print(p.stage, p.done, flush=True))"
)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_kill_9_at_random_moments(
    drop: Path, nano: LoadedModel, tmp_path: Path, whole: dict[str, bytes], seed: int
) -> None:
    moments, kills = random.Random(seed), 0
    chosen = json.dumps(options(tmp_path / "scratch"))
    words = [sys.executable, "-c", CHILD, str(drop / "clip.mp4"), str(drop / "clip.prompts.json")]
    while True:
        child = subprocess.Popen(
            [*words, str(tmp_path / "out"), chosen], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert child.stdout is not None
        left = moments.randint(1, 9) if kills < 4 else None
        for number, _ in enumerate(child.stdout, 1):
            if number == left:
                child.send_signal(signal.SIGKILL)
        child.stdout.close()
        if child.wait() == 0:
            break
        assert child.returncode == -signal.SIGKILL
        kills += 1
    assert kills > 1
    assert facts(tmp_path / "out") == whole
    assert list((tmp_path / "scratch" / "checkpoints").glob("*")) == []
