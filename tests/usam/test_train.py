"""Training learns from tokens, keeps videos whole, repeats itself, resumes, and starts where it is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from usam import train
from usam.errors import HeadError, ShapeError
from usam.recipes import Recipe, published
from usam.train import agreement, fit_head, split_videos
from usam.warm import score_head_state

QUICK = Recipe(lr=3e-3, max_epochs=30, members=2, dropout=0.0, batch_rows=64)


def test_a_split_never_cuts_a_video() -> None:
    videos = np.repeat([f"v{i}" for i in range(10)], 7)
    picked = split_videos(videos, 0.3, seed=1)
    assert picked.sum() == 21
    assert not set(videos[picked]) & set(videos[~picked])
    assert not np.array_equal(picked, split_videos(videos, 0.3, seed=2))


def test_a_head_learns_what_the_score_does_not_know(make_rows: Callable[..., Any]) -> None:
    rows = make_rows()
    fitted = fit_head("iou_tracked", rows.tokens_n2d, rows.iou_n, rows.video_id_n, QUICK)
    held = fitted.heldout_n
    score = agreement(rows.sam_score_n[held], rows.iou_n[held], rows.video_id_n[held])
    assert fitted.figures["pearson"] > max(0.9, score["pearson"] + 0.1)
    assert fitted.figures["videos"] == 6


def test_the_published_recipe_learns_too(make_rows: Callable[..., Any]) -> None:
    rows = make_rows()
    fitted = fit_head("iou_tiny", rows.tokens_n2d, rows.iou_n, rows.video_id_n, published("davis", "iou_tiny"))
    assert len(fitted.states) == 1
    assert fitted.figures["pearson"] > 0.6


def test_the_same_seed_gives_the_same_head(make_rows: Callable[..., Any]) -> None:
    rows, quick = make_rows(6), replace(QUICK, max_epochs=2)
    first, second, other = (
        fit_head("iou_tracked", rows.tokens_n2d, rows.iou_n, rows.video_id_n, replace(quick, seed=seed)).states[0]
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])


def test_finished_members_are_not_trained_again(
    make_rows: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, quick = make_rows(6), replace(QUICK, max_epochs=2, members=3)
    arrays = (rows.tokens_n2d, rows.iou_n, rows.video_id_n)
    whole = fit_head("iou_tracked", *arrays, quick)
    real, calls = train._fit_member, []

    def dies_in_the_third(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(train, "_fit_member", dies_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        fit_head("iou_tracked", *arrays, quick, checkpoint_dir=tmp_path)
    resumed = fit_head("iou_tracked", *arrays, quick, checkpoint_dir=tmp_path)
    assert len(calls) == 4
    for a, b in zip(whole.states, resumed.states, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_early_stop_keeps_the_best_epoch(make_rows: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows(12)
    noise = np.random.default_rng(0).random(len(rows.iou_n)).astype(np.float32)
    epochs: list[int] = []
    real = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *a, **k: epochs.append(1) or real(*a, **k))
    recipe = replace(QUICK, members=1, max_epochs=200, patience=3)
    fit_head("iou_tracked", rows.tokens_n2d, noise, rows.video_id_n, recipe)
    assert len(epochs) < 60


def test_a_start_is_the_head_before_any_step(
    make_rows: Callable[..., Any], make_state: Callable[..., dict[str, torch.Tensor]]
) -> None:
    rows, start = make_rows(6), make_state()
    recipe = replace(QUICK, max_epochs=0, members=1)
    state = fit_head("iou_tracked", rows.tokens_n2d, rows.iou_n, rows.video_id_n, recipe, start=start).states[0]
    for key in start:
        torch.testing.assert_close(state[key], start[key], rtol=1e-4, atol=1e-4)


def test_decay_pulls_towards_the_start(
    make_rows: Callable[..., Any], make_state: Callable[..., dict[str, torch.Tensor]]
) -> None:
    rows, start = make_rows(6), make_state()
    far = []
    for decay in (0.0, 100.0):
        recipe = replace(QUICK, max_epochs=5, members=1, weight_decay=decay, patience=None)
        state = fit_head("iou_tracked", rows.tokens_n2d, rows.iou_n, rows.video_id_n, recipe, start=start).states[0]
        far.append(float((state["layers.1.weight"] - start["layers.1.weight"]).norm()))
    assert far[1] < 0.8 * far[0]


def test_rows_of_one_video_are_refused(make_rows: Callable[..., Any]) -> None:
    rows = make_rows(1)
    with pytest.raises(HeadError, match="at least 2 videos"):
        fit_head("iou_tracked", rows.tokens_n2d, rows.iou_n, rows.video_id_n, QUICK)


def test_targets_outside_the_unit_interval_are_refused(make_rows: Callable[..., Any]) -> None:
    rows = make_rows(3)
    with pytest.raises(HeadError, match="shift gaps"):
        fit_head("model_gap", rows.tokens_n2d, rows.iou_n - 0.5, rows.video_id_n, QUICK)
    with pytest.raises(ShapeError, match="one row per scored mask"):
        fit_head("model_gap", rows.tokens_n2d, rows.iou_n[:-1], rows.video_id_n, QUICK)


def test_published_settings_are_the_published_ones() -> None:
    assert published("davis", "model_gap").lr == 0.0039679
    assert published("mose", "iou_large") == published("davis", "iou_large")
    assert published("ade20k", "prompt_gap").max_epochs == 70
    assert published("ade20k", "iou_large").batch_rows == 106
    with pytest.raises(HeadError, match="ade20k"):
        published("kitti", "iou_large")


def test_a_warm_start_scores_as_sam2_does() -> None:
    decoder = torch.nn.Module()
    head = torch.nn.Module()
    head.layers = torch.nn.ModuleList([torch.nn.Linear(16, 24), torch.nn.Linear(24, 24), torch.nn.Linear(24, 4)])
    decoder.iou_prediction_head = head
    model = torch.nn.Module()
    model.sam_mask_decoder = decoder
    state = score_head_state(model)
    tokens = torch.randn(5, 32)
    x = tokens[:, :16]
    for layer in head.layers[:2]:
        x = torch.relu(layer(x))
    mean = head.layers[2](x)[:, 1:].mean(1)
    y = tokens
    for i in range(2):
        y = torch.relu(y @ state[f"layers.{i}.weight"].T + state[f"layers.{i}.bias"])
    torch.testing.assert_close((y @ state["layers.2.weight"].T + state["layers.2.bias"])[:, 0], mean)
