"""A bank is trained from harvests: the right rows and tokens, whole videos, honest figures, the same after a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from usam.errors import HeadError
from usam.fit_bank import fit_bank, pool
from usam.recipes import Recipe
from usam.shard import Shard
from usam.weights import load_bank, save_bank

QUICK = Recipe(lr=3e-3, max_epochs=25, members=2, dropout=0.0, batch_rows=64)
MODELS = {size: {"name": f"{size}_model", "sha256": digit * 64} for size, digit in (("tiny", "a"), ("large", "b"))}
TRACKED_HEADS = ("iou_unsupervised", "task_gap", "iou_tracked")


def test_ours_learns_the_deployed_rows_and_says_so_on_the_card(make_shard: Callable[..., Shard]) -> None:
    shard = make_shard("s", 20)
    bank = fit_bank([shard], recipe=QUICK)
    assert bank.heads == ("iou_tiny", "iou_large", "iou_unsupervised", "model_gap", "task_gap")
    assert len(bank.names) == 10
    assert "task_gap_difference" in bank.differences(bank(torch.zeros(1, 8)))  # it knows that it is of a tiny model
    card = bank.card
    assert (card.model_name, card.model_sha256, card.mask_token_offset) == ("tiny_model", "a" * 64, 1)
    figures = card.heldout["iou_tiny"]
    assert figures["judged"]["pearson"] > 0.9 > figures["judged_sam_score"]["pearson"]
    assert set(card.heldout["model_gap"]) == {"judged"}
    own = (shard.column("size") == "tiny") & shard.column("predicted")
    held_rows = round(own.sum() * 0.2)
    assert card.recipe["rows"] == own.sum() - held_rows
    assert (card.recipe["videos"], figures["judged"]["videos"]) == (16, 4)
    judged = own & shard.column("visible")
    assert figures["judged"]["rows"] == judged.sum() * 0.2
    assert card.recipe["trained_on"] == [
        {"dataset": "toy", "split": "train", "kind": "frames", "rows": 800, "videos": 20}
    ]


def test_the_card_gives_the_figures_that_the_bank_has_on_the_heldout_harvest(make_shard: Callable[..., Shard]) -> None:
    train, held = make_shard("train", 8), make_shard("held", 3, first=100)
    bank = fit_bank([train], heldout=[held], heads=["iou_tiny"], recipe=QUICK)
    rows = (held.column("size") == "tiny") & held.column("predicted") & held.column("visible")
    scores = bank(torch.from_numpy(held.pairs(rows)))["iou_tiny"].numpy()
    expected = np.corrcoef(scores, held.target("iou_tiny")[rows])[0, 1]
    assert bank.card.heldout["iou_tiny"]["judged"]["pearson"] == pytest.approx(expected, abs=1e-3)
    assert bank.card.recipe["videos"] == 8


def test_as_published_means_the_pool_the_best_mask_and_the_token_before_it(make_shard: Callable[..., Shard]) -> None:
    shard = make_shard("s")
    bank = fit_bank([shard], recipe="published:sav", heads=["iou_large", "task_gap"])
    card = bank.card
    assert (bank.names, card.mask_token_offset) == (("iou_large", "task_gap"), 0)
    assert (card.recipe["of"], card.recipe["recipe"], card.recipe["max_epochs"]) == ("best", "published:sav", 9)
    predicted = shard.column("predicted").sum()
    assert card.recipe["rows"] == pytest.approx(predicted * 10 / 12, abs=1)
    rows = pool([shard], as_published=True)
    best = shard.column("best")[shard.column("predicted")]
    tokens = np.asarray(shard.tokens_n5d)[shard.column("predicted")]
    np.testing.assert_array_equal(rows.tokens_n2d[:, 4:], tokens[np.arange(len(best)), best])
    each = {name: replace(QUICK, members=m, max_epochs=1) for m, name in enumerate(["task_gap", "iou_large"], 1)}
    mapped = fit_bank([shard], recipe=each, heads=["task_gap", "iou_large"])
    assert mapped.names == ("iou_large", "iou_large", "task_gap")


def test_propagated_rows_train_the_tracked_head_and_clicked_frames_give_no_figures(
    make_shard: Callable[..., Shard],
) -> None:
    shard = make_shard("s", kind="tracked", models={"tiny": MODELS["tiny"]})
    bank = fit_bank([shard], recipe=replace(QUICK, max_epochs=1))
    assert bank.heads == TRACKED_HEADS
    videos = bank.card.heldout["iou_tracked"]["judged"]["videos"]
    judged = shard.column("predicted") & shard.column("visible") & ~shard.column("prompted")
    assert bank.card.heldout["iou_tracked"]["judged"]["rows"] == judged.sum() / 12 * videos


def test_a_start_is_where_iou_heads_begin(
    make_shard: Callable[..., Shard], make_state: Callable[..., dict[str, torch.Tensor]]
) -> None:
    start = make_state(8)
    recipe = replace(QUICK, max_epochs=0, members=1)
    bank = fit_bank([make_shard("s")], recipe=recipe, heads=["iou_tiny", "task_gap"], start=start)
    iou, gap = bank.states()
    torch.testing.assert_close(iou["layers.0.weight"], start["layers.0.weight"], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(gap["layers.0.weight"], start["layers.0.weight"], atol=0.1)


def test_rows_without_a_target_are_left_out_of_that_head_only(
    make_shard: Callable[..., Shard], caplog: pytest.LogCaptureFixture
) -> None:
    def edit(columns: dict[str, Any]) -> None:
        columns["iou_large"] = [None if i < 10 else value for i, value in enumerate(columns["iou_large"])]

    quick = replace(QUICK, max_epochs=1)
    shard = make_shard("s", edit=edit)
    bank = fit_bank([shard], recipe=quick, heads=["iou_tiny", "iou_large"])
    missing = int((np.isnan(shard.target("iou_large")) & shard.column("predicted")
                   & (shard.column("size") == "tiny")).sum())  # fmt: skip
    assert missing > 0
    assert bank.card.recipe["rows_without_target"] == {"iou_large": missing}
    assert f"iou_large: {missing} of" in caplog.text
    whole = fit_bank([make_shard("whole")], recipe=quick, heads=["iou_tiny"])
    assert all(torch.equal(a[key], b[key]) for a, b in zip(whole.states(), bank.states(), strict=False) for key in a)


def test_a_target_that_is_nan_everywhere_is_refused(make_shard: Callable[..., Shard]) -> None:
    shard = make_shard("s", 4)
    with pytest.raises(HeadError, match="a target of iou_tracked on some row, got NaN on every row"):
        fit_bank([shard], heads=["iou_tracked"])
    with pytest.raises(HeadError, match="a head out of"):
        fit_bank([shard], heads=["iou_huge"])


def test_a_video_on_both_sides_is_refused(make_shard: Callable[..., Shard]) -> None:
    train, held = make_shard("train", 4), make_shard("held", 4, first=3)
    with pytest.raises(HeadError, match=r"1 in both .* for example toy/v3"):
        fit_bank([train], heldout=[held])
    other = make_shard("other", 4, first=3, dataset="toy2")  # only the name is the same
    assert pool([train], heldout=[other]).heldout_n is not None


def test_harvests_that_do_not_belong_together_are_refused(make_shard: Callable[..., Shard]) -> None:
    train = make_shard("train", 3)
    models = {"tiny": {"name": "tiny_model", "sha256": "c" * 64}}
    for other, message in (
        (make_shard("other", 3, first=9, kind="tracked", models=models), "train per model"),
        (make_shard("wide", 3, first=9, d=6), "tokens of width 8, got 12"),
        (make_shard("judged", 3, first=9, deployed="large"), "give the size"),
        (train, "every harvest once"),
    ):
        with pytest.raises(HeadError, match=message):
            fit_bank([train, other])
    with pytest.raises(HeadError, match="a size out of large, tiny"):
        fit_bank([train], size="small")
    with pytest.raises(HeadError, match="at least one harvest"):
        fit_bank([])
    with pytest.raises(HeadError, match="coco, sav, ade20k, davis or mose"):
        fit_bank([train], recipe="imagenet")


def test_harvests_without_a_mask_or_with_one_video_are_refused(make_shard: Callable[..., Shard]) -> None:
    def empty(columns: dict[str, Any]) -> None:
        columns["predicted"] = [False] * len(columns["predicted"])

    with pytest.raises(HeadError, match="rows of the size tiny with a mask, got none"):
        fit_bank([make_shard("empty", 3, edit=empty)])
    with pytest.raises(HeadError, match="at least 2 videos"):
        fit_bank([make_shard("one", 1)])


def test_two_videos_are_enough(make_shard: Callable[..., Shard]) -> None:
    bank = fit_bank([make_shard("two", 2)], recipe=replace(QUICK, max_epochs=2), heads=["iou_tiny"])
    assert bank.card.recipe["videos"] == 1


def test_progress_rises_to_the_number_of_epochs(make_shard: Callable[..., Shard]) -> None:
    told: list[tuple[str, int, int]] = []
    recipe = replace(QUICK, max_epochs=2)
    fit_bank(
        [make_shard("s", 4)],
        recipe=recipe,
        heads=["iou_tiny", "task_gap"],
        progress=lambda name, done, total: told.append((name, done, total)),
    )
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert (told[0], told[-1]) == (("iou_tiny", 1, 8), ("task_gap", 8, 8))


RECIPE = Recipe(lr=3e-3, max_epochs=3, members=2, batch_rows=64)
DIES = """
import sys, time
from pathlib import Path
from usam import train
from usam.fit_bank import fit_bank
from usam.recipes import Recipe
from usam.shard import Shard
real = train._fit_member
train._fit_member = lambda *args: (time.sleep(0.5), real(*args))[1]
fit_bank([Shard.open(Path(sys.argv[1]))], recipe=eval(sys.argv[3]), checkpoint_dir=Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_to_the_same_bytes(make_shard: Callable[..., Shard], tmp_path: Path) -> None:
    shard, work = make_shard("s", 6), tmp_path / "work"
    process = subprocess.Popen([sys.executable, "-c", DIES, str(shard.path), str(work), repr(RECIPE)])
    deadline = time.monotonic() + 300
    while len(list(work.glob("*.pt"))) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    kept = {path.name: path.stat().st_mtime_ns for path in work.glob("*.pt")}
    assert 3 <= len(kept) < 10
    resumed = save_bank(fit_bank([shard], recipe=RECIPE, checkpoint_dir=work), tmp_path / "resumed.safetensors")
    assert all((work / name).stat().st_mtime_ns == when for name, when in kept.items())
    whole = save_bank(fit_bank([shard], recipe=RECIPE), tmp_path / "whole.safetensors")
    for suffix in (".safetensors", ".json"):
        assert resumed.with_suffix(suffix).read_bytes() == whole.with_suffix(suffix).read_bytes()


def test_a_bank_whose_weights_are_not_those_of_its_card_is_refused(
    make_shard: Callable[..., Shard], tmp_path: Path
) -> None:
    shard, quick = make_shard("s", 4), replace(QUICK, max_epochs=1, members=1)
    a = save_bank(fit_bank([shard], recipe=quick, heads=["iou_tiny"]), tmp_path / "a.safetensors")
    b = save_bank(fit_bank([shard], recipe=quick, heads=["iou_large"]), tmp_path / "b.safetensors")
    assert load_bank(a).heads == ("iou_tiny",)
    a.write_bytes(b.read_bytes())
    with pytest.raises(HeadError, match="copy the bank again"):
        load_bank(a)
