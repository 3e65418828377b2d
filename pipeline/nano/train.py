"""Trains an embedded model on rendered clips: `python -m pipeline.nano.train`; stops and resumes at any moment."""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from pipeline.models import build_model
from pipeline.nano.batches import Batch, Sampler
from pipeline.nano.losses import DenseHeads, initialise
from pipeline.nano.objective import batch_loss
from pipeline.nano.optimizer import Muon, is_matrix
from pipeline.nano.pool import open_shard, render_shard

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, besides the hardware's speed.

    Args:
        minutes: training time; the schedule is laid over it, so a resumed run with more minutes trains on.
        seed: of initialisation, batches and prompts.
        shards, shard_clips, clip_frames: size of the clip pool.
        images, clips: batch sizes per process.
        lr: peak learning rate of Muon and AdamW alike.
        image_share: share of the time spent on single images before videos join.
        start: weights to begin from instead of random ones: a .safetensors file, for example the shipped one, or the
            checkpoint.pt of another run, also of a model whose layers have the same shapes at another image size.
    """

    config: str = "sam2_nano"
    minutes: float = 62.0
    seed: int = 7
    shards: int = 16
    shard_clips: int = 250
    clip_frames: int = 24
    images: int = 20
    clips: int = 6
    targets: int = 3
    lr: float = 1.2e-3
    weight_decay: float = 0.03
    ema: float = 0.998
    image_share: float = 0.3
    warmup_steps: int = 60
    start: str | None = None


def schedule(recipe: Recipe, progress: float, step: int) -> float:
    """Learning rate: warm-up in steps, flat, then a linear fall over the last 60% of the time."""
    fall = min(1.0, (1.0 - progress) / 0.6)
    return recipe.lr * min(1.0, (step + 1) / recipe.warmup_steps) * max(fall, 0.01)


class Trainer:
    """One process of a run: model, optimisers, average, clip pool, checkpoint."""

    def __init__(self, recipe: Recipe, folder: Path, rank: int, world: int) -> None:
        self.recipe, self.folder, self.rank, self.world = recipe, folder, rank, world
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(recipe.seed)
        self.model = build_model(recipe.config)
        self.dense = DenseHeads(self.model.hidden_dim)
        if recipe.start and recipe.start.endswith(".pt"):  # another run's checkpoint, of this size or another
            begun = torch.load(recipe.start, map_location="cpu", weights_only=True)
            self.model.load_state_dict(begun["average"])
            self.dense.load_state_dict(begun["dense"])
        elif recipe.start:
            self.model.load_state_dict(load_file(recipe.start))
        else:
            initialise(self.model)
        self.model.requires_grad_(True).to(self.device).train()
        self.dense.to(self.device)
        self.params = {
            **dict(self.model.named_parameters()),
            **{f"dense.{k}": v for k, v in self.dense.named_parameters()},
        }
        matrices = [p for k, p in self.params.items() if is_matrix(k, p) and not k.startswith("dense.")]
        chosen = {id(p) for p in matrices}
        rest = [p for p in self.params.values() if id(p) not in chosen]
        self.muon = Muon(matrices, recipe.lr, weight_decay=recipe.weight_decay, rank=rank, world=world)
        self.adam = torch.optim.AdamW(rest, lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01)
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.step, self.seconds = 0, 0.0
        self.shards: list[Any] = []
        path = folder / "checkpoint.pt"
        if path.exists():
            saved = torch.load(path, map_location=self.device, weights_only=True)
            self.model.load_state_dict(saved["model"])
            self.dense.load_state_dict(saved["dense"])
            self.muon.load_state_dict(saved["muon"])
            self.adam.load_state_dict(saved["adam"])
            self.average = saved["average"]
            self.step, self.seconds = saved["step"], saved["seconds"]
            log.info("resumed at step %d after %.1f min", self.step, self.seconds / 60)
        seed = recipe.seed * 1000 + rank + 17 * self.step
        torch.manual_seed(seed)
        self.rng = np.random.default_rng(seed)

    def refresh_pool(self) -> None:
        """Open the shards that have been rendered since the last look."""
        while len(self.shards) < self.recipe.shards:
            shard = open_shard(self.folder / "pool", len(self.shards))
            if shard is None:
                break
            self.shards.append(shard)
        self.sampler = Sampler(self.shards, self.rng, self.model.image_size)

    def sync_gradients(self) -> None:
        """Average gradients over processes; a parameter unused in this step counts as zero."""
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.params.values()]
        if self.world > 1:
            flat = torch.cat([g.reshape(-1) for g in grads])
            dist.all_reduce(flat)
            flat /= self.world
            grads = [
                g.view_as(p)
                for g, p in zip(
                    flat.split([p.numel() for p in self.params.values()]), self.params.values(), strict=True
                )
            ]
        for p, g in zip(self.params.values(), grads, strict=True):
            p.grad = g
        nn.utils.clip_grad_norm_(list(self.params.values()), 1.0)

    def next_batch(self, progress: float, coin: np.random.Generator) -> Batch:
        """An image or video batch; the coin is shared by all processes so that their steps take equally long."""
        least = 150 if progress < 0.15 else 60
        if progress < self.recipe.image_share or coin.random() < 0.2:
            return self.sampler.images(self.recipe.images, self.recipe.targets, least)
        steps = int(coin.choice([3, 4, 6, 8] if progress < 0.6 else [4, 6, 8, 10]))
        return self.sampler.videos(self.recipe.clips, 2, steps, least, 0.45)

    def train_step(self, progress: float) -> float:
        """One optimiser step; returns the loss of this process."""
        coin = np.random.default_rng(self.recipe.seed + self.step)
        batch = self.next_batch(progress, coin).to(self.device)
        for p in self.params.values():
            p.grad = None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = batch_loss(self.model, self.dense, batch, coin)
        loss.backward()
        self.sync_gradients()
        rate = schedule(self.recipe, progress, self.step)
        for optimizer in (self.muon, self.adam):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        keep = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for k, v in self.model.state_dict().items():
                if v.dtype.is_floating_point:
                    self.average[k].lerp_(v, 1 - keep)
                else:
                    self.average[k].copy_(v)
        self.step += 1
        return float(loss.detach())

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        if self.rank:
            return
        path = self.folder / "checkpoint.pt"
        state = {
            "model": self.model.state_dict(), "dense": self.dense.state_dict(), "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(), "average": self.average, "step": self.step, "seconds": self.seconds,
        }  # fmt: skip
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def run(self) -> None:
        """Train until the recipe's minutes are used up."""
        while not self.shards:
            self.refresh_pool()
            time.sleep(1)
        budget, last_save, last_log, losses = self.recipe.minutes * 60, time.monotonic(), time.monotonic(), []
        while True:
            started = time.monotonic()
            state = torch.tensor([self.seconds, float(self.step % 50 == 0)])
            if self.world > 1:
                dist.broadcast(state, 0)
            self.seconds = float(state[0])
            if self.seconds >= budget:
                break
            if self.step % 50 == 0:
                self.refresh_pool()
            losses.append(self.train_step(self.seconds / budget))
            now = time.monotonic()
            self.seconds += min(now - started, 30.0)  # a suspended process does not spend the schedule
            if now - last_log > 30 and not self.rank:
                log.info(
                    "step %d  %.1f/%.0f min  loss %.3f  shards %d",
                    self.step,
                    self.seconds / 60,
                    budget / 60,
                    float(np.mean(losses)),
                    len(self.shards),
                )
                losses, last_log = [], now
            if now - last_save > 120:
                self.save()
                last_save = now
        self.save()


