"""Are promises kept, and at what price? Calibrates again and again where the truth is known, and counts.

    python benchmarks/promise.py simulate                   # clustered rows of simulated videos, ten minutes
    python benchmarks/promise.py model runs/promise         # the embedded model's masks (benchmarks/promise_drop.py)

Broken: the share of trials whose threshold has a higher risk in the population than was promised; at most delta = .1 is
allowed. Coverage: of the rows that the best threshold of the population (the oracle) accepts, a trial without a
threshold counts 0. The same trials for each method:
  ours       usam.certify, as `masksieve calibrate` does by default
  betting    the walk with the test that is proven for every distribution
  rows       the walk with Clopper-Pearson's bound, as if rows were independent
  naive      the largest threshold whose observed risk is low enough
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from usam.betting import positive_mean
from usam.bounds import clopper_pearson
from usam.certify import VideoSums, certify, oracle, video_sums

EXAM: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("promise.yaml").read_text())
DELTA = 1 - EXAM["trials"]["confidence"]
POPULATION = 20_000
THRESHOLDS = 50
MAP_SHARE = 0.1  # of the drawn videos fit maps and certify nothing, as `masksieve calibrate` has it
Floats = NDArray[np.float64]


def bound_walk(passes_k: NDArray[np.bool_], first: int) -> int:
    """Index of the last threshold that passes in a row from the first on, -1 for none."""
    fails = np.flatnonzero(~passes_k[first:])
    return first + (int(fails[0]) if len(fails) else len(passes_k) - first) - 1 if passes_k[first] else -1


def ours(sums: VideoSums, at_most: float, first: int) -> int:
    walk = certify(sums, at_most=at_most, delta=DELTA, start=float(sums.threshold_k[first]))
    return -1 if walk.threshold is None else int(np.searchsorted(sums.threshold_k, walk.threshold))


def betting(sums: VideoSums, at_most: float, first: int) -> int:
    payoff_nk = (at_most * sums.accepted_nk - sums.lost_nk) / sums.cap
    return bound_walk(positive_mean(payoff_nk, at_most - 1, DELTA), first)


def rows_alone(sums: VideoSums, at_most: float, first: int) -> int:
    bound_k = clopper_pearson(sums.lost_nk.sum(0), sums.accepted_nk.sum(0), DELTA)
    return bound_walk(bound_k <= at_most, first)


def naive(sums: VideoSums, at_most: float, first: int) -> int:
    threshold = oracle(sums, at_most)[0]
    return -1 if threshold is None else int(np.searchsorted(sums.threshold_k, threshold))


METHODS: dict[str, Callable[[VideoSums, float, int], int]] = {
    "ours": ours, "betting": betting, "rows": rows_alone, "naive": naive,
}  # fmt: skip


def part(sums: VideoSums, videos: NDArray[np.intp]) -> VideoSums:
    """The sums of some videos."""
    return VideoSums(
        sums.threshold_k, sums.accepted_nk[videos], sums.lost_nk[videos], sums.rows_n[videos], sums.cap
    )  # fmt: skip


@dataclass(frozen=True)
class Tally:
    """What came of a method's trials: broken promises, coverage over the oracle's, trials without a threshold."""

    broken: Floats
    coverage: Floats

    def __str__(self) -> str:
        share, error = self.broken.mean(), 1.96 * self.broken.std() / np.sqrt(len(self.broken))
        return f"{share:5.3f} +-{error:4.3f} {self.coverage.mean():5.2f} {np.mean(self.coverage == 0):5.2f}"


def trials(
    sums: VideoSums, at_most: float, videos: int, draws: int, seed: int, *, start_coverage: float, rest: bool
) -> dict[str, Tally]:
    """Draw calibrating videos without replacement; the truth is the population, or what was not drawn."""
    rng = np.random.default_rng(seed)
    first = int(np.searchsorted(sums.coverage_k, start_coverage))
    broken: dict[str, list[bool]] = {name: [] for name in METHODS}
    coverage: dict[str, list[float]] = {name: [] for name in METHODS}
    for _ in range(draws):
        drawn = rng.permutation(len(sums.rows_n))
        sample = part(sums, np.sort(drawn[round(MAP_SHARE * videos) : videos]))
        truth = part(sums, drawn[videos:]) if rest else sums
        best = oracle(truth, at_most)[1]
        for name, method in METHODS.items():
            k = method(sample, at_most, first)
            broken[name].append(k >= 0 and bool(truth.observed_k[k] > at_most))
            coverage[name].append(float(truth.coverage_k[k]) / best if k >= 0 else 0.0)
    return {name: Tally(np.array(broken[name], float), np.array(coverage[name])) for name in METHODS}


def world(lengths: str, spread: float, rng: np.random.Generator) -> VideoSums:
    """A population of videos: rows of a video share how hard it looks, and how much worse it is than it looks.

    Args: lengths: `alike` (20, 40 or 80 rows) or `uneven` (lognormal, the long ones harder, capped at the 99th
        percentile). spread: of what the score cannot see.
    """
    if lengths == "alike":
        rows_n = rng.choice([20, 40, 80], POPULATION)
        hard_n = rng.normal(0, 1, POPULATION)
    else:
        rows_n = np.maximum(3, np.exp(rng.normal(3, 1, POPULATION))).astype(int)
        hard_n = rng.normal(0, 1, POPULATION) + 0.4 * np.log(rows_n / 20)
    video_n = np.repeat(np.arange(POPULATION), rows_n)
    hidden_n = rng.normal(0, spread, POPULATION)
    stretch_n = np.arange(len(video_n)) // 6  # neighbouring frames fail together
    look_n = 1.2 * hard_n[video_n] + rng.normal(0, 0.8, stretch_n[-1] + 1)[stretch_n]
    chance_n = 1 / (1 + np.exp(2.3 - 1.8 * look_n - hidden_n[video_n]))
    lost_n = (rng.random(stretch_n[-1] + 1)[stretch_n] < chance_n).astype(np.float64)
    score_n = 1 / (1 + np.exp(0.5 - look_n))
    grid_k = np.quantile(score_n, np.linspace(1 / THRESHOLDS, 1, THRESHOLDS))
    return video_sums(video_n, score_n, lost_n, np.ones(len(video_n)), grid_k, cap=float(np.quantile(rows_n, 0.99)))


def cell(lengths: str, spread: float, at_most: float, videos: int, draws: int) -> str:
    """One line of the table of simulations."""
    sums = world(lengths, spread, np.random.default_rng([int(spread * 10), lengths == "alike"]))
    best = oracle(sums, at_most)[1]
    found = trials(sums, at_most, videos, draws, videos, start_coverage=0.2, rest=False)
    tallies = " | ".join(str(one) for one in found.values())
    return f"{lengths:7s} {spread:4.1f} {at_most:5.2f} {videos:6d} {best:6.2f} | {tallies}"


HEAD = " | ".join(f"{name:12s}   cover zero" for name in METHODS)


def simulate(draws: int, processes: int) -> None:
    """Every world, risk and number of videos."""
    cells = [
        (lengths, spread, at_most, videos, draws)
        for lengths in ("alike", "uneven")
        for spread in (1.0, 2.0)
        for at_most in (0.05, 0.1, 0.2)
        for videos in (100, 200, 400)
    ]
    print(f"{draws} trials a line, delta {DELTA:.2f}; ours/betting/rows/naive: broken, coverage of the oracle's, none")
    print(f"{'rows':7s} {'hid.':>4s} {'risk':>5s} {'videos':>6s} {'oracle':>6s} | {HEAD}")
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for line in pool.map(cell, *zip(*cells, strict=True)):
            print(line, flush=True)


def judged(folder: Path) -> dict[str, NDArray[Any]]:
    """The rows of the exam's drop with their truth, under the default policy; kept beside it once read."""
    from pipeline.calibrate_rows import collect
    from pipeline.policy import Policy
    from pipeline.storage.objects import ObjectStore
    from pipeline.truth import open_truth, read_truth

    labels = ObjectStore(str(folder / "labels"))
    kept = folder / f"rows-{len(labels.list('labels/'))}.npz"
    if not kept.exists():
        videos = read_truth(open_truth(folder / "drop"), labels)
        rows = collect(videos, Policy(), (), lambda count: None)
        columns = {name: getattr(rows, f"{name}_n") for name in ("video", "score", "absent", "iou")}
        np.savez_compressed(kept, **columns)
    return dict(np.load(kept))


