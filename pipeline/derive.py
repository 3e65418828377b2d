"""Labels and the review list of a video, derived from its newest facts and a policy; an older generation is fenced off.

`labels/` and `review/` lie at keys made from the video alone, so a reader with a glob never sees a row twice. A
derivation names its generation; it replaces a file only while no newer generation is committed, and only if nobody
wrote the file since it looked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.backing import backing
from pipeline.certificate import UNCERTIFIED, Evidence, find_evidence
from pipeline.errors import ForgottenError, StorageError, UnavailableError
from pipeline.ledger import Commit, Ledger
from pipeline.local_facts import local_facts
from pipeline.policy import Policy
from pipeline.records import LABELS, MASKS, REVIEW, SCHEMA_VERSION, read_metadata
from pipeline.route import decide
from pipeline.storage.manifest import ROW_GROUP_ROWS, ParquetFile, derived_key
from pipeline.storage.objects import ObjectStore
from pipeline.stretches import Places, Stretch
from pipeline.survey import numbers, survey

logger = logging.getLogger(__name__)

ATTEMPTS = 10
_LARGE = BoundedSemaphore(2)
"""Videos with more rows than a row group are derived two at a time in a process, each in about 200 MB."""


class ReviewImages(NamedTuple):
    """Where a person finds the pictures of a stretch's representative frame."""

    frame_uri: str | None
    overlay_uri: str | None


@dataclass(frozen=True)
class Derived:
    """What a derivation did.

    Args:
        status: written; unchanged (this generation and policy were there); fenced (a newer generation is committed).
        counts: by `pipeline.survey.COUNTS`: rows by decision and by visibility, given and audited, stretches, objects.
        pictured: whether somebody who had the video made the pictures of the review list.
        evidence: whether the thresholds are certified now.
    """

    status: Literal["written", "unchanged", "fenced"]
    generation: int
    policy_id: str
    counts: Mapping[str, int]
    labels_uri: str
    review_uri: str
    pictured: bool
    evidence: Evidence = UNCERTIFIED


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

    Args:    images: called with the stretches; gives pictures by review_id. None takes those that were made of the same
                 generation before.
    Returns: what was done; doing it again changes nothing.
    Raises:  StorageError if the video was never committed, its facts are damaged or a later release wrote them;
             ForgottenError if it was forgotten meanwhile (nothing is left);
             CertificateError if the output lacks the certificate that the policy names.
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

    def __init__(self, store: ObjectStore, commit: Commit, metadata: Mapping[str, Any]) -> None:
        self.store, self.commit, self.metadata = store, commit, metadata
        self.files: dict[str, ParquetFile] = {}

    def publish(self, ledger: Ledger) -> Derived:
        """Put the files in place, the labels last, unless a newer generation is committed."""
        for layer in ("review", "labels"):
            if not self._publish_layer(ledger, layer):
                logger.info("generation %d of %s is fenced off", self.commit.generation, self.commit.video_id)
                return _derived(self.store, self.commit, "fenced", self.metadata)
        return _derived(self.store, self.commit, "written", self.metadata)

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


@contextmanager
def prepared(
    store: ObjectStore,
    commit: Commit,
    policy: Policy,
    images: Images | None = None,
    row_group_rows: int = ROW_GROUP_ROWS,
    scratch_dir: Path | None = None,
) -> Iterator[Plan]:
    """Compute both files on scratch; they end with the block. Memory does not grow with the video.

    Raises: as `derive`.
    """
    with ExitStack() as stack:
        if commit.rows > ROW_GROUP_ROWS:
            stack.enter_context(_LARGE)
            stack.callback(pa.default_memory_pool().release_unused)  # or each thread keeps what it once needed
        facts = pq.ParquetFile(stack.enter_context(local_facts(store, commit, scratch_dir)))
        facts_metadata = read_metadata(facts.schema_arrow)
        behind = backing(store, policy, facts_metadata)
        surveyed = survey(facts, policy, commit)
        places, counts = surveyed.places, surveyed.counts
        pictures = images(places.seen) if images else _earlier_images(store, commit, places.seen)
        metadata = {
            **facts_metadata,
            "schema_version": SCHEMA_VERSION,
            "generation": commit.generation,
            "facts_sha256": commit.file("masks").sha256,
            "policy": policy.model_dump(mode="json"),
            "policy_id": policy.policy_id,
            "certified": behind.certified,
            **({} if behind.text is None else {"evidence": behind.text}),
            "counts": counts,
            "pictured": images is not None or _pictured(store, commit),
        }
        plan = Plan(store, commit, metadata)
        for layer, schema in (("labels", LABELS), ("review", REVIEW)):
            file = ParquetFile(schema, metadata, row_group_rows=row_group_rows, scratch_dir=scratch_dir)
            plan.files[layer] = stack.enter_context(file)
        review = _Review(places, pictures)
        for batch in surveyed.batches():
            decisions = decide(
                batch, policy, source=commit.first_seen, model=surveyed.model, unseen=places.unseen,
                calibrated=behind.calibrated,
            )  # fmt: skip
            columns = [batch.column(name) for name in MASKS.names] + decisions.columns
            rows = pa.RecordBatch.from_arrays(columns, schema=LABELS)
            plan.files["labels"].write(rows)
            flagged = rows.filter(_flagged(decisions))
            if flagged.num_rows:
                plan.files["review"].write(review.rows(flagged))
        for file in plan.files.values():
            file.finish()
        yield plan


