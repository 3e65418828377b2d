"""Garbage of made-up outputs: whatever lies there and however old, all that is old and unnamed goes, nothing else."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.ledger import Commit, commit_key, forgotten_key
from pipeline.snapshot.manifest import CARD, MANIFEST, PAGE, Manifest, Part, as_bytes
from pipeline.storage.download import Entry
from pipeline.storage.manifest import FileRecord, derived_key, facts_key
from pipeline.storage.objects import ObjectStore

from .garbage import LIMIT_SECONDS, OLD_SECONDS, YOUNG_SECONDS, collect, labels, sweep


class AgedStore(ObjectStore):
    """A store in which objects are as old as a test says."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.ages: dict[str, float] = {}

    def put(self, key: str, data: bytes = b"x", age: float = OLD_SECONDS) -> str:
        self.put_atomic(key, data)
        self.ages[key] = age
        return key

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        for one in super().entries(prefix):
            yield Entry(one.key, one.size_bytes, one.tag, one.modified - self.ages.get(one.key, 0.0))


@dataclass(frozen=True)
class Video:
    """What lies around of one video.

    Args:
        generations: committed; derived: its labels are of this one, 0 for none.
        pictures: generations that have some. loose: ages of facts that no commit names.
    """

    generations: int = 0
    derived: int = 0
    pictures: frozenset[int] = frozenset()
    loose: tuple[float, ...] = ()
    moved: bool = False
    forgotten: bool = False


@dataclass
class World:
    """Keys of an output by what must become of them."""

    kept: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)


def place(store: AgedStore, world: World, number: int, video: Video, *, superseded: bool) -> None:
    """Put a video into the store, and note what must stay."""
    video_id = f"{number:064x}"
    derived = min(video.derived, video.generations)
    dead = world.gone if video.forgotten else None  # of a forgotten video everything goes, however young
    if video.forgotten:
        world.kept.add(store.put(forgotten_key(video_id)))
    for generation in range(1, video.generations + 1):
        facts = store.put(facts_key("masks", "night", video_id, f"{generation:06d}-1"))
        finished = datetime.now(UTC) - timedelta(seconds=OLD_SECONDS)
        commit = Commit(
            video_id=video_id, generation=generation, parent=generation - 1, work_key="k", video_uri="v", drop="night",
            first_seen="night", files=(FileRecord("masks", facts, 1, 1, "00"),), rows=1, run_id="r", attempt=1,
            started_at=finished, finished_at=finished, host="h",
        )  # fmt: skip
        world.kept.add(store.put(commit_key(video_id, generation), commit.model_dump_json().encode()))
        replaced = superseded and generation < video.generations == derived
        (dead if dead is not None else world.gone if replaced else world.kept).add(facts)
    for layer in ("labels", "review") if derived else ():
        (dead if dead is not None else world.kept).add(
            store.put(derived_key(layer, "night", video_id), labels(derived))
        )  # fmt: skip
        if video.moved:
            world.gone.add(store.put(derived_key(layer, "day", video_id), labels(1)))
    for generation in video.pictures:
        key = store.put(f"review_images/{video_id}/{generation:06d}/00000000.jpg")
        needed = min(derived, video.generations) <= generation <= video.generations
        (dead if dead is not None else world.kept if needed else world.gone).add(key)
    for attempt, age in enumerate(video.loose):
        key = store.put(facts_key("tokens", "night", video_id, f"000009-{attempt}"), age=age)
        (dead if dead is not None else world.gone if age > LIMIT_SECONDS else world.kept).add(key)


@dataclass(frozen=True)
class Snapshot:
    """A snapshot of so many parts, with as many leftovers beside them."""

    published: bool
    parts: int = 0
    strays: int = 0
    busy: bool = False


def manifest(name: str, parts: list[str]) -> bytes:
    named = tuple(
        Part(key=key, split="train", rows=1, row_groups=(1,), bytes=1, sha256="0", videos=()) for key in parts
    )
    empty: dict[str, Any] = {"videos": (), "left_out": (), "options": {}, "software": {}, "policies": {}, "makers": {}}
    return as_bytes(Manifest(name=name, created_at="", parts=named, **empty))


def part_key(number: int, digest: str = "0") -> str:
    return f"train/part-{number:05d}-{digest * 12}.parquet"


