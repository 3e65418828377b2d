"""The stacker: learns what the head misses, starts as the head, and belongs to one bank."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from usam.errors import HeadError, ShapeError
from usam.features import FEATURES
from usam.stacker import (
    StackerCard,
    StackerRecipe,
    fit_stacker,
    load_stacker,
    save_stacker,
    unseen_outputs,
)

CARD = StackerCard("model", "m" * 64, "b" * 64, ())
QUICK = StackerRecipe(members=3, hidden=16, max_epochs=30, batch_rows=128)


def rows(n: int = 1200, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A head that knows half of the truth; `min_temporal_iou` knows the other half."""
    rng = np.random.default_rng(seed)
    a, b = rng.random(n), rng.random(n)
    features = rng.random((n, len(FEATURES)))
    features[:, FEATURES.index("min_temporal_iou")] = b
    return (0.25 + a / 2)[:, None], features, (a + b) / 2, np.repeat(np.arange(n // 20), 20).astype(str)


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def test_it_learns_what_the_head_misses() -> None:
    heads, features, target, videos = rows()
    stacker = fit_stacker(["iou_tracked"], heads, features, {"iou_tracked": target}, videos, CARD, QUICK)
    heads, features, target, _ = rows(seed=1)
    got = stacker(torch.from_numpy(heads), torch.from_numpy(features)).numpy()
    assert 0 <= got.min() <= got.max() <= 1
    assert pearson(got, target) > 0.95 > 0.8 > pearson(heads[:, 0], target)


def test_features_of_noise_do_not_harm_the_head() -> None:
    heads, features, target, videos = rows()
    features[:, FEATURES.index("min_temporal_iou")] = np.random.default_rng(5).random(len(target))
    stacker = fit_stacker(["iou_tracked"], heads, features, {"iou_tracked": target}, videos, CARD, QUICK)
    heads, _, target, _ = rows(seed=1)
    noise = np.random.default_rng(6).random(features.shape)
    got = stacker(torch.from_numpy(heads), torch.from_numpy(noise)).numpy()
    assert pearson(got, target) > pearson(heads[:, 0], target) - 0.03


def test_the_same_seed_gives_the_same_stacker_and_the_file_gives_it_back(tmp_path: Path) -> None:
    heads, features, target, videos = rows()
    first, second = (
        fit_stacker(["iou_tracked"], heads, features, {"iou_tracked": target}, videos, CARD, QUICK) for _ in range(2)
    )
    x = torch.from_numpy(heads), torch.from_numpy(features)
    assert torch.equal(first(*x), second(*x))
    save_stacker(first, tmp_path / "a.safetensors")
    save_stacker(second, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert torch.equal(load_stacker(tmp_path / "a.safetensors", heads_sha256="b" * 64)(*x), first(*x))


def test_a_stacker_of_other_heads_is_refused(tmp_path: Path) -> None:
    heads, features, target, videos = rows(200)
    stacker = fit_stacker(["iou_tracked"], heads, features, {"iou_tracked": target}, videos, CARD, QUICK)
    path = save_stacker(stacker, tmp_path / "s.safetensors")
    with pytest.raises(HeadError, match="cccccccccccc"):
        load_stacker(path, heads_sha256="c" * 64)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(HeadError, match="copy its two files again"):
        load_stacker(path)


@pytest.mark.parametrize("broken", ["nan", "shape", "one video"])
def test_rows_that_do_not_fit_are_refused(broken: str) -> None:
    heads, features, target, videos = rows(200)
    if broken == "nan":
        target[3] = np.nan
    elif broken == "shape":
        features = features[:, 1:]
    else:
        videos[:] = "v"
    with pytest.raises((HeadError, ShapeError)):
        fit_stacker(["iou_tracked"], heads, features, {"iou_tracked": target}, videos, CARD, QUICK)


def test_few_videos_are_enough() -> None:
    heads, features, target, _ = rows(40)
    videos = np.repeat(["a", "b"], 20)
    stacker = fit_stacker(
        ["iou_tracked"], heads, features, {"iou_tracked": target}, videos, CARD, StackerRecipe(max_epochs=2)
    )
    assert np.isfinite(stacker(torch.from_numpy(heads), torch.from_numpy(features)).numpy()).all()


def test_outputs_of_members_that_saw_a_row_do_not_count() -> None:
    outputs = np.array([[0.1, 0.9], [0.3, 0.5], [0.7, 0.6]])
    unseen = np.array([[True, False], [False, True], [True, True]])
    heads, values = unseen_outputs(["iou_tracked", "iou_tracked", "task_gap"], outputs, unseen)
    assert heads == ["iou_tracked", "task_gap"]
    assert np.allclose(values, [[0.1, 0.2], [0.5, 0.1]])
    with pytest.raises(HeadError, match="has not seen"):
        unseen_outputs(["iou_tracked"], outputs[:1], unseen[:1])


def test_gaps_come_beside_the_score_and_shifted_back() -> None:
    heads, features, target, videos = rows()
    gap = features[:, FEATURES.index("area_share")] / 2  # in [0, .5]
    targets = {"task_gap": gap + 0.5, "iou_tracked": target}
    stacker = fit_stacker(["iou_tracked"], heads, features, targets, videos, CARD, QUICK)
    assert stacker.card.targets == ("iou_tracked", "task_gap")
    heads, features, target, _ = rows(seed=1)
    x = torch.from_numpy(heads), torch.from_numpy(features)
    both = stacker.stacked(*x).numpy()
    assert np.array_equal(both[0], stacker(*x).numpy())
    assert pearson(both[0], target) > 0.9
    assert pearson(both[1], features[:, FEATURES.index("area_share")]) > 0.9
    assert abs(both[1].mean() - 0.25) < 0.05
