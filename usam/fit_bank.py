"""Trains all heads of a model from harvests, as one bank whose card says on what, how, and how well."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from usam.errors import HeadError
from usam.features import FEATURES
from usam.heads import HeadBank, HeadCard, MlpState
from usam.recipes import Recipe, ours, published
from usam.shard import Shard
from usam.targets import GAP_HEADS, HEADS, shift_of
from usam.train import agreement, fit_head, split_videos

_LOG = logging.getLogger(__name__)
PUBLISHED = "published:"

Recipes = Recipe | str | Mapping[str, Recipe]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Pool:
    """Rows of several harvests that heads learn from, those whose mask is not empty; n rows.

    Attributes:
        shards:     where they come from, the held-out ones last.
        model:      of the deployed size, its "name" and "sha256". deployed: that size.
        offset, of: which token stands for a mask, see `Shard.pairs`.
        tokens_n2d: (n, 2d) float32, IoU token beside mask token.
        video_id_n: (n,) str, with the data set's name before it, so that equal names of two data sets stay apart.
        targets:    head -> (n,) float32 in [0, 1], gaps shifted, NaN where it was not measured.
        sam_score_n: (n,) float32.
        features_nf: (n, F) float32, `usam.features.FEATURES`; NaN where a harvest has none.
        size_n:     (n,) str, whose tokens.
        judged_n:   (n,) bool, rows that figures are about: deployed size, truth visible, not clicked if propagated.
        heldout_n:  (n,) bool, rows of the held-out harvests; None if none was named.
    """

    shards: tuple[Shard, ...]
    model: Mapping[str, str]
    deployed: str
    offset: int
    of: str
    tokens_n2d: NDArray[np.float32]
    video_id_n: NDArray[Any]
    targets: Mapping[str, NDArray[np.float32]]
    sam_score_n: NDArray[np.float32]
    features_nf: NDArray[np.float32]
    size_n: NDArray[Any]
    judged_n: NDArray[np.bool_]
    heldout_n: NDArray[np.bool_] | None

    def heads(self, wanted: Sequence[str] | None = None) -> list[str]:
        """The heads that can be trained, or those asked for.

        Raises: HeadError for an unknown name, or one whose target was measured nowhere.
        """
        there = [name for name in HEADS if np.isfinite(self.targets[name]).any()]
        for name in wanted or ():
            shift_of(name)
            if name not in there:
                step = f"harvest what it needs, or train {', '.join(there)}"
                raise HeadError(f"a target of {name} on some row", "NaN on every row", step)
        names = [name for name in HEADS if name in wanted] if wanted else there
        if not names:
            raise HeadError("a target of some head", "NaN on every row", "harvest with more models or prompts")
        return names


def pool(
    shards: Sequence[Shard],
    *,
    heldout: Sequence[Shard] = (),
    size: str | None = None,
    offset: int | None = None,
    of: str | None = None,
    as_published: bool = False,
) -> Pool:
    """Put harvests together.

    Args:
        shards: to train on. heldout: for the figures only; no video of theirs may be in `shards`.
        size: the deployed size; the harvests' own if None.
        offset, of: see `Shard.pairs`; if None, 1 and "chosen", or as published 0 and "best".
        as_published: the rows of all sizes instead of the deployed one's, unless a size is given.
    Returns: the rows whose mask is not empty.
    Raises:  HeadError for no harvest, other models or widths, a video on both sides, or no row left.
    """
    everything, every_size = (*shards, *heldout), as_published and size is None
    offset = (0 if as_published else 1) if offset is None else offset
    of = ("best" if as_published else "chosen") if of is None else of
    if not shards:
        raise HeadError("at least one harvest", "none", "name one; `masksieve usam harvest` makes it")
    for given in (shards, heldout):
        if len({shard.path.resolve() for shard in given}) < len(given):
            raise HeadError("every harvest once", "one of them twice", "leave it out")
    deployed = size or shards[0].plan.deployed
    models = {str(shard.path): shard.plan.models.get(deployed) for shard in everything}
    model = models[str(shards[0].path)]
    if model is None:
        sizes = ", ".join(shards[0].plan.models)
        raise HeadError(f"a size out of {sizes} in {shards[0].path}", repr(deployed), "name one of these")
    for shard in everything:
        found = models[str(shard.path)] or {}
        if found.get("sha256") != model["sha256"]:
            got = f"{found.get('name', 'no such size')} {found.get('sha256', '')[:12]} in {shard.path}"
            raise HeadError(f"{deployed} to be {model['name']} {model['sha256'][:12]}", got, "train per model")
        if shard.width != shards[0].width:
            step = "train harvests of different widths apart"
            raise HeadError(f"tokens of width {shards[0].width}", f"{shard.width} in {shard.path}", step)
        if shard.plan.deployed != deployed and size is None:
            got = f"{shard.plan.deployed} in {shard.path}"
            raise HeadError(f"harvests judged for the size {deployed}", got, "give the size")
    _refuse_shared_videos(shards, heldout)
    keep = [shard.column("predicted") & (every_size | (shard.column("size") == deployed)) for shard in everything]
    if not any(rows.any() for rows in keep[: len(shards)]):
        got = f"none in {', '.join(str(shard.path) for shard in shards)}"
        raise HeadError(f"rows of the size {deployed} with a mask", got, "harvest more, or name another size")

    def joined(values: Callable[[Shard], NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate([values(shard)[rows] for shard, rows in zip(everything, keep, strict=True)])

    size_n = joined(lambda shard: shard.column("size"))
    held_n = np.repeat([i >= len(shards) for i in range(len(everything))], [int(rows.sum()) for rows in keep])
    return Pool(
        shards=everything,
        model=model,
        deployed=deployed,
        offset=offset,
        of=of,
        tokens_n2d=np.concatenate([s.pairs(r, offset=offset, of=of) for s, r in zip(everything, keep, strict=True)]),
        video_id_n=joined(_video_keys),
        targets={name: joined(lambda shard, head=name: shard.target(head)) for name in HEADS},  # type: ignore[misc]
        sam_score_n=joined(lambda shard: shard.column("sam_score")),
        features_nf=np.stack([joined(lambda shard, name=name: shard.column(name)) for name in FEATURES], 1),  # type: ignore[misc]
        size_n=size_n,
        judged_n=(size_n == deployed) & joined(_judged),
        heldout_n=held_n if heldout else None,
    )


def fit_bank(
    shards: Sequence[Shard],
    *,
    heads: Sequence[str] | None = None,
    recipe: Recipes | None = None,
    size: str | None = None,
    offset: int | None = None,
    of: str | None = None,
    heldout: Sequence[Shard] = (),
    start: MlpState | None = None,
    seed: int = 0,
    checkpoint_dir: Path | None = None,
    progress: Progress | None = None,
) -> HeadBank:
    """Train the heads of a model.

    Ours: on the rows of the deployed size, with the token of the mask that SAM2 chose. As published (a recipe named
    after a data set, or any with SGD): on the pool of all sizes' rows, with the token before the truly best mask's own.

    Args:
        shards: harvests of the same models. heldout: harvests for the card's figures, of other videos; if none,
            `recipe.heldout_fraction` of the videos is kept for them.
        heads: names; all whose targets are there if None.
        recipe: ours if None; `coco`, `sav`, `ade20k`, `davis` or `mose` for the published settings; or one per head.
        size: the deployed size, as the harvests say if None.
        offset, of: see `Shard.pairs`; by the recipe if None: 1 and "chosen" for ours, 0 and "best" as published.
        start: weights that our IoU heads begin from (`usam.warm.score_head_state`); gaps and published ones never do.
        seed: of our recipe and the published ones; a recipe that is given has its own.
        checkpoint_dir: finished MLPs are kept here, so that a crash loses the one under way; the result is the same.
        progress: told the head under way and how many epochs are over, of how many at most.
    Returns: the bank. Its card has the figures of every head on the judged rows of the deployed size of the held-out
        videos, and of SAM2's own score there for heads that predict IoU.
    Raises:  HeadError for harvests without rows, targets NaN everywhere, a video on both sides, too few videos.
    """
    rows = pool(shards, heldout=heldout, size=size, offset=offset, of=of, as_published=is_published(recipe))
    recipes = recipes_of(recipe, rows.heads(heads), seed)
    as_published, held_n = is_published(recipe), heldout_rows(rows, next(iter(recipes.values())))
    total, done = sum(one.members * one.max_epochs for one in recipes.values()), 0
    names, states, figures, dropped = [], [], {}, {}
    for name, one in recipes.items():
        target_n = rows.targets[name]
        known_n = np.isfinite(target_n)
        if not known_n.all():
            dropped[name] = int((~known_n).sum())
            _LOG.warning("%s: %d of %d rows have no target and are left out", name, dropped[name], len(known_n))
        for side, what in ((known_n & ~held_n, "to train on"), (known_n & held_n, "held out")):
            if not side.any():
                raise HeadError(f"rows {what} with a target of {name}", "NaN on every one", "harvest more videos")
        every = bool(known_n.all())
        fitted = fit_head(
            name,
            rows.tokens_n2d if every else rows.tokens_n2d[known_n],
            target_n[known_n],
            rows.video_id_n[known_n],
            one,
            heldout_n=held_n[known_n],
            start=None if as_published or name in GAP_HEADS else start,
            checkpoint_dir=checkpoint_dir,
            progress=_counted(progress, done, total, name),
        )
        done += one.members * one.max_epochs
        names += [name] * len(fitted.states)
        states += fitted.states
        figures[name] = _figures(rows, name, np.flatnonzero(known_n & held_n), fitted.predicted_h)
    same = len(set(recipes.values())) == 1
    card = HeadCard(
        model_name=rows.model["name"],
        model_sha256=rows.model["sha256"],
        mask_token_offset=rows.offset,
        recipe={
            "recipe": _named(recipe),
            **(asdict(next(iter(recipes.values()))) if same else {"heads": {n: asdict(r) for n, r in recipes.items()}}),
            "start": "random" if as_published or start is None else "score_head for IoU, random for gaps",
            "size": rows.deployed,
            "sizes": sorted(set(rows.size_n[~held_n].tolist())),
            "of": rows.of,
            "rows": int((~held_n).sum()),
            "videos": len(np.unique(rows.video_id_n[~held_n])),
            "rows_without_target": dropped,
            "trained_on": [_origin(shard) for shard in shards],
            "heldout": [_origin(shard) for shard in heldout] or "other videos of the same harvests",
        },
        heldout=figures,
    )  # fmt: skip
    return HeadBank(names, states, card)


def is_published(recipe: Recipes | None) -> bool:
    """Whether a recipe is the paper's: named after a data set, or SGD for every head."""
    if recipe is None or isinstance(recipe, str):
        return recipe is not None
    return all(one.optimizer == "sgd" for one in ([recipe] if isinstance(recipe, Recipe) else recipe.values()))


