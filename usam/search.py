"""Searches a head's training settings with Optuna: seeded, on videos of the training harvests alone, resumable."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from usam.errors import HeadError
from usam.fit_bank import Recipes, heldout_rows, is_published, pool, recipes_of
from usam.heads import MlpState
from usam.recipes import Recipe
from usam.shard import Shard
from usam.targets import GAP_HEADS
from usam.train import DivergedError, fit_head, training_key

if TYPE_CHECKING:
    from optuna import Study, Trial

_LOG = logging.getLogger(__name__)
_DIVERGED = 1.0  # the worst mean squared error of targets in [0, 1]


def search_recipes(
    shards: Sequence[Shard],
    trials: int,
    storage: Path,
    *,
    heads: Sequence[str] | None = None,
    recipe: Recipes | None = None,
    size: str | None = None,
    offset: int | None = None,
    of: str | None = None,
    heldout: Sequence[Shard] = (),
    start: MlpState | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Recipe]:
    """Find settings per head, to give to `fit_bank` with the same harvests.

    Every trial trains one MLP. Its objective is the mean squared error on videos that it did not train on, out of those
    that `fit_bank` trains on: the videos of the card's figures and the `heldout` harvests take no part. The first trial
    is the recipe itself, so the search never ends worse than it on its own objective.

    Args:
        shards, heads, recipe, size, offset, of, heldout, start, seed: as in `fit_bank`. A published recipe is searched
            over the published ranges; ours over learning rate, weight decay and dropout.
        trials: per head, those of earlier runs included.
        storage: an SQLite file that keeps every trial; a search that was killed goes on from there to the same result.
        progress: told the head under way and how many trials are over, of how many.
    Returns: head -> the recipe with the settings found.
    Raises:  HeadError without Optuna, for no trials, a storage that is none, and as `fit_bank`.
    Source:  ranges: the public code of Kaiser et al., ICML 2025.
    """
    try:
        import optuna
    except ImportError as error:
        raise HeadError("optuna for a search", "not installed", "pip install 'masksieve[search]'") from error
    if trials < 1:
        raise HeadError("at least one trial", str(trials), "give more")
    as_published = is_published(recipe)
    rows = pool(shards, heldout=heldout, size=size, offset=offset, of=of, as_published=as_published)
    recipes = recipes_of(recipe, rows.heads(heads), seed)
    free_n = ~heldout_rows(rows, next(iter(recipes.values())))
    found = {}
    for number, (name, base) in enumerate(recipes.items()):
        known_n = free_n & np.isfinite(rows.targets[name])
        if not known_n.any():
            raise HeadError(f"rows to train on with a target of {name}", "NaN on every one", "harvest more videos")
        arrays = rows.tokens_n2d[known_n], rows.targets[name][known_n], rows.video_id_n[known_n]
        begin = None if as_published or name in GAP_HEADS else start
        key = training_key(name, *arrays, np.zeros(0, bool), base, begin)
        study = _study(f"{name}-{key}-{seed}", storage, optuna)
        for over in range(_completed(study, optuna), trials):
            if progress is not None:
                progress(name, number * trials + over, len(recipes) * trials)
            # A sampler per trial: what it proposes depends on the trials before it, not on which run made them.
            study.sampler = optuna.samplers.TPESampler(seed=seed * 100_003 + over)
            trial = study.ask()
            settings = _settings(base, as_published) if over == 0 else _proposed(trial, as_published)
            if over == 0:
                trial.set_user_attr("settings", settings)
            study.tell(trial, _error(name, arrays, replace(base, members=1, **settings), begin))
        best = study.best_trial
        found[name] = replace(base, **best.user_attrs.get("settings", best.params))
        _LOG.info("%s: %s gives %.5f after %d trials", name, best.params, best.value, trials)
        if progress is not None:
            progress(name, (number + 1) * trials, len(recipes) * trials)
    return found


def _error(name: str, arrays: tuple[NDArray[Any], ...], recipe: Recipe, start: MlpState | None) -> float:
    """The mean squared error of one MLP on videos that it did not see; the worst there is if it diverges."""
    tokens_n2d, target_n, video_id_n = arrays
    try:
        fitted = fit_head(name, tokens_n2d, target_n, video_id_n, recipe, start=start)
    except DivergedError:
        return _DIVERGED
    return float(np.mean((fitted.predicted_h - target_n[fitted.heldout_n]) ** 2))


def _proposed(trial: Trial, as_published: bool) -> dict[str, Any]:
    if as_published:
        return {
            "lr": trial.suggest_float("lr", 1e-4, 0.1, log=True),
            "max_epochs": trial.suggest_int("max_epochs", 5, 80),
            "batch_rows": trial.suggest_int("batch_rows", 16, 256),
            "momentum": trial.suggest_float("momentum", 0.1, 0.9),
        }
    return {
        "lr": trial.suggest_float("lr", 3e-5, 3e-3, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-3, 10.0, log=True),
        "dropout": trial.suggest_float("dropout", 0.0, 0.5),
    }


def _settings(base: Recipe, as_published: bool) -> dict[str, Any]:
    names = ("lr", "max_epochs", "batch_rows", "momentum") if as_published else ("lr", "weight_decay", "dropout")
    return {name: getattr(base, name) for name in names}


def _study(name: str, storage: Path, optuna: Any) -> Study:
    """The study of that name; trials that a killed run left open are closed, and count for nothing."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage.parent.mkdir(parents=True, exist_ok=True)
    try:
        study = optuna.create_study(study_name=name, storage=f"sqlite:///{storage.resolve()}", load_if_exists=True)
    except Exception as error:  # SQLAlchemy has its own kinds for each way in which a file is no database
        raise HeadError(f"a search in {storage}", type(error).__name__, "delete it or name another") from error
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    opened: Study = study
    return opened


def _completed(study: Study, optuna: Any) -> int:
    return len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)))
