"""Decides anew about the committed videos of an output by another policy: from stored facts, without a model.

What each video had before is written down first (`pipeline.retune_log`), so that a retune can be undone, also one that
was killed half-way; the same call goes on with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from pipeline.backing import require_certificate
from pipeline.derive import Derived, derive, derived_metadata
from pipeline.errors import MasksieveError, SettingsError, UnavailableError
from pipeline.ledger import Commit, Ledger, commit_of
from pipeline.policy import Policy, PolicyError
from pipeline.retune_log import Entry, Journal, by_video
from pipeline.scratch import scratch_folder
from pipeline.selection import Selection
from pipeline.settings import Settings
from pipeline.side_by_side import side_by_side
from pipeline.storage.objects import ObjectStore

log = logging.getLogger(__name__)

THREADS = 8
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Retune:
    """What is to be done: written down, not yet begun.

    Args:
        policy_ids: what each video is to have; those that have it already are among them.
        policies: the policies, by id.
        entry: of the journal; None where nothing changes.
    """

    policy_ids: Mapping[str, str]
    policies: Mapping[str, Policy]
    entry: Entry | None


def begin_retune(store: ObjectStore, policy: Policy, selection: Selection | None = None) -> Retune:
    """Look up which videos are meant and what they have, and write that down.

    Where the last retune was by the same policy and selection and did not come to its end, this one goes on with it.

    Raises: CertificateError if the output lacks the policy's certificate; SettingsError for a drop that nobody knows;
            StorageError if a commit or the journal is damaged.
    """
    require_certificate(store, policy)
    selection, policy_id = selection or Selection(), policy.policy_id
    policies = {policy_id: policy.model_dump(mode="json")}
    has = dict(sorted(look(store, selection, lambda commit: _policy_of(store, commit, policies))))
    had = {video_id: one for video_id, one in has.items() if one not in (None, policy_id)}
    journal, gets = Journal(store), dict.fromkeys(had, policy_id)
    last, entry = journal.last(), None
    under_way = last is not None and last.kind == "retune" and last.finished_at is None
    if last is not None and under_way and [*last.after] == [policy_id] and last.selection == selection.as_json():
        entry = journal.extend(last.number, policies, had, gets)
    elif had:
        entry = journal.begin("retune", policies, had, gets, selection=selection.as_json())
    return Retune(dict.fromkeys(has, policy_id), {policy_id: policy}, entry)


def begin_undo(store: ObjectStore) -> Retune:
    """Look up what the videos of the last retune had before it, and write down what they have now.

    An undo that did not come to its end goes on; one that did is undone itself.

    Raises: SettingsError if nothing was retuned yet; PolicyError if a policy of then cannot be read any more;
            StorageError if the journal is damaged.
    """
    journal = Journal(store)
    last = journal.last()
    if last is None:
        raise SettingsError("a retune to undo", f"none in {store.url}", "there is nothing to do")
    under_way = last.kind == "undo" and last.finished_at is None
    gets, policies = by_video(last.after if under_way else last.before), dict(last.policies)
    had: dict[str, str] = {}
    if not under_way:
        commits = Ledger(store).read_all(gets)
        has = {one.video_id: had for one, had in _in_threads(lambda one: _policy_of(store, one, policies), commits)}
        gets = {video_id: gets[video_id] for video_id in sorted(has)}  # others were forgotten
        had = {video_id: one for video_id, one in has.items() if one is not None}
    readable = {one: _readable(policies.get(one), one) for one in set(gets.values())}
    for policy in readable.values():
        require_certificate(store, policy)
    return Retune(gets, readable, last if under_way else journal.begin("undo", policies, had, gets, of=last.number))


def carry_out(
    store: ObjectStore, retune: Retune, settings: Settings, *, threads: int = THREADS
) -> Iterator[tuple[str, Derived | MasksieveError]]:
    """Derive what a retune says; when all is done without a failure, its entry of the journal says so.

    Args:   settings: how labels are written, and the scratch folder; its policy does not count.
            threads: videos at a time.
    Yields: as they are done: what was done, or why not. One that fails does not stop the others.
    Raises: StorageError if there is no scratch folder to be had.
    """
    work = [(video_id, retune.policies[policy_id]) for video_id, policy_id in retune.policy_ids.items()]
    failed = False
    for video_id, derived in _derive_each(store, work, settings, threads):
        failed |= isinstance(derived, MasksieveError)
        yield video_id, derived
    if retune.entry is not None and not failed:
        Journal(store).finish(retune.entry.number)


def committed_videos(store: ObjectStore) -> list[str]:
    """The video_ids of all that is committed, from one listing."""
    named = (commit_of(key) for key in store.list("commits/"))
    return sorted({one[0] for one in named if one is not None})


def derive_all(
    store: ObjectStore, video_ids: Iterable[str], settings: Settings, *, threads: int = THREADS
) -> Iterator[tuple[str, Derived | MasksieveError]]:
    """Derive labels and review list of many videos by the policy of the settings, without a note in the journal.

    Args, Yields, Raises: as `carry_out`.
    """
    yield from _derive_each(store, ((one, settings.policy) for one in video_ids), settings, threads)


def look(store: ObjectStore, selection: Selection, at: Callable[[Commit], T]) -> Iterator[tuple[str, T]]:
    """Look at the newest commit of every video that a selection means, side by side.

    A video whose facts cannot tell their labels is looked at, and warned of.

    Yields: video_id, and what was found.
    """

    def one(commit: Commit) -> tuple[T] | None:
        try:
            if not selection.holds_label(store, commit):
                return None
        except UnavailableError:
            raise
        except MasksieveError as error:
            log.warning("nobody knows what labels %s has: %s", commit.video_id, error)
        return (at(commit),)

    found = _in_threads(one, selection.commits(Ledger(store)))
    yield from ((commit.video_id, one[0]) for commit, one in found if one is not None)


def _policy_of(store: ObjectStore, commit: Commit, policies: dict[str, dict[str, Any]]) -> str | None:
    """The id of the policy by which a video's labels were decided; the policy itself is added to `policies`.

    None where there are no labels, or none that can be read: there is nothing to go back to.
    """
    said = derived_metadata(store, commit, "labels") or {}
    policy_id, policy = said.get("policy_id"), said.get("policy")
    if not isinstance(policy_id, str) or not isinstance(policy, dict):
        return None
    policies.setdefault(policy_id, policy)
    return policy_id


def _readable(said: Mapping[str, Any] | None, policy_id: str) -> Policy:
    try:
        return Policy.model_validate(said)
    except ValidationError as error:
        got = f"{policy_id} with {error.error_count()} wrong fields"
        raise PolicyError("a policy that this release knows", got, "retune by a policy file instead") from error


def _in_threads(do: Callable[[T], U], items: Iterable[T]) -> Iterator[tuple[T, U]]:
    left = iter(items)
    with ThreadPoolExecutor(THREADS, thread_name_prefix="masksieve-look") as pool:
        while some := list(islice(left, 16 * THREADS)):
            yield from zip(some, pool.map(do, some), strict=True)


def _derive_each(
    store: ObjectStore, work: Iterable[tuple[str, Policy]], settings: Settings, threads: int
) -> Iterator[tuple[str, Derived | MasksieveError]]:
    ledger, rows = Ledger(store), settings.output.row_group_rows

    def one(video_id: str, policy: Policy, scratch: str) -> tuple[str, Derived | MasksieveError]:
        try:
            found = derive(store, ledger, video_id, policy, row_group_rows=rows, scratch_dir=Path(scratch))
        except MasksieveError as error:
            log.warning("no new labels of %s: %s", video_id, error)
            return video_id, error
        return video_id, found

    with scratch_folder(settings) as scratch:
        yield from side_by_side(lambda both: one(*both, scratch), work, threads, "derive")