def _flagged(decisions: pa.RecordBatch) -> pa.Array:
    return pc.or_(pc.equal(decisions.column("decision"), "review"), decisions.column("audit"))


class _Review:
    """Fills the columns that REVIEW adds."""

    def __init__(self, places: Places, images: Mapping[str, ReviewImages]) -> None:
        self._places = places
        self._id_s = pa.array([one.review_id for one in places.all], pa.string())
        self._frame_s = np.array([one.representative_frame for one in places.all], np.int64)
        none = ReviewImages(None, None)
        self._images = [images.get(one.review_id, none) for one in places.all]

    def rows(self, labels: pa.RecordBatch) -> pa.RecordBatch:
        """Rows of REVIEW from flagged rows of LABELS."""
        object_n, frame_n = numbers(labels)
        place_n = self._places.of(object_n, frame_n)
        first_look_n = frame_n == self._frame_s[place_n]
        pictures = [self._images[place] for place in place_n[first_look_n].tolist()]
        added = [self._id_s.take(pa.array(place_n)), pa.array(first_look_n)]
        for uris in ([one.frame_uri for one in pictures], [one.overlay_uri for one in pictures]):
            picked = np.where(first_look_n, np.cumsum(first_look_n) - 1, 0)
            added.append(pa.array(uris, pa.string()).take(pa.array(picked, mask=~first_look_n)))
        return pa.RecordBatch.from_arrays([*labels.columns, *added], schema=REVIEW)


def derived_metadata(store: ObjectStore, commit: Commit, layer: str) -> dict[str, Any] | None:
    """What `labels` or `review` of a video say of themselves, whatever generation they are of; None if there are none.

    Raises: UnavailableError if the store cannot be reached.
    """
    return _metadata(store, derived_key(layer, commit.first_seen, commit.video_id))


def _metadata(store: ObjectStore, key: str) -> dict[str, Any] | None:
    """None for a file that is missing or damaged, which deriving again mends."""
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
        metadata = derived_metadata(store, commit, layer)
        if metadata is None:
            return None
        found.append(metadata)
    labels, review = found
    same = all(labels.get(name) == review.get(name) for name in ("generation", "policy_id", "facts_sha256"))
    if not same or labels.get("facts_sha256") != commit.file("masks").sha256:
        return None
    if labels.get("generation") != commit.generation:
        return None
    return _derived(store, commit, "unchanged", {**labels, "pictured": review.get("pictured", True)})


def _derived(
    store: ObjectStore, commit: Commit, status: Literal["written", "unchanged", "fenced"], metadata: Mapping[str, Any]
) -> Derived:
    labels, review = (
        store.uri(derived_key(layer, commit.first_seen, commit.video_id)) for layer in ("labels", "review")
    )
    return Derived(
        status, commit.generation, str(metadata["policy_id"]), metadata["counts"], labels, review,
        bool(metadata["pictured"]), find_evidence(store, metadata["policy"], metadata),
    )  # fmt: skip


def _pictured(store: ObjectStore, commit: Commit) -> bool:
    """Whether the review list in place is of these facts and has its pictures."""
    metadata = derived_metadata(store, commit, "review") or {}
    same = metadata.get("facts_sha256") == commit.file("masks").sha256
    return same and bool(metadata.get("pictured", True))


def _earlier_images(store: ObjectStore, commit: Commit, stretches: Sequence[Stretch]) -> dict[str, ReviewImages]:
    """The pictures of these stretches that were once made of the same facts, whatever was decided since."""
    there, found = set(store.list(f"{_picture_folder(commit)}/")), {}
    for stretch in stretches:
        plain, overlay = picture_keys(commit, stretch)
        if plain in there and overlay in there:
            found[stretch.review_id] = ReviewImages(store.uri(plain), store.uri(overlay))
    return found


def picture_keys(commit: Commit, stretch: Stretch) -> tuple[str, str]:
    """Where the pictures of a stretch lie: its representative frame, plain and with the mask on it."""
    frame = f"{_picture_folder(commit)}/{stretch.representative_frame:08d}"
    return f"{frame}.jpg", f"{frame}-{stretch.review_id}.jpg"


def _picture_folder(commit: Commit) -> str:
    return f"review_images/{commit.video_id}/{commit.generation:06d}"
