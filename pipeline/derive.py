"""Labels and the review list of a video, derived from its newest facts and a policy; an older generation is fenced off.

`labels/` and `review/` lie at keys made from the video alone, so a reader with a glob never sees a row twice. A
derivation names its generation; it replaces a file only while no newer generation is committed, and only if nobody
wrote the file since it looked.
"""

from __future__ import annotations

import bisect
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ForgottenError, StorageError, UnavailableError
from pipeline.ledger import Commit, Ledger
from pipeline.local_facts import local_facts
from pipeline.policy import Policy
from pipeline.records import LABELS, MASKS, REVIEW, SCHEMA_VERSION, read_metadata, upgraded
from pipeline.route import decide
from pipeline.storage.manifest import ROW_GROUP_ROWS, ParquetFile, derived_key
from pipeline.storage.objects import ObjectStore

logger = logging.getLogger(__name__)

BATCH_ROWS = 2048
ATTEMPTS = 10
COUNTS = (
    "rows", "accept", "review", "hold", "visible", "absent", "untracked", "given", "audit", "stretches", "objects",
)  # fmt: skip
HEAVY_COLUMNS = ("rle", "bbox_xyxy", "video_uri")


class ReviewImages(NamedTuple):
    """Where a person finds the pictures of a stretch's representative frame."""

    frame_uri: str | None
    overlay_uri: str | None


@dataclass
class Stretch:
    """Consecutive flagged rows of one object: one thing for a person to look at.

    Args:
        review_id: stable: made from video, object, kind and first frame.
        kind: review, or audit for one accepted row that was drawn.
        representative_frame: the one of highest uncertainty, the first of equals.
        uncertainty: of that frame; None if none was scored.
    """

    review_id: str
    kind: Literal["review", "audit"]
    object_id: int
    first_frame: int
    last_frame: int
    rows: int
    representative_frame: int
    uncertainty: float | None


@dataclass(frozen=True)
class Derived:
    """What a derivation did.

    Args:
        status: written; unchanged (this generation and policy were there); fenced (a newer generation is committed).
        counts: by `COUNTS`: rows by decision and by visibility, given and audited ones, stretches, objects.
        pictured: whether somebody who had the video made the pictures of the review list.
    """

    status: Literal["written", "unchanged", "fenced"]
    generation: int
    policy_id: str
    counts: Mapping[str, int]
    labels_uri: str
    review_uri: str
    pictured: bool


Images = Callable[[Sequence[Stretch]], Mapping[str, ReviewImages]]


def derive(
    store: ObjectStore,
    ledger: Ledger,
    video_id: str,
    policy: Policy,
    *,
    images: Images | None = None,
    row_group_rows: int = ROW_GROUP_ROWS,
    scratch_dir: Path | None = None,
) -> Derived:
    """Write `labels/` and `review/` of a video from its highest generation.

    Args:    images: called with the stretches; gives pictures by review_id. None keeps those that an earlier
                 derivation of the same generation named. Where that had none to give, they are made now.
    Returns: what was done; doing it again changes nothing.
    Raises:  StorageError if the video was never committed, its facts are damaged or a later release wrote them;
             ForgottenError if it was forgotten meanwhile (nothing is left).
    """
    repairing = False
    for _ in range(ATTEMPTS):
        commit = ledger.newest(video_id)
        if commit is None:
            raise StorageError(f"a committed generation of {video_id}", "none", "label the video first")
        done = _present(store, commit)
        wanting = done is not None and images is not None and not done.pictured
        if done is not None and not wanting and (done.policy_id == policy.policy_id or repairing):
            return done
        with prepared(store, commit, policy, images, row_group_rows, scratch_dir) as plan:
            derived = plan.publish(ledger)
        _take_back_forgotten(store, ledger, commit)
        if derived.status == "fenced":
            return derived
        if ledger.newest_generation(video_id) == commit.generation and _present(store, commit) is not None:
            return derived
        repairing = True  # a newer commit or another policy came while we wrote: what stays has to be of one of them
    raise StorageError("a video that holds still", f"{ATTEMPTS} rivals in a row", "derive again later")


def _take_back_forgotten(store: ObjectStore, ledger: Ledger, commit: Commit) -> None:
    """Remove what was just written if the video was forgotten meanwhile: its tombstone is older than our look for it,
    so either `forget` found what we wrote, or we find the tombstone."""
    try:
        ledger.refuse_forgotten(commit.video_id)
    except ForgottenError:
        keys = [derived_key(layer, commit.first_seen, commit.video_id) for layer in ("labels", "review")]
        for key in [*keys, *store.list(f"review_images/{commit.video_id}/")]:
            store.delete(key)
        raise


