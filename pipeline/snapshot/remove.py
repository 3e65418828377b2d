"""Takes a video out of published snapshots: parts, card and manifest are made anew, and readable at every moment."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import StorageError, UnavailableError
from pipeline.records import read_metadata
from pipeline.snapshot.card import put_cards
from pipeline.snapshot.manifest import (
    MANIFEST,
    NAME,
    Manifest,
    Part,
    as_bytes,
    folder_of,
    objects_by_name,
    parsed,
    parts_with,
)
from pipeline.snapshot.parts import part_file, publish_part
from pipeline.storage.download import Staged
from pipeline.storage.manifest import checked_video_id
from pipeline.storage.objects import ObjectStore

log = logging.getLogger(__name__)

ATTEMPTS = 10


def snapshots_with(store: ObjectStore, video_id: str) -> list[str]:
    """Names of the snapshots that hold or name a video, sorted.

    Among them are those that are not published, or no longer: what a killed run or a half-done removal left lies in the
    store all the same. A file that was killed while it was written may hold any video, so its snapshot is named too.

    Raises: StorageError.
    """
    checked_video_id(video_id)
    found = []
    for name, keys in objects_by_name(store).items():
        if not NAME.fullmatch(name):  # no snapshot of ours
            continue
        manifest = _manifest(store, name)[0]
        if (manifest is not None and manifest.names(video_id)) or _strays(store, name, keys, manifest, video_id):
            found.append(name)
    found += [key.split("/")[1] for key in (one.key for one in _unfinished(store, "snapshots/")) if key.count("/") > 1]
    return sorted({name for name in found if NAME.fullmatch(name)})


def remove_video(store: ObjectStore, name: str, video_id: str, *, scratch_dir: Path | None = None) -> int:
    """Take a video out of a snapshot: frames, card, manifest, and what unfinished runs left of it.

    New parts are written beside the old ones, then the manifest is replaced, then the old ones go: a reader finds the
    old snapshot or the new one. Killed anywhere, the same call again ends it.

    Args:    scratch_dir: for one part at a time, of a folder that is swept after a kill; the system's if None.
    Returns: frames removed; 0 if none were there.
    Raises:  StorageError.
    """
    checked_video_id(video_id)
    folder = folder_of(name)
    for _ in range(ATTEMPTS):
        manifest, version = _manifest(store, name)
        if manifest is None or not manifest.names(video_id):
            return _remove_strays(store, name, manifest, video_id)
        removed = sum(video.frames for video in manifest.videos if video.video_id == video_id)
        held = [part.key for part in parts_with(manifest, video_id)]
        parts = [_without(store, folder, part, video_id, scratch_dir) for part in manifest.parts]
        changed = manifest.model_copy(
            update={
                "parts": tuple(part for part in parts if part is not None),
                "videos": tuple(one for one in manifest.videos if one.video_id != video_id),
                "left_out": tuple(one for one in manifest.left_out if one.video_id != video_id),
                "removed": manifest.removed + 1,
            }
        )
        changed = put_cards(store, folder, changed)
        if store.replace(f"{folder}{MANIFEST}", as_bytes(changed), version):
            for key in held:
                store.delete(f"{folder}{key}")
            _remove_strays(store, name, changed, video_id)
            log.info("took %d frames of a video out of the snapshot %s", removed, name)
            return removed
    raise StorageError(f"to replace {store.uri(folder + MANIFEST)}", "a rival each time", "remove the video again")


def _manifest(store: ObjectStore, name: str) -> tuple[Manifest | None, str | None]:
    """The manifest and its version, looked up before it is read; None twice if there is none."""
    key = f"{folder_of(name)}{MANIFEST}"
    version = store.version(key)
    return (None, None) if version is None else (parsed(store.get(key), store.uri(key)), version)


def _without(store: ObjectStore, folder: str, part: Part, video_id: str, scratch_dir: Path | None) -> Part | None:
    """The part without a video: itself, a new one, or None if nothing else is in it."""
    if video_id not in part.videos:
        return part
    others = [one for one in part.videos if one != video_id]
    if not others:
        return None
    number = int(part.key.split("-")[1])
    with store.open(f"{folder}{part.key}") as source:
        old = pq.ParquetFile(source)
        with part_file(read_metadata(old.schema_arrow), scratch_dir) as new:
            for group in range(old.num_row_groups):
                table = old.read_row_group(group)
                kept = table.filter(pc.not_equal(table["video_id"], video_id)).replace_schema_metadata(None)
                for batch in kept.to_batches():
                    new.write(pa.RecordBatch.from_arrays(batch.columns, schema=new.schema.remove_metadata()))
            return publish_part(store, folder, part.split, number, new, others)


def _strays(
    store: ObjectStore, name: str, keys: list[str], manifest: Manifest | None, video_id: str
) -> list[tuple[str, int]]:
    """Parts that no manifest names and that hold the video, or are not readable, with their frames of it."""
    folder = folder_of(name)
    named = set() if manifest is None else {f"{folder}{part.key}" for part in manifest.parts}
    found = []
    for key in keys:
        if key.endswith(".parquet") and key not in named:
            try:
                with store.open(key) as file:
                    rows = pq.read_table(file, columns=["video_id"], filters=[("video_id", "==", video_id)]).num_rows
            except UnavailableError:
                raise
            except StorageError:  # nobody can read it, and nobody can say that the video is not in it
                found.append((key, 0))
                continue
            if rows:
                found.append((key, rows))
    return found


def _remove_strays(store: ObjectStore, name: str, manifest: Manifest | None, video_id: str) -> int:
    keys = store.list(folder_of(name))
    strays = _strays(store, name, keys, manifest, video_id)
    for key, _ in strays:
        store.delete(key)
    if manifest is None and strays:  # cards of a run that did not end may show the video
        for key in keys:
            if key.endswith((".json", ".html")):
                store.delete(key)
    remove_unfinished(store, folder_of(name))
    return sum(rows for _, rows in strays)


def remove_unfinished(store: ObjectStore, folder: str) -> None:
    """Remove what was killed, or is just being, while it was written below a snapshot's folder."""
    for one in _unfinished(store, folder):
        if one.upload is None:
            store.delete(one.key)
        else:
            store.abort(one.key, one.upload)


def _unfinished(store: ObjectStore, folder: str) -> list[Staged]:
    return [one for one in store.staged() if one.key.startswith(folder)]