def recipes_of(recipe: Recipes | None, heads: Sequence[str], seed: int = 0) -> dict[str, Recipe]:
    """A recipe per head, out of one for all, a published set's name, or a mapping; see `fit_bank`.

    Raises: HeadError for an unknown set, or a head that the mapping lacks.
    """
    if isinstance(recipe, str):
        return {name: published(_set_name(recipe), name, seed=seed) for name in heads}
    if recipe is None:
        return {name: ours(name, seed=seed) for name in heads}
    if isinstance(recipe, Recipe):
        return dict.fromkeys(heads, recipe)
    for name in heads:
        if name not in recipe:
            raise HeadError(f"a recipe for {name}", f"for {', '.join(recipe)}", "add it, or name fewer heads")
    return {name: recipe[name] for name in heads}


def heldout_rows(rows: Pool, recipe: Recipe) -> NDArray[np.bool_]:
    """(n,) rows of the videos that no head may learn from: those of the named harvests, or a share of the videos."""
    if rows.heldout_n is not None:
        return rows.heldout_n
    return split_videos(rows.video_id_n, recipe.heldout_fraction, recipe.seed)


def _named(recipe: Recipes | None) -> str:
    if isinstance(recipe, str):
        return f"{PUBLISHED}{_set_name(recipe)}"
    return "ours" if recipe is None else "given settings"


