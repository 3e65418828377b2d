"""Run lengths: what pycocotools writes comes back, and nothing else gets through."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco

from usam.datasets.rle import Runs
from usam.errors import DatasetError

MASKS = arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40))


@settings(max_examples=200, deadline=None)
@given(mask_hw=MASKS)
def test_masks_of_pycocotools_come_back(mask_hw: np.ndarray[Any, Any]) -> None:
    encoded = coco.encode(np.asfortranarray(mask_hw.astype(np.uint8)))
    runs = Runs({"size": list(mask_hw.shape), "counts": encoded["counts"].decode()}, "here")
    assert np.array_equal(runs.mask(), mask_hw)
    assert runs.area == mask_hw.sum()
    again = Runs({"size": list(mask_hw.shape), "counts": runs.runs_n.tolist()}, "here")
    assert np.array_equal(again.mask(), mask_hw)


@settings(max_examples=300, deadline=None)
@given(counts=st.text(max_size=30) | st.lists(st.integers(), max_size=6) | st.none() | st.lists(st.text(), max_size=2))
def test_anything_else_is_refused_or_fills_its_picture(counts: Any) -> None:
    with suppress(DatasetError):
        assert Runs({"size": [3, 4], "counts": counts}, "here").mask().shape == (3, 4)


@pytest.mark.parametrize(
    "rle",
    [
        None,
        [],
        {},
        {"size": [2, 2]},
        {"size": [2], "counts": [4]},
        {"size": [2.0, 2], "counts": [4]},
        {"size": [0, 4], "counts": []},
    ],
)
def test_what_has_no_size_is_refused(rle: Any) -> None:
    with pytest.raises(DatasetError, match="in here"):
        Runs(rle, "here")