def model(folder: Path, draws: int, processes: int) -> None:
    """The exam of benchmarks/promise.yaml on the masks of the embedded model."""
    rows, rules = judged(folder), EXAM["trials"]
    videos, counts = np.unique(rows["video"], return_counts=True)
    eligible = ~np.isnan(rows["score"])
    print(
        f"{len(videos)} videos with {len(rows['video'])} predicted rows ({counts.min()} to {counts.max()} a video), "
        f"mean IoU {rows['iou'].mean():.3f}; {rows['absent'].mean():.1%} called absent; the rules beside the threshold "
        f"let {eligible.mean():.1%} be accepted"
    )
    scores = rows["score"][eligible]
    grid_k = np.unique(np.quantile(scores, np.linspace(0.005, 1, 200)))
    cap = float(np.quantile(counts, 0.99))

    def sums_of(loss_n: Floats) -> VideoSums:
        return video_sums(rows["video"], rows["score"], loss_n, np.ones(len(loss_n)), grid_k, cap=cap)

    start = EXAM["start_coverage"]
    bad = {bad_iou: sums_of((rows["iou"] < bad_iou).astype(np.float64)) for bad_iou in EXAM["promises"]["bad_iou"]}
    kept = {(at_most, bad_iou): oracle(bad[bad_iou], at_most)[1] for at_most, bad_iou in promises()}
    print("coverage of the oracle: " + ", ".join(f"{a:g} at {b:g}: {c:.2f}" for (a, b), c in kept.items()))
    enough = [one for one, coverage in kept.items() if coverage >= EXAM["oracle_keeps"]]
    lines = {
        f"{at_most:g} below {bad_iou:g}{' *' if (at_most, bad_iou) == enough[0] else ''}": (bad[bad_iou], at_most)
        for at_most, bad_iou in dict.fromkeys([enough[0], (0.05, 0.75), *enough])
    }
    lost = sums_of(1 - rows["iou"])
    lines |= {f"mean IoU {1 - at_most:g}": (lost, at_most) for at_most in (0.1, 0.15, 0.2)}
    print(f"{draws} draws of {rules['videos']} videos, the truth is the rest; delta {DELTA:.2f}")
    print(f"{'promise':24s} {'oracle':>6s} | {HEAD}")
    run = partial(trials, videos=rules["videos"], draws=draws, seed=rules["seed"], start_coverage=start, rest=True)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for (name, (sums, at_most)), found in zip(
            lines.items(), pool.map(run, *zip(*lines.values(), strict=True)), strict=True
        ):
            best = oracle(sums, at_most)[1]
            print(f"{name:24s} {best:6.2f} | {' | '.join(str(one) for one in found.values())}", flush=True)
    print("* the strictest whose oracle keeps enough: the one that counts")


def promises() -> Iterator[tuple[float, float]]:
    """(at_most, bad_iou) from the strictest on."""
    for at_most in sorted(EXAM["promises"]["at_most"]):
        for bad_iou in sorted(EXAM["promises"]["bad_iou"], reverse=True):
            yield at_most, bad_iou


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("simulate", "model"))
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/promise"), help="of the exam's drop")
    parser.add_argument("--draws", type=int, default=EXAM["trials"]["draws"])
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    started = time.monotonic()
    if args.what == "simulate":
        simulate(args.draws, args.processes)
    else:
        model(args.folder, args.draws, args.processes)
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
