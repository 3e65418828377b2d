"""Watches raise hardly a false alarm however often one looks, and find what changed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from usam.drift import FEATURES, RiskWatch, compare, look_level, most_audited
from usam.errors import EvaluationError

PROMISE, ALPHA, VIDEOS, STREAMS = 0.05, 0.05, 500, 1000
AUDIT_RATE, MOST_ROWS, ALIKE = 0.05, 200, 0.3
Floats = NDArray[np.float64]


def sizes(rng: np.random.Generator, videos: int) -> NDArray[np.int64]:
    """Accepted masks per video: skewed, most have few."""
    return np.minimum(rng.negative_binomial(2, 2 / 82, videos) + 1, MOST_ROWS)


_LARGE = sizes(np.random.default_rng(1), 400_000)
_SCALE = _LARGE.sum() / (_LARGE * np.where(_LARGE > 80, 1.4, 0.6)).sum()


def audits(rng: np.random.Generator, risk: float, videos: int = VIDEOS) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Bad and judged masks of each video. Of all accepted masks a share `risk` is bad; large videos are worse than
    small ones, and masks of one video are alike (beta-binomial)."""
    rows = sizes(rng, videos)
    mean = risk * _SCALE * np.where(rows > 80, 1.4, 0.6)
    strength = (1 - ALIKE) / ALIKE
    judged = rng.binomial(rows, AUDIT_RATE)
    return rng.binomial(judged, rng.beta(mean * strength, (1 - mean) * strength)), judged


def alarm(rng: np.random.Generator, risk: float) -> int | None:
    """After how many videos somebody who looks after each is told that the promise is broken."""
    watch = RiskWatch(PROMISE, most_audited(MOST_ROWS, AUDIT_RATE))
    for number, (bad, judged) in enumerate(zip(*audits(rng, risk), strict=True), 1):
        if judged and watch.add(float(bad), float(judged)) >= 1 / ALPHA:
            return number
    return None


def mix(rng: np.random.Generator, videos: int, shift: float = 0.0) -> Floats:
    """Videos as features, skewed, tied and dependent; uncertainty moved by `shift` standard deviations of its logit."""
    z = rng.normal(size=(videos, 2))
    uncertainty = 1 / (1 + np.exp(1.5 - 0.8 * (z[:, 0] + shift)))
    absent = rng.beta(0.3, 3, videos) * (rng.random(videos) < 0.5)
    area = np.exp(-3 + 0.7 * z[:, 1] + 0.3 * z[:, 0])
    columns = [uncertainty, absent, area, 1 + rng.poisson(2, videos), rng.choice([24, 25, 30], videos)]
    found = np.stack([*columns, rng.choice([0.9, 2.1], videos)], 1).astype(np.float64)
    found[rng.random(videos) < 0.02, 0] = np.nan
    return found


