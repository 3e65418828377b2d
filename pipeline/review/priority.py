"""Which item a person sees first: what there is to gain from it, less where it is much like others that come before."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Candidate:
    """What the priority of an item rests on.

    Args:
        gain: uncertainty summed over its rows.
        track: its video and object.
        alike: name of the group of items that look like it, see `pipeline.review.looks`; None if that is not known.
        answered: it comes before all that wait.
        name: breaks ties, the same way everywhere.
    """

    gain: float
    track: Hashable
    alike: Hashable | None = None
    answered: bool = False
    name: str = ""


def priorities(candidates: Sequence[Candidate]) -> npt.NDArray[np.float64]:
    """gain x novelty of each; novelty is 1 / (1 + k) of the k-th item, from 0, among those that are much alike.

    Alike are items of one object of one video, and items of one label whose pictures are near-duplicates. Those that
    were answered come before the others, and of these those with more to gain.

    Returns: (n,) float64, at least 0; the larger, the sooner.
    """
    gain_n = np.array([one.gain for one in candidates], np.float64)
    if not len(gain_n):
        return gain_n
    order = sorted(range(len(candidates)), key=lambda number: _comes_before(candidates[number]))
    ahead_n = _ahead([one.track for one in candidates], order)
    ahead_n += _ahead([one.alike for one in candidates], order)
    both = [None if one.alike is None else (one.track, one.alike) for one in candidates]
    ahead_n -= _ahead(both, order)  # they were counted twice
    priority_n: npt.NDArray[np.float64] = gain_n / (1 + ahead_n)
    return priority_n


def _comes_before(one: Candidate) -> tuple[bool, float, str]:
    return not one.answered, -one.gain, one.name


def _ahead(groups: Sequence[Hashable | None], order: Sequence[int]) -> npt.NDArray[np.int64]:
    """How many of its group come before each, in this order; 0 for those in no group."""
    ahead_n, seen = np.zeros(len(groups), np.int64), dict[Hashable, int]()
    for number in order:
        group = groups[number]
        if group is not None:
            ahead_n[number] = seen.get(group, 0)
            seen[group] = ahead_n[number] + 1
    return ahead_n
