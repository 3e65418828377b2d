"""Adding a stacker to a bank: it must win on held-out videos, and only heads that had not seen a row speak of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from usam import stack
from usam.errors import HeadError
from usam.features import FEATURES
from usam.fit_bank import fit_bank
from usam.recipes import Recipe
from usam.shard import Plan, Shard, ShardWriter
from usam.stack import add_stacker
from usam.stacker import Stacker, StackerRecipe
from usam.weights import bank_sha256, heads_sha256, load_bank, save_bank

WIDTH = 8
RECIPE = Recipe(members=5, max_epochs=6, patience=2)
QUICK = StackerRecipe(members=5, hidden=16, max_epochs=25)


def shard(path: Path, informative: bool = True, videos: int = 40, rows: int = 24, kind: str = "tracked") -> Shard:
    """Tokens know half of each row's IoU; `min_temporal_iou` knows the other half, or nothing."""
    rng = np.random.default_rng(3)
    writer = ShardWriter(path, Plan(kind, {"tiny": {"name": "m", "sha256": "a" * 64}}, "tiny", "d", "s", {}))
    names = [f"v{video:02d}" for video in range(videos)]
    for name in names:
        tokens = rng.normal(0, 1, (rows, 5, WIDTH))
        own, track = 1 / (1 + np.exp(-2 * tokens[:, 0, 0])), rng.random(rows)
        iou = (own + track) / 2
        features = {feature: list(rng.random(rows)) for feature in FEATURES if feature != "sam_score"}
        if informative:
            features["min_temporal_iou"] = list(track)
        flags = {"prompted": [False] * rows, "visible": [True] * rows, "predicted": [True] * rows}
        columns = {
            "frame_index": list(range(rows)), "object_id": [1] * rows, "size": ["tiny"] * rows, **flags,
            "chosen": [1] * rows, "best": [1] * rows, "sam_score": [0.5] * rows, "iou_chosen": list(iou),
            "iou_tracked": list(iou), **(features if kind == "tracked" else {}),
        }  # fmt: skip
        writer.add(name, columns, tokens)
    return writer.finish(names)


def test_a_stacker_that_wins_is_attached_and_travels_with_the_bank(tmp_path: Path) -> None:
    rows = shard(tmp_path / "s")
    bank = fit_bank([rows], recipe=RECIPE)
    alone = bank_sha256(bank)
    add_stacker(bank, [rows], RECIPE, stacker_recipe=QUICK)
    assert bank.stacker is not None
    figures = bank.stacker.card.heldout
    assert figures["stacker"]["pearson"] > figures["head"]["pearson"] + 0.1
    assert bank_sha256(bank) != alone == heads_sha256(bank)
    again = load_bank(save_bank(bank, tmp_path / "b.safetensors"))
    assert again.stacker is not None
    x = torch.rand(4, 1), torch.rand(4, len(FEATURES))
    assert torch.equal(again.stacker(*x), bank.stacker(*x))


def test_a_new_bank_in_the_same_place_does_not_inherit_a_stacker(tmp_path: Path) -> None:
    rows = shard(tmp_path / "s")
    bank = add_stacker(fit_bank([rows], recipe=RECIPE), [rows], RECIPE, stacker_recipe=QUICK)
    save_bank(bank, tmp_path / "b.safetensors")
    save_bank(fit_bank([rows], recipe=Recipe(members=1, max_epochs=2, seed=9)), tmp_path / "b.safetensors")
    assert load_bank(tmp_path / "b.safetensors").stacker is None


def test_a_stacker_that_is_not_ahead_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = stack.fit_stacker

    def spoilt(*args: Any) -> Stacker:
        made = real(*args)
        return Stacker({k: -20 * v if k == "weight.2" else v for k, v in made.states().items()}, made.card)

    monkeypatch.setattr(stack, "fit_stacker", spoilt)
    rows = shard(tmp_path / "s")
    assert add_stacker(fit_bank([rows], recipe=RECIPE), [rows], RECIPE, stacker_recipe=QUICK).stacker is None


def test_few_members_have_all_seen_some_row(tmp_path: Path) -> None:
    rows = shard(tmp_path / "s", videos=6)
    recipe = Recipe(members=2, max_epochs=2)
    with pytest.raises(HeadError, match="5 or more members"):
        add_stacker(fit_bank([rows], recipe=recipe), [rows], recipe)


def test_single_images_have_no_track(tmp_path: Path) -> None:
    rows = shard(tmp_path / "s", videos=6, kind="frames")
    with pytest.raises(HeadError, match="track features"):
        add_stacker(fit_bank([rows], recipe=RECIPE), [rows], RECIPE)
