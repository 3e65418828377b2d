"""Makes a snapshot: frames and accepted masks of all labelled videos as a frozen training set; the manifest comes last.

Parts lie under names made from their content, and nothing is a snapshot until its manifest is there: a run that is
killed leaves nothing that anyone reads, and what it left is removed when a later run of the same name ends.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.certificate import find_evidence
from pipeline.errors import ForgottenError, StorageError, VideoError
from pipeline.ledger import Ledger, forgotten_key
from pipeline.prefetch import Prefetch
from pipeline.review_images import jpeg_bytes
from pipeline.scratch import scratch_folder
from pipeline.settings import DecodeSettings, Settings
from pipeline.snapshot.card import put_cards
from pipeline.snapshot.frames import Row, VideoLabels, frame_row, image_size, same_labels
from pipeline.snapshot.manifest import (
    MANIFEST,
    LeftOut,
    Manifest,
    Video,
    as_bytes,
    folder_of,
    read_manifest,
    split_of,
)
from pipeline.snapshot.parts import PartWriter
from pipeline.snapshot.remove import remove_unfinished, remove_video
from pipeline.snapshot.sources import Candidate, Sources, find_candidates
from pipeline.storage.manifest import software_versions
from pipeline.storage.objects import ObjectStore
from pipeline.video.probe import probe_video
from pipeline.video.stream import FrameStream

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SnapshotOptions:
    """What a snapshot is to hold.

    Args:
        name: of the snapshot, for good.
        drops: only videos that were first seen in these; all if empty.
        decisions: rows with one of these are objects: accept, review, hold.
        val_share: about this share of the videos is for validation, 0 to below 1.
        image_quality: of the JPEGs, 1..95; None leaves pictures out, and needs no videos.
        max_side: longest side of pictures and masks, px; None keeps the video's size.
        file_bytes: a part is full once it has so many.
        strict: one video that cannot be in is an error, and there is no snapshot.
    """

    name: str
    drops: tuple[str, ...] = ()
    decisions: tuple[str, ...] = ("accept",)
    val_share: float = 0.1
    image_quality: int | None = 90
    max_side: int | None = None
    file_bytes: int = 128 << 20
    strict: bool = False

    def as_json(self) -> dict[str, Any]:
        """What the card tells; the name and strictness change no row."""
        return {
            "drops": sorted(set(self.drops)), "decisions": sorted(set(self.decisions)), "val_share": self.val_share,
            "image_quality": self.image_quality, "max_side": self.max_side, "file_bytes": self.file_bytes,
        }  # fmt: skip


def write_snapshot(
    out: str, options: SnapshotOptions, settings: Settings, *, to: str | None = None, progress: Progress | None = None
) -> Manifest:
    """Make a snapshot of the labels of an output and publish it.

    Args:
        out: the output of `masksieve label`.
        settings: storage, decoding limits and scratch folder.
        to: the store whose `snapshots/` gets it; the output itself if None.
        progress: called with a video's name, and the rows of labels that are done and that there are.
    Returns: the manifest that was published.
    Raises:  StorageError if the name is taken or nothing would be in it; with `strict` also if a video cannot be in;
             UnavailableError and DiskSpaceError as they come. Nothing is left behind.
    """
    folder = folder_of(options.name)
    store = ObjectStore(out, settings.storage)
    target = store if to is None else ObjectStore(to, settings.storage)
    if target.exists(f"{folder}{MANIFEST}"):
        raise _taken(target, folder)
    ledger = Ledger(store)
    candidates, left_out = find_candidates(store, ledger, options.drops)
    if options.strict and left_out:
        raise _refused(left_out[0])
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(scratch_folder(settings)))
        images = [one.video_uri for one in candidates] if options.image_quality is not None else []
        ahead = stack.enter_context(Prefetch(images, settings))
        software = software_versions("pillow", "av", "decord")
        metadata = {"snapshot": options.as_json(), "software": software}
        parts = stack.enter_context(PartWriter(target, folder, options.file_bytes, metadata, scratch))
        making = _Making(store, ledger, Sources(store, ledger, ahead), parts, options, settings, scratch)
        try:
            done, total = 0, sum(one.rows for one in candidates)
            for one in candidates:
                making.add(one, partial(_tell, progress, one.name, total, done))
                done += one.rows
                _tell(progress, one.name, total, done, 0)
            parts.finish()
            manifest = Manifest(
                name=options.name, created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                options=options.as_json(), software=software, parts=tuple(parts.parts), videos=tuple(making.videos),
                left_out=tuple(sorted([*left_out, *making.left_out], key=lambda one: one.video_id)),
                policies=dict(sorted(making.policies.items())), makers=dict(sorted(making.makers.items())),
            )  # fmt: skip
            return _publish(store, target, folder, manifest, scratch)
        except BaseException:
            kept = []
            with suppress(StorageError):
                kept = [part.key for part in read_manifest(target, folder).parts]
            parts.discard(keep=kept)
            raise


class _Making:
    """Adds videos to the parts one by one, and keeps what the card will tell of them."""

    def __init__(
        self,
        store: ObjectStore,
        ledger: Ledger,
        sources: Sources,
        parts: PartWriter,
        options: SnapshotOptions,
        settings: Settings,
        scratch: Path,
    ) -> None:
        self._store, self._ledger, self._sources, self._parts = store, ledger, sources, parts
        self._options, self._settings, self._scratch = options, settings, scratch
        self.videos: list[Video] = []
        self.left_out: list[LeftOut] = []
        self.policies: dict[str, dict[str, Any]] = {}
        self.makers: dict[str, dict[str, Any]] = {}

    def add(self, one: Candidate, tell: Callable[[int], None]) -> None:
        """Add a video, or note why it is left out.

        Raises: StorageError if it cannot be in and the options are strict.
        """
        path = self._scratch / "labels.parquet"
        try:
            self._ledger.refuse_forgotten(one.video_id)
            labels = self._labels(one, path)
            note = self._add_frames(one, labels, tell) if labels.wanted_n.size else "no object was accepted"
        except ForgottenError:  # not even its name is kept
            log.info("left a video out of the snapshot that was forgotten on request")
            return
        except VideoError as error:
            left_out = one.left_out(" ".join(str(error).split()))
            if self._options.strict:
                raise _refused(left_out) from error
            log.info("left out of the snapshot: %s (%s)", one.video_uri, error)
            self.left_out.append(left_out)
            return
        finally:
            path.unlink(missing_ok=True)
        policy_id = str(labels.metadata.get("policy_id"))
        self.policies[policy_id] = dict(labels.metadata.get("policy") or {})
        maker = {name: labels.metadata.get(name) for name in ("model", "heads_sha256", "decoder")}
        made_by = hashlib.sha256(json.dumps(maker, sort_keys=True).encode()).hexdigest()[:16]
        self.makers[made_by] = maker
        support = find_evidence(self._store, self.policies[policy_id], labels.metadata)
        self.videos.append(
            Video(
                video_id=one.video_id, video_uri=one.video_uri, drop=one.drop, split=self._split(one),
                generation=one.generation, policy_id=policy_id, made_by=made_by, note=note,
                certified=support.certified, evidence=support.text,
                **labels.tally.fields(),
            )
        )  # fmt: skip

    def _split(self, one: Candidate) -> Any:
        return split_of(one.video_id, self._options.val_share)

    def _labels(self, one: Candidate, path: Path) -> VideoLabels:
        """The labels as they are published, of the newest generation; a copy, so that nobody replaces them meanwhile.

        Raises: VideoError if they are gone, damaged or of another generation.
        """
        if not self._store.exists(one.key):
            raise VideoError(f"labels of {one.name}", "none: they were removed meanwhile", "make the snapshot again")
        self._store.get_file(one.key, path)
        try:
            labels = VideoLabels(path, self._options.decisions)
        except (pa.ArrowException, OSError) as error:
            step = f"remove {self._store.uri(one.key)} and label it again, then make the snapshot"
            raise VideoError(f"readable labels of {one.name}", str(error), step) from error
        found = (labels.metadata.get("generation"), labels.metadata.get("facts_sha256"))
        newest = self._ledger.newest_generation(one.video_id)
        if found != (one.generation, one.facts_sha256) or newest != one.generation:
            got = f"labels of generation {found[0]}"
            step = "label it again, which repairs them, then make the snapshot"
            raise VideoError(f"labels of the newest generation, {newest}, of {one.name}", got, step)
        return labels

    def _add_frames(self, one: Candidate, labels: VideoLabels, tell: Callable[[int], None]) -> str | None:
        """Put the frames of a video into the parts.

        Returns: why the last of them are missing, None if all are there.
        """
        done = 0
        if self._options.image_quality is None:
            for rows in labels.frames():
                size = image_size(rows[0]["height"], rows[0]["width"], self._options.max_side)
                self._put(one, labels, rows, size, None)
                tell(done := done + len(rows))
            return None
        previous: tuple[Any, Any] = (None, None)
        with self._sources.video(one) as local:
            decode = self._decode_settings(labels)
            info = probe_video(local.path, decode)
            rows_of_frames = labels.frames()
            try:
                with FrameStream(info, decode, indices=labels.wanted_n.tolist()) as stream:
                    for frame in stream:
                        rows = next(rows_of_frames)
                        tell(done := done + len(rows))
                        height, width = frame.rgb_hw3.shape[:2]
                        if (rows[0]["height"], rows[0]["width"]) != (height, width):
                            got = f"{height} x {width} px in {one.name}"
                            want = f"frames of {rows[0]['height']} x {rows[0]['width']} px"
                            raise VideoError(want, got, "label it again")
                        if same_labels(previous[1], rows) and np.array_equal(previous[0], frame.rgb_hw3):
                            labels.tally.duplicates += 1
                            continue
                        previous = frame.rgb_hw3, rows
                        size = image_size(height, width, self._options.max_side)
                        picture = jpeg_bytes(frame.rgb_hw3, self._options.image_quality, size)
                        self._put(one, labels, rows, size, picture)
            except VideoError as error:
                if not labels.tally.frames or self._options.strict:
                    raise
                taken = labels.tally.frames + labels.tally.duplicates
                log.warning("%s is cut short in the snapshot: %s", one.video_uri, error)
                return f"cut short after {taken} of {labels.wanted_n.size} frames: {error.got}"
        return None

    def _put(
        self, one: Candidate, labels: VideoLabels, rows: list[Row], size: tuple[int, int], image: bytes | None
    ) -> None:
        self._parts.add(self._split(one), frame_row(one.video_id, one.drop, rows, labels, size, image))
        labels.take(rows)

    def _decode_settings(self, labels: VideoLabels) -> DecodeSettings:
        """How the video was read when it was labelled: a damaged one up to its damage."""
        damaged = "good_prefix" in (labels.metadata.get("config") or {})
        changes = {"on_damage": "keep_good_prefix" if damaged else "refuse"}
        return self._settings.decode.model_copy(update=changes)


def _publish(store: ObjectStore, target: ObjectStore, folder: str, manifest: Manifest, scratch: Path) -> Manifest:
    """Write the card, then the manifest if the name is still free; then remove what earlier runs left."""
    remembered = tuple(one for one in manifest.left_out if not store.exists(forgotten_key(one.video_id)))
    manifest = manifest.model_copy(update={"left_out": remembered})
    if not manifest.frames:
        counted = f"{len(manifest.videos)} videos without one, {len(manifest.left_out)} left out"
        reason = f" ({manifest.left_out[0].reason})" if manifest.left_out else ""
        step = "choose other --drop or --decisions, or see why"
        raise StorageError("at least one frame with an accepted object", f"{counted}{reason}", step)
    for video in manifest.videos:
        if store.exists(forgotten_key(video.video_id)):
            got = f"{video.video_id[:12]}, forgotten on request meanwhile"
            raise StorageError("videos that may be used", got, "make the snapshot again")
    if target.exists(f"{folder}{MANIFEST}"):  # before the cards, which are under names that all writers share
        raise _taken(target, folder)
    manifest = put_cards(target, folder, manifest)
    sizes = {entry.key: entry.size_bytes for entry in target.entries(folder)}
    for part in manifest.parts:
        if sizes.get(f"{folder}{part.key}") != part.bytes:
            got = "missing: another run of this name, or a clean-up, removed it"
            raise StorageError(f"the part {part.key}", got, "make the snapshot again")
    body = as_bytes(manifest)
    won = target.put_if_absent(f"{folder}{MANIFEST}", body)
    if not won or target.get(f"{folder}{MANIFEST}") != body:  # a store without conditional writes says yes to both
        put_cards(target, folder, read_manifest(target, folder))  # ours may lie over the winner's
        raise _taken(target, folder)
    named = {f"{folder}{key}" for key in (MANIFEST, *manifest.cards, *(part.key for part in manifest.parts))}
    with suppress(StorageError):  # leftovers cost room and nothing else: `gc` looks for them too
        for key in sizes.keys() - named:
            target.delete(key)
        remove_unfinished(target, folder)
    for video_id in manifest.named:
        if store.exists(forgotten_key(video_id)):  # since we looked; whoever forgets looks here after the tombstone
            remove_video(target, manifest.name, video_id, scratch_dir=scratch)
    return manifest


def _taken(target: ObjectStore, folder: str) -> StorageError:
    got = f"one that exists: {target.uri(folder + MANIFEST)}"
    return StorageError("a new name for a snapshot", got, "choose another --name; snapshots are frozen")


def _refused(left_out: LeftOut) -> StorageError:
    got = f"{left_out.video_uri or left_out.video_id}: {left_out.reason}"
    return StorageError("every video to be in the snapshot (--strict)", got, "repair it, or leave --strict out")


def _tell(progress: Progress | None, name: str, total: int, before: int, rows: int) -> None:
    if progress is not None:
        progress(name, before + rows, total)
