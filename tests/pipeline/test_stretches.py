"""A review budget: a person sees the stretches of most doubt, the others are held, and nothing more is accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from pipeline import survey
from pipeline.derive import derive
from pipeline.ledger import Ledger
from pipeline.policy import Policy
from pipeline.records import read_metadata
from pipeline.storage.objects import ObjectStore

from .deriving import VIDEO, commit, facts, read

DOUBTS = {1: [0.9, 0.5, 0.4, 0.9, 0.2, 0.9], 2: [0.7, 0.7, 0.7, 0.7, 0.9, 0.1]}
"""Stretches of gain 1.1 and 0.8 (object 1), 1.2 and 0.9 (object 2)."""


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(ObjectStore(tmp_path / "out"))


def derived(ledger: Ledger, **policy: Any) -> tuple[list[tuple[int, int, str]], dict[str, int]]:
    """object, frame and decision of every row, and the counts of the file."""
    done = derive(ledger.store, ledger, VIDEO, Policy(**policy))
    labels = read(ledger, "labels")
    rows = zip(*(labels[name].to_pylist() for name in ("object_id", "frame_index", "decision")), strict=True)
    assert read_metadata(labels.schema)["counts"] == done.counts
    return sorted(rows), dict(done.counts)


@pytest.mark.parametrize(
    ("budget", "seen"),
    [(None, {(1, 1), (1, 4), (2, 0), (2, 5)}), (3, {(1, 1), (2, 0), (2, 5)}), (2, {(1, 1), (2, 0)}), (0, set())],
)
def test_those_of_most_doubt_are_kept(ledger: Ledger, budget: int | None, seen: set[tuple[int, int]]) -> None:
    commit(ledger, facts(DOUBTS), "k1")
    rows, counts = derived(ledger, review_stretches_per_video=budget)
    review = read(ledger, "review")
    shown = zip(review["object_id"].to_pylist(), review["frame_index"].to_pylist(), strict=True)
    assert seen <= set(shown)
    assert len(set(review["review_id"].to_pylist())) == counts["stretches"] == len(seen)
    assert [row for row in rows if row[2] == "accept"] == [
        (1, 0, "accept"), (1, 3, "accept"), (1, 5, "accept"), (2, 4, "accept"),
    ]  # fmt: skip
    assert (counts["review"], counts["hold"]) == (review.num_rows, 8 - review.num_rows)
    held = read(ledger, "labels").filter(pc.equal(read(ledger, "labels")["decision"], "hold")).to_pylist()
    text = f"held: the review budget of {budget} stretches is spent"
    assert all(row["reasons"][-1] == text and row["weight"] == row["review_probability"] == 0.0 for row in held)


def test_the_audit_is_not_part_of_the_budget(ledger: Ledger) -> None:
    commit(ledger, facts(DOUBTS), "k1")
    _, counts = derived(ledger, review_stretches_per_video=1, audit_rate=1.0)
    assert (counts["audit"], counts["stretches"], counts["review"], counts["hold"]) == (4, 5, 4, 4)
    review = read(ledger, "review")
    assert review["audit"].to_pylist().count(True) == 4
    assert set(review["review_probability"].to_pylist()) == {1.0}


@pytest.mark.parametrize("seed", range(3))
def test_a_budget_accepts_nothing_more_and_batches_change_nothing(
    ledger: Ledger, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(seed)
    scores = {number: rng.choice([0.1, 0.5, 0.6, 0.9, None], 50).tolist() for number in (1, 2, 3)}
    commit(ledger, facts(scores), "k1")
    free, all_of_them = derived(ledger, audit_rate=0.3)
    spent, counts = derived(ledger, audit_rate=0.3, review_stretches_per_video=7)
    assert {row for row in spent if row[2] == "accept"} == {row for row in free if row[2] == "accept"}
    assert counts["stretches"] - counts["audit"] == 7 < all_of_them["stretches"] - all_of_them["audit"]
    whole = {layer: read(ledger, layer) for layer in ("labels", "review")}
    monkeypatch.setattr(survey, "BATCH_ROWS", int(rng.integers(1, 20)))
    derived(ledger, audit_rate=0.3)
    derived(ledger, audit_rate=0.3, review_stretches_per_video=7)
    assert {layer: read(ledger, layer) for layer in whole} == whole