def _set_name(recipe: str) -> str:
    return recipe.removeprefix(PUBLISHED)


def _video_keys(shard: Shard) -> NDArray[Any]:
    return np.array([f"{shard.plan.dataset}/{video}" for video in shard.column("video_id")])


def _judged(shard: Shard) -> NDArray[np.bool_]:
    """Rows that count in figures, of those with a mask."""
    visible_n: NDArray[np.bool_] = shard.column("visible")
    return visible_n & ~shard.column("prompted") if shard.plan.kind == "tracked" else visible_n


def _refuse_shared_videos(shards: Sequence[Shard], heldout: Sequence[Shard]) -> None:
    seen = {key: shard for shard in shards for key in np.unique(_video_keys(shard))}
    for shard in heldout:
        shared = [key for key in np.unique(_video_keys(shard)) if key in seen]
        if shared:
            got = f"{len(shared)} in both {seen[shared[0]].path} and {shard.path}, for example {shared[0]}"
            raise HeadError("held-out videos that training does not see", got, "harvest other videos for one of them")


def _counted(progress: Progress | None, done: int, total: int, name: str) -> Callable[[int], None] | None:
    return None if progress is None else lambda epochs: progress(name, done + epochs, total)


def _figures(rows: Pool, name: str, held: NDArray[np.intp], predicted_h: NDArray[np.float32]) -> dict[str, Any]:
    judged_h = rows.judged_n[held]
    if not judged_h.any():
        return {}
    at = held[judged_h]
    truth, videos = rows.targets[name][at], rows.video_id_n[at]
    figures = {"judged": agreement(predicted_h[judged_h], truth, videos)}
    if name not in GAP_HEADS:
        figures["judged_sam_score"] = agreement(rows.sam_score_n[at], truth, videos)
    return figures


def _origin(shard: Shard) -> dict[str, Any]:
    """A harvest as the card names it; no path of this machine."""
    plan = shard.plan
    videos = len(np.unique(shard.column("video_id")))
    return {"dataset": plan.dataset, "split": plan.split, "kind": plan.kind, "rows": len(shard), "videos": videos}
