"""Judges banks of heads, SAM2's own score and entropies side by side, on the same rows of a harvest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from usam.bootstrap import bootstrap, interval
from usam.curves import FloatArray, Replacement
from usam.errors import EvaluationError, HeadError
from usam.evaluate import Evaluation, Score, Truth, evaluate, paper_applications
from usam.features import FEATURES
from usam.heads import HeadBank
from usam.isotonic import Isotonic
from usam.metrics import Spearman, calibration_error, pearson
from usam.report import Cell, Table
from usam.shard import ENTROPIES, Shard
from usam.targets import GAP_HEADS, SIZED_HEADS, TRACKED_HEAD, gaps_by_difference, shift_of

if TYPE_CHECKING:
    from usam.stacker import Stacker

_LOG = logging.getLogger(__name__)
_GAP_OF = {"model": "model_gap", "prompt": "prompt_gap", "task": "task_gap"}
_PREDICT_ROWS = 1024
SAM_SCORE, FITTED_SCORE = "sam_score", "sam_score_isotonic"


@dataclass(frozen=True)
class Exam:
    """The rows of a harvest that scores are judged on, of one model size.

    Attributes:
        shard: the harvest. size: whose masks. of: "chosen" by SAM2 or "best" by the truth.
        rows_n: (n,) numbers of rows in the shard; a propagated pass's prompted frames are left out.
        truth: what is known about them. applications: what the masks may be replaced by, see `evaluate`.
        notes: what was left out and why, one sentence each.
    """

    shard: Shard
    size: str
    of: str
    rows_n: NDArray[np.intp]
    truth: Truth
    applications: Mapping[str, Replacement]
    notes: tuple[str, ...]

    @property
    def judged_n(self) -> NDArray[np.bool_]:
        """(n,) the truth is visible and SAM2's mask is not empty."""
        judged_n: NDArray[np.bool_] = np.asarray(self.truth.visible_n, bool) & np.asarray(self.truth.predicted_n, bool)
        return judged_n

    def column(self, name: str) -> NDArray[np.float64]:
        """(n,) a column of the shard on these rows."""
        return np.asarray(self.shard.column(name)[self.rows_n], np.float64)

    def videos(self) -> set[str]:
        """The videos of the rows."""
        return set(np.asarray(self.truth.video_n).tolist())


@dataclass(frozen=True)
class Contender:
    """A score under its name, and in words what it ranks masks by: overall under "iou", else by application."""

    name: str
    score: Score
    ranks_by: Mapping[str, str] = field(default_factory=dict)


def exam_of(shard: Shard, *, size: str | None = None, of: str = "chosen") -> Exam:
    """Pick the rows to judge.

    Single images: IoU of a size is its best of three; the prompt gap leads from one click to eight, the task gap from
    SAM2's choice to the best of three. Propagated frames: all are IoU of propagated masks, and the best of three is
    that of the frame's own candidates. Segmentation replaces the judged mask by the truth.

    Args:
        shard: the harvest.
        size: whose masks; the deployed model's if None.
        of: judge the mask that SAM2 "chose", or the "best" by the truth (as published).
    Returns: the exam. An application whose IoU was not measured on every judged row is left out, and said so.
    Raises:  EvaluationError for a size that has no rows, another `of`, or no judged row.
    """
    size = size or shard.plan.deployed
    size_n = shard.column("size")
    if of not in ("chosen", "best"):
        raise EvaluationError("masks that are chosen or best", repr(of), "correct the call")
    if size not in size_n:
        raise EvaluationError(f"a size out of {', '.join(np.unique(size_n))}", repr(size), "harvest that model too")
    tracked = shard.plan.kind == "tracked"
    prompted_n = shard.column("prompted").astype(bool) & tracked & (size_n == size)
    rows_n = np.flatnonzero((size_n == size) & ~prompted_n)
    notes = [f"{int(prompted_n.sum())} rows on prompted frames are left out."] if prompted_n.any() else []
    visible_n, predicted_n = (shard.column(name)[rows_n].astype(bool) for name in ("visible", "predicted"))
    judged_n = visible_n & predicted_n
    if not judged_n.any():
        raise EvaluationError(
            f"a row with visible truth and a mask in {shard.path}", f"none among {len(rows_n)}", "harvest more videos"
        )
    own = "iou" if of == "best" else "iou_chosen"
    ious = {}
    for name in ("iou", own, *(n for n in SIZED_HEADS.values()), "iou_dense_prompt", "iou_unsupervised", TRACKED_HEAD):
        column_n = np.asarray(shard.column(name)[rows_n], np.float64)
        unknown = int((~np.isfinite(column_n[judged_n])).sum())
        if not unknown:
            ious[name] = column_n
        elif unknown < judged_n.sum():
            notes.append(f"{name} was not measured on {unknown} of {int(judged_n.sum())} judged rows and is left out.")
    if own not in ious:
        raise EvaluationError(f"{own} on every judged row of {shard.path}", "gaps", "harvest again")
    applications = paper_applications(ious, chosen=own)
    if tracked and TRACKED_HEAD in ious and "iou_dense_prompt" in ious:
        applications["prompt"] = Replacement(ious[TRACKED_HEAD], ious["iou_dense_prompt"])
    missing = [name for name in ("model", "prompt", "task") if name not in applications]
    if missing:
        notes.append(f"Not measured here: {', '.join(missing)}.")
    for note in notes:
        _LOG.info(note)
    truth = Truth(shard.column("video_id")[rows_n].astype(str), ious[own], visible_n, predicted_n)
    return Exam(shard, size, of, rows_n, truth, applications, tuple(notes))