class Plan:
    """A derivation that is computed and not yet published. Made by `prepared`."""

    def __init__(
        self, store: ObjectStore, commit: Commit, policy: Policy, counts: Mapping[str, int], pictured: bool
    ) -> None:
        self.store, self.commit, self.policy, self.counts, self.pictured = store, commit, policy, counts, pictured
        self.files: dict[str, ParquetFile] = {}

    def publish(self, ledger: Ledger) -> Derived:
        """Put the files in place, the labels last, unless a newer generation is committed."""
        for layer in ("review", "labels"):
            if not self._publish_layer(ledger, layer):
                logger.info("generation %d of %s is fenced off", self.commit.generation, self.commit.video_id)
                return self._derived("fenced")
        return self._derived("written")

    def _publish_layer(self, ledger: Ledger, layer: str) -> bool:
        key = derived_key(layer, self.commit.first_seen, self.commit.video_id)
        for _ in range(ATTEMPTS):
            version = self.store.version(key)
            there = 0 if version is None else int((_metadata(self.store, key) or {}).get("generation", 0))
            if max(there, ledger.newest_generation(self.commit.video_id)) > self.commit.generation:
                return False
            if self.store.replace(key, self.files[layer].path, version):
                return True
        raise StorageError(f"to replace {self.store.uri(key)}", "a rival each time", "derive again later")

    def _derived(self, status: Literal["written", "fenced"]) -> Derived:
        return _derived(self.store, self.commit, status, self.policy.policy_id, self.counts, self.pictured)


@contextmanager
def prepared(
    store: ObjectStore,
    commit: Commit,
    policy: Policy,
    images: Images | None = None,
    row_group_rows: int = ROW_GROUP_ROWS,
    scratch_dir: Path | None = None,
) -> Iterator[Plan]:
    """Compute both files on scratch; they end with the block. Memory does not grow with the video."""
    with ExitStack() as stack:
        facts = pq.ParquetFile(stack.enter_context(local_facts(store, commit, scratch_dir)))
        stretches, counts = _survey(facts, policy, commit.video_id)
        pictures = images(stretches) if images else _earlier_images(store, commit, stretches)
        pictured = images is not None or _pictured(store, commit)
        plan = Plan(store, commit, policy, counts, pictured)
        metadata = {
            **read_metadata(facts.schema_arrow),
            "schema_version": SCHEMA_VERSION,
            "generation": commit.generation,
            "facts_sha256": commit.file("masks").sha256,
            "policy": policy.model_dump(mode="json"),
            "policy_id": policy.policy_id,
            "certified": policy.certified,
            "counts": counts,
            "pictured": pictured,
        }
        for layer, schema in (("labels", LABELS), ("review", REVIEW)):
            file = ParquetFile(schema, metadata, row_group_rows=row_group_rows, scratch_dir=scratch_dir)
            plan.files[layer] = stack.enter_context(file)
        finder = _Finder(stretches, pictures)
        for batch in _batches(facts, MASKS.names):
            decisions = decide(batch, policy)
            columns = [batch.column(name) for name in MASKS.names] + decisions.columns
            rows = pa.RecordBatch.from_arrays(columns, schema=LABELS)
            plan.files["labels"].write(rows)
            flagged = rows.filter(pa.array(_flagged(decisions)))
            if flagged.num_rows:
                plan.files["review"].write(finder.complete(flagged))
        for file in plan.files.values():
            file.finish()
        yield plan


