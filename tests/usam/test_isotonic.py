"""An isotonic map rises, fits better than any other rising map, and survives its file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from usam.errors import EvaluationError
from usam.isotonic import Isotonic

ROWS = st.lists(st.tuples(st.integers(-6, 6).map(lambda i: i / 4), st.floats(0, 1), st.integers(1, 4)), min_size=1)


def best_by_extremes(mean_k: np.ndarray, weight_k: np.ndarray) -> list[float]:
    """The min-max formula: max over starts a <= k of min over ends b >= k of the mean of a..b."""
    n = len(mean_k)
    return [
        max(
            min(np.average(mean_k[a : b + 1], weights=weight_k[a : b + 1]) for b in range(k, n))
            for a in range(k + 1)
        )
        for k in range(n)
    ]  # fmt: skip


@given(ROWS)
def test_it_is_the_best_rising_map(rows: list[tuple[float, float, int]]) -> None:
    score, target, weight = (np.array(column) for column in zip(*rows, strict=True))
    fitted = Isotonic.fit(score, target, weight)
    known = np.unique(score)
    mass = np.array([weight[score == s].sum() for s in known])
    mean = np.array([np.average(target[score == s], weights=weight[score == s]) for s in known])
    assert fitted(known) == pytest.approx(best_by_extremes(mean, mass), abs=1e-9)


@given(ROWS, st.lists(st.floats(-3, 3)))
def test_it_never_falls_and_stays_within_the_targets(rows: list[tuple[float, float, int]], at: list[float]) -> None:
    score, target, weight = zip(*rows, strict=True)
    values = Isotonic.fit(score, target, weight)(sorted(at))
    assert (np.diff(values) >= 0).all()
    assert all(min(target) - 1e-12 <= value <= max(target) + 1e-12 for value in values)


@given(ROWS, st.randoms(use_true_random=False))
def test_a_weight_is_a_number_of_rows_and_their_order_does_not_matter(
    rows: list[tuple[float, float, int]], rng: np.random.Generator
) -> None:
    many = [(s, t) for s, t, w in rows for _ in range(w)]
    rng.shuffle(many)
    a, b = Isotonic.fit(*zip(*rows, strict=True)), Isotonic.fit(*zip(*many, strict=True))
    at = np.linspace(-2, 2, 41)
    assert a(at) == pytest.approx(b(at), abs=1e-9)


@given(ROWS)
def test_its_text_gives_it_back_to_the_bit(rows: list[tuple[float, float, int]]) -> None:
    fitted = Isotonic.fit(*zip(*rows, strict=True))
    again = Isotonic.from_json(fitted.to_json())
    assert again.to_json() == fitted.to_json()
    at = np.linspace(-2, 2, 41)
    assert np.array_equal(again(at), fitted(at))


def test_between_stretches_are_lines_and_beyond_the_ends_it_is_flat(tmp_path: Path) -> None:
    fitted = Isotonic.fit([0, 1, 2, 3], [0.4, 0.2, 0.9, 0.7])
    assert fitted([-9, 0, 1, 1.5, 2, 3, 9]) == pytest.approx([0.3, 0.3, 0.3, 0.55, 0.8, 0.8, 0.8])
    assert np.isnan(fitted([np.nan])).all()
    file = fitted.save(tmp_path / "map.json")
    assert Isotonic.from_json(file.read_text())(1.5) == pytest.approx(0.55)


def test_a_hundred_thousand_rows_keep_their_mean() -> None:
    rng = np.random.default_rng(0)
    score = rng.random(100_000)
    target = (rng.random(100_000) < score**2).astype(float)
    fitted = Isotonic.fit(score, target)
    assert fitted(score).mean() == pytest.approx(target.mean(), abs=1e-9)
    assert np.abs(fitted(score) - score**2).mean() < 0.02


@pytest.mark.parametrize(
    ("score", "target", "weight", "message"),
    [
        ([], [], None, "at least one row"),
        ([1, 2], [0.5], None, "one of each per row"),
        ([1, np.nan], [0.5, 0.5], None, "finite"),
        ([1, 2], [0.5, np.inf], None, "finite"),
        ([1, 2], [0.5, 0.5], [1, -1], "at least 0"),
        ([1, 2], [0.5, 0.5], [0, 0], "at least one row"),
    ],
)
def test_rows_that_cannot_be_fitted_are_refused(
    score: list[float], target: list[float], weight: list[float] | None, message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        Isotonic.fit(score, target, weight)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"score": [1]}', json.dumps({"score": [2, 1], "value": [0, 1]}), '{"score": [], "value": []}',
     '{"score": [0, 1], "value": [1, 0]}', '{"score": [0, NaN], "value": [1, 1]}'],
)  # fmt: skip
def test_text_that_is_no_map_is_refused(text: str) -> None:
    with pytest.raises(EvaluationError):
        Isotonic.from_json(text)