def mix_alarm(seed: int, shift: float, batch: int = 50, reference: int = 150) -> int | None:
    """In which look a change is called."""
    rng = np.random.default_rng(seed)
    known = mix(rng, reference)
    for look in range(1, VIDEOS // batch + 1):
        if compare(known, mix(rng, batch, shift), level=look_level(look, ALPHA), seed=look).changed:
            return look
    return None


def test_a_video_is_one_bet_and_none_counts_for_more_than_most_rows() -> None:
    few, many, capped = (RiskWatch(0.05, 10.0) for _ in range(3))
    assert few.value == 1
    assert few.add(0, 5) < 1 < many.add(5, 10)
    assert capped.add(50, 100) == pytest.approx(RiskWatch(0.05, 10.0).add(5, 10))
    before = few.value
    assert few.add(0.05 * 4, 4) == pytest.approx(before)  # as many bad ones as promised: nothing is learned


def test_clean_audits_never_raise_an_alarm_and_hopeless_ones_soon_do() -> None:
    clean, hopeless = RiskWatch(0.05, 4.0), RiskWatch(0.05, 4.0)
    assert max(clean.add(0, 4) for _ in range(1000)) < 1
    assert min(number for number in range(1, 9) if hopeless.add(4, 4) >= 20) <= 3


def test_looks_spend_alpha_and_no_more() -> None:
    spent = [look_level(number, 0.05) for number in range(1, 100_001)]
    assert spent == sorted(spent, reverse=True)
    rest = 0.05 * 0.4739 / math.log(100_001)  # of all looks after these
    assert 0.0499 < sum(spent) + rest <= 0.05


def test_the_energy_distance_is_that_of_its_definition() -> None:
    rng = np.random.default_rng(0)
    a, b = mix(rng, 30)[:, :], mix(rng, 20, 1.0)
    a[:, 0], b[:, 0] = np.nan_to_num(a[:, 0], nan=0.2), np.nan_to_num(b[:, 0], nan=0.2)
    both = np.concatenate([a, b])
    both[:, 3:] = np.log(both[:, 3:])
    both = (both - both.mean(0)) / both.std(0)

    def mean(x: Floats, y: Floats) -> float:
        return float(np.mean([[np.linalg.norm(p - q) for q in y] for p in x]))

    x, y = both[:30], both[30:]
    expected = 2 * mean(x, y) - mean(x, x) - mean(y, y)
    found = compare(a, b, level=0.05)
    assert found.distance == pytest.approx(expected, rel=1e-6)
    assert found.further == FEATURES[0]
    assert found.by > 0
    assert found.changed


def test_videos_of_another_rate_among_those_of_one_are_noticed_although_their_spread_was_nothing() -> None:
    rng = np.random.default_rng(0)
    reference, batch = mix(rng, 60), mix(rng, 20)
    reference[:, 4], batch[:, 4] = 25.0, 25.0
    assert not compare(reference, batch, level=0.02).changed
    batch[:12, 4] = 50.0
    found = compare(reference, batch, level=0.02)
    assert found.changed
    assert (found.further, found.by > 0) == ("fps", True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RiskWatch(0.0, 1.0),
        lambda: RiskWatch(0.05, 2.0).add(3, 2),
        lambda: compare(np.zeros((1, 6)), np.zeros((9, 6)), level=0.05),
        lambda: compare(np.zeros((9, 5)), np.zeros((9, 5)), level=0.05),
    ],
)
def test_what_no_watch_can_be_made_of_is_refused(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(EvaluationError):
        make()


@pytest.mark.slow
def test_of_a_thousand_streams_whose_promise_just_holds_hardly_one_in_twenty_is_called_broken() -> None:
    """The risk is exactly what was promised, the hardest case; somebody looks after every one of 500 videos."""
    alarms = [alarm(np.random.default_rng(seed), PROMISE) for seed in range(STREAMS)]
    share = sum(one is not None for one in alarms) / STREAMS
    print(f"false alarms of the audit: {share:.3f}")
    assert share <= ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / STREAMS)


@pytest.mark.slow
def test_a_doubled_error_rate_is_found() -> None:
    alarms = [alarm(np.random.default_rng(seed), 2 * PROMISE) for seed in range(200)]
    found = sorted(one for one in alarms if one is not None)
    print(f"doubled error rate: found in {len(found) / 2:.1f}% of streams, in the median after {found[100]} videos")
    assert len(found) >= 190
    assert found[100] <= 150


@pytest.mark.slow
def test_of_a_thousand_streams_of_alike_videos_hardly_one_in_twenty_is_called_changed() -> None:
    """Ten looks at 50 videos each share one reference."""
    share = sum(mix_alarm(seed, 0.0) is not None for seed in range(STREAMS)) / STREAMS
    print(f"false alarms of the mix: {share:.3f}")
    assert share <= ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / STREAMS)


@pytest.mark.slow
def test_videos_half_a_standard_deviation_less_certain_are_found() -> None:
    for shift, least in ((0.5, 0.5), (1.0, 0.99)):
        looks = [mix_alarm(seed, shift) for seed in range(100)]
        found = sorted(one for one in looks if one is not None)
        print(f"shift of {shift}: found in {len(found)}% of streams, in the median in look {found[len(found) // 2]}")
        assert len(found) >= 100 * least
