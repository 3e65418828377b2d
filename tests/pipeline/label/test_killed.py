"""A killed run goes on from its last checkpoint, and its files are byte for byte those of a run that was not killed."""

from __future__ import annotations

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

from pipeline.label import Progress
from pipeline.models import LoadedModel
from pipeline.render.film import FilmWriter
from pipeline.settings import Settings, load_settings
from pipeline.video.stream import FrameStream

from .conftest import run_label
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
    run_label(drop, tmp_path / "out", nano, settings, progress=lambda p: seen.append((p.stage, p.done)))
    assert seen[0] == (stage, (done - 1) // 2 * 2 + 1) or (done == 1 and seen[0] == ("propagate", 13))
    assert facts(tmp_path / "out") == whole
    assert list((tmp_path / "scratch").iterdir()) == []


def test_it_goes_on_again_and_again(
    drop: Path, nano: LoadedModel, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int | None] = []
    init = FrameStream.__init__

    def noting(self: FrameStream, *args: Any, **more: Any) -> None:
        decoded.append(None if more["indices"] is None else more["indices"][0])
        init(self, *args, **more)

    monkeypatch.setattr(FrameStream, "__init__", noting)
    settings = load_settings(None, options(tmp_path / "scratch"))
    for stage, done in [("propagate", 3), ("propagate", 7), ("propagate", 9), ("backward", 3), ("backward", 5)]:
        start_and_die(drop, tmp_path / "out", nano, settings, stage, done)
    run_label(drop, tmp_path / "out", nano, settings)
    assert facts(tmp_path / "out") == whole
    assert decoded == [None, 6, 6, 8]  # never again what is behind; in the backward pass nothing at all


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
        run_label(drop, tmp_path / "out", nano, settings, progress=lambda p: seen.append((p.stage, p.done)))
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
                progress=lambda p, seen=seen: (seen.append(p.done), die_at("propagate", 1)(p)),
            )  # fmt: skip
        assert seen == [1]


def test_a_checkpoint_that_leads_to_a_failure_is_given_up(
    drop: Path, nano: LoadedModel, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.errors import PropagationError
    from pipeline.propagate import Session

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


@pytest.mark.parametrize("more", [{"decode.stride": 3}, {"propagate.on_cut": "stop"}], ids=str)
def test_sampled_and_cut_videos_go_on_too(drop: Path, nano: LoadedModel, tmp_path: Path, more: dict[str, Any]) -> None:
    run_label(drop, tmp_path / "whole", nano, load_settings(None, options(tmp_path / "scratch", **more)))
    settings = load_settings(None, options(tmp_path / "scratch", **more))
    start_and_die(drop, tmp_path / "out", nano, settings, "propagate", 5)
    run_label(drop, tmp_path / "out", nano, settings)
    assert facts(tmp_path / "out") == facts(tmp_path / "whole")


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
