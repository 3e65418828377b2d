"""What happened to one video: counts, and where to look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.certificate import UNCERTIFIED, Evidence
from pipeline.derive import Derived
from pipeline.ledger import Commit
from pipeline.prompts import PromptSet

Status = Literal["labelled", "re-decided", "unchanged", "duplicate", "failed"]


@dataclass(frozen=True)
class VideoReport:
    """What happened to one video.

    Args:
        status: labelled; re-decided (the facts were there, labels and review list were made anew, as by another
            policy); unchanged (this very work was done before); duplicate (another name of these bytes was labelled
            with other prompts, which count); failed (the caller caught an error).
        frames: labelled frames: all of the video, or those that the sampling settings ask for.
        rows: frames x objects; accepted + review + hold = rows.
        absent, untracked: rows by visibility.
        certified: whether evidence stands behind the thresholds.
        evidence: until when and by what, or why not.
        score_source: what uncertainty rests on, see `pipeline.score.score_head`.
        frames_per_second: what this run worked off; 0 where it had no frame to propagate.
        damage: why only the frames before it were labelled (`decode.on_damage: keep_good_prefix`); None if all were.
    """

    video: str
    video_id: str
    status: Status
    frames: int
    objects: int
    rows: int
    accepted: int
    review: int
    hold: int
    absent: int
    untracked: int
    wall_seconds: float
    frames_per_second: float
    generation: int
    error: str | None
    labels_uri: str
    review_uri: str
    certified: bool
    score_source: str
    damage: str | None = None
    evidence: str = UNCERTIFIED.text


def report_of(
    video: str,
    commit: Commit,
    derived: Derived,
    num_frames: int,
    prompts: PromptSet,
    score_source: str,
    fresh: bool | Literal["duplicate"],
    propagated: int,
    damage: str | None,
    wall_seconds: float,
    evidence: Evidence,
) -> VideoReport:
    """Count what was derived from a commit.

    Args:
        score_source: what uncertainty rests on, see `pipeline.score.score_head`.
        fresh: whether this run made the commit, or that the commit is of another name of the same bytes.
        evidence: what stands behind the thresholds now.
        propagated: frames that this run propagated; fewer than all where it went on from a checkpoint.
    """
    status: Status = "re-decided" if derived.status == "written" else "unchanged"
    if fresh:
        status = "duplicate" if fresh == "duplicate" else "labelled"
    return VideoReport(
        video=video,
        video_id=commit.video_id,
        status=status,
        frames=num_frames,
        objects=len(prompts.objects) or derived.counts.get("objects", 0),
        rows=derived.counts["rows"],
        accepted=derived.counts["accept"],
        review=derived.counts["review"],
        hold=derived.counts["hold"],
        absent=derived.counts["absent"],
        untracked=derived.counts["untracked"],
        wall_seconds=wall_seconds,
        frames_per_second=propagated / wall_seconds if wall_seconds > 0 else 0.0,
        generation=commit.generation,
        error=None,
        labels_uri=derived.labels_uri,
        review_uri=derived.review_uri,
        certified=evidence.certified,
        evidence=evidence.text,
        score_source=score_source,
        damage=damage,
    )
