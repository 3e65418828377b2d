"""The exam: its clips have not drifted, its classes and figures are what heldout.yaml says, other generators fit in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks import heldout

ROOT = Path(__file__).resolve().parents[2]


def test_the_generator_still_draws_the_pixels_of_the_exam() -> None:
    heldout.check_fingerprint()


def test_no_training_seed_is_an_exam_seed() -> None:
    from pipeline.nano import export, pool

    first, count = heldout.EXAM["seeds"]["first"], heldout.EXAM["seeds"]["clips"]
    heads = yaml.safe_load((ROOT / "benchmarks" / "usam.yaml").read_text())
    others = [pool.TRAINING_FIRST_SEED, export.VALIDATION_FIRST_SEED]
    others += [heads["training"]["first_seed"], heads["polishing"]["first_seed"]]
    assert sorted(others) == others
    assert all(one + 90_000_000 < first for one in others)
    assert count >= 400


def test_calling_everything_absent_does_not_win() -> None:
    rows = [
        {"kind": "box", "seed": 1, "object": 1, "frame": f, "iou": 0.0, "truth": f < 4, "empty": True,
         "best_of_3": None, "sam_score": 0.5, "iou_tracked": None, "classes": ["all"], "object_score": -1.0}
        for f in range(6)
    ]  # fmt: skip
    figures = heldout.figures(rows)
    assert figures["absent_recognised"] == 1.0
    assert figures["visible_called_absent"] == 1.0
    assert figures["box_tracked"] == 0.0
    assert figures["absent_share"] == pytest.approx(2 / 5)


@pytest.mark.slow
def test_the_command_runs_on_clips_of_another_generator(tmp_path: Path) -> None:
    (tmp_path / "discs.py").write_text(
        "import numpy as np\nfrom pipeline.nano.clips import Clip\n"
        "def render(seed, *, frames, size):\n"
        "    y, x = np.mgrid[0:size, 0:size]\n"
        "    ids = np.stack([(np.hypot(x - 40 - 2 * t, y - 60) < 20) for t in range(frames)]).astype(np.uint8)\n"
        "    rgb = np.where(ids[..., None] > 0, np.array([220, 40, 40]), np.array([30, 90, 160])).astype(np.uint8)\n"
        "    return Clip(rgb, ids, np.zeros_like(ids), frozenset(), {1: frozenset()}, seed)\n"
    )
    words = [sys.executable, "benchmarks/heldout.py", "--clips", "1", "--processes", "1", "--generator", "discs:render"]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    out = tmp_path / "figures.json"
    done = subprocess.run([*words, "--out", str(out)], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())["all"]
    assert figures["targets"] == 1
    assert 0 <= figures["box_tracked"] <= 1
