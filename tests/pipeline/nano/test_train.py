"""Training of the embedded model: it learns, it resumes where it was killed, and its optimiser does what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.models import build_model
from pipeline.nano.batches import Sampler, sample_boxes, sample_clicks
from pipeline.nano.export import averaged_weights, write_weights
from pipeline.nano.objective import batch_loss
from pipeline.nano.optimizer import is_matrix, orthogonalize
from pipeline.nano.pool import open_shard, render_shard
from pipeline.nano.train import Recipe, Trainer, schedule

RECIPE = Recipe(shards=1, shard_clips=6, clip_frames=12, images=3, clips=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nano")
    render_shard(folder / "pool", 0, clips=6, frames=12, size=128)
    return folder


def test_orthogonalize_flattens_the_singular_values() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(40, 24) @ torch.randn(24, 24)))
    assert 0.3 < float(values.min()) <= float(values.max()) < 1.3


def test_embeddings_and_biases_are_not_orthogonalised() -> None:
    names = {name for name, p in build_model("sam2_nano").named_parameters() if is_matrix(name, p)}
    assert "memory_attention.layers.0.linear1.weight" in names
    for name in names:
        assert not name.endswith("bias")
        assert "point_embeddings" not in name
        assert not name.endswith("_token.weight")
        assert "pos_embed" not in name


def test_prompts_lie_on_their_target(folder: Path) -> None:
    shard = open_shard(folder / "pool", 0)
    assert shard is not None
    batch = Sampler([shard], np.random.default_rng(0), 128).images(3, 3, 60)
    truth = batch.truth_nthw[:, 0]
    clicks = sample_clicks(truth)[:, 0]
    assert bool((clicks == clicks.round()).all())  # SAM2's prompt encoder moves them to the pixel's centre itself
    x, y = clicks.long().unbind(1)
    assert bool(truth[torch.arange(len(truth)), y, x].all())
    (x0, y0), (x1, y1) = sample_boxes(truth, 0.0).unbind(1)[0].T, sample_boxes(truth, 0.0).unbind(1)[1].T
    for i, mask in enumerate(truth):
        ys, xs = mask.nonzero(as_tuple=True)
        assert (float(x0[i]), float(y0[i])) == (float(xs.min()), float(ys.min()))
        assert (float(x1[i]), float(y1[i])) == (float(xs.max()) + 1, float(ys.max()) + 1)


def test_the_schedule_warms_up_holds_and_falls() -> None:
    rates = [schedule(RECIPE, progress, 1000) for progress in (0.0, 0.4, 0.7, 1.0)]
    assert schedule(RECIPE, 0.0, 0) < rates[0] == rates[1] == RECIPE.lr > rates[2] > rates[3] > 0


@pytest.mark.slow
def test_the_loss_falls_on_images_and_on_videos(folder: Path) -> None:
    trainer = Trainer(replace(RECIPE, warmup_steps=5), folder / "none", 0, 1)
    trainer.folder = folder
    trainer.refresh_pool()
    batches = [trainer.sampler.images(3, 2, 150), trainer.sampler.videos(2, 2, 3, 100, 0.5)]

    def losses() -> list[float]:
        torch.manual_seed(1)
        with torch.no_grad():
            return [float(batch_loss(trainer.model, trainer.dense, b, np.random.default_rng(1))) for b in batches]

    before = losses()
    for _ in range(30):
        trainer.train_step(0.5)
    after = losses()
    assert after[0] < 0.9 * before[0]
    assert after[1] < 0.9 * before[1]


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_checkpoint(folder: Path, tmp_path: Path) -> None:
    def fresh() -> Trainer:
        trainer = Trainer(RECIPE, tmp_path, 0, 1)
        trainer.folder = folder
        trainer.refresh_pool()
        trainer.folder = tmp_path
        return trainer

    first = fresh()
    for _ in range(2):
        first.train_step(0.0)
    first.save()
    one = fresh()
    one.train_step(0.0)
    two = fresh()
    two.train_step(0.0)
    assert one.step == two.step == 3
    same = zip(one.params.values(), two.params.values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    assert any(not torch.equal(a, b) for a, b in zip(one.params.values(), first.params.values(), strict=True))
    state, facts = averaged_weights(tmp_path / "checkpoint.pt")
    assert facts["step"] == 2
    for name in ("a", "b"):
        write_weights(state, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert (tmp_path / "a.safetensors").stat().st_size <= 12e6


def test_a_half_rendered_shard_is_not_there(tmp_path: Path) -> None:
    np.save(tmp_path / "shard-0000.frames.npy", np.zeros(3, np.uint8))
    assert open_shard(tmp_path, 0) is None
