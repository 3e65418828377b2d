"""A search finds what tells of a video in keys, texts and rows, and takes no longer name for its own."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage.objects import ObjectStore
from pipeline.traces import Subject, json_body, mentions, search, without

VIDEO = "cd" * 32
NAME, ADDRESS = "/drops/exit.mp4", "s3://drops/a&b/exit.mp4"
SUBJECT = Subject(VIDEO, frozenset((NAME, ADDRESS)))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (VIDEO, True),
        (f"masks/{VIDEO}-1.parquet", True),
        (NAME, True),
        (f"cannot open '{NAME}': no such file", True),
        (f"look at {NAME}.", True),
        (f"file://{NAME}", True),
        (f"({ADDRESS})", True),
        (f"{NAME}.prompts.json", False),
        (f"{NAME}x", False),
        (f"{NAME}/frame", False),
        (f"/data{NAME}", False),
        (f"s3://bucket{NAME}", False),
        (f"host:{NAME}", False),
        ("exit.mp4", False),
        ("/drops/exit_mp4", False),
        ("", False),
    ],
)
def test_a_name_is_found_where_it_is_not_a_part_of_another(text: str, found: bool) -> None:
    assert bool(SUBJECT.pattern.search(text)) == found


def test_nobody_is_found_in_nothing() -> None:
    assert not Subject(None, frozenset()).pattern.search("anything")


def test_what_names_it_goes_from_json_and_the_rest_stays() -> None:
    body = {"done": [NAME, "/drops/b.mp4"], NAME: 1, "error": f"no {NAME} there", "counts": {"done": 2}, "at": None}
    assert mentions(body, SUBJECT.pattern)
    left = without(body, SUBJECT.pattern)
    assert left == {"done": ["/drops/b.mp4"], "error": "no (forgotten) there", "counts": {"done": 2}, "at": None}
    assert not mentions(left, SUBJECT.pattern)


@pytest.fixture
def store() -> ObjectStore:
    return ObjectStore(f"memory://traces-{uuid.uuid4().hex}")


def found(store: ObjectStore) -> dict[str, str]:
    return {trace.key: trace.how for trace in search(store, SUBJECT).traces}


@pytest.mark.parametrize(
    ("key", "body", "how"),
    [
        (f"anything/{VIDEO}.jpg", b"", "key"),
        (f"forgotten/{VIDEO}.json", f'{{"video_id": "{VIDEO}"}}'.encode(), None),
        ("plans/p.json", json.dumps({"done": [NAME]}).encode(), "text"),
        ("plans/p.json", json.dumps({"done": ["/drops/b.mp4"]}).encode(), None),
        ("notes.html", b"<a>s3://drops/a&amp;b/exit.mp4</a>", "text"),
        ("lines.jsonl", f'{{}}\n{{"v": "{NAME}"}}\n'.encode(), "text"),
        ("notes.TXT", b"\xff\xfe broken, and /drops/exit.mp4 in it", "text"),
        ("film.mp4", NAME.encode(), None),  # pictures and films are known by their keys alone
        ("broken.parquet", b"no Parquet", "unreadable"),
    ],
)
def test_an_object_tells_by_its_key_or_its_text(store: ObjectStore, key: str, body: bytes, how: str | None) -> None:
    store.put_atomic(key, body)
    assert found(store) == ({} if how is None else {key: how})


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize(
    ("column", "value", "how"),
    [("video_id", VIDEO, "rows"), ("video_uri", NAME, "rows"), ("video_id", "ab" * 32, None), ("other", NAME, None)],
)
def test_rows_tell_by_the_columns_that_name_videos(
    store: ObjectStore, tmp_path: Path, column: str, value: str, how: str | None, statistics: bool
) -> None:
    values = pa.array(["00" * 32, value, "ff" * 32]).dictionary_encode()
    pq.write_table(pa.table({column: values}), tmp_path / "x.parquet", row_group_size=2, write_statistics=statistics)
    store.put_atomic("exports/x.parquet", tmp_path / "x.parquet")
    assert found(store) == ({} if how is None else {"exports/x.parquet": how})
    assert search(store, SUBJECT, deep=False).traces == ()
    assert search(store, SUBJECT).objects == 1


def test_metadata_of_a_file_tells_too(store: ObjectStore, tmp_path: Path) -> None:
    table = pa.table({"x": [1]}).replace_schema_metadata({"from": NAME})
    pq.write_table(table, tmp_path / "x.parquet")
    store.put_atomic("exports/x.parquet", tmp_path / "x.parquet")
    assert found(store) == {"exports/x.parquet": "rows"}


def test_a_body_that_is_no_object_is_an_empty_one(store: ObjectStore) -> None:
    for key, body in (("a.json", b"[1]"), ("b.json", b"{"), ("c.json", b'{"a": 1}')):
        store.put_atomic(key, body)
    assert [json_body(store, f"{key}.json") for key in "abcd"] == [{}, {}, {"a": 1}, {}]
