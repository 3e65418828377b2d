"""A snapshot as a torch Dataset: each rank and worker has its own row groups, in another order every epoch."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.errors import SettingsError, StorageError
from pipeline.rle import decode
from pipeline.snapshot.manifest import FRAME, SPLITS, Split, read_manifest
from pipeline.storage.objects import ObjectStore

if TYPE_CHECKING:
    from pipeline.settings import StorageSettings

log = logging.getLogger(__name__)

SHUFFLE_FRAMES = 512
READ_BYTES = 1 << 22

Sample = dict[str, Any]
Group = tuple[str, int]


class SnapshotDataset(IterableDataset[Sample]):
    """Frames of one split of a snapshot.

    >>> frames = SnapshotDataset("out/snapshots/v1")
    >>> for sample in DataLoader(frames, batch_size=8, num_workers=4, collate_fn=list): ...

    Row groups are dealt out among ranks x workers: no frame comes twice in an epoch, none is missing. Shares differ by
    at most one row group, so distributed loops want `torch.distributed.algorithms.join` or a fixed number of steps.

    Args:
        url: folder of the snapshot, or its s3:// prefix.
        split: train or val.
        shuffle: another order of row groups and frames each epoch, and other row groups for each rank; else as stored.
        seed: of the shuffle; the same on all ranks.
        rank, world_size: of this process; None asks torch.distributed, then RANK and WORLD_SIZE, then it is alone.
        storage: how s3:// is reached.
        transform: called with every sample, in the worker; what it gives back is yielded.
        verify: check the SHA-256 of every file now, those of rank, rank + world_size, ... in this process.
        shuffle_frames: frames, as stored, that a worker holds to shuffle among.
    Yields: dict of `image` (3, H, W) uint8 (not if the snapshot holds no images), `masks` (n, H, W) bool, `weights`
        (n,) float32, `labels` list of n str or None, `object_ids` (n,) int64, `ignore` (H, W) bool (objects that were
        not accepted: neither object nor background), `unplaced` int (objects that are perhaps in the frame, nobody
        knows where), `video_id`, `drop`, `frame_index`, `pts_seconds`.
    Raises: StorageError if there is no snapshot, or a file is missing or damaged; SettingsError.
    """

    def __init__(
        self,
        url: str,
        split: Split = "train",
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        storage: StorageSettings | None = None,
        transform: Callable[[Sample], Any] | None = None,
        *,
        verify: bool = True,
        shuffle_frames: int = SHUFFLE_FRAMES,
    ) -> None:
        if split not in SPLITS:
            raise SettingsError("split train or val", repr(split), "choose one of them")
        self.url, self.split, self.shuffle, self.seed = url, split, shuffle, seed
        self.rank, self.world_size = _place(rank, world_size)
        self.transform, self._storage, self._shuffle_frames = transform, storage, max(1, shuffle_frames)
        store = ObjectStore(url, storage)
        self.manifest = read_manifest(store)
        self._parts = [part for part in self.manifest.parts if part.split == split]
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that live on see it change
        if verify:
            for part in self._parts[self.rank :: self.world_size]:
                _verify(store, part.key, part.sha256)

    @property
    def num_frames(self) -> int:
        """Frames of the split, over all ranks and workers."""
        return sum(part.rows for part in self._parts)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass; workers that are kept between passes follow. Call it on all ranks."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        share = self.rank * workers + number
        epoch = int(self._epoch)
        groups = [(part.key, group) for part in self._parts for group in range(len(part.row_groups))]
        mine = dealt(groups, share, self.world_size * workers, (self.seed, epoch) if self.shuffle else None)
        rows = _read(ObjectStore(self.url, self._storage), mine)
        if self.shuffle:
            rows = _mixed(rows, self._shuffle_frames, np.random.default_rng((self.seed, epoch, share)))
        for row in rows:
            sample = _sample(row)
            yield sample if self.transform is None else self.transform(sample)


def dealt(groups: list[Group], share: int, shares: int, order: tuple[int, int] | None) -> list[Group]:
    """The row groups of one share: all shares together have each group once, and they differ by at most one group.

    Args:    share: 0 to below shares.
             order: seed and epoch of the order, the same in all shares; None leaves the groups as they are.
    """
    if order is not None:
        groups = [groups[place] for place in np.random.default_rng(order).permutation(len(groups))]
    return groups[share::shares]


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and world size, asked for where they are not given."""
    if (rank is None) != (world_size is None):
        raise SettingsError(
            "rank and world_size together", f"rank {rank}, world_size {world_size}", "give both or none"
        )
    if rank is None or world_size is None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if distributed:
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        else:
            rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if not 0 <= rank < world_size:
        got = f"rank {rank}, world_size {world_size}"
        raise SettingsError("a rank from 0 to below world_size", got, "give the rank of this process")
    return rank, world_size


def _verify(store: ObjectStore, key: str, sha256: str) -> None:
    digest = hashlib.sha256()
    with store.open(key) as file:
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != sha256:
        got = f"{digest.hexdigest()[:12]} at {store.uri(key)}"
        raise StorageError(f"a part with SHA-256 {sha256[:12]}", got, "copy the snapshot again, or make a new one")


def _read(store: ObjectStore, groups: list[Group]) -> Iterator[Sample]:
    """The rows of row groups in turn, one group in memory."""
    for key, number in groups:
        with store.open(key) as source:
            file = pq.ParquetFile(source, pre_buffer=True)
            if not file.schema_arrow.remove_metadata().equals(FRAME):
                got = f"other columns in {store.uri(key)}"
                raise StorageError("a part of a snapshot of this release", got, "update masksieve")
            rows = file.read_row_group(number).to_pylist()
        yield from rows


def _mixed(rows: Iterator[Sample], most: int, rng: np.random.Generator) -> Iterator[Sample]:
    """The same rows in a random order, of which `most` are held at a time."""
    held: list[Sample] = []
    for row in rows:
        if len(held) < most:
            held.append(row)
            continue
        place = int(rng.integers(most))
        yield held[place]
        held[place] = row
    for place in rng.permutation(len(held)):
        yield held[place]


def _sample(row: Sample) -> Sample:
    """A row with its picture and masks decoded."""
    height, width, objects = row["height"], row["width"], row["objects"]
    masks_nhw = np.zeros((len(objects), height, width), bool)
    for number, one in enumerate(objects):
        masks_nhw[number] = decode(one["rle"], height, width)
    ignore_hw = np.zeros((height, width), bool)
    for rle in row["ignore"]:
        ignore_hw |= decode(rle, height, width)
    sample = {
        "masks": torch.from_numpy(masks_nhw),
        "weights": torch.tensor([one["weight"] for one in objects], dtype=torch.float32),
        "labels": [one["label"] for one in objects],
        "object_ids": torch.tensor([one["object_id"] for one in objects], dtype=torch.int64),
        "ignore": torch.from_numpy(ignore_hw),
        **{name: row[name] for name in ("unplaced", "video_id", "drop", "frame_index", "pts_seconds")},
    }
    if row["image"] is not None:
        rgb_hw3 = np.array(Image.open(io.BytesIO(row["image"])).convert("RGB"))
        sample["image"] = torch.from_numpy(rgb_hw3).permute(2, 0, 1).contiguous()
    return sample
