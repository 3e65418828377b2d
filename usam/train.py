"""Trains heads from arrays of tokens, targets and video ids: split by video, seeded, stopped early, resumable."""

from __future__ import annotations

import functools
import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from usam.errors import HeadError, ShapeError
from usam.heads import HeadBank, HeadCard, MlpState
from usam.recipes import Recipe
from usam.targets import shift_of

_LOG = logging.getLogger(__name__)
_MIN_FOLDS = 5
_CHUNK_ROWS = 8192


class DivergedError(HeadError):
    """A training whose weights are no longer finite."""


@dataclass(frozen=True)
class FittedHead:
    """A trained head.

    Attributes:
        name:      the head.
        states:    one per member, in the layout of `HeadBank`, for tokens as captured.
        heldout_n: (n,) bool, the rows of the videos that took no part in training.
        predicted_h: what the head says of each held-out row, as its target is: in [0, 1], gaps shifted.
        figures:   on the held-out rows: rows, videos, pearson, mae, bias.
    """

    name: str
    states: list[dict[str, Tensor]]
    heldout_n: NDArray[np.bool_]
    predicted_h: NDArray[np.float32]
    figures: dict[str, float]


def split_videos(video_id_n: ArrayLike, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Pick whole videos.

    Args:    video_id_n: (n,) names. fraction: share of the videos, at least one, never all. seed: of the choice.
    Returns: (n,) bool, True in the picked videos.
    Raises:  HeadError for fewer than two videos.
    """
    videos, of_row_n = np.unique(np.asarray(video_id_n), return_inverse=True)
    if len(videos) < 2:
        raise HeadError(
            "rows of at least 2 videos", str(len(videos)), "harvest more clips: rows of one video are alike"
        )
    count = min(max(1, round(fraction * len(videos))), len(videos) - 1)
    picked = np.zeros(len(videos), bool)
    picked[np.random.default_rng(seed).permutation(len(videos))[:count]] = True
    return picked[of_row_n]


def fit_head(
    name: str,
    tokens_n2d: ArrayLike,
    target_n: ArrayLike,
    video_id_n: ArrayLike,
    recipe: Recipe | None = None,
    *,
    heldout_n: ArrayLike | None = None,
    start: MlpState | None = None,
    checkpoint_dir: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> FittedHead:
    """Train one head.

    The held-out videos only give the figures. Each member stops on videos of its own out of the others, by the mean
    squared error there, and keeps its best epoch.

    Args:
        name: the head; a gap's target comes shifted by +0.5 (`usam.targets.target_of`).
        tokens_n2d: (n, 2d) float. target_n: (n,) float in [0, 1]. video_id_n: (n,) names.
        recipe: ours if None; `usam.recipes.published` for the paper's.
        heldout_n: (n,) bool, rows of whole videos that take no part; `recipe.heldout_fraction` of them if None.
        start: weights to begin from, for tokens as captured (`usam.warm.score_head_state`); random if None.
        checkpoint_dir: finished members are kept here and not trained again after a crash.
        progress: told how many epochs are over, of `recipe.members * recipe.max_epochs`; an early stop skips some.
    Returns: the head.
    Raises:  ShapeError, HeadError for arrays that do not fit, targets outside [0, 1], too few videos, or a video that
             is held out in part.
    """
    recipe = recipe or Recipe()
    shift_of(name)
    tokens_np, target_np = np.asarray(tokens_n2d, np.float32), np.asarray(target_n, np.float32)
    videos_np = np.asarray(video_id_n)
    _check(tokens_np, target_np, videos_np)
    if heldout_n is None:
        heldout_n = split_videos(videos_np, recipe.heldout_fraction, recipe.seed)
    held_n = np.asarray(heldout_n, bool)
    torn = np.intersect1d(videos_np[held_n], videos_np[~held_n])
    if len(torn) or held_n.all() or not held_n.any():
        got = f"{torn[0]} in both" if len(torn) else "all rows on one side"
        raise HeadError("training and held-out rows of different videos", got, "split by whole videos")
    folds = max(recipe.members, _MIN_FOLDS)
    fold_n = fold_of_rows(videos_np, ~held_n, folds, recipe.seed)
    tokens, target = torch.from_numpy(tokens_np), torch.from_numpy(target_np)
    key = training_key(name, tokens_np, target_np, videos_np, held_n, recipe, start)
    report = progress or (lambda _: None)
    states = []
    for member in range(recipe.members):
        done = checkpoint_dir / f"{name}-{key}-{member}.pt" if checkpoint_dir else None
        if done is not None and done.is_file():
            states.append(torch.load(done, map_location="cpu", weights_only=True))
            report((member + 1) * recipe.max_epochs)
            continue
        stop_n = ~held_n & (fold_n == member) & (recipe.patience is not None)
        train_r, stop_r = (torch.from_numpy(np.flatnonzero(rows)) for rows in (~held_n & ~stop_n, stop_n))
        told = functools.partial(_tell_epoch, report, member * recipe.max_epochs)
        state = _fit_member(tokens, target, train_r, stop_r, recipe, start, recipe.seed * 1000 + member, told)
        if done is not None:
            done.parent.mkdir(parents=True, exist_ok=True)
            part = done.with_suffix(".part")
            torch.save(state, part)
            part.replace(done)
        states.append(state)
        report((member + 1) * recipe.max_epochs)
    bank = HeadBank([name] * len(states), states, HeadCard("", ""))
    chunks = torch.from_numpy(np.flatnonzero(held_n)).split(_CHUNK_ROWS)
    predicted_h = torch.cat([bank.stacked(tokens[rows])[0] for rows in chunks]).numpy() + np.float32(shift_of(name))
    figures = agreement(predicted_h, target_np[held_n], videos_np[held_n])
    _LOG.info("%s: %s", name, figures)
    return FittedHead(name, states, held_n, predicted_h, figures)


def agreement(predicted_n: ArrayLike, truth_n: ArrayLike, video_id_n: ArrayLike) -> dict[str, float]:
    """How a score agrees with the truth: rows, videos, pearson (0 if either is constant), mae, bias (mean excess)."""
    p, t = np.asarray(predicted_n, np.float64), np.asarray(truth_n, np.float64)
    spread = p.std() * t.std()
    pearson = float(((p - p.mean()) * (t - t.mean())).mean() / spread) if spread > 0 else 0.0
    return {
        "rows": len(t),
        "videos": len(np.unique(np.asarray(video_id_n))),
        "pearson": round(pearson, 4),
        "mae": round(float(np.abs(p - t).mean()), 4),
        "bias": round(float((p - t).mean()), 4),
    }


def training_key(
    name: str,
    tokens: NDArray[np.float32],
    target: NDArray[np.float32],
    videos: NDArray[Any],
    heldout: NDArray[np.bool_],
    recipe: Recipe,
    start: MlpState | None,
) -> str:
    """Names a training by what decides its members, whatever their number: 16 hex digits."""
    digest = hashlib.sha256(repr((name, replace(recipe, members=max(recipe.members, _MIN_FOLDS)))).encode())
    for array in (tokens, target, videos.astype(str), heldout):
        digest.update(np.ascontiguousarray(array).tobytes())
    for key in sorted(start or {}):
        digest.update((start or {})[key].numpy().tobytes())
    return digest.hexdigest()[:16]


def _check(tokens: NDArray[np.float32], target: NDArray[np.float32], videos: NDArray[Any]) -> None:
    if tokens.ndim != 2 or target.shape != (len(tokens),) or videos.shape != (len(tokens),):
        raise ShapeError(
            "tokens (n, 2d), target (n,), video_id (n,)",
            f"{tokens.shape}, {target.shape}, {videos.shape}",
            "give one row per scored mask",
        )
    if not np.isfinite(tokens).all() or not np.isfinite(target).all():
        raise HeadError("finite tokens and targets", "a value that is not", "drop those rows and look for their cause")
    if len(target) and (target.min() < 0 or target.max() > 1):
        raise HeadError(
            "targets in [0, 1]", f"{target.min():.3f} to {target.max():.3f}", "shift gaps by usam.targets.target_of"
        )


def fold_of_rows(videos: NDArray[Any], among_n: NDArray[np.bool_], folds: int, seed: int) -> NDArray[np.int64]:
    """A fold number per row, by video; -1 outside of `among_n`, and everywhere if a fold would take the only video."""
    names = np.unique(videos[among_n])
    if len(names) < 2:
        return np.full(len(videos), -1, np.int64)
    order = np.random.default_rng(seed + 1).permutation(len(names))
    fold_of = {name: int(position) % folds for name, position in zip(names, order, strict=True)}
    return np.array([fold_of.get(video, -1) for video in videos], np.int64)


def _tell_epoch(report: Callable[[int], None], before: int, epochs: int) -> None:
    report(before + epochs)


def _fit_member(
    tokens: Tensor,
    target: Tensor,
    train_r: Tensor,
    stop_r: Tensor,
    recipe: Recipe,
    start: MlpState | None,
    seed: int,
    told: Callable[[int], None],
) -> dict[str, Tensor]:
    """One MLP, trained on the rows `train_r`, stopped on `stop_r`; rows are gathered batch by batch, never copied."""
    generator = torch.Generator().manual_seed(seed)
    width = tokens.shape[1]
    mean, deviation = _moments(tokens, train_r) if recipe.standardise else (torch.zeros(width), torch.ones(width))
    layers = _start(width, start, mean, deviation, generator)
    home = [p.clone() for p in layers]
    for p in layers:
        p.requires_grad_(True)
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            layers, recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True
        )
    else:
        optimizer = torch.optim.Adam(layers, recipe.lr, fused=True)

    def picked(rows: Tensor) -> Tensor:
        return tokens.index_select(0, rows).sub_(mean).div_(deviation)

    best, best_epoch, best_layers = math.inf, 0, [p.detach().clone() for p in layers]
    for epoch in range(recipe.max_epochs):
        order = train_r[torch.randperm(len(train_r), generator=generator)]
        for rows in order.split(recipe.batch_rows):
            loss = functional.mse_loss(_run(layers, picked(rows), recipe.dropout, generator), target[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if recipe.optimizer == "adamw":
                with torch.no_grad():
                    for p, p_home in zip(layers, home, strict=True):
                        p.lerp_(p_home, recipe.lr * recipe.weight_decay)
        told(epoch + 1)
        if recipe.patience is None or not len(stop_r):
            best_layers = layers
            continue
        with torch.no_grad():
            chunks = stop_r.split(_CHUNK_ROWS)
            errors = [((_run(layers, picked(rows)) - target[rows]) ** 2).sum() for rows in chunks]
        stop_loss = float(torch.stack(errors).sum()) / len(stop_r)
        if stop_loss < best:
            best, best_epoch, best_layers = stop_loss, epoch, [p.detach().clone() for p in layers]
        elif epoch - best_epoch >= recipe.patience:
            break
    if not all(bool(torch.isfinite(p).all()) for p in (*best_layers, *layers)):
        raise DivergedError("a training that converges", "weights that are not finite", "lower the learning rate")
    return _as_captured([p.detach() for p in best_layers], mean, deviation)


def _moments(tokens: Tensor, rows_r: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of some rows, a chunk at a time."""
    chunks = rows_r.split(_CHUNK_ROWS)
    mean = torch.stack([tokens[rows].double().sum(0) for rows in chunks]).sum(0) / len(rows_r)
    variance = torch.stack([((tokens[rows] - mean) ** 2).sum(0) for rows in chunks]).sum(0) / len(rows_r)
    return mean.float(), variance.sqrt().float().clamp_min(1e-3)


def _run(layers: Sequence[Tensor], x: Tensor, dropout: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
    for i in range(0, 6, 2):
        x = functional.linear(x, layers[i], layers[i + 1])
        if i < 4:
            x = x.relu()
            if dropout > 0:
                x = x * _kept(x.shape, dropout, generator)
    return x[:, 0].sigmoid()


def _kept(shape: torch.Size, dropout: float, generator: torch.Generator | None) -> Tensor:
    """Inverted dropout's factors, its rate rounded to 1/256: one random byte per unit is several times faster."""
    dropped = min(round(dropout * 256), 255)
    words = torch.empty((shape.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    bytes_ = words.view(torch.uint8)[: shape.numel()].view(shape)
    return (bytes_ >= dropped) * (256 / (256 - dropped))


def _start(
    width: int, start: MlpState | None, mean: Tensor, deviation: Tensor, generator: torch.Generator
) -> list[Tensor]:
    """Layers for standardised tokens: the given start carried over, or uniform as `torch.nn.Linear` begins."""
    if start is not None:
        if tuple(start["layers.0.weight"].shape) != (width, width):
            raise ShapeError(
                f"a start of width {width}", str(tuple(start["layers.0.weight"].shape)), "start from the same model"
            )
        layers = [start[f"layers.{i}.{kind}"].clone().float() for i in range(3) for kind in ("weight", "bias")]
        layers[1] = layers[1] + layers[0] @ mean
        layers[0] = layers[0] * deviation
        return layers
    bound = 1 / math.sqrt(width)
    shapes = [(width, width), (width,), (width, width), (width,), (1, width), (1,)]
    return [torch.empty(shape).uniform_(-bound, bound, generator=generator) for shape in shapes]


def _as_captured(layers: Sequence[Tensor], mean: Tensor, deviation: Tensor) -> dict[str, Tensor]:
    """The standardisation folded into the first layer."""
    first = layers[0] / deviation
    folded = [first, layers[1] - first @ mean, *layers[2:]]
    names = [f"layers.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")]
    return {name: tensor.contiguous() for name, tensor in zip(names, folded, strict=True)}
