"""Trains the stacker of a bank from the harvest that its heads were trained on, each row seen by heads that had not."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from usam.errors import HeadError
from usam.features import FEATURES
from usam.fit_bank import heldout_rows, pool
from usam.heads import HeadBank
from usam.recipes import Recipe, ours
from usam.shard import Shard
from usam.stacker import Stacker, StackerCard, StackerRecipe, fit_stacker, unseen_outputs
from usam.targets import GAP_HEADS, TRACKED_HEAD, shift_of
from usam.train import agreement, fold_of_rows
from usam.weights import heads_sha256

_LOG = logging.getLogger(__name__)
MIN_MEMBERS = 5
MIN_VIDEOS = 20  # to train on; fewer tell nothing about tracks in general


def can_stack(bank: HeadBank, shards: Sequence[Shard]) -> bool:
    """Whether a stacker can be trained: enough members of `iou_tracked`, and track features in the harvests."""
    tracked = all(shard.plan.kind == "tracked" and all(shard.has(name) for name in FEATURES) for shard in shards)
    return tracked and bank.names.count(TRACKED_HEAD) >= MIN_MEMBERS


def add_stacker(
    bank: HeadBank,
    shards: Sequence[Shard],
    recipe: Recipe | None = None,
    *,
    heldout: Sequence[Shard] = (),
    stacker_recipe: StackerRecipe | None = None,
) -> HeadBank:
    """Train a stacker for a bank and attach it, if it is ahead of the head on the held-out videos.

    Args:
        bank: from `usam.fit_bank.fit_bank` on the same arguments; `iou_tracked` has at least five members, so that for
            every row one of them has not seen its video.
        shards, heldout: tracked harvests, as `fit_bank` was given them.
        recipe: the one that trained `iou_tracked`, ours if None; it says which member was kept from which videos.
        stacker_recipe: ours if None.
    Returns: the bank, with the stacker if it won; the stacker's card has both figures. Without it, and told so, if
             there are fewer than 20 videos to train on.
    Raises:  HeadError for fewer members, other rows than the bank was trained on, or harvests without track features.
    """
    recipe = recipe or ours(TRACKED_HEAD)
    members = [i for i, name in enumerate(bank.names) if name == TRACKED_HEAD]
    if len(members) < MIN_MEMBERS or recipe.members != len(members):
        got = f"{len(members)} of a recipe of {recipe.members}"
        raise HeadError(f"{MIN_MEMBERS} or more members of {TRACKED_HEAD}", got, "train it with Recipe(members=5)")
    rows = pool(shards, heldout=heldout, offset=bank.mask_token_offset)
    features_nf = rows.features_nf
    known_n = np.isfinite(features_nf).all(1) & np.isfinite(rows.targets[TRACKED_HEAD])
    if not known_n.any():
        step = "harvest with --mode tracked"
        raise HeadError("a harvest of propagated frames with track features", "rows without them", step)
    held_n = heldout_rows(rows, recipe)
    train_n = known_n & ~held_n
    videos = len(np.unique(rows.video_id_n[train_n]))
    if videos < MIN_VIDEOS:
        _LOG.warning("no stacker: %d videos to train on, %d are the least", videos, MIN_VIDEOS)
        return bank
    fold_n = fold_of_rows(rows.video_id_n, ~held_n, max(recipe.members, MIN_MEMBERS), recipe.seed)
    outputs_mn = bank.members(torch.from_numpy(rows.tokens_n2d))[members].numpy()
    unseen_mn = np.stack([(fold_n == member) | held_n for member in range(len(members))])
    heads, heads_nh = unseen_outputs([TRACKED_HEAD] * len(members), outputs_mn, unseen_mn)
    target_n = rows.targets[TRACKED_HEAD]
    gaps = [name for name in GAP_HEADS if np.isfinite(rows.targets[name][train_n]).all()]
    targets = {name: rows.targets[name][train_n] for name in (TRACKED_HEAD, *gaps)}
    card = StackerCard(bank.card.model_name, bank.card.model_sha256, heads_sha256(bank), ())
    inputs = (heads_nh[train_n], features_nf[train_n], targets, rows.video_id_n[train_n])
    stacker = fit_stacker(heads, *inputs, card, stacker_recipe)
    judged_n = known_n & held_n & rows.judged_n
    if not judged_n.any():
        raise HeadError("held-out rows to judge the stacker on", "none", "harvest more videos")
    stacked_tj = stacker.stacked(torch.from_numpy(heads_nh[judged_n]), torch.from_numpy(features_nf[judged_n])).numpy()
    truth, of_video = target_n[judged_n], rows.video_id_n[judged_n]
    figures: dict[str, Any] = {
        "stacker": agreement(stacked_tj[0], truth, of_video),
        "head": agreement(heads_nh[judged_n, 0], truth, of_video),
        "sam_score": agreement(rows.sam_score_n[judged_n], truth, of_video),
    }
    for name, said_j in zip(gaps, stacked_tj[1:], strict=True):
        figures[name] = agreement(said_j + shift_of(name), rows.targets[name][judged_n], of_video)
    _LOG.info("stacker: %s", figures)
    if figures["stacker"]["pearson"] > figures["head"]["pearson"]:
        filled = replace(stacker.card, heldout=figures)
        bank.stacker = Stacker(stacker.states(), filled)
    else:
        _LOG.warning("the stacker is not ahead of the head on held-out videos and is left out: %s", figures)
    return bank
