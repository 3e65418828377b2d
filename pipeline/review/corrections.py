"""What people said becomes facts: answers that no commit names are laid over, carried on, scored and committed."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import temporal
from pipeline.derive import Derived, Images, derive, derived_metadata
from pipeline.errors import StorageError, VideoError
from pipeline.ledger import Commit, CommitConflict, Ledger
from pipeline.local_facts import local_facts
from pipeline.models import LoadedModel
from pipeline.propagate import ReadFrame
from pipeline.records import CANDIDATES, MASKS, TOKENS, read_metadata, upgraded
from pipeline.rescore import policy_in_place
from pipeline.review.answers import Answer, ReviewError, answered_videos, read_answers
from pipeline.review.carried import Carried, carry_on, needs_video
from pipeline.review.laid_over import Key, Said, across_cuts, changed, exchanged, laid, last_said, prompted_shots
from pipeline.review.repropagate import STOPPING, Stopping
from pipeline.review_images import write_review_images
from pipeline.scratch import scratch_folder
from pipeline.settings import Settings
from pipeline.source import local_video
from pipeline.storage.manifest import FileRecord, derived_key, discard_facts, facts_key, write_facts
from pipeline.storage.objects import ObjectStore
from pipeline.video.probe import VideoInfo, probe_video

log = logging.getLogger(__name__)

ATTEMPTS = 5
BATCH_ROWS = 4096
SCHEMAS = {"candidates": CANDIDATES, "tokens": TOKENS}


@dataclass(frozen=True)
class Corrected:
    """What became of a video's answers.

    Args:
        commit: the newest generation now.
        applied: ids of the answers that this call committed.
        waiting: ids of those that need the video, which cannot be read; `why` says so.
        changed: rows of facts that are others than before.
        derived: labels and review list of `commit`.
    """

    commit: Commit
    applied: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    why: str | None = None
    changed: int = 0
    derived: Derived | None = None


def pending(store: ObjectStore, ledger: Ledger | None = None) -> dict[str, list[Answer]]:
    """Answers that the newest commit of their video does not name, by video and time.

    One that a later answer on the same row took the place of is among them: it changes nothing, but is named too.
    """
    answered = answered_videos(store)
    found: dict[str, list[Answer]] = {}
    for commit in (ledger or Ledger(store)).read_all(answered):
        if answered[commit.video_id] - set(commit.answers):
            answers = [one for one in read_answers(store, commit.video_id) if one.answer_id not in commit.answers]
            if answers:
                found[commit.video_id] = answers
    return dict(sorted(found.items()))


def unfinished(store: ObjectStore, ledger: Ledger | None = None) -> list[str]:
    """Videos whose answers are not all in their labels yet: not committed, or committed by a run that died then."""
    answered = answered_videos(store)
    found = []
    for commit in (ledger or Ledger(store)).read_all(answered):
        new = answered[commit.video_id] - set(commit.answers)
        if new or (commit.answers and not _derived_of(store, commit)):
            found.append(commit.video_id)
    return sorted(found)


def apply_answers(
    video_id: str,
    store: ObjectStore,
    ledger: Ledger,
    settings: Settings,
    *,
    model: LoadedModel | None = None,
    read: ReadFrame | None = None,
    rule: Stopping = STOPPING,
    slot: Callable[[], AbstractContextManager[object]] = nullcontext,
    attempt: int = 1,
) -> Corrected:
    """Apply the answers on a video that its newest commit does not name, and derive its labels by their own policy.

    A second call changes nothing. A rival that commits meanwhile wins, and its generation is corrected. Masks that were
    picked or fixed are carried on, for which the video is read; while it cannot be reached these answers wait, and all
    others are applied. Model and settings that change facts are those of the facts.

    Args:
        settings: where stores, weights and scratch are, how pictures are made; the policy of a video without labels.
        model: a loaded one, used where it is the one that made the facts.
        read: gives the frame of a position at model size, in the place of the video.
        rule: how far masks are carried.
        slot: entered while the model works.
    Raises:  StorageError if the video was never committed, facts are damaged, or rivals kept coming; ReviewError for an
             answer that cannot be read; ModelError, HeadError if what made the facts is not there; ForgottenError.
    """
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(scratch_folder(settings)))
        work = _Work(store, ledger, settings, scratch, model, read, rule, slot, attempt)
        for _ in range(ATTEMPTS):
            commit = ledger.newest(video_id)
            if commit is None:
                raise StorageError(f"a committed generation of {video_id}", "none", "label the video first")
            try:
                return work.run(commit)
            except CommitConflict as error:
                log.info("%s: %s", commit.video_uri, error)
    raise StorageError("a video that holds still", f"{ATTEMPTS} rivals in a row", "apply the answers again later")


@dataclass(frozen=True)
class _Work:
    """One call: what it is given."""

    store: ObjectStore
    ledger: Ledger
    settings: Settings
    scratch: Path
    model: LoadedModel | None
    read: ReadFrame | None
    rule: Stopping
    slot: Callable[[], AbstractContextManager[object]]
    attempt: int

    def run(self, before: Commit) -> Corrected:
        """Correct one generation. Raises CommitConflict if a newer one came meanwhile."""
        answers = list(read_answers(self.store, before.video_id))
        new = {one.answer_id for one in answers} - set(before.answers)
        if not new:
            return Corrected(before, derived=self._derive(before, None))
        if not _derived_of(self.store, before):  # a run died before its labels: which rows are trusted is read there
            self._derive(before, None)
        said = self._last_said(answers, before)
        why, waiting = None, set[str]()
        with ExitStack() as stack:
            info: VideoInfo | None = None
            wants = {one.answer.answer_id for one in said.values() if needs_video(one, self.rule)} & new
            try:
                info = self._video(before, stack)
            except (VideoError, StorageError) as error:
                if wants and self.read is None:
                    why, waiting = f"{error.expected}; got {error.got}", wants
                    log.warning("%s: %d answers wait for the video: %s", before.video_uri, len(wants), error)
            now = new - waiting
            if not now:
                return Corrected(before, (), tuple(sorted(waiting)), why, 0, self._derive(before, None))
            ours = {key: one for key, one in said.items() if one.answer.answer_id in now}
            commit, keys = self._commit(before, said, ours, now, info)
            if info is None:
                self._keep_pictures(before, commit, keys)
            derived = self._derive(commit, info)
        return Corrected(commit, tuple(sorted(now)), tuple(sorted(waiting)), why, len(keys), derived)

    def _last_said(self, answers: list[Answer], before: Commit) -> dict[Key, Said]:
        """What counts on each row that is there."""
        with local_facts(self.store, before, self.scratch) as facts:
            table = pq.read_table(facts, columns=["frame_index", "object_id", "height", "width"])
        there = set(zip(table["frame_index"].to_pylist(), table["object_id"].to_pylist(), strict=True))
        said = last_said(answers, self.ledger, before, self.scratch)
        sizes = set(zip(table["height"].to_pylist(), table["width"].to_pylist(), strict=True))
        for one in said.values():
            if (one.height, one.width) not in sizes:
                got = f"one of {one.width}x{one.height} px in answer {one.answer.answer_id}"
                raise ReviewError(f"a mask of the size of {before.video_uri}", got, "remove the answer")
        return {key: one for key, one in said.items() if key in there}

    def _video(self, commit: Commit, stack: ExitStack) -> VideoInfo:
        """The video that was labelled, on local disk for as long as the stack lasts."""
        metadata = _metadata(self.store, commit)
        config = metadata.get("config") or {}
        damage = "keep_good_prefix" if "good_prefix" in config else "refuse"
        decode = self.settings.decode.model_copy(update={"on_damage": damage})
        local = stack.enter_context(local_video(commit.video_uri, self.settings.storage, self.scratch))
        if local.video_id != commit.video_id:
            got = f"one of {local.video_id[:12]}"
            raise VideoError(f"the bytes of {commit.video_id[:12]} at {commit.video_uri}", got, "bring the video back")
        info = probe_video(local.path, decode)
        if info.num_frames != metadata.get("num_frames", info.num_frames):
            got = f"{info.num_frames}"
            raise VideoError(f"{metadata['num_frames']} frames in {commit.video_uri}", got, "label the video again")
        return info

    def _commit(
        self, before: Commit, said: Mapping[Key, Said], ours: Mapping[Key, Said], now: set[str], info: VideoInfo | None
    ) -> tuple[Commit, set[Key]]:
        started_at, run_id = datetime.now(UTC), uuid.uuid4().hex
        files: list[FileRecord] = []
        try:
            with local_facts(self.store, before, self.scratch) as facts:
                there = pq.read_schema(facts)
                metadata, audited = read_metadata(there), _audited(self.store, before)
                carried = Carried()
                if any(needs_video(one, self.rule) for one in ours.values()):
                    carried = carry_on(
                        before, facts, metadata, said, ours, audited, self.store, self.settings, self.scratch,
                        model=self.model, read=self.read, info=info, rule=self.rule, slot=self.slot,
                    )  # fmt: skip
                attempt_id = f"{before.generation + 1:06d}-{run_id[:12]}"
                for file in self._write(before, facts, metadata, ours, carried, audited, attempt_id):
                    files.append(file)  # one by one: those that are written go if a later one fails
            commit = self.ledger.commit(
                before.video_id, parent=before.generation, work_key=before.label_key, video_uri=before.video_uri,
                drop=before.drop, files=files, run_id=run_id, attempt=self.attempt, started_at=started_at,
                corrects=before.corrects or before.generation, answers={*before.answers, *now},
            )  # fmt: skip
        except BaseException:
            discard_facts(self.store, files)
            raise
        if commit.run_id != run_id:  # a rival committed the very same answers first
            discard_facts(self.store, files)
        return commit, ours.keys() | carried.rows.keys()

    def _write(
        self, before: Commit, facts: Path, metadata: Mapping[str, Any], ours: Mapping[Key, Said], carried: Carried,
        audited: Set[Key], attempt_id: str,
    ) -> Iterator[FileRecord]:  # fmt: skip
        """All layers of the next generation."""
        keys = ours.keys() | carried.rows.keys()

        def new(row: dict[str, Any]) -> dict[str, Any]:
            key = row["frame_index"], row["object_id"]
            one = ours.get(key)
            if one is None:
                return {**carried.rows[key], **{name: row[name] for name in KEPT}}
            return row if row["prompted"] == "mask" and not one.shown else laid(row, one)

        def rows() -> Iterator[pa.RecordBatch]:
            return changed(_batches(facts), keys, new)

        seen = prompted_shots(rows())
        old = _judged_columns(facts, audited - ours.keys())
        made = across_cuts(temporal.annotate(rows()), seen)
        made = changed(made, old.keys(), lambda row: {**row, **old[row["frame_index"], row["object_id"]]})
        yield self._layer(before, "masks", made, MASKS, _about(metadata), attempt_id)
        for layer, schema in SCHEMAS.items():
            if not any(file.layer == layer for file in before.files):
                continue
            with local_facts(self.store, before, self.scratch, layer) as path:
                file = pq.ParquetFile(path)
                about = _about(read_metadata(file.schema_arrow))
                kept = exchanged(file.iter_batches(BATCH_ROWS), keys, getattr(carried, layer), schema)
                yield self._layer(before, layer, kept, schema, about, attempt_id)

    def _layer(
        self, before: Commit, layer: str, batches: Iterator[pa.RecordBatch], schema: pa.Schema,
        metadata: Mapping[str, Any], attempt_id: str,
    ) -> FileRecord:  # fmt: skip
        return write_facts(
            self.store, layer, facts_key(layer, before.drop, before.video_id, attempt_id), batches, schema, metadata,
            row_group_rows=self.settings.output.row_group_rows, scratch_dir=self.scratch,
        )  # fmt: skip

    def _keep_pictures(self, before: Commit, commit: Commit, keys: Set[Key]) -> None:
        """Pictures of stretches whose masks stayed, for the next generation: without the video nobody can make them."""
        old, new = (f"review_images/{one.video_id}/{one.generation:06d}/" for one in (before, commit))
        columns, where = ["review_id", "frame_index", "object_id"], [("representative", "==", True)]
        try:
            with self.store.open(derived_key("review", before.first_seen, before.video_id)) as file:
                rows = pq.read_table(file, columns=columns, filters=where).to_pylist()
            stay = [row for row in rows if (row["frame_index"], row["object_id"]) not in keys]
            names = {f"{row['frame_index']:08d}{end}.jpg" for row in stay for end in ("", f"-{row['review_id']}")}
            for key in self.store.list(old):
                if (name := key.removeprefix(old)) in names:
                    self.store.put_atomic(new + name, self.store.get(key))
        except StorageError as error:
            log.warning("the review list of %s has no pictures: %s", commit.video_uri, error)

    def _derive(self, commit: Commit, info: VideoInfo | None) -> Derived:
        images: Images | None = None
        if info is not None and self.settings.output.review_frames:

            def pictures(stretches: Any) -> Any:
                try:
                    return write_review_images(stretches, self.store, commit, info, self.settings)
                except (VideoError, StorageError) as error:
                    log.warning("the review list of %s has no pictures: %s", commit.video_uri, error)
                    return {}

            images = pictures
        return derive(
            self.store, self.ledger, commit.video_id, policy_in_place(self.store, commit) or self.settings.policy,
            images=images, row_group_rows=self.settings.output.row_group_rows, scratch_dir=self.scratch,
        )  # fmt: skip


KEPT = ("video_id", "video_uri", "pts_seconds", "label", "prompt_xyxy", "auto", "shot_index", "across_cut")
"""What a new mask changes nothing about."""


def _batches(facts: Path) -> Iterator[pa.RecordBatch]:
    file = pq.ParquetFile(facts)
    version = str(read_metadata(file.schema_arrow).get("schema_version"))
    for batch in file.iter_batches(BATCH_ROWS):
        yield upgraded(batch, version)


def _audited(store: ObjectStore, commit: Commit) -> set[Key]:
    """Accepted rows that were drawn to be judged: as long as nobody did, they are evidence and stay what they are."""
    if not _derived_of(store, commit):
        return set()
    with store.open(derived_key("labels", commit.first_seen, commit.video_id)) as file:
        found = pq.read_table(file, columns=["frame_index", "object_id"], filters=[("audit", "==", True)])
    return set(zip(found["frame_index"].to_pylist(), found["object_id"].to_pylist(), strict=True))


def _judged_columns(facts: Path, keys: Set[Key]) -> dict[Key, dict[str, Any]]:
    """What rows say of others around them, which may change."""
    names = ["temporal_iou", "area_change", "across_cut"]
    frames = sorted({frame for frame, _ in keys})
    table = pq.read_table(facts, columns=["frame_index", "object_id", *names], filters=[("frame_index", "in", frames)])
    rows = {(row["frame_index"], row["object_id"]): row for row in table.to_pylist()} if keys else {}
    return {key: {name: rows[key][name] for name in names} for key in keys}


def _about(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metadata.items() if name != "schema_version"}


def _metadata(store: ObjectStore, commit: Commit) -> dict[str, Any]:
    with store.open(commit.file("masks").key) as file:
        return read_metadata(pq.read_schema(file))


def _derived_of(store: ObjectStore, commit: Commit) -> bool:
    """Whether both derived files are of this generation."""
    found = [derived_metadata(store, commit, layer) for layer in ("labels", "review")]
    return all((one or {}).get("generation") == commit.generation for one in found)
