"""Columns of Arrow rows as numpy arrays: numbers with NaN for null, flags, where a text says what, a row's score."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StorageError

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Rows: TypeAlias = pa.Table | pa.RecordBatch
GIVEN = ("mask", "answer")
"""What `prompted` says of a mask that a person gave, as a prompt or as an answer to the review list."""


def column(rows: Rows, name: str) -> pa.Array:
    """A column in one piece. Raises StorageError if there is none."""
    if name not in rows.schema.names:
        raise StorageError(f"facts with a column {name!r}", f"columns {rows.schema.names}", "pass rows of masks/")
    found = rows.column(name)
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


def floats(rows: Rows, name: str) -> Floats:
    """A numeric column with NaN for null."""
    values: Floats = column(rows, name).cast(pa.float64()).to_numpy(zero_copy_only=False)
    return values


def flags(rows: Rows, name: str) -> Mask:
    """A boolean column with false for null."""
    values: Mask = column(rows, name).fill_null(False).to_numpy(zero_copy_only=False).astype(bool)
    return values


def equals(rows: Rows, name: str, text: str) -> Mask:
    """Where a text column, plain or dictionary-encoded, says this; a null says nothing."""
    found = column(rows, name)
    if isinstance(found, pa.DictionaryArray):  # numbers compare faster than texts
        numbers, texts = codes(rows, name)
        same: Mask = np.array([one == text for one in texts])[numbers]
        return same
    values: Mask = pc.equal(found, text).fill_null(False).to_numpy(zero_copy_only=False)
    return values


def given(rows: Rows) -> Mask:
    """Where a person gave the mask itself: no prediction, and nothing to score."""
    prompt, answer = GIVEN
    return equals(rows, "prompted", prompt) | equals(rows, "prompted", answer)


def codes(rows: Rows, name: str) -> tuple[npt.NDArray[np.int64], list[str | None]]:
    """A text column as numbers, and the text of each number; -1 is null, as is the last text."""
    coded = column(rows, name)
    if not isinstance(coded, pa.DictionaryArray):
        coded = coded.dictionary_encode()
    numbers = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return numbers, [*coded.dictionary.to_pylist(), None]


def score(rows: Rows) -> Floats:
    """The predicted IoU of each row, from the column that its `score_source` names; NaN where there is none."""
    sources = [one for one in pc.unique(column(rows, "score_source")).to_pylist() if one]
    score_n = np.full(rows.num_rows, np.nan)
    for name in sorted(sources):
        values = floats(rows, name)
        if name == "object_score":  # a logit of presence: an absent row is right with the probability of absence
            values = 1 / (1 + np.exp(np.clip(values, -60, 60)))
        here = equals(rows, "score_source", name)
        score_n[here] = values[here]
    return score_n
