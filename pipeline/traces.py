"""Everything in an output that tells of one video: found by the keys, the JSON bodies and the Parquet columns."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import StorageError, UnavailableError
from pipeline.ledger import Ledger, forgotten_key
from pipeline.storage.download import Entry
from pipeline.storage.objects import ObjectStore

WORKERS = 16
TEXTS = frozenset((".json", ".jsonl", ".html", ".md", ".txt", ".csv", ".yaml", ".yml"))
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")


@dataclass(frozen=True)
class Subject:
    """Whom a search is about.

    Args:
        video_id: None for a video that was never on this machine or committed, of which only names are known.
        uris: every name that is its alone: of the video, and of its prompts.
    """

    video_id: str | None
    uris: frozenset[str]

    @property
    def pattern(self) -> re.Pattern[str]:
        """Finds the id, and the names where they are not a part of a longer one."""
        names = "|".join(re.escape(uri) for uri in sorted(self.uris, key=len, reverse=True))
        parts = [re.escape(self.video_id)] if self.video_id else []
        parts += [rf"(?<![\w/.:%-])(?:file://)?(?:{names})(?![\w/%-]|\.\w)"] if names else []
        return re.compile("|".join(parts) or r"(?!)")


@dataclass(frozen=True, slots=True)
class Trace:
    """One object that tells of a video.

    Args:
        how: by its key, by text in its body, by rows of a Parquet file, or by rows of a database (then the
            key says which); unreadable: nobody can say.
        litter: what a writer did not publish.
        upload: names the upload, for one in parts that has not ended.
    """

    key: str
    size_bytes: int
    how: Literal["key", "text", "rows", "database", "unreadable"]
    litter: bool = False
    upload: str | None = None

    @property
    def layer(self) -> str:
        return self.key.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Search:
    """What a search found.

    Args:
        traces: by key; the tombstone is none.
        objects, size_bytes: of everything that was listed.
        opened: of how many the content was looked at; the others (pictures) by their keys alone.
    """

    traces: tuple[Trace, ...]
    objects: int
    size_bytes: int
    opened: int


def search(store: ObjectStore, subject: Subject, *, deep: bool = True, ledger: Ledger | None = None) -> Search:
    """Look through a whole output.

    Args:
        deep: also look into Parquet files and snapshots; without, bodies of small records and all keys.
        ledger: also look into its database, where it has one.
    Raises: StorageError if a listing ends half-way.
    """
    pattern = subject.pattern
    tombstone = forgotten_key(subject.video_id) if subject.video_id else None
    found: list[Trace] = []
    if ledger is not None and subject.video_id and (database := ledger.sql_rows(subject.video_id)):
        found.append(Trace(database, 0, "database"))
    for staged in store.staged():
        if subject.video_id and subject.video_id in staged.key:
            found.append(Trace(staged.key, staged.size_bytes, "key", True, staged.upload))
        elif staged.upload is None and _is_text(_target(staged.key)):
            how = _tells(store, staged.key, subject, pattern)
            found += [] if how is None else [Trace(staged.key, staged.size_bytes, how, how == "text")]
    entries = [entry for entry in store.entries() if entry.key != tombstone]
    ours: list[Entry] = []
    for entry in entries:
        if subject.video_id and subject.video_id in entry.key:
            found.append(Trace(entry.key, entry.size_bytes, "key"))
        elif (_is_text(entry.key) and (deep or not entry.key.startswith("snapshots/"))) or (
            deep and entry.key.endswith(".parquet")
        ):
            ours.append(entry)

    def look(entry: Entry) -> Trace | None:
        how = _tells(store, entry.key, subject, pattern)
        return None if how is None else Trace(entry.key, entry.size_bytes, how)

    with ThreadPoolExecutor(WORKERS) as pool:
        found += [trace for trace in pool.map(look, ours) if trace is not None]
    size_bytes = sum(entry.size_bytes for entry in entries)
    return Search(tuple(sorted(found, key=lambda one: one.key)), len(entries), size_bytes, len(ours))


def json_body(store: ObjectStore, key: str) -> dict[str, Any]:
    """A JSON object; an empty one if it went meanwhile or is none.

    Raises: StorageError if it is there and cannot be read: nobody knows then what it says.
    """
    try:
        body = json.loads(store.get(key))
    except UnavailableError:
        raise
    except StorageError:
        if store.exists(key):
            raise
        return {}
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def mentions(value: Any, pattern: re.Pattern[str]) -> bool:
    """Whether any string of a JSON value, a key of it included, has a match."""
    return any(pattern.search(text) for text in _strings(value))


def without(value: Any, pattern: re.Pattern[str]) -> Any:
    """A JSON value without what has a match: elements of lists go, other texts are blotted out."""
    if isinstance(value, str):
        return pattern.sub("(forgotten)", value)
    if isinstance(value, list):
        return [without(one, pattern) for one in value if not mentions(one, pattern)]
    if isinstance(value, dict):
        return {key: without(one, pattern) for key, one in value.items() if not pattern.search(key)}
    return value


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            yield key
            yield from _strings(one)


def _is_text(key: str) -> bool:
    return PurePosixPath(key).suffix.lower() in TEXTS


def _target(key: str) -> str:
    """What a temporary file was to become: `plans/.night.json.0f3c.tmp` -> `night.json`."""
    return PurePosixPath(key).name.rpartition(".")[0].rpartition(".")[0]


def _tells(
    store: ObjectStore, key: str, subject: Subject, pattern: re.Pattern[str]
) -> Literal["text", "rows", "unreadable"] | None:
    """How the content of an object tells of the video, None if it does not or is gone."""
    try:
        if key.endswith(".parquet"):
            with store.open(key) as file:
                return "rows" if _rows_tell(pq.ParquetFile(file), subject, pattern) else None
        text = store.get(key).decode(errors="replace")
        try:
            return "text" if mentions(json.loads(text), pattern) else None
        except ValueError:
            forms = (text, html.unescape(text), _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text))
            return "text" if any(pattern.search(form) for form in forms) else None
    except StorageError:
        return "unreadable" if store.exists(key) else None


def _rows_tell(file: pq.ParquetFile, subject: Subject, pattern: re.Pattern[str]) -> bool:
    """Whether rows or metadata of a file tell of the video; a column is read where its statistics leave it open."""
    about = b"\n".join(value for pair in (file.schema_arrow.metadata or {}).items() for value in pair)
    if pattern.search(about.decode(errors="replace")):
        return True
    asked = {"video_id": {subject.video_id} if subject.video_id else set(), "video_uri": set(subject.uris)}
    where = {file.metadata.schema.column(i).path: i for i in range(file.metadata.num_columns)}
    for group in range(file.num_row_groups):
        for name, values in asked.items():
            if name not in where or not values:
                continue
            statistics = file.metadata.row_group(group).column(where[name]).statistics
            if statistics is not None and statistics.has_min_max:
                values = {value for value in values if statistics.min <= value <= statistics.max}
            if values and _holds(file.read_row_group(group, columns=[name])[name], values):
                return True
    return False


def _holds(column: pa.ChunkedArray, values: set[str]) -> bool:
    texts = column.cast(pa.string())  # whoever exported them may have made a dictionary
    return bool(pc.any(pc.is_in(texts, value_set=pa.array(sorted(values)))).as_py())
