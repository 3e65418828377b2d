"""Big JSON files walked item by item: what json.load gives, whatever the chunks and the white space."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from usam.datasets import json_items
from usam.datasets.json_items import items, value_at
from usam.errors import DatasetError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    a=st.lists(VALUES, max_size=6),
    b=st.lists(st.fixed_dictionaries({"id": st.integers(), "name": st.text()}), max_size=6),
    other=st.dictionaries(st.text(), VALUES, max_size=3),
    chunk=st.integers(1, 40),
    indent=st.sampled_from([None, 2, "\t"]),
    escape=st.booleans(),
)
def test_every_item_comes_with_its_place(
    tmp_path: Path, monkeypatch: Any, a: Any, b: Any, other: Any, chunk: int, indent: Any, escape: bool
) -> None:
    data = {**{f"x{key}": value for key, value in other.items()}, "a": a, "z": 12, "b": b}
    path = tmp_path / "data.json"
    path.write_text(json.dumps(data, indent=indent, ensure_ascii=escape), encoding="utf-8", errors="surrogatepass")
    monkeypatch.setattr(json_items, "CHUNK_BYTES", chunk)
    found = list(items(path, ("a", "b")))
    assert [item.key for item in found] == ["a"] * len(a) + ["b"] * len(b)
    assert [value_at(path, item.offset, item.length) for item in found] == a + b
    assert [item.value["id"] for item in found if item.key == "b"] == [value["id"] for value in b]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 90), chunk=st.integers(1, 30))
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, monkeypatch: Any, cut: int, chunk: int) -> None:
    whole = json.dumps({"info": {"n": 1}, "a": [{"id": 1}, {"id": 22}], "b": [3, 4, [5, "six"]], "end": None})
    path = tmp_path / "cut.json"
    path.write_text(whole[: min(cut, len(whole) - 1)])
    monkeypatch.setattr(json_items, "CHUNK_BYTES", chunk)
    with pytest.raises(DatasetError, match=r"cut\.json"):
        list(items(path, ("a", "b")))


def test_a_big_file_is_not_held(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "big.json"
    path.write_text(json.dumps({"a": [{"id": i, "pad": "x" * 1000} for i in range(5000)]}))
    monkeypatch.setattr(json_items, "CHUNK_BYTES", 1 << 16)
    tracemalloc.start()
    assert sum(1 for _ in items(path, ("a",))) == 5000
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < path.stat().st_size / 8
