"""Reasons as people read them, for many rows at once: a text is made once per number that it shows, not per row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Texts = Callable[[npt.NDArray[np.intp]], pa.Array]
"""The reasons of some rows, given by number, as one array of strings."""


def always(text: str) -> Texts:
    """The same reason for every row."""
    return lambda rows: pa.repeat(text, len(rows))


def versus(what: str, value_n: npt.NDArray[np.float64], sign: str, limit: float) -> Texts:
    """`uncertainty 0.31 > 0.24`, with as many decimals as it takes for the two numbers to differ."""

    def text(value: float) -> str:
        digits = next((count for count in range(2, 9) if round(value, count) != round(limit, count)), 9)
        return f"{what} {value:.{digits}f} {sign} {limit:.{digits}f}"

    return lambda rows: _by_cents(value_n[rows], text, limit)


def beyond(what: str, value_n: npt.NDArray[np.float64], limit: float) -> Texts:
    """`area change -0.90 beyond 0.7`."""
    return lambda rows: _by_cents(value_n[rows], lambda value: f"{what} {value:+.2f} beyond {limit:g}")


def each(value_n: npt.NDArray[Any], text: Callable[[Any], str]) -> Texts:
    """A text made of each row's value, once per value."""
    return lambda rows: _once_per(value_n[rows], text)


def _by_cents(values: npt.NDArray[np.float64], text: Callable[[float], str], limit: float | None = None) -> pa.Array:
    """Texts that show two decimals, made once per hundredth; once per value where that could show another number.

    That is so near the middle between two hundredths, around zero with its signs, far out, and where the value rounds
    to the limit, so that more decimals are shown.
    """
    cents = values * 100
    with np.errstate(invalid="ignore"):
        near = np.rint(cents)
        special = ~(np.abs(cents) < 1e9) | (np.abs(np.abs(cents - near) - 0.5) < 1e-3) | (near == 0)
    if limit is not None:
        special |= near == round(round(limit, 2) * 100)
    return _once_per(np.where(special, values, near / 100), text)


def _once_per(values: npt.NDArray[Any], text: Callable[[Any], str]) -> pa.Array:
    distinct, where = np.unique(values, return_inverse=True)
    return pa.array([text(one) for one in distinct.tolist()], pa.string()).take(pa.array(where))
