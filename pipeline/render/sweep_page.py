"""The page of a sweep: one HTML file with a slider over the thresholds, their figures, curves and example masks."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.certificate import Evidence
from pipeline.render.sweep_crops import Crop
from pipeline.sweep import Sweep
from pipeline.sweep_figures import a_dozen, columns, current, figures, told
from pipeline.sweep_reader import Group

BARS = 50
MOST_GROUPS = 24
_DIGITS = 5
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""What the browser may load for the page: nothing but what is in it."""


def draw_page(
    sweep: Sweep, crops: Sequence[Crop], evidence: Evidence, *, title: str, passed: Sequence[float] = ()
) -> str:
    """The page.

    Args:
        crops: examples by uncertainty.
        evidence: what stands behind the policy's threshold.
        title: where the labels lie, for people.
        passed: other thresholds that the policy's certificate passed.
    Returns: HTML; whatever came from files or labels is escaped.
    """
    data = _data(sweep, crops, evidence, passed)
    body = [
        _head(sweep, title),
        _panel(sweep, data),
        _charts(sweep),
        _strip(crops),
        _groups(sweep),
        _table(sweep),
        _notes(sweep, evidence),
        "<noscript><p>The slider needs JavaScript; the table above and the CSV beside this page do not.</p></noscript>",
    ]
    here = Path(__file__)
    style, script = (here.with_name(f"sweep_page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    packed = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>Sweep of {escape(title)}</title><style>{style}</style></head><body><main>{''.join(body)}</main>"
        f'<script type="application/json" id="data">{packed}</script><script>{script}</script></body></html>\n'
    )


def _data(sweep: Sweep, crops: Sequence[Crop], evidence: Evidence, passed: Sequence[float]) -> dict[str, Any]:
    """All that the script needs, by threshold."""
    rows = [figures(sweep, sweep.overall, k) for k in sweep.told.tolist()]
    at = sweep.policy.max_uncertainty
    start = next(i for i, row in enumerate(rows) if row["threshold"] == at)
    per_time = columns(sweep)[7]

    def column(name: str) -> list[Any]:
        return [_short(row[name]) for row in rows]

    risk = None
    if sweep.overall.risk is not None:
        risk = {
            "error": column("error_rate"), "low": column("error_low"), "high": column("error_high"),
            "iou": column("mean_iou"), "iouLow": column("iou_low"), "iouHigh": column("iou_high"),
            "rows": column("truth_rows"), "videos": column("truth_videos"),
        }  # fmt: skip
    return {
        "thresholds": [row["threshold"] for row in rows],
        "start": start, "now": -1 if sweep.now < 0 else start, "evidence": evidence.text,
        "certified": evidence.certified,
        "passed": [row["threshold"] in passed for row in rows],
        "confidence": f"{100 * sweep.confidence:g}% interval", "badIou": sweep.bad_iou,
        "predicted": sweep.overall.predicted, "coverage": column("coverage"), "accepted": column("accepted"),
        "flagged": column("review_rows"), "perVideo": column("stretches_per_video"), "perTime": column(per_time),
        "perTimeSaid": "a day" if sweep.days else "per 1,000 frames",
        "risk": risk, "histogram": histogram(sweep),
        "groups": [_group(sweep, group) for group in list(sweep.groups)[:MOST_GROUPS]],
        "examples": [
            {"u": _short(crop.compared), "iou": _short(crop.iou), "caption": crop.caption,
             "jpeg": base64.b64encode(crop.jpeg).decode()}
            for crop in crops
        ],
    }  # fmt: skip


def histogram(sweep: Sweep) -> dict[str, list[int]]:
    """Masks by uncertainty, in `BARS` equal steps from 0 to 1: those that a threshold decides about, and the others."""
    edges = sweep.thresholds_k[:-1]
    sums = sweep.overall_sums
    bar = np.clip(np.ceil(edges * BARS - 1e-9).astype(int) - 1, 0, BARS - 1)
    passing = sums.accept_b[:-1].copy()
    passing[0] -= sums.counts["always"]
    found = {}
    for name, count_b in (("passing", passing), ("stopped", sums.blocked_b[:-1])):
        found[name] = np.bincount(bar, count_b, minlength=BARS).astype(int).tolist()
    found["stopped"][-1] += int(sums.blocked_b[-1])  # a margin may lead beyond 1
    return found


def _group(sweep: Sweep, group: Group) -> dict[str, Any]:
    curve, risk = sweep.groups[group], sweep.groups[group].risk
    said: dict[str, Any] = {
        "predicted": curve.predicted,
        "accepted": curve.accepted_k[sweep.told].tolist(),
        "stretches": curve.stretches_k[sweep.told].tolist(),
    }
    if risk is not None:
        for name, values in (("error", risk.error_k), ("low", risk.error_low_k), ("high", risk.error_high_k)):
            said[name] = [None if np.isnan(one) else _short(float(one)) for one in values[sweep.told]]
    return said


def _head(sweep: Sweep, title: str) -> str:
    truth = sweep.overall_sums.truth
    known = "no truth was given"
    if truth is not None:
        known = f"truth of {_counted(truth.rows, 'mask')} of {_counted(truth.videos, 'video')}"
    over = f" over {sweep.days:,} days" if sweep.days else ""
    return (
        f'<header><h1>What each threshold accepts</h1></header><p class="faint">{escape(title)}: '
        f"{_counted(sweep.overall.predicted, 'predicted mask')} in {_counted(sweep.frames, 'frame')} of "
        f"{_counted(sweep.videos, 'video')}{over}; "
        f"{known}; rules of the policy <b>{escape(sweep.policy.name)}</b></p>"
    )


def _panel(sweep: Sweep, data: Mapping[str, Any]) -> str:
    at = data["thresholds"][data["start"]]
    bad = f"error rate: true IoU below {sweep.bad_iou:g}"
    if sweep.overall.risk is None:
        unknown = '<b class="unknown">unknown</b>'
        risk = (
            f'<div class="tile">{unknown}<span>error rate</span><span class="faint more">no truth was given (--truth)'
            f'</span></div><div class="tile">{unknown}<span>mean IoU</span><span class="faint more">no truth was given'
            "</span></div>"
        )
    else:
        risk = (
            f'<div class="tile"><b id="error"></b><span>{bad}</span>'
            '<span class="faint more" id="error-more"></span></div>'
            '<div class="tile"><b id="iou"></b><span>mean IoU of accepted masks</span>'
            '<span class="faint more" id="iou-more"></span></div>'
        )
    back = f"back to the policy's {'default ' if sweep.policy.groups else ''}{at:g}"
    return (
        '<div class="panel"><div class="ask"><label for="slider">Accept masks up to an uncertainty of '
        '<output id="threshold" for="slider"></output></label><span class="badge" id="evidence"></span>'
        f'<button id="back" title="Back to the threshold of the policy">{back}</button></div>'
        '<input type="range" id="slider" min="0" value="0" step="1">'
        '<div class="ends"><span>accepts least</span><span>arrow keys move one step, page keys ten</span>'
        "<span>accepts all that the other rules let through</span></div>"
        '<div class="tiles"><div class="tile"><b id="coverage"></b><span>coverage</span>'
        f'<span class="faint more" id="coverage-more"></span></div>{risk}'
        '<div class="tile"><b id="review"></b><span>review load</span><span class="faint more" id="review-more"></span>'
        "</div></div></div>"
    )


def _charts(sweep: Sweep) -> str:
    if sweep.overall.risk is None:
        first = ("risk", "Coverage by threshold", "the risk is unknown without truth")
    else:
        level = f"{100 * sweep.confidence:g}% interval, pointwise"
        first = ("risk", "Error rate by coverage", level)
    key = "".join(
        f'<span><i style="background:var(--{colour})"></i>{what}</span>'
        for colour, what in (("accent", "accepted"), ("rest", "above it"), ("stopped", "stopped by other rules"))
    )
    charts = (
        first,
        ("histogram", "Masks by uncertainty", key),
        ("load", "Review load by threshold", "stretch: flagged masks of an object in a row"),
    )
    inner = "".join(
        f'<section><h2>{title}</h2><p class="key">{note}</p>'
        f'<svg id="{name}" role="img" aria-label="{title}"></svg></section>'
        for name, title, note in charts
    )
    return f'<div class="charts">{inner}</div>'


def _strip(crops: Sequence[Crop]) -> str:
    if not crops:
        return ""
    note = (
        ""
        if all(crop.from_video for crop in crops)
        else " A mask stands on grey where its video was not at hand, or reading it took too long."
    )
    return (
        '<section class="below"><h2>Masks on both sides of the threshold</h2>'
        '<p class="faint small">The least certain ones that are still accepted, and the most certain ones that are '
        f'not, out of {len(crops)} drawn at random; the number is the uncertainty.{note}</p><div class="strip">'
        '<div class="side" id="below"><h3>just below: accepted</h3></div><i></i>'
        '<div class="side" id="above"><h3>just above: not accepted</h3></div></div></section>'
    )


def _groups(sweep: Sweep) -> str:
    if len(sweep.groups) < 2:
        return ""
    shown = list(sweep.groups.items())[:MOST_GROUPS]
    with_risk = sweep.overall.risk is not None
    names = [name for name in Group._fields if len({getattr(group, name) for group, _ in shown}) > 1] or ["source"]
    own = len(set(sweep.group_thresholds)) > 1
    head = "".join(f"<th>{name}</th>" for name in names) + '<th class="n">masks</th>'
    head += '<th class="n">policy\'s threshold</th>' if own else ""
    head += "<th>coverage</th>"
    head += f'<th class="n">error rate</th><th class="n">{100 * sweep.confidence:g}% interval</th>' if with_risk else ""
    head += '<th class="n">stretches</th>'
    body = ""
    for i, ((group, curve), limit) in enumerate(zip(shown, sweep.group_thresholds, strict=False)):
        cells = "".join(f"<td>{escape(str(getattr(group, name) or '–'))}</td>" for name in names)
        cells += f'<td class="n">{curve.predicted:,}</td>'
        cells += f'<td class="n">{"accepts none" if limit is None else f"{limit:g}"}</td>' if own else ""
        cells += '<td><span class="meter"><i></i></span><span class="covered"></span></td>'
        cells += '<td class="n error"></td><td class="n between"></td>' if with_risk else ""
        body += f'<tr id="group-{i}">{cells}<td class="n stretches"></td></tr>'
    more = len(sweep.groups) - len(shown)
    rest = f'<p class="faint small">and {more:,} more groups in groups.csv</p>' if more else ""
    return (
        '<section class="below"><h2>The same threshold in each group</h2>'
        f'<p class="faint small">by source, label and model, most masks first</p>'
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{rest}</section>'
    )


def _table(sweep: Sweep) -> str:
    """About a dozen thresholds, for reading and for print."""
    with_risk = sweep.overall.risk is not None
    names = ["threshold", "coverage", "accepted", "review rows", "stretches per video"]
    names += ["error rate", "interval", "mean IoU", "interval"] if with_risk else []
    body = ""
    for row in a_dozen(sweep):
        at = "by group" if row["threshold"] is None else f"{row['threshold']:g}"
        cells = [
            at + (" (policy)" if row["current"] else ""), _percent(row["coverage"]), f"{row['accepted']:,}",
            f"{row['review_rows']:,}", f"{row['stretches_per_video']:.2f}",
        ]  # fmt: skip
        if with_risk:
            cells += [_risky(row["error_rate"]), _between(row["error_low"], row["error_high"], _risky)]
            cells += [_iou(row["mean_iou"]), _between(row["iou_low"], row["iou_high"], _iou)]
        inner = "".join(f'<td class="n">{cell}</td>' for cell in cells)
        body += f"<tr{' class=current' if row['current'] else ''}>{inner}</tr>"
    head = "".join(f'<th class="n">{name}</th>' for name in names)
    return (
        f"<section class='below'><details><summary>A dozen thresholds as a table ({len(told(sweep)):,} in sweep.csv)"
        f'</summary><div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        "</details>"
        "</section>"
    )


def _notes(sweep: Sweep, evidence: Evidence) -> str:
    counts, policy = sweep.overall_sums.counts, sweep.policy
    notes = [
        "Uncertainty is 1 - predicted IoU, with the policy's margin added for objects that were found automatically. A "
        "mask is accepted if it is not above the threshold and no other rule of the policy stops it.",
        "Coverage is a share of the predicted masks. Those that a person gave and rows that the model did not look at "
        f"({counts['rows'] - counts['predicted']:,} of {counts['rows']:,}) are not among them.",
    ]
    if sweep.overall.risk is None:
        notes.append("The risk is unknown: no truth was given. masksieve sweep --truth, see docs/thresholds.md.")
    else:
        notes.append(
            "Risk is estimated from the accepted masks that have truth. Its interval takes the video as the "
            "unit and is pointwise: it holds for one threshold chosen beforehand, not for the best of many. It is no "
            "certificate; masksieve calibrate makes one."
        )
    if counts["always"]:
        notes.append(f"Accepted whatever the threshold (absent: accept): {_counted(counts['always'], 'mask')}.")
    if counts["held"]:
        notes.append(f"Held whatever the threshold, neither accepted nor shown: {_counted(counts['held'], 'mask')}.")
    if counts["unscored"]:
        notes.append(f"Without a score, and so never accepted: {_counted(counts['unscored'], 'mask')}.")
    if policy.groups:
        now = current(sweep)
        notes.append(
            f"The policy has {len(policy.groups)} thresholds by group; the slider asks the same of all. As it is, it "
            f"accepts {_percent(now['coverage'])}, with {now['stretches_per_video']:.2f} stretches per video; "
            f"{evidence.text}."
        )
    if policy.review_stretches_per_video is not None:
        notes.append(
            f"The policy shows at most {policy.review_stretches_per_video:,} stretches of a video to a person and "
            "holds the others. The load here is before that limit."
        )
    if len(sweep.policies) > 1:
        notes.append(
            f"The labels were decided by {len(sweep.policies)} policies; all are swept by the rules of this one."
        )
    if sweep.left_out:
        notes.append(f"Left out, since they could not be read: {_counted(len(sweep.left_out), 'file')}.")
    inner = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<section><h2>How to read this</h2><ul class='small faint'>{inner}</ul></section>"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _short(value: Any) -> Any:
    return round(value, _DIGITS) if isinstance(value, float) else value


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}%"


def _risky(share: float | None) -> str:
    return f"{100 * share:.2f}%" if share is not None and share < 0.01 else _percent(share)


def _iou(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _between(low: float | None, high: float | None, said: Any) -> str:
    return "–" if low is None else f"{said(low)} to {said(high)}"
