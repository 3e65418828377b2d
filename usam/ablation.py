"""Which tokens a head needs: the same heads trained on the IoU token alone, on the mask token alone, and on both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from usam.curves import Replacement
from usam.errors import EvaluationError, ShapeError
from usam.heads import HeadBank, HeadCard
from usam.judge import Exam, quality_head, require_other_videos
from usam.recipes import Recipe
from usam.report import Table, ablation_table
from usam.targets import GAP_HEADS
from usam.train import fit_head

INPUTS = ("IoU token", "mask token", "both")


def token_ablation(
    training: Exam,
    exam: Exam,
    *,
    recipe: Recipe | None = None,
    offset: int = 1,
    checkpoint_dir: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Table:
    """Train heads on parts of their input and rank the exam's masks by them.

    A token that a head may not see is zero, in training and in the exam, so the three differ in nothing else.

    Args:
        training: rows to train on, of the same size and other videos. exam: rows to judge.
        recipe: ours with one MLP per head if None. offset: see `Shard.pairs`.
        checkpoint_dir: finished trainings are kept here.
        progress: told the head, how many trainings are done, and how many there are.
    Returns: per application the two areas of each input: three gaps, and segmentation by the predicted IoU.
    Raises:  EvaluationError for videos on both sides or nothing to train; ShapeError for tokens of another width.
    """
    require_other_videos(exam, training)
    if exam.shard.width != training.shard.width:
        raise ShapeError(f"tokens of width {exam.shard.width}", str(training.shard.width), "harvest the same model")
    there = training.shard.heads()
    heads = {"model": "model_gap", "prompt": "prompt_gap", "task": "task_gap"}
    heads["segmentation"] = quality_head(training, there) or ""
    heads = {app: head for app, head in heads.items() if app in exam.applications and head in there}
    if not heads:
        raise EvaluationError(f"targets in {training.shard.path} for the exam's applications", "none", "harvest them")
    keep_n = exam.judged_n
    learned_from, judged_on = (
        side.shard.pairs(side.rows_n[side.judged_n], offset=offset, of=side.of) for side in (training, exam)
    )
    variants: dict[str, dict[str, NDArray[np.float32]]] = {app: {} for app in heads}
    total, done = len(heads) * len(INPUTS), 0
    for app, head in heads.items():
        for name in INPUTS:
            if progress is not None:
                progress(f"{head}, {name}", done, total)
            learned = _fit(head, _seen(learned_from, name), training, recipe, checkpoint_dir)
            said_n = learned.stacked(torch.from_numpy(_seen(judged_on, name)))[0].numpy()
            variants[app][name] = said_n if head in GAP_HEADS else 1 - said_n
            done += 1
    applications = {
        app: Replacement(pair.base_n[keep_n], pair.better_n[keep_n]) for app, pair in exam.applications.items()
    }
    return ablation_table(applications, variants)


def _fit(
    head: str, tokens_n2d: NDArray[np.float32], training: Exam, recipe: Recipe | None, folder: Path | None
) -> HeadBank:
    rows_n = training.rows_n[training.judged_n]
    target_n = training.shard.target(head)[rows_n]
    known_n = np.isfinite(target_n)
    videos_n = np.asarray(training.truth.video_n)[training.judged_n]
    fitted = fit_head(
        head, tokens_n2d[known_n], target_n[known_n], videos_n[known_n], recipe or Recipe(members=1),
        checkpoint_dir=folder,
    )  # fmt: skip
    return HeadBank([head] * len(fitted.states), fitted.states, HeadCard("", ""))


def _seen(pairs_n2d: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """The input with what is not to be seen set to 0."""
    d = pairs_n2d.shape[1] // 2
    if name == "both":
        return pairs_n2d
    seen: NDArray[np.float32] = np.zeros_like(pairs_n2d)
    part = slice(0, d) if name == "IoU token" else slice(d, None)
    seen[:, part] = pairs_n2d[:, part]
    return seen
