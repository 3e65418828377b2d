"""Where a queue stands: what waits and why, who answered what and how fast, and what audits say of the promise."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa

from pipeline.review.queue_tables import OPEN, answers, counted, items
from usam.bounds import clopper_pearson

CONFIDENCE = 0.9
DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Seconds:
    """How long answers took."""

    median: float
    mean: float
    count: int


@dataclass(frozen=True)
class Promise:
    """What audits say of the accepted masks so far.

    Args:
        judged: audited masks that a person answered on; bad: those of them that are wrong.
        error_rate: bad / judged; low, high: its Clopper-Pearson interval (90%), as if the masks were independent. All
            None while nothing is judged.
        words: the same as a sentence.
    """

    judged: int
    bad: int
    error_rate: float | None
    low: float | None
    high: float | None
    words: str


@dataclass(frozen=True)
class Stats:
    """Where a queue stands. Days are of UTC.

    Args:
        waiting: items that nobody answered, leased ones among them; waiting_by_*: the same by drop, label ("" for none)
            and kind of reason (an item may have several, an audit has none).
        answered, answered_today: answers that were not taken back; mine_today: those of the reviewer who asks.
        seconds: of all answers that tell it, seconds_by_verdict: of each verdict.
        budget_left: items that may still be handed out today; None: no limit.
        unexported: answers that are not in the output yet.
    """

    waiting: int
    leased: int
    waiting_by_drop: dict[str, int]
    waiting_by_label: dict[str, int]
    waiting_by_reason: dict[str, int]
    answered: int
    answered_today: int
    mine_today: int
    answered_by_verdict: dict[str, int]
    answered_by_reviewer: dict[str, int]
    unexported: int
    seconds: Seconds | None
    seconds_by_verdict: dict[str, Seconds]
    budget_left: int | None
    promise: Promise


def day_of(now: float) -> int:
    """The day of UTC, counted from 1970, of a Unix time in s."""
    return int(now // DAY_SECONDS)


def budget_left(connection: sa.Connection, store: str, items_per_day: int | None, now: float) -> int | None:
    """How many items may still be handed out today: those that were answered or are leased are spent."""
    if items_per_day is None:
        return None
    today = (answers.c.store == store) & (answers.c.day == day_of(now)) & (answers.c.state != "undone")
    out = (items.c.store == store) & (items.c.state == "leased") & (items.c.expires_at > now)
    spent = sum(
        connection.execute(sa.select(sa.func.count()).select_from(table).where(which)).scalar_one()
        for table, which in ((answers, today), (items, out))
    )
    return max(0, items_per_day - spent)


def waiting(connection: sa.Connection, store: str) -> int:
    """How many items nobody answered."""
    open_ = (items.c.store == store) & items.c.state.in_(OPEN)
    return int(connection.execute(sa.select(sa.func.count()).select_from(items).where(open_)).scalar_one())


def promise(judged: int, bad: int) -> Promise:
    """What so many audited masks, of which so many are bad, say."""
    if not judged:
        return Promise(0, 0, None, None, None, "no audited mask was judged yet")
    each_side = (1 - CONFIDENCE) / 2
    high = float(clopper_pearson(bad, judged, each_side))
    low = 1 - float(clopper_pearson(judged - bad, judged, each_side))
    rate = bad / judged
    verb = "is" if bad == 1 else "are"
    words = (
        f"{bad} of {judged} audited masks {verb} bad: {rate:.1%}, between {low:.1%} and {high:.1%} "
        f"with {CONFIDENCE:.0%} confidence if they are independent"
    )
    return Promise(judged, bad, rate, low, high, words)


def read(connection: sa.Connection, store: str, items_per_day: int | None, now: float, reviewer: str | None) -> Stats:
    """Where a queue stands now."""
    of_items = (items.c.drop, items.c.label, items.c.reasons, items.c.state)
    grouped = sa.select(*of_items, sa.func.count()).where(items.c.store == store, items.c.state.in_(OPEN))
    by_drop, by_label, by_reason, by_state = (Counter[str]() for _ in range(4))
    for drop, label, reasons, state, count in connection.execute(grouped.group_by(*of_items)):
        by_drop[drop] += count
        by_label[label] += count
        by_state[state] += count
        by_reason.update({kind: count for kind in reasons.split("\n") if kind})

    columns = (answers.c.verdict, answers.c.reviewer, answers.c.seconds, answers.c.audit, answers.c.bad, answers.c.day)
    said = sa.select(*columns, answers.c.state).where(answers.c.store == store, answers.c.state != "undone")
    verdicts, reviewers, audits = Counter[str](), Counter[str](), Counter[bool]()
    seconds: dict[str, list[float]] = defaultdict(list)
    today = mine = unexported = 0
    for row in connection.execute(said):
        verdicts[row.verdict] += 1
        reviewers[row.reviewer] += 1
        today += row.day == day_of(now)
        mine += row.day == day_of(now) and row.reviewer == reviewer
        unexported += row.state != "exported"
        if row.audit:
            audits[row.bad] += 1
        if row.seconds is not None:
            seconds[row.verdict].append(row.seconds)
    return Stats(
        waiting=by_state.total(), leased=by_state["leased"], waiting_by_drop=counted(by_drop),
        waiting_by_label=counted(by_label), waiting_by_reason=counted(by_reason), answered=verdicts.total(),
        answered_today=today, mine_today=mine, answered_by_verdict=counted(verdicts),
        answered_by_reviewer=counted(reviewers), unexported=unexported,
        seconds=_seconds([one for some in seconds.values() for one in some]),
        seconds_by_verdict={name: found for name in sorted(seconds) if (found := _seconds(seconds[name]))},
        budget_left=budget_left(connection, store, items_per_day, now), promise=promise(audits.total(), audits[True]),
    )  # fmt: skip


def _seconds(found: list[float]) -> Seconds | None:
    return Seconds(float(np.median(found)), float(np.mean(found)), len(found)) if found else None
