"""Ranks and workers read disjoint shares whose union is the snapshot, each epoch in another order, and verified."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from pipeline.errors import SettingsError, StorageError
from pipeline.rle import decode
from pipeline.settings import Settings
from pipeline.snapshot import parts as parts_module
from pipeline.snapshot.dataset import SnapshotDataset, _mixed, dealt
from pipeline.snapshot.write import SnapshotOptions, write_snapshot


@pytest.fixture(scope="module")
def snapshot(original: Path, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All frames for training, in several files of several row groups."""
    out = tmp_path_factory.mktemp("dataset") / "out"
    shutil.copytree(original / "out", out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts_module, "ROW_GROUP_FRAMES", 2)
        write_snapshot(str(out), SnapshotOptions("v1", val_share=0.0, file_bytes=40_000), settings)
    return out / "snapshots/v1"


def key(sample: dict[str, Any]) -> tuple[str, int]:
    return sample["video_id"], sample["frame_index"]


@given(
    st.integers(0, 70),
    st.integers(1, 9),
    st.integers(1, 5),
    st.none() | st.tuples(st.integers(0, 9), st.integers(0, 9)),
)
def test_shares_are_a_partition(groups: int, ranks: int, workers: int, order: tuple[int, int] | None) -> None:
    every = [(f"train/part-{number // 3}", number % 3) for number in range(groups)]
    shares = [dealt(every, share, ranks * workers, order) for share in range(ranks * workers)]
    assert sorted(group for share in shares for group in share) == sorted(every)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.integers(0, 200), st.integers(1, 40), st.integers(0, 5))
def test_the_shuffle_keeps_every_row_and_holds_few(rows: int, most: int, seed: int) -> None:
    import numpy as np

    taken = 0

    def source() -> Any:
        nonlocal taken
        for number in range(rows):
            taken += 1
            yield {"n": number}

    seen = []
    for row in _mixed(source(), most, np.random.default_rng(seed)):
        seen.append(row["n"])
        assert taken - len(seen) <= most
    assert sorted(seen) == list(range(rows))


def test_a_sample_is_what_was_stored(snapshot: Path) -> None:
    stored = {
        (row["video_id"], row["frame_index"]): row
        for file in snapshot.rglob("*.parquet")
        for row in pq.read_table(file).to_pylist()
    }
    ignored = 0
    for sample in SnapshotDataset(str(snapshot), shuffle=False):
        row = stored.pop(key(sample))
        size, n = (row["height"], row["width"]), len(row["objects"])
        assert (sample["image"].shape, sample["image"].dtype) == ((3, *size), torch.uint8)
        assert (sample["masks"].shape, sample["masks"].dtype) == ((n, *size), torch.bool)
        assert sample["weights"].tolist() == [one["weight"] for one in row["objects"]]
        assert sample["labels"] == [one["label"] for one in row["objects"]]
        assert sample["object_ids"].tolist() == [one["object_id"] for one in row["objects"]]
        for mask, one in zip(sample["masks"], row["objects"], strict=True):
            assert torch.equal(mask, torch.from_numpy(decode(one["rle"], *size)))
        union = torch.zeros(size, dtype=torch.bool)
        for rle in row["ignore"]:
            union |= torch.from_numpy(decode(rle, *size))
        assert torch.equal(sample["ignore"], union)
        ignored += int(union.any())
    assert stored == {}
    assert ignored


def test_ranks_and_workers_together_read_each_frame_once(snapshot: Path) -> None:
    whole = Counter(key(sample) for sample in SnapshotDataset(str(snapshot), shuffle=False))
    assert set(whole.values()) == {1}
    read: Counter[tuple[str, int]] = Counter()
    for rank in range(2):
        dataset = SnapshotDataset(str(snapshot), rank=rank, world_size=2, shuffle_frames=3)
        mine = [
            key(sample)
            for sample in DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="spawn")
        ]
        assert 0 < len(mine) < whole.total()
        read.update(mine)
    assert read == whole


def test_every_epoch_has_its_own_order_also_with_workers_that_stay(snapshot: Path) -> None:
    dataset = SnapshotDataset(str(snapshot), seed=3)
    loader = DataLoader(dataset, batch_size=None, num_workers=1, persistent_workers=True)
    orders = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        orders.append([key(sample) for sample in loader])
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != [key(sample) for sample in SnapshotDataset(str(snapshot), seed=4)]


def test_the_transform_has_the_last_word(snapshot: Path) -> None:
    found = list(SnapshotDataset(str(snapshot), transform=lambda sample: sample["frame_index"]))
    assert set(map(type, found)) == {int}


def test_a_damaged_file_is_found_before_the_first_frame(snapshot: Path, tmp_path: Path) -> None:
    broken = tmp_path / "v1"
    shutil.copytree(snapshot, broken)
    file = sorted(broken.rglob("*.parquet"))[-1]
    data = bytearray(file.read_bytes())
    data[200] ^= 1
    file.write_bytes(data)
    with pytest.raises(StorageError, match="SHA-256"):
        SnapshotDataset(str(broken))
    SnapshotDataset(str(broken), verify=False)
    file.unlink()
    with pytest.raises(StorageError, match="nothing there"):
        SnapshotDataset(str(broken))


def test_torchrun_tells_each_process_its_share(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert (SnapshotDataset(str(snapshot)).rank, SnapshotDataset(str(snapshot)).world_size) == (1, 3)
    assert SnapshotDataset(str(snapshot), rank=0, world_size=1).rank == 0
    for wrong in ({"rank": 3, "world_size": 3}, {"rank": 0}, {"split": "test"}):
        with pytest.raises(SettingsError):
            SnapshotDataset(str(snapshot), **wrong)  # type: ignore[arg-type]


def test_a_manifest_cannot_name_a_file_elsewhere(snapshot: Path, tmp_path: Path) -> None:
    odd = tmp_path / "v1"
    shutil.copytree(snapshot, odd)
    text = (odd / "manifest.json").read_text()
    (odd / "manifest.json").write_text(text.replace('"train/part-00000', '"../part-00000'))
    with pytest.raises(StorageError, match="readable manifest"):
        SnapshotDataset(str(odd))
