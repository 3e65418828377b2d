"""Priority: gain first, less for what is much like what comes before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.review.priority import Candidate, priorities

CANDIDATES = st.builds(
    Candidate,
    gain=st.sampled_from([0.0, 0.5, 1.0, 4.0]),
    track=st.integers(0, 2),
    alike=st.none() | st.integers(0, 2),
    answered=st.booleans(),
    name=st.uuids().map(str),
)


def test_the_kth_of_a_kind_counts_one_over_k_plus_one() -> None:
    found = priorities([
        Candidate(8.0, "a", 1), Candidate(6.0, "b", 1), Candidate(4.0, "c", 1), Candidate(4.0, "d", 2),
        Candidate(2.0, "d", 1), Candidate(2.0, "e"),
    ])  # fmt: skip
    assert found.tolist() == [8.0, 3.0, 4.0 / 3, 4.0, 2.0 / 5, 2.0]


def test_what_was_answered_comes_before_all_that_waits() -> None:
    found = priorities([Candidate(8.0, "a"), Candidate(1.0, "a", answered=True)])
    assert found.tolist() == [4.0, 1.0]
    assert priorities([]).tolist() == []


@given(st.lists(CANDIDATES, max_size=12, unique_by=lambda one: one.name))
def test_it_is_what_counting_one_by_one_gives(candidates: list[Candidate]) -> None:
    order = sorted(candidates, key=lambda one: (not one.answered, -one.gain, one.name))

    def ahead(one: Candidate) -> int:
        before = order[: order.index(one)]
        return sum(b.track == one.track or (one.alike is not None and b.alike == one.alike) for b in before)

    assert priorities(candidates).tolist() == [one.gain / (1 + ahead(one)) for one in candidates]
