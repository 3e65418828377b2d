"""The journal of an output's retunes: which policy each video had before, written down before anything is changed.

`retunes/000001.json` and so on. Only the last one can be undone, also where it was killed half-way; an undo is an entry
like any other, so it can be undone too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import StorageError
from pipeline.storage.objects import ObjectStore

_KEY = re.compile(r"retunes/(\d{6,})\.json")


class Entry(BaseModel):
    """One retune.

    Args:
        of: the entry that an undo undoes.
        selection: as `Selection.as_json` has it.
        finished_at: None while it is under way, was killed, or left videos behind that failed.
        policies: all that are named, by policy_id.
        before, after: policy_id to the video_ids that had it, or are to have it; videos that had no labels are left
            out, as there is nothing to go back to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    number: int = Field(ge=1)
    kind: Literal["retune", "undo"]
    of: int | None = None
    selection: dict[str, Any] = Field(default_factory=dict)
    started_at: datetime
    finished_at: datetime | None = None
    policies: dict[str, dict[str, Any]]
    before: dict[str, list[str]]
    after: dict[str, list[str]]


class Journal:
    """The entries of one output.

    Args:
        store: of the output.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def last(self) -> Entry | None:
        """The newest entry, None if nothing was ever retuned. Raises StorageError if it is damaged."""
        numbers = [int(found[1]) for key in self._store.list("retunes/") if (found := _KEY.fullmatch(key))]
        return self._read(max(numbers)) if numbers else None

    def begin(
        self,
        kind: Literal["retune", "undo"],
        policies: Mapping[str, dict[str, Any]],
        before: Mapping[str, str],
        after: Mapping[str, str],
        *,
        of: int | None = None,
        selection: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Write down what is about to be done.

        Args: before, after: policy_id by video_id.
        """
        entry = Entry(
            number=1, kind=kind, of=of, selection=dict(selection or {}), started_at=datetime.now(UTC),
            policies=dict(policies), before=_by_policy(before), after=_by_policy(after),
        )  # fmt: skip
        while True:
            last = self.last()
            entry = entry.model_copy(update={"number": 1 if last is None else last.number + 1})
            if self._store.put_if_absent(_key(entry.number), _body(entry)):
                return entry

    def extend(
        self, number: int, policies: Mapping[str, dict[str, Any]], before: Mapping[str, str], after: Mapping[str, str]
    ) -> Entry:
        """Tell an entry that is under way what is still to be done; what it says of other videos stays."""

        def more(entry: Entry) -> Entry:
            had, gets = ({**by_video(old), **new} for new, old in ((before, entry.before), (after, entry.after)))
            joined = {"policies": {**policies, **entry.policies}, "before": _by_policy(had), "after": _by_policy(gets)}
            return entry.model_copy(update=joined)

        return self._change(number, more)

    def finish(self, number: int) -> Entry:
        """Note that all of it was done."""
        return self._change(number, lambda entry: entry.model_copy(update={"finished_at": datetime.now(UTC)}))

    def _change(self, number: int, change: Callable[[Entry], Entry]) -> Entry:
        while True:
            version = self._store.version(_key(number))
            changed = change(self._read(number))
            if self._store.replace(_key(number), _body(changed), version):
                return changed

    def _read(self, number: int) -> Entry:
        try:
            return Entry.model_validate_json(self._store.get(_key(number)))
        except ValidationError as error:
            got = f"{self._store.uri(_key(number))}: {error.error_count()} wrong fields"
            raise StorageError("a readable journal of the last retune", got, "restore or remove the file") from error


def _key(number: int) -> str:
    return f"retunes/{number:06d}.json"


def _body(entry: Entry) -> bytes:
    return entry.model_dump_json(indent=1).encode()


def _by_policy(policy_ids: Mapping[str, str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for video_id, policy_id in sorted(policy_ids.items()):
        grouped.setdefault(policy_id, []).append(video_id)
    return grouped


def by_video(grouped: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """policy_id by video_id, from `Entry.before` or `Entry.after`."""
    return {video_id: policy_id for policy_id, some in grouped.items() for video_id in some}
