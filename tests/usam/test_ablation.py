"""Heads on parts of their input: what is in one token only is found with that token, and not without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from usam.ablation import token_ablation
from usam.errors import EvaluationError
from usam.judge import exam_of
from usam.recipes import Recipe
from usam.shard import Shard

Make = Callable[..., Shard]
QUICK = Recipe(members=1, max_epochs=60, lr=0.01, dropout=0.0, patience=None)


@pytest.mark.slow
def test_a_head_needs_the_token_that_knows(judged_shard: Make, tmp_path: Path) -> None:
    """In these harvests the model gap lies in the IoU token, the chosen mask's IoU in the mask token."""
    training, exam = exam_of(judged_shard("train", videos=20, seed=1, prefix="w")), exam_of(judged_shard())
    told: list[tuple[str, int, int]] = []
    folder = tmp_path / "kept"
    table = token_ablation(training, exam, recipe=QUICK, checkpoint_dir=folder, progress=lambda *t: told.append(t))
    area = {(app, name): relative for app, name, relative, _ in table.rows}
    assert set(area) == {
        (app, name)
        for app in ("model", "prompt", "task", "segmentation")
        for name in ("IoU token", "mask token", "both")
    }
    assert float(area["model", "IoU token"]) > 80 > 30 > float(area["model", "mask token"])
    assert float(area["segmentation", "mask token"]) > 80 > float(area["segmentation", "IoU token"])
    assert float(area["task", "both"]) > max(float(area["task", one]) for one in ("IoU token", "mask token"))
    assert told[-1][1:] == (11, 12)
    kept = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = token_ablation(training, exam, recipe=QUICK, checkpoint_dir=folder)
    assert again.rows == table.rows
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == kept


def test_it_learns_on_other_videos_only(judged_shard: Make) -> None:
    exam = exam_of(judged_shard())
    with pytest.raises(EvaluationError, match="in both"):
        token_ablation(exam, exam, recipe=QUICK)