def freeze(store: AgedStore, world: World, number: int, snapshot: Snapshot) -> None:
    folder = f"snapshots/s{number}/"
    parts = [part_key(one) for one in range(snapshot.parts)]
    needed = {store.put(f"{folder}{key}") for key in [*parts, CARD, PAGE]}
    strays = {store.put(f"{folder}{part_key(one, 'f')}") for one in range(snapshot.strays)}
    if snapshot.busy:
        needed.add(store.put(f"{folder}{part_key(99)}", age=YOUNG_SECONDS))
    if snapshot.published:
        needed.add(store.put(f"{folder}{MANIFEST}", manifest(f"s{number}", parts)))
    if not snapshot.published and not snapshot.busy:
        strays |= needed
        needed = set()
    world.kept |= needed | (strays if snapshot.busy else set())
    world.gone |= set() if snapshot.busy else strays


ages = st.sampled_from((OLD_SECONDS, YOUNG_SECONDS))
videos = st.builds(
    Video, st.integers(0, 3), st.integers(0, 3), st.frozensets(st.integers(1, 4), max_size=3),
    st.lists(ages, max_size=3).map(tuple), st.booleans(), st.booleans(),
)  # fmt: skip
snapshots = st.builds(Snapshot, st.booleans(), st.integers(0, 2), st.integers(0, 2), st.booleans())
LATE = Video(3, 2, frozenset((1, 2, 3, 4)), (OLD_SECONDS, YOUNG_SECONDS), moved=True)


@given(st.lists(videos, max_size=4), st.lists(snapshots, max_size=2), st.booleans())
@example([LATE, Video(2, 2), Video(3, 3, LATE.pictures, forgotten=True)], [Snapshot(True, 1, 1)], True)
@example([LATE, Video(1, 1)], [Snapshot(False, 1, 1), Snapshot(True, 1, 1, busy=True)], False)
@settings(max_examples=25)
def test_all_that_is_old_and_unnamed_goes_and_nothing_else(
    placed: list[Video], frozen: list[Snapshot], superseded: bool
) -> None:
    store, world = AgedStore(f"memory://gc-{uuid.uuid4().hex}"), World()
    for number, video in enumerate(placed):
        place(store, world, number, video, superseded=superseded)
    for number, snapshot in enumerate(frozen):
        freeze(store, world, number, snapshot)
    world.kept |= {store.put("plans/night.json"), store.put("notes/by-a-person.txt"), store.put("masks/alien.bin")}
    world.gone |= {store.put("probes/1/object")}
    found = sweep(store, older_than_seconds=LIMIT_SECONDS, superseded=superseded)
    garbage = found.look()
    assert {one.key for one in garbage.orphans} == world.gone
    assert set(store.list()) == world.kept | world.gone  # looking removes nothing
    assert {one.key for one in found.remove(garbage.orphans)} == world.gone
    assert set(store.list()) == world.kept
    assert sweep(store, older_than_seconds=LIMIT_SECONDS, superseded=superseded).look().orphans == ()


def test_a_snapshot_that_was_begun_anew_keeps_its_parts() -> None:
    """A second run of a name writes the parts of the first again, under the same keys."""
    store = AgedStore(f"memory://gc-{uuid.uuid4().hex}")
    parts = [store.put(f"snapshots/v1/{part_key(one)}") for one in range(2)]
    sweeper = sweep(store, older_than_seconds=LIMIT_SECONDS)
    orphans = sweeper.look().orphans
    assert [one.key for one in orphans] == parts
    store.put(parts[0], age=0.0)
    assert sweeper.remove(orphans) == []
    store.put("snapshots/v1/manifest.json", manifest("v1", [part_key(0)]))
    store.ages = {}
    assert collect(sweep(store)) == parts[1:]


def test_a_snapshot_whose_manifest_is_damaged_is_kept_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    store = AgedStore(f"memory://gc-{uuid.uuid4().hex}")
    kept = [store.put("snapshots/v1/manifest.json", b"{"), store.put(f"snapshots/v1/{part_key(0)}")]
    other = store.put(f"snapshots/v2/{part_key(0)}")
    assert collect(sweep(store)) == [other]
    assert all(store.exists(key) for key in kept)
    assert "snapshots/v1/manifest.json" in caplog.text
