"""Sums over rows that give the figures of every threshold at once: histograms over a fine grid, by group and by video.

A row turns from flagged to accepted at one threshold, its bin. So rows, and changes of stretches, are counted by bin; a
running sum over the bins says how many there are at each threshold. Besides the grid there is one column "now": the
policy as it stands, whose groups may have thresholds of their own. Memory is that of the grid, whatever the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.policy import Policy

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

STEPS = 1000
COUNTS = ("rows", "predicted", "held", "unscored", "always", "accepted_now", "stretches_now")
ROWS, WEIGHT, BAD, IOU = 0, 1, 2, 3
"""What is summed over rows with truth: rows, so many rows they stand for, those of these below bad_iou, their IoU."""


def named(policy: Policy) -> list[float]:
    """The thresholds of a policy."""
    return [policy.max_uncertainty, *(one.max_uncertainty for one in policy.groups if one.max_uncertainty is not None)]


def grid(policy: Policy, also: Sequence[float] = ()) -> Floats:
    """Thresholds from 0 to 1 in steps of 0.001, those that the policy names, and others; ascending (k,)."""
    return np.unique(np.r_[np.arange(STEPS + 1) / STEPS, named(policy), also])


@dataclass(frozen=True)
class Places:
    """Where the rows of a batch stand on a grid of k thresholds.

    Args:
        accept_n: (n,) the lowest threshold that accepts the row, 0..k - 1; k: none does; k + 1: it is no prediction.
        blocked_n: (n,) the same for scored predictions that another rule stops, k + 1 for all others.
        flag_n: (n,) from which threshold on nobody has to look at the row; 0: never, k: always.
        accepted_now_n, flagged_now_n: (n,) by the policy as it stands.
        counts: flags (n,) of `COUNTS`, but for the last two.
    """

    accept_n: Ints
    blocked_n: Ints
    flag_n: Ints
    accepted_now_n: Mask
    flagged_now_n: Mask
    counts: dict[str, Mask]


class Sums:
    """Sums of one group of rows.

    Args:
        size: of the grid, k.

    Attributes:
        counts: by `COUNTS`.
        accept_b: (k + 1,) rows by the threshold that accepts them, the last: by none.
        blocked_b: (k + 1,) rows that another rule stops, by their uncertainty.
        starts_b: (k + 1,) changes of the number of stretches from one threshold to the next.
        truth: moments over videos, None until a row has truth.
    """

    def __init__(self, size: int) -> None:
        self.counts = dict.fromkeys(COUNTS, 0)
        self.accept_b: Ints = np.zeros(size + 1, np.int64)
        self.blocked_b: Ints = np.zeros(size + 1, np.int64)
        self.starts_b: Ints = np.zeros(size + 1, np.int64)
        self.truth: Moments | None = None

    def add(self, other: Sums) -> None:
        """The rows of another sum too; not its truth: a video may lie in both."""
        for name, count in other.counts.items():
            self.counts[name] += count
        self.accept_b += other.accept_b
        self.blocked_b += other.blocked_b
        self.starts_b += other.starts_b

    @property
    def accepted_k(self) -> Ints:
        """(k + 1,) rows accepted at each threshold, and now."""
        return np.append(np.cumsum(self.accept_b[:-1]), self.counts["accepted_now"])

    @property
    def flagged_k(self) -> Ints:
        """(k + 1,) rows that a person sees."""
        return self.counts["predicted"] - self.counts["held"] - self.accepted_k

    @property
    def stretches_k(self) -> Ints:
        """(k + 1,) stretches that a person sees."""
        return np.append(np.cumsum(self.starts_b[:-1]), self.counts["stretches_now"])


@dataclass
class Moments:
    """What estimates of a ratio over videos need: sums over videos of figures and of their products.

    Args:
        size: columns: thresholds, and now.
        rows: predicted rows with truth, accepted or not. videos: with such rows.
        videos_k: (k,) videos with an accepted row.
        sums_ck: (4, k) of accepted rows: count, weight, weight of the bad ones, weighted IoU.
        products_ck: (5, k) of them by video: weight^2, bad^2, bad x weight, iou^2, iou x weight.
    """

    size: int
    rows: int = 0
    videos: int = 0
    videos_k: Ints = field(init=False)
    sums_ck: Floats = field(init=False)
    products_ck: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.videos_k = np.zeros(self.size, np.int64)
        self.sums_ck, self.products_ck = np.zeros((4, self.size)), np.zeros((5, self.size))

    def add_video(self, cell: Cell) -> None:
        """One more video, whole."""
        at_ck = np.cumsum(cell.bins_cb[:, :-1], axis=1)
        at_ck = np.concatenate([at_ck, cell.now_c[:, None]], axis=1)
        rows_k, weight_k, bad_k, iou_k = at_ck
        self.rows += int(cell.bins_cb[ROWS].sum())
        self.videos += 1
        self.videos_k += rows_k > 0
        self.sums_ck += at_ck
        pairs = ((weight_k, weight_k), (bad_k, bad_k), (bad_k, weight_k), (iou_k, iou_k), (iou_k, weight_k))
        for total_k, (one_k, two_k) in zip(self.products_ck, pairs, strict=True):
            total_k += one_k * two_k


class Cell:
    """Rows with truth of one video in one group: by bin (4, k + 1), and now (4,)."""

    def __init__(self, size: int) -> None:
        self.bins_cb: Floats = np.zeros((4, size + 1))
        self.now_c: Floats = np.zeros(4)

    def add(self, other: Cell) -> None:
        """More rows of the video."""
        self.bins_cb += other.bins_cb
        self.now_c += other.now_c


def count_groups(places: Places, group_n: Ints, groups: int, size: int) -> list[Sums]:
    """Count the rows of a batch by group; stretches come from `count_stretches`.

    Args:
        group_n: (n,) number of each row's group, 0..groups - 1.
        size: of the grid.
    """
    sums = [Sums(size) for _ in range(groups)]
    width = size + 2
    for name, bin_n in (("accept_b", places.accept_n), ("blocked_b", places.blocked_n)):
        counted_gb = np.bincount(group_n * width + bin_n, minlength=groups * width).reshape(groups, width)
        for one, bins_b in zip(sums, counted_gb, strict=True):
            getattr(one, name)[:] = bins_b[: size + 1]
    for name, flag_n in {**places.counts, "accepted_now": places.accepted_now_n}.items():
        for one, count in zip(sums, np.bincount(group_n[flag_n], minlength=groups), strict=True):
            one.counts[name] = int(count)
    return sums


def count_stretches(sums: list[Sums], group_n: Ints, before_n: Ints, flag_n: Ints, starts_now_n: Mask) -> None:
    """Count where stretches begin: at every threshold that flags a row and not its object's row before.

    Args:
        before_n: (n,) `flag_n` of the object's row before, 0 for the first one.
        starts_now_n: (n,) where one begins by the policy as it stands.
    """
    size = len(sums[0].starts_b)
    begins = np.flatnonzero(flag_n > before_n)
    group = group_n[begins]
    up = np.bincount(group * size + before_n[begins], minlength=len(sums) * size)
    down = np.bincount(group * size + flag_n[begins], minlength=len(sums) * size)
    now = np.bincount(group_n[starts_now_n], minlength=len(sums))
    for one, change_b, count in zip(sums, (up - down).reshape(len(sums), size), now, strict=True):
        one.starts_b += change_b
        one.counts["stretches_now"] += int(count)


def count_truth(places: Places, rows: Ints, iou: Floats, weight: Floats, bad_iou: float, size: int) -> Cell:
    """Sum the predicted rows of one video and group that have truth.

    Args:
        rows: which rows of the batch. iou, weight: theirs.
    """
    cell = Cell(size)
    predicted = places.accept_n[rows] <= size
    rows, iou, weight = rows[predicted], iou[predicted], weight[predicted]
    bins, now = places.accept_n[rows], places.accepted_now_n[rows]
    for number, values in enumerate((np.ones(len(rows)), weight, weight * (iou < bad_iou), weight * iou)):
        cell.bins_cb[number] = np.bincount(bins, values, minlength=size + 1)
        cell.now_c[number] = values[now].sum()
    return cell


def total(sums: Iterable[Sums], size: int) -> Sums:
    """All groups as one, without truth."""
    out = Sums(size)
    for one in sums:
        out.add(one)
    return out
