"""Stored tokens find their rows of facts again, however the two files are cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.tokens
from pipeline.errors import StorageError
from pipeline.records import TOKENS, file_metadata
from pipeline.tokens import TokenFile
from usam.features import FEATURES

ROWS = [(frame, one) for frame in range(7) for one in (1, 2, 5)]
SCORED = [(frame, one) for frame, one in ROWS if frame and (frame, one) != (3, 2)]


def token_file(path: Path, keys: list[tuple[int, int]], width: int = 4, features: bool = True) -> TokenFile:
    rows = [
        {
            "video_id": "v", "frame_index": frame, "object_id": one, "chosen": 1,
            "tokens": np.full(width + (width if (frame, one) == (99, 99) else 0), 10 * frame + one, "<f2").tobytes(),
            "features": np.full(len(FEATURES), frame + one / 8, "<f4").tobytes(),
        }
        for frame, one in keys
    ]  # fmt: skip
    about = file_metadata({"features": list(FEATURES)} if features else {})
    table = pa.Table.from_pylist(rows, schema=TOKENS.with_metadata(about))
    pq.write_table(table if features else table.drop_columns(["features"]), path)
    return TokenFile(path)


def facts(keys: list[tuple[int, int]]) -> pa.RecordBatch:
    frames, objects = zip(*keys, strict=True)
    arrays = [pa.array(frames, pa.int32()), pa.array(objects, pa.int32())]
    return pa.RecordBatch.from_arrays(arrays, names=["frame_index", "object_id"])


@pytest.mark.parametrize(("facts_rows", "token_rows"), [(1, 100), (2, 3), (4, 1), (100, 2)])
def test_every_token_finds_its_row(
    facts_rows: int, token_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.tokens, "BATCH_ROWS", token_rows)
    kept, found = token_file(tmp_path / "t.parquet", SCORED), []
    for start in range(0, len(ROWS), facts_rows):
        keys = ROWS[start : start + facts_rows]
        beside = kept.beside(facts(keys))
        assert beside.features_mf is not None
        for row, tokens_2d, features in zip(beside.rows_m, beside.tokens_m2d, beside.features_mf, strict=True):
            frame, one = keys[row]
            assert (tokens_2d == 10 * frame + one).all()
            assert features == pytest.approx(np.full(len(FEATURES), frame + one / 8))
            found.append(keys[row])
    kept.end()
    assert found == SCORED


def test_tokens_of_an_earlier_release_have_no_features(tmp_path: Path) -> None:
    kept = token_file(tmp_path / "t.parquet", SCORED, features=False)
    assert not kept.has_features
    assert kept.beside(facts(ROWS)).features_mf is None


@pytest.mark.parametrize("keys", [[*SCORED, (6, 9)], [*SCORED, (7, 1)], [(0, 3), *SCORED]])
def test_tokens_of_other_masks_are_noticed(keys: list[tuple[int, int]], tmp_path: Path) -> None:
    kept = token_file(tmp_path / "t.parquet", keys)

    def read() -> None:
        kept.beside(facts(ROWS))
        kept.end()

    with pytest.raises(StorageError, match="tokens of masks that are not there"):
        read()


def test_tokens_of_several_widths_are_noticed(tmp_path: Path) -> None:
    kept = token_file(tmp_path / "t.parquet", [*SCORED, (99, 99)])
    with pytest.raises(StorageError, match="several widths"):
        kept.beside(facts([*ROWS, (99, 99)]))