def predictions(bank: HeadBank, exam: Exam) -> dict[str, FloatArray]:
    """What a bank says about the rows, fed as its card says.

    Returns: by head (n,) float64, gaps in [-0.5, 0.5].
    Raises:  HeadError for a bank of another width, or of a model whose tokens are not in the harvest.
    """
    check_bank(bank, exam.shard)
    parts = []
    for start in range(0, len(exam.rows_n), _PREDICT_ROWS):
        rows = exam.rows_n[start : start + _PREDICT_ROWS]
        tokens = exam.shard.pairs(rows, offset=bank.mask_token_offset, of=exam.of)
        parts.append(bank.stacked(torch.from_numpy(tokens).to(bank.device)).cpu().numpy().astype(np.float64))
    return dict(zip(bank.heads, np.concatenate(parts, axis=1), strict=True))


def check_bank(bank: HeadBank, shard: Shard) -> None:
    """Refuse a bank that reads other tokens; published-style folders know no model and are checked by width only.

    Raises: HeadError.
    """
    if bank.width != shard.width:
        raise HeadError(f"heads of width {shard.width}, as the tokens are", str(bank.width), "use this model's bank")
    known = {values["sha256"] for values in shard.plan.models.values()}
    if bank.card.model_sha256 and bank.card.model_sha256 not in known:
        names = ", ".join(values["name"] for values in shard.plan.models.values())
        got = f"heads of {bank.card.model_name} {bank.card.model_sha256[:12]}"
        raise HeadError(f"heads of a model whose tokens were harvested ({names})", got, "train on tokens of that model")


def quality_head(exam: Exam, heads: Sequence[str]) -> str | None:
    """The head that predicts the judged masks' IoU, or None if there is none among them.

    Propagated frames: `iou_tracked`, else the size's own. Single images: `iou_unsupervised` for the masks that SAM2
    chose, the size's own for the best of three.
    """
    own = SIZED_HEADS[exam.size]
    chosen = ("iou_unsupervised", own, TRACKED_HEAD) if exam.of == "chosen" else (own, "iou_unsupervised")
    order = (TRACKED_HEAD, own, "iou_unsupervised") if exam.shard.plan.kind == "tracked" else chosen
    return next((head for head in order if head in heads), None)


def bank_contenders(name: str, bank: HeadBank, exam: Exam) -> list[Contender]:
    """A bank's scores: 1 - predicted IoU, in three applications the predicted gap; and gaps as differences of heads.

    Without a gap head its application is ranked by 1 - predicted IoU.

    Raises: HeadError as `predictions`, or for a bank that has no head to judge.
    """
    predicted = predictions(bank, exam)
    head = quality_head(exam, bank.heads)
    gaps = {app: gap for app, gap in _GAP_OF.items() if gap in predicted}
    out = []
    if head is None and not gaps:
        raise HeadError("a head of the judged masks' IoU, or of a gap", ", ".join(bank.heads), "train one")
    score = Score(
        None if head is None else 1 - predicted[head], head is not None, {a: predicted[g] for a, g in gaps.items()}
    )
    out.append(Contender(name, score, ({} if head is None else {"iou": f"1 - {head}"}) | gaps))
    differences = _differences(exam, predicted)
    if differences:
        words = {app: f"{_GAP_OF[app]} as a difference" for app in differences}
        out.append(Contender(f"{name}_differences", Score(None, applications=differences), words))
    return out


