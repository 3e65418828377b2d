"""A search finds better settings on videos of its own, and gives the same after it was interrupted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from usam import search
from usam.errors import HeadError
from usam.recipes import Recipe
from usam.search import search_recipes
from usam.shard import Shard

BASE = Recipe(lr=3e-5, max_epochs=4, members=2, dropout=0.0, batch_rows=64)
FOUND = ("lr", "weight_decay", "dropout")


def test_a_search_betters_the_recipe_and_changes_only_what_it_searches(
    make_shard: Callable[..., Shard], tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    found = search_recipes(
        [make_shard("s")],
        6,
        tmp_path / "search.db",
        heads=["iou_tiny"],
        recipe=BASE,
        progress=lambda *step: told.append(step),
    )
    recipe = found["iou_tiny"]
    assert recipe.lr > 3 * BASE.lr  # the recipe's own rate is far too low for four epochs
    assert replace(recipe, **{name: getattr(BASE, name) for name in FOUND}) == BASE
    assert told == [("iou_tiny", done, 6) for done in range(7)]


def test_one_trial_is_the_recipe_itself(make_shard: Callable[..., Shard], tmp_path: Path) -> None:
    found = search_recipes([make_shard("s", 6)], 1, tmp_path / "search.db", heads=["task_gap"], recipe=BASE)
    assert found == {"task_gap": BASE}


def test_interrupted_it_goes_on_to_the_same_settings(
    make_shard: Callable[..., Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard, quick = make_shard("s", 6), replace(BASE, max_epochs=1)
    whole = search_recipes([shard], 13, tmp_path / "whole.db", heads=["iou_tiny"], recipe=quick)
    real, calls = search.fit_head, []

    def dies_in_the_twelfth(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 12:  # past the random trials, so that what is proposed hangs on those before
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(search, "fit_head", dies_in_the_twelfth)
    with pytest.raises(KeyboardInterrupt):
        search_recipes([shard], 13, tmp_path / "killed.db", heads=["iou_tiny"], recipe=quick)
    resumed = search_recipes([shard], 13, tmp_path / "killed.db", heads=["iou_tiny"], recipe=quick)
    assert (len(calls), resumed) == (14, whole)


def test_the_videos_of_the_figures_take_no_part(
    make_shard: Callable[..., Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard, seen = make_shard("s", 10), []
    real = search.fit_head
    monkeypatch.setattr(search, "fit_head", lambda *args, **kwargs: (seen.append(args[3]), real(*args, **kwargs))[1])
    search_recipes([shard], 1, tmp_path / "a.db", heads=["iou_tiny"], recipe=BASE)
    rows = search.pool([shard])
    held = set(rows.video_id_n[search.heldout_rows(rows, BASE)])
    assert len(held) == 2
    assert not held & set(seen[0])
    exam = make_shard("exam", 3, first=50)
    search_recipes([shard], 1, tmp_path / "b.db", heads=["iou_tiny"], recipe=BASE, heldout=[exam])
    assert {str(video) for video in np.unique(seen[1])} == {f"toy/v{i}" for i in range(10)}


def test_the_published_ranges_are_searched_for_a_published_recipe(
    make_shard: Callable[..., Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Recipe] = []

    def diverges(*args: Any, **kwargs: Any) -> Any:
        tried.append(args[4])
        raise search.DivergedError("a training that converges", "infinity", "lower the rate")

    monkeypatch.setattr(search, "fit_head", diverges)
    search_recipes([make_shard("s", 4)], 8, tmp_path / "a.db", heads=["iou_large"], recipe="published:coco")
    assert tried[0].lr == 0.0087131
    for one in tried[1:]:
        assert 1e-4 <= one.lr <= 0.1
        assert 5 <= one.max_epochs <= 80
        assert 16 <= one.batch_rows <= 256
        assert 0.1 <= one.momentum <= 0.9
        assert (one.optimizer, one.weight_decay, one.members) == ("sgd", 1e-3, 1)
    assert len({one.batch_rows for one in tried}) > 4


def test_a_storage_that_is_no_database_is_refused(make_shard: Callable[..., Shard], tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text("no database, but long enough to be looked at as one" * 10)
    with pytest.raises(HeadError, match="delete it or name another"):
        search_recipes([make_shard("s", 4)], 1, tmp_path / "a.db", heads=["iou_tiny"], recipe=BASE)
    with pytest.raises(HeadError, match="at least one trial"):
        search_recipes([make_shard("t", 4)], 0, tmp_path / "b.db")
