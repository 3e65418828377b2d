"""The summary of a run: a line per video, whatever became of it, without a key of a store in it."""

from __future__ import annotations

from typing import Any

from pipeline.errors import MasksieveError
from pipeline.report import VideoReport
from pipeline.storage.secrets import masked

Row = dict[str, Any]


class SetAside(Exception):
    """A video that failed for good; trying again would change nothing."""


class DeviceLost(Exception):
    """A device that computes nothing any more in this process; another process may find it well."""


def reason(error: Exception) -> str:
    """What went wrong, in one line."""
    text = masked(" ".join(str(error).split()))
    return text if isinstance(error, MasksieveError | SetAside) else f"{type(error).__name__}: {text}"


def row_of(report: VideoReport) -> Row:
    """The line of a video that is done."""
    share = {
        name: round(getattr(report, name) / report.rows, 4) if report.rows else None
        for name in ("accepted", "review", "absent")
    }
    return line(report.video, report.status, report.error or "") | {
        "frames": report.frames,
        "objects": report.objects,
        "rows": report.rows,
        **share,
        "wall_seconds": round(report.wall_seconds, 2),
        "frames_per_second": round(report.frames_per_second, 1) if report.frames_per_second else None,
        "certified": report.certified,
        "evidence": report.evidence,
    }


def line(video: str, status: str, error: str) -> Row:
    """A line of the summary: what became of a video that was not labelled."""
    empty = dict.fromkeys(("frames", "objects", "rows", "accepted", "review", "absent", "wall_seconds"))
    fields = {"video": video, "status": status, **empty, "frames_per_second": None, "certified": False}
    return fields | {"error": error}