def _batches(facts: pq.ParquetFile, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The facts in batches, with the columns of today's schema."""
    version = str(read_metadata(facts.schema_arrow).get("schema_version"))
    there = [name for name in names if name in facts.schema_arrow.names]
    for batch in facts.iter_batches(BATCH_ROWS, columns=there):
        yield upgraded(batch, version)


def _flagged(decisions: pa.RecordBatch) -> Any:
    decision = decisions.column("decision").to_numpy(zero_copy_only=False)
    return (decision == "review") | decisions.column("audit").to_numpy(zero_copy_only=False)


def _survey(facts: pq.ParquetFile, policy: Policy, video_id: str) -> tuple[list[Stretch], dict[str, int]]:
    """Stretches by object and first frame, and the counts, in one pass over the light columns."""
    names = [name for name in MASKS.names if name not in HEAVY_COLUMNS]
    stretches: list[Stretch] = []
    running: dict[int, Stretch | None] = {}
    counts = dict.fromkeys(COUNTS, 0)
    for batch in _batches(facts, names):
        decisions = decide(batch, policy)
        visibility, prompted = batch.column("visibility").to_pylist(), batch.column("prompted").to_pylist()
        decided, audited = decisions.column("decision").to_pylist(), decisions.column("audit").to_pylist()
        counts["rows"] += batch.num_rows
        counts["audit"] += sum(audited)
        for name in ("accept", "review", "hold"):
            counts[name] += decided.count(name)
        for name in ("visible", "absent", "untracked"):
            counts[name] += visibility.count(name)
        counts["given"] += prompted.count("mask")
        columns = (
            batch.column("object_id").to_pylist(),
            batch.column("frame_index").to_pylist(),
            decided,
            audited,
            decisions.column("uncertainty").to_pylist(),
        )
        for object_id, frame, decision, audit, uncertainty in zip(*columns, strict=True):
            if decision != "review" and not audit:
                running[object_id] = None
                continue
            kind: Literal["review", "audit"] = "audit" if audit else "review"
            stretch = running.get(object_id)
            if stretch is None or audit or stretch.kind != kind:
                text = f"{video_id}:{object_id}:{kind}:{frame}"
                review_id = hashlib.sha256(text.encode()).hexdigest()[:20]
                stretch = Stretch(review_id, kind, object_id, frame, frame, 0, frame, uncertainty)
                stretches.append(stretch)
                running[object_id] = stretch
            stretch.last_frame = frame
            stretch.rows += 1
            if uncertainty is not None and (stretch.uncertainty is None or uncertainty > stretch.uncertainty):
                stretch.representative_frame, stretch.uncertainty = frame, uncertainty
    counts["stretches"], counts["objects"] = len(stretches), len(running)
    return sorted(stretches, key=lambda item: (item.object_id, item.first_frame)), counts


class _Finder:
    """Finds the stretch of a row and fills the columns that REVIEW adds."""

    def __init__(self, stretches: Sequence[Stretch], images: Mapping[str, ReviewImages]) -> None:
        self._stretches = stretches
        self._keys = [(stretch.object_id, stretch.first_frame) for stretch in stretches]
        self._images = images

    def complete(self, labels: pa.RecordBatch) -> pa.RecordBatch:
        """Rows of REVIEW from flagged rows of LABELS."""
        ids: list[str] = []
        representative: list[bool] = []
        pictures: list[ReviewImages] = []
        where = zip(labels.column("object_id").to_pylist(), labels.column("frame_index").to_pylist(), strict=True)
        for object_id, frame in where:
            stretch = self._stretches[bisect.bisect_right(self._keys, (object_id, frame)) - 1]
            first_look = frame == stretch.representative_frame
            ids.append(stretch.review_id)
            representative.append(first_look)
            none = ReviewImages(None, None)
            pictures.append(self._images.get(stretch.review_id, none) if first_look else none)
        added = [
            pa.array(ids, pa.string()),
            pa.array(np.array(representative, dtype=bool)),
            pa.array([picture.frame_uri for picture in pictures], pa.string()),
            pa.array([picture.overlay_uri for picture in pictures], pa.string()),
        ]
        return pa.RecordBatch.from_arrays([*labels.columns, *added], schema=REVIEW)


def _metadata(store: ObjectStore, key: str) -> dict[str, Any] | None:
    """What a derived file says of itself; None for one that is missing or damaged, which deriving again mends."""
    try:
        with store.open(key) as file:
            return read_metadata(pq.read_schema(file))
    except UnavailableError:
        raise
    except StorageError:
        return None


def _present(store: ObjectStore, commit: Commit) -> Derived | None:
    """The derivation of this generation that is in place, with whatever policy; None if there is none."""
    found = []
    for layer in ("labels", "review"):
        metadata = _metadata(store, derived_key(layer, commit.first_seen, commit.video_id))
        if metadata is None:
            return None
        found.append(metadata)
    labels, review = found
    same = all(labels.get(name) == review.get(name) for name in ("generation", "policy_id", "facts_sha256"))
    if not same or labels.get("facts_sha256") != commit.file("masks").sha256:
        return None
    if labels.get("generation") != commit.generation:
        return None
    pictured = bool(review.get("pictured", True))
    return _derived(store, commit, "unchanged", str(labels["policy_id"]), labels["counts"], pictured)


def _derived(
    store: ObjectStore,
    commit: Commit,
    status: Literal["written", "unchanged", "fenced"],
    policy_id: str,
    counts: Mapping[str, int],
    pictured: bool,
) -> Derived:
    labels, review = (
        store.uri(derived_key(layer, commit.first_seen, commit.video_id)) for layer in ("labels", "review")
    )
    return Derived(status, commit.generation, policy_id, counts, labels, review, pictured)


def _pictured(store: ObjectStore, commit: Commit) -> bool:
    """Whether the review list in place is of these facts and has its pictures."""
    metadata = _metadata(store, derived_key("review", commit.first_seen, commit.video_id)) or {}
    same = metadata.get("facts_sha256") == commit.file("masks").sha256
    return same and bool(metadata.get("pictured", True))


def _earlier_images(store: ObjectStore, commit: Commit, stretches: Sequence[Stretch]) -> dict[str, ReviewImages]:
    """Pictures that the review list in place names, where they are of the same facts and the same frame.

    None of a list that is damaged: it is about to be replaced.
    """
    key = derived_key("review", commit.first_seen, commit.video_id)
    if (_metadata(store, key) or {}).get("facts_sha256") != commit.file("masks").sha256:
        return {}
    wanted = {(stretch.review_id, stretch.representative_frame) for stretch in stretches}
    names = ["review_id", "frame_index", "frame_uri", "overlay_uri"]
    try:
        with store.open(key) as file:
            rows = pq.read_table(file, columns=names).to_pylist()
    except UnavailableError:
        raise
    except StorageError:
        return {}
    return {
        row["review_id"]: ReviewImages(row["frame_uri"], row["overlay_uri"])
        for row in rows
        if (row["review_id"], row["frame_index"]) in wanted and (row["frame_uri"] or row["overlay_uri"])
    }