def _worker(recipe: Recipe, folder: Path, rank: int, world: int) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1 if world > 1 else max(1, os.cpu_count() or 1))
    if world > 1:
        store = dist.FileStore(  # type: ignore[attr-defined]
            str(folder / f"rendezvous-{os.environ['MASKSIEVE_RUN']}"), world
        )
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    Trainer(recipe, folder, rank, world).run()


def wait_for_all(children: list[subprocess.Popen[bytes]]) -> list[int]:
    """Exit codes of all; the first failure ends the others, which would wait for it forever."""
    while any(child.poll() is None for child in children):
        if any(child.poll() for child in children):
            for child in children:
                child.terminate()
        time.sleep(0.5)
    return [child.wait() for child in children]


def main() -> None:
    """Command line of the training run; starts one process per core and one that renders clips."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/nano"), help="folder of clip pool and checkpoint")
    parser.add_argument("--config", default="sam2_nano")
    parser.add_argument("--minutes", type=float, default=Recipe.minutes)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--start", help="weights to begin from, where there is no checkpoint in --out")
    parser.add_argument("--image-share", type=float, default=Recipe.image_share)
    parser.add_argument("--lr", type=float, default=Recipe.lr)
    parser.add_argument("--shards", type=int, default=Recipe.shards)
    parser.add_argument(
        "--processes", type=int, default=1 if torch.cuda.is_available() else min(os.cpu_count() or 1, 8)
    )
    parser.add_argument("--role", default="main", help=argparse.SUPPRESS)
    args = parser.parse_args()
    recipe = Recipe(
        config=args.config,
        minutes=args.minutes,
        seed=args.seed,
        shards=args.shards,
        start=args.start,
        image_share=args.image_share,
        lr=args.lr,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    if args.role.startswith("rank"):
        _worker(recipe, args.out, int(args.role[4:]), args.processes)
        return
    if args.role == "render":
        size = build_model(recipe.config).image_size
        for index in range(recipe.shards):
            render_shard(args.out / "pool", index, clips=recipe.shard_clips, frames=recipe.clip_frames, size=size)
        return
    (args.out / "recipe.json").write_text(json.dumps(recipe.__dict__, indent=1))
    env = {**os.environ, "MASKSIEVE_RUN": str(os.getpid()), "OMP_NUM_THREADS": "1"}
    roles = ["render"] + [f"rank{i}" for i in range(args.processes)]
    children = [
        subprocess.Popen([sys.executable, "-m", "pipeline.nano.train", *sys.argv[1:], "--role", role], env=env)
        for role in roles
    ]
    try:
        codes = wait_for_all(children)
    finally:
        for child in children:
            child.terminate()
    sys.exit(1 if any(codes) else 0)


if __name__ == "__main__":
    main()