def stacker_contender(name: str, bank: HeadBank, stacker: Stacker, exam: Exam) -> Contender:
    """A bank's frame score after a stacker, which also reads what the mask's track says.

    Args:    name: of the score. bank: whose heads feed the stacker. exam: propagated frames.
    Raises:  HeadError for a bank without its heads, features that were not harvested, or as `predictions`.
    """
    predicted = predictions(bank, exam)
    missing = [head for head in stacker.card.heads if head not in predicted]
    if missing:
        raise HeadError(
            f"the heads {', '.join(stacker.card.heads)} for the stacker", f"no {missing[0]}", "name its bank"
        )
    features_nf = np.stack([exam.column(feature) for feature in FEATURES], axis=1)
    known_nf = np.isfinite(features_nf[exam.judged_n])
    unknown = [feature for column, feature in enumerate(FEATURES) if not known_nf[:, column].all()]
    if unknown:
        got = f"no {unknown[0]} on some judged row of {exam.shard.path}"
        raise HeadError("the features that a stacker reads", got, "harvest with --mode tracked")
    heads_nh = np.stack([predicted[head] for head in stacker.card.heads], axis=1)
    inputs = (torch.from_numpy(a.astype(np.float32)).to(bank.device) for a in (heads_nh, features_nf))
    said_tn = stacker.to(bank.device).stacked(*inputs).cpu().numpy().astype(np.float64)
    said_n, own = said_tn[0], dict(zip(stacker.card.targets, said_tn, strict=True))
    gaps = {app: gap for app, gap in _GAP_OF.items() if gap in own or gap in predicted}
    words = {"iou": "1 - the stacker's IoU"} | {app: f"the stacker's {g}" if g in own else g for app, g in gaps.items()}
    predicted = {**predicted, **own}
    return Contender(name, Score(1 - said_n, True, {a: predicted[g] for a, g in gaps.items()}), words)


