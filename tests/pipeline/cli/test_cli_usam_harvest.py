"""`masksieve usam harvest` makes a shard of a folder, goes on quietly, and tells a wrong call from failed work."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from pipeline.cli import main
from pipeline.cli.progress import Counter
from usam.shard import Shard


def _run(*words: object) -> int:
    with pytest.raises(SystemExit) as exited:
        main(["usam", "harvest", *(str(word) for word in words)])
    return exited.value.code if isinstance(exited.value.code, int) else int(exited.value.code is not None)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Two clips of three frames with one moving square, as the split `all`."""
    for clip in range(2):
        for index in range(3):
            rgb, ids = np.full((48, 64, 3), 40, np.uint8), np.zeros((48, 64), np.uint8)
            place = slice(10, 30), slice(10 + 4 * index, 30 + 4 * index)
            rgb[place], ids[place] = (200, 80 * clip, 60), 1
            for folder, array in ((f"c{clip}", rgb), (f"c{clip}.truth", ids)):
                (tmp_path / "clips" / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(tmp_path / "clips" / folder / f"{index:05d}.png")
    return tmp_path / "clips"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["frames", "tracked"])
def test_a_folder_becomes_a_shard_and_a_second_call_changes_nothing(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    words = (clips, "--out", tmp_path / "s", "-m", "sam2_nano", "--mode", mode, "--entropies", "H_A", "--max-frames", 2)
    assert _run(*words) == 0
    shard = Shard.open(tmp_path / "s")
    assert (shard.plan.kind, shard.plan.deployed, shard.plan.split) == (mode, "tiny", "all")
    assert shard.plan.models["tiny"]["name"] == "sam2_nano"
    assert shard.column("frame_index").tolist() == [0, 1, 0, 1]
    assert shard.has("H_A")
    assert not shard.has("H_Std")
    out = capsys.readouterr().out
    assert "iou_tiny" in out if mode == "frames" else "iou_tracked" in out
    before = {path.name: path.stat().st_mtime_ns for path in shard.path.iterdir()}
    assert _run(*words) == 0
    assert {path.name: path.stat().st_mtime_ns for path in shard.path.iterdir()} == before
    assert _run(*words, "--max-videos", 1) == 1
    assert "another" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("-m", "sam2_nanno"), "sam2_nano"),
        (("-m", "huge=sam2_nano"), "base_plus"),
        (("-m", "sam2_nano", "-m", "tiny=sam2_nano"), "one --model per size"),
        (("-m", "sam2_nano", "--deployed", "large"), "--deployed out of tiny"),
        (("-m", "sam2_nano", "--entropies", "H_Q"), "H_Theta"),
        (("-m", "sam2_nano", "--entropies", "H_Y", "--mode", "tracked"), "H_Y"),
        (("-m", "sam2_nano", "--mode", "film"), "frames, tracked"),
        (("-m", "sam2_nano", "--select", "best"), "gt, sam_score"),
        (("-m", "sam2_nano", "--select", "gt", "--mode", "tracked"), "sam_score when tracking"),
        (("-m", "sam2_nano", "--seed", "-1"), "at least 0"),
        (("-m", "sam2_nano", "--max-frames", "0"), "at least 1"),
        (("-m", "sam2_nano", "--dataset", "coco"), "the layout of coco"),
        (("-m", "sam2_nano", "--split", "vall"), "train, val, test, all"),
        (("-m", "sam2_nano", "--out", "clips/inside"), "outside"),
    ],
)
def test_a_wrong_call_is_one_line_and_2_and_makes_nothing(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...], says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert _run("clips", "--out", "s", *words) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_a_missing_mask_and_an_empty_split_are_failed_work(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (clips / "c1.truth" / "00001.png").unlink()
    assert _run(clips, "--out", clips.parent / "s", "-m", "sam2_nano") == 1
    assert "c1" in capsys.readouterr().err
    assert _run(clips, "--out", clips.parent / "t", "-m", "sam2_nano", "--split", "val") == 1
    assert "val" in capsys.readouterr().err


def test_a_counter_without_a_terminal_tells_now_and_then_and_leaves_an_earlier_run_out_of_its_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("pipeline.cli.progress.time.monotonic", lambda: now)
    told = io.StringIO()
    with Counter(Console(file=told, width=200), "harvesting", "videos") as count:
        count("a", 50, 100)
        now += 10
        count("b", 60, 100)
        now += 15
        count("[c]", 75, 100)
    assert told.getvalue() == "harvesting [c], 75/100, 1.0 videos/s, 25 s left\n"
