"""Other heads over stored tokens: scores of committed videos are made anew, without SAM2 and without the videos.

The masks stay. What comes out are the facts that `masksieve label` would have made with these heads, as closely as
tokens kept in fp16 allow, as a new generation under the work key of these heads: a later `label` finds its work done.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from pipeline.certificate import find_evidence
from pipeline.derive import derive
from pipeline.errors import ForgottenError, HeadError, MasksieveError, StorageError, UnavailableError, VideoError
from pipeline.ledger import Commit, CommitConflict, Ledger, work_key
from pipeline.local_facts import local_facts
from pipeline.other_heads import Banks, Fitting, rescored
from pipeline.policy import Policy
from pipeline.records import MASKS, read_metadata, upgraded
from pipeline.score import score_head
from pipeline.scratch import scratch_folder
from pipeline.selection import Selection
from pipeline.settings import Settings
from pipeline.side_by_side import side_by_side
from pipeline.storage.manifest import derived_key, discard_facts, facts_key, write_facts
from pipeline.storage.objects import ObjectStore
from pipeline.suggest import nearest
from pipeline.tokens import BATCH_ROWS, TokenFile

log = logging.getLogger(__name__)

THREADS = 2
ATTEMPTS = 3
SHORTEST_PREFIX = 8


@dataclass(frozen=True)
class Rescored:
    """What became of a video.

    Args:
        status: rescored; unchanged (its scores are of these heads already); no_tokens (nothing to score from);
            refused (the heads do not fit it); failed.
        rows: of facts.
        score_source: the column that predicts the IoU now.
        heads_alone: the bank has a stacker, and the stored tokens have no track features for it.
        decisions: rows by decision.
        policy_id: of the policy that decided, the one that its labels had.
        evidence: whether that policy's thresholds are certified for these scores, in words.
        error: why not, for the last three statuses.
    """

    video_id: str
    video_uri: str
    status: Literal["rescored", "unchanged", "no_tokens", "refused", "failed"]
    generation: int = 0
    rows: int = 0
    score_source: str | None = None
    heads_alone: bool = False
    decisions: Mapping[str, int] = field(default_factory=dict)
    policy_id: str | None = None
    evidence: str | None = None
    error: MasksieveError | None = None


def chosen_videos(ledger: Ledger, drops: Collection[str] = (), videos: Collection[str] = ()) -> list[str]:
    """The video_ids of committed videos that were meant.

    Args:
        drops: those first seen in one of them; empty for all.
        videos: those named so: by path, address, the end of one (a file name), or the beginning of the video_id; empty
            for all.
    Raises: SettingsError for a drop, VideoError for a video that the output does not know, naming the nearest.
    """
    if not drops and not videos:
        return sorted(ledger.newest_generations())
    commits = list(Selection(drops=tuple(drops)).commits(ledger))
    found = set() if videos else {commit.video_id for commit in commits}
    for word in videos:
        named = {commit.video_id for commit in commits if _is_called(commit, word)}
        if not named:
            near = nearest(PurePosixPath(word).name, {PurePosixPath(commit.video_uri).name for commit in commits})
            step = f"did you mean {near}?" if near else "name it by its path, address or video_id"
            raise VideoError(f"a video that {ledger.store.url} knows", word, step)
        found |= named
    return sorted(found)


def _is_called(commit: Commit, word: str) -> bool:
    forms = {word, str(Path(word).expanduser().resolve())}
    by_id = len(word) >= SHORTEST_PREFIX and commit.video_id.startswith(word)
    return by_id or commit.video_uri in forms or commit.video_uri.endswith(f"/{word.lstrip('/')}")


def rescore_all(
    store: ObjectStore, video_ids: Iterable[str], settings: Settings, banks: Banks | None = None
) -> Iterator[Rescored]:
    """Rescore many videos; the same call goes on where it broke off.

    Args:
        video_ids: committed ones, in any order.
        settings: the heads (`score.bank`), the device they run on, how facts are written, and the policy of videos
            whose labels do not tell theirs.
    Yields: as they are done, what became of each. One that fails does not stop the others.
    Raises: as `Banks`; StorageError if there is no scratch folder to be had.
    """
    banks, ledger = banks or Banks(settings), Ledger(store)

    def one(video_id: str, scratch: str) -> Rescored:
        try:
            return rescore_video(store, ledger, video_id, banks, settings, Path(scratch))
        except MasksieveError as error:
            return Rescored(video_id, video_id[:12], "failed", error=error)

    with scratch_folder(settings) as scratch:
        yield from side_by_side(lambda video_id: one(video_id, scratch), video_ids, THREADS, "rescore")


def rescore_video(
    store: ObjectStore, ledger: Ledger, video_id: str, banks: Banks, settings: Settings, scratch: Path
) -> Rescored:
    """Score the masks of a video's newest generation with other heads, commit, and decide anew by the labels' policy.

    A rival that commits meanwhile wins, and what it committed is rescored.

    Returns: what was done; a second time it is "unchanged".
    Raises:  StorageError if facts or tokens are damaged, or rivals kept coming; ForgottenError.
    """
    for _ in range(ATTEMPTS):
        commit = ledger.newest(video_id)
        if commit is None:
            raise StorageError(f"a committed generation of {video_id}", "none", "label the video first")
        told = Rescored(video_id, commit.video_uri, "unchanged", commit.generation, commit.rows)
        if not any(file.layer == "tokens" for file in commit.files):
            step = "label it again with --set output.tokens=true"
            error = StorageError(f"tokens of {commit.video_uri}", "none kept", step)
            return replace(told, status="no_tokens", error=error)
        facts, tokens = (_metadata(store, commit.file(layer).key) for layer in ("masks", "tokens"))
        try:
            heads = banks.fitting(facts, tokens)
        except HeadError as error:
            return replace(told, status="refused", error=error)
        if facts.get("heads_sha256") != heads.sha256:
            try:
                commit = _commit(store, ledger, commit, facts, heads, settings, scratch)
            except CommitConflict as error:
                log.info("%s: %s", commit.video_uri, error)
                continue
            told = replace(told, status="rescored", generation=commit.generation)
        policy = policy_in_place(store, commit) or settings.policy
        derived = derive(
            store, ledger, video_id, policy, row_group_rows=settings.output.row_group_rows, scratch_dir=scratch,
        )  # fmt: skip
        decisions = {name: derived.counts[name] for name in ("accept", "review", "hold")}
        return replace(
            told, score_source=score_head(heads.bank), heads_alone=heads.heads_alone, decisions=decisions,
            policy_id=derived.policy_id,
            evidence=find_evidence(store, policy, {**facts, "heads_sha256": heads.sha256}).text,
        )  # fmt: skip
    raise StorageError("a video that holds still", f"{ATTEMPTS} rivals in a row", "rescore it again later")


def _commit(
    store: ObjectStore,
    ledger: Ledger,
    before: Commit,
    metadata: Mapping[str, Any],
    heads: Fitting,
    settings: Settings,
    scratch: Path,
) -> Commit:
    """Write the facts with their new scores and commit them; the other layers are those of the generation before."""
    started_at, run_id = datetime.now(UTC), uuid.uuid4().hex
    # Facts of an earlier release do not say which prompts made them. Then `label` knows no such work, and labels again.
    prompts = metadata.get("prompts_sha256") or f"as in {before.label_key}"
    model_sha256, config = heads.bank.card.model_sha256, metadata.get("config") or {}
    key = work_key(before.video_id, prompts, model_sha256, heads.sha256, config)
    attempt = f"{before.generation + 1:06d}-{run_id[:12]}"
    about = {name: value for name, value in metadata.items() if name != "schema_version"}
    about |= {"heads_sha256": heads.sha256, "prompts_sha256": prompts, "scores_from": "stored tokens"}
    with local_facts(store, before, scratch) as masks, local_facts(store, before, scratch, "tokens") as tokens:
        record = write_facts(
            store, "masks", facts_key("masks", before.drop, before.video_id, attempt),
            _rows(masks, tokens, heads), MASKS, about,
            row_group_rows=settings.output.row_group_rows, scratch_dir=scratch,
        )  # fmt: skip
    files = [record if file.layer == "masks" else file for file in before.files]
    try:
        commit = ledger.commit(
            before.video_id, parent=before.generation, work_key=key, video_uri=before.video_uri, drop=before.drop,
            files=files, run_id=run_id, attempt=1, started_at=started_at, corrects=before.corrects,
            answers=before.answers,
        )  # fmt: skip
    except (CommitConflict, ForgottenError):
        discard_facts(store, [record])
        raise
    if commit.run_id != run_id:  # a rival committed the very same work first
        discard_facts(store, [record])
    return commit


def _rows(masks: Path, tokens: Path, heads: Fitting) -> Iterator[pa.RecordBatch]:
    """All rows of the facts with their new scores."""
    facts, kept = pq.ParquetFile(masks), TokenFile(tokens)
    version = str(read_metadata(facts.schema_arrow).get("schema_version"))
    for batch in facts.iter_batches(BATCH_ROWS):
        rows = upgraded(batch, version)
        yield rescored(rows, kept.beside(rows), heads.bank)
    kept.end()


def policy_in_place(store: ObjectStore, commit: Commit) -> Policy | None:
    """The policy of the labels in place, of whatever generation; None if they are not there or do not tell."""
    try:
        return Policy.model_validate(
            _metadata(store, derived_key("labels", commit.first_seen, commit.video_id))["policy"]
        )
    except UnavailableError:
        raise
    except (StorageError, KeyError, ValidationError) as error:
        log.warning("the labels of %s do not tell their policy: %s", commit.video_uri, type(error).__name__)
        return None


def _metadata(store: ObjectStore, key: str) -> dict[str, Any]:
    """What a Parquet file says of itself, from its footer alone."""
    with store.open(key) as file:
        return read_metadata(pq.read_schema(file))