def _differences(exam: Exam, predicted: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """Gaps as differences of IoU heads, by application.

    On propagated frames the prompt gap starts from the propagated mask, and no head predicts the best of three.
    """
    tracked = exam.shard.plan.kind == "tracked"
    own = TRACKED_HEAD if tracked and TRACKED_HEAD in predicted else SIZED_HEADS[exam.size]
    found = gaps_by_difference(predicted, own)
    return {
        app: found[f"{gap}_difference"]
        for app, gap in _GAP_OF.items()
        if f"{gap}_difference" in found and not (tracked and app == "task")
    }


def sam_score(exam: Exam) -> FloatArray:
    """(n,) SAM2's own prediction of the judged masks' IoU."""
    if exam.of == "chosen":
        return exam.column("sam_score")
    scores_n3 = np.stack([exam.column(f"candidate_score_{j}") for j in range(3)], axis=1)
    best_n = exam.shard.column("best")[exam.rows_n].astype(np.intp) - 1
    return scores_n3[np.arange(len(best_n)), best_n]


def fit_isotonic(training: Exam) -> Isotonic:
    """The map from SAM2's own score to IoU on training videos: the baseline is judged at its best."""
    keep_n = training.judged_n
    return Isotonic.fit(sam_score(training)[keep_n], np.asarray(training.truth.iou_n)[keep_n])


def require_other_videos(exam: Exam, training: Exam) -> None:
    """Refuse to judge on videos that something was fitted on.

    Raises: EvaluationError that names one.
    """
    same = sorted(exam.videos() & training.videos()) if exam.shard.plan.dataset == training.shard.plan.dataset else []
    if same:
        raise EvaluationError(
            f"other videos in {exam.shard.path} than in {training.shard.path}",
            f"{len(same)} in both, {same[0]} among them",
            "judge on videos that nothing was fitted on",
        )


def rivals(exam: Exam, isotonic: Isotonic | None = None) -> list[Contender]:
    """SAM2's own score, raw and fitted, and the entropies that were harvested."""
    score_n = sam_score(exam)
    found = [Contender(SAM_SCORE, Score(1 - score_n, True), {"iou": "1 - SAM2's own score"})]
    if isotonic is not None:
        words = {"iou": "1 - SAM2's own score after an isotonic fit on the training videos"}
        found.append(Contender(FITTED_SCORE, Score(1 - isotonic(score_n), True), words))
    for name in ENTROPIES:
        bits_n = exam.column(name)
        if np.isfinite(bits_n[exam.judged_n]).all():
            found.append(Contender(name, Score(bits_n), {"iou": "the entropy, bits"}))
        elif np.isfinite(bits_n[exam.judged_n]).any():
            _LOG.warning("%s was not measured on every judged row and is left out", name)
    return found


def judge(
    exam: Exam,
    contenders: Sequence[Contender],
    *,
    baseline: str | None = None,
    replicates: int = 1000,
    min_rows: int = 10,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Every figure of every contender; the baseline is SAM2's own score, fitted if it is among them.

    Raises: EvaluationError as `evaluate`, or for two contenders of one name.
    """
    names = [contender.name for contender in contenders]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise EvaluationError("scores with names of their own", f"{twice[0]} twice", "rename one")
    baseline = baseline or (FITTED_SCORE if FITTED_SCORE in names else SAM_SCORE)
    return evaluate(
        exam.truth, {c.name: c.score for c in contenders}, exam.applications,
        baseline=baseline, replicates=replicates, min_rows=min_rows, seed=seed, progress=progress,
    )  # fmt: skip


def ranks_table(exam: Exam, contenders: Sequence[Contender]) -> Table:
    """What each score ranks masks by, and what was judged."""
    rows: list[tuple[Cell, ...]] = []
    for contender in contenders:
        overall = contender.ranks_by.get("iou", "")
        rows.append((contender.name, overall, *(contender.ranks_by.get(app, overall) for app in exam.applications)))
    plan = exam.shard.plan
    masks = "that SAM2 chose" if exam.of == "chosen" else "that are best of three by the truth"
    kind = "propagated frames" if plan.kind == "tracked" else "single images"
    about = f"{plan.dataset}, {plan.split}: {kind}, masks of {plan.models[exam.size]['name']} ({exam.size}) {masks}."
    return Table("Scores", ("score", "overall", *exam.applications), rows, (about, *exam.notes))


def heads_table(name: str, bank: HeadBank, exam: Exam, *, replicates: int = 1000, seed: int = 0) -> Table:
    """Each head against its own target on the judged rows, beside SAM2's own score where the target is an IoU.

    Args:    name: of the bank. bank, exam. replicates, seed: of the intervals over videos.
    Returns: one row per head whose target was measured; Pearson with its interval and how far it is ahead of SAM2's.
    """
    predicted, score_n = predictions(bank, exam), sam_score(exam)
    video_n = np.asarray(exam.truth.video_n)
    rows: list[tuple[Cell, ...]] = []
    for head in bank.heads:
        target_n = exam.shard.target(head)[exam.rows_n].astype(np.float64) - shift_of(head)
        keep_n = exam.judged_n & np.isfinite(target_n)
        if not keep_n.any():
            continue
        mine_n, true_n, sam_n = predicted[head][keep_n], target_n[keep_n], score_n[keep_n]
        codes_n = np.unique(video_n[keep_n], return_inverse=True)[1].astype(np.intp)
        videos, iou = int(codes_n.max()) + 1, head not in GAP_HEADS
        columns = (mine_n, sam_n)
        draws = bootstrap(
            [lambda _, w, x=x, y=true_n: pearson(x, y, w) for x in columns],  # type: ignore[misc]
            codes_n, videos, replicates, seed,
        )  # fmt: skip
        nothing = float("nan")
        beside = (pearson(sam_n, true_n), *interval(draws[:, 0] - draws[:, 1])) if iou else (nothing,) * 3
        rows.append((
            head, len(true_n), videos, float(true_n.mean()), pearson(mine_n, true_n), *interval(draws[:, 0]), *beside,
            Spearman(mine_n, true_n)(), float(np.abs(mine_n - true_n).mean()), float((mine_n - true_n).mean()),
            calibration_error(mine_n, true_n) if iou else nothing,
        ))  # fmt: skip
    columns_ = ("head", "rows", "videos", "mean_target", "pearson", "low", "high", "sam_score_pearson", "ahead_low",
                "ahead_high", "spearman", "mae", "bias", "calibration_error")  # fmt: skip
    offset = "its own mask token" if bank.mask_token_offset else "the mask token before its own, as published"
    fed = f"{name}: heads of {bank.card.model_name or 'an unnamed model'}, fed the IoU token and {offset}."
    note = (
        "Each against its own target. low and high: 95% interval over videos; ahead: Pearson minus that of SAM2's own "
        "score on the same draws. bias: mean of prediction minus target."
    )
    return Table(f"Heads {name}", columns_, rows, (fed, note))
