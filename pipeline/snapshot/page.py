"""The data card as one HTML page without scripts or files beside it: thumbnails, counts, evidence, what is left out."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from pipeline.snapshot.thumbs import Thumb

MOST_BARS = 12
MOST_ROWS = 50
DECISION_COLOURS = {"accept": "var(--accept)", "review": "var(--review)", "hold": "var(--hold)"}
THRESHOLDS = (
    "max_uncertainty", "hold_above_uncertainty", "absent", "across_cut", "auto_margin", "min_object_score",
    "min_temporal_iou", "max_area_change", "min_area_px", "audit_rate",
)  # fmt: skip

_STYLE = """
:root{color-scheme:light dark;--paper:#f6f5f1;--card:#fff;--ink:#1d2129;--faint:#6a7080;--line:#e3e1da;--bar:#3e78d2;
--accept:#26a65b;--review:#de2d26;--hold:#8a8a8a;--warn:#8a5a00;--warnbg:#fdf1d6}
@media(prefers-color-scheme:dark){:root{--paper:#14161b;--card:#1d2027;--ink:#e8e9ec;--faint:#9aa0ae;--line:#30343d;
--bar:#6aa0f0;--warn:#f2c96b;--warnbg:#3a2f16}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif}
main{max-width:1120px;margin:0 auto;padding:40px 24px 64px}
h1{font-size:34px;line-height:1.15;margin:0;letter-spacing:-.02em;overflow-wrap:anywhere}
h2{font-size:17px;margin:0 0 12px}p{margin:0 0 8px}.faint{color:var(--faint)}
header{display:flex;flex-wrap:wrap;gap:8px 16px;align-items:baseline;margin-bottom:4px}
.badge{font-size:13px;font-weight:600;padding:3px 10px;border-radius:99px;background:var(--warnbg);color:var(--warn)}
.badge.good{background:color-mix(in srgb,var(--accept) 18%,transparent);color:var(--accept)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:24px 0}
.tile,section{background:var(--card);border:1px solid var(--line);border-radius:12px}
.tile{padding:14px 16px}.tile b{display:block;font-size:26px;line-height:1.2;letter-spacing:-.01em}
.tile span{color:var(--faint);font-size:13px}section{padding:20px;margin-bottom:16px}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(320px,1fr));gap:16px;margin-bottom:16px}
.grid section{margin:0;min-width:0}
.thumbs{display:grid;grid-template-columns:repeat(auto-fill,minmax(220px,1fr));gap:16px}
figure{margin:0;min-width:0}figure img{width:100%;max-height:340px;object-fit:contain;border-radius:8px;display:block}
figcaption{font-size:13px;margin-top:6px;overflow-wrap:anywhere}
figcaption b{display:flex;justify-content:space-between;gap:8px}figcaption i{font-style:normal;font-weight:400;
color:var(--faint)}
.bar{display:grid;grid-template-columns:minmax(90px,48%) 1fr auto;gap:10px;align-items:center;margin:5px 0}
.bar>span:first-child{overflow-wrap:anywhere;line-height:1.25}
.track{height:12px;border-radius:6px;background:color-mix(in srgb,var(--faint) 16%,transparent);overflow:hidden}
.track i{display:block;height:100%;border-radius:6px;background:var(--bar)}
.bar>span:last-child{font-variant-numeric:tabular-nums;color:var(--faint);text-align:right;min-width:3.5em}
.stack{display:flex;height:18px;border-radius:9px;overflow:hidden;gap:2px;margin:4px 0 10px}
table{border-collapse:collapse;width:100%;font-size:14px}th{text-align:left;font-weight:600;color:var(--faint)}.nb,td:first-child,th:first-child{min-width:110px}
td,th{padding:5px 12px 5px 0;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}tr:last-child td{border-bottom:0}
code{font:13px ui-monospace,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
pre{margin:0;padding:14px;border-radius:8px;background:var(--paper);border:1px solid var(--line);overflow-x:auto}
.histogram{display:flex;align-items:flex-end;gap:2px;height:120px;border-bottom:1px solid var(--line)}
.histogram i{flex:1;background:var(--bar);border-radius:3px 3px 0 0}.axis{display:flex;justify-content:space-between;
font-size:12px;color:var(--faint)}
"""


def draw_page(card: Mapping[str, Any], thumbs: Sequence[Thumb]) -> str:
    """The page of a card.

    Args:    card: from `card.data_card`.
             thumbs: pictures, in order.
    Returns: HTML; whatever came from files or labels is escaped.
    """
    body = [
        _head(card),
        _tiles(card),
        _thumbs(card, thumbs),
        '<div class="grid">',
        _section("Labels", "objects in the snapshot", _bars(card["labels"])),
        _section("Drops", "objects, by the drop that a video was first seen in", _drops(card)),
        _section("Decisions", "all rows of the labels", _decisions(card)),
        _section("Split", "by video, from the hash of its content alone", _split(card)),
        _section("Uncertainty", "of the objects in the snapshot; given masks have none", _histogram(card)),
        _section("Where masks come from", "objects in the snapshot", _bars(card["origins"])),
        "</div>",
        _evidence(card),
        '<div class="grid">',
        _section("Scores", "what uncertainty was read from", _bars(card["sources"])),
        _section("Rows left out", "with the first reason of each", _bars(card["left_out"]["rows"])),
        "</div>",
        _left_out(card),
        _made_with(card),
        _usage(card),
    ]
    title = escape(str(card["name"]))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><title>{title}</title><style>{_STYLE}</style></head>'
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _head(card: Mapping[str, Any]) -> str:
    badge = (
        '<span class="badge good">certified</span>' if card["certified"] else '<span class="badge">uncertified</span>'
    )
    note = "".join(f" {text[0].upper()}{text[1:]}." for text in card["evidence"])
    return (
        f"<header><h1>{escape(card['name'])}</h1>{badge}</header>"
        f'<p class="faint">A frozen training set of masks that a policy accepted.{escape(note)}</p>'
    )


def _tiles(card: Mapping[str, Any]) -> str:
    coverage = "–" if card["coverage"] is None else f"{100 * card['coverage']:.1f}%"
    tiles = [
        (f"{card['frames']:,}", "frames"),
        (f"{card['objects']:,}", "objects"),
        (f"{card['videos']:,}", "videos"),
        (coverage, "of all rows are in"),
        (f"{card['split']['val']['videos']:,}", "videos for validation"),
        (_size(card["bytes"]), f"in files: {sum(split['files'] for split in card['split'].values()):,}"),
    ]
    inner = "".join(f'<div class="tile"><b>{value}</b><span>{what}</span></div>' for value, what in tiles)
    return f'<div class="tiles">{inner}</div>'


def _thumbs(card: Mapping[str, Any], thumbs: Sequence[Thumb]) -> str:
    if not thumbs:
        return ""
    figures = "".join(
        f'<figure><img alt="" src="data:image/jpeg;base64,{base64.b64encode(thumb.jpeg).decode()}">'
        f"<figcaption><b>{escape(thumb.heading)}<i>{thumb.split}</i></b>"
        f'<span class="faint">{escape(thumb.caption)}</span></figcaption></figure>'
        for thumb in thumbs
    )
    note = "solid masks are in; red, hatched ones were not accepted and are left out of the loss"
    if card["options"]["image_quality"] is None:
        note += "; the snapshot holds no pictures"
    return _section("Frames", note, f'<div class="thumbs">{figures}</div>')


def _drops(card: Mapping[str, Any]) -> str:
    return _bars({drop: counts["objects"] for drop, counts in card["drops"].items()})


def _decisions(card: Mapping[str, Any]) -> str:
    counts = {name: card["decisions"][name] for name in DECISION_COLOURS if name in card["decisions"]}
    total = max(1, sum(counts.values()))
    pieces = "".join(
        f'<span style="flex:{count};background:{DECISION_COLOURS[name]}"></span>' for name, count in counts.items()
    )
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{count:,}</td><td class="n">{100 * count / total:.1f}%</td></tr>'
        for name, count in counts.items()
    )
    return f'<div class="stack">{pieces}</div><table>{rows}</table>'


def _split(card: Mapping[str, Any]) -> str:
    head = '<tr><th></th><th class="n">videos</th><th class="n">frames</th><th class="n">objects</th></tr>'
    rows = "".join(
        f"<tr><td>{split}</td>"
        + "".join(f'<td class="n">{counts[what]:,}</td>' for what in ("videos", "frames", "objects"))
        + "</tr>"
        for split, counts in card["split"].items()
    )
    asked = f"About {100 * card['options']['val_share']:g}% of the videos were asked for validation."
    empty = [split for split, counts in card["split"].items() if not counts["videos"]]
    if empty and card["videos"] > 1:
        asked += f" <b>{empty[0]} is empty</b>: no video is moved to fill it, so that growing the set never moves one."
    return f'<table>{head}{rows}</table><p class="faint" style="margin-top:10px">{asked}</p>'


def _histogram(card: Mapping[str, Any]) -> str:
    bins = card["uncertainty"]
    if not sum(bins):
        return '<p class="faint">No object has one.</p>'
    used = max(number for number, count in enumerate(bins) if count) + 1
    top = max(bins)
    columns = "".join(
        f'<i style="height:{max(100 * count / top, 1.5 if count else 0):.1f}%" title="{count:,}"></i>'
        for count in bins[:used]
    )
    axis = f'<div class="axis"><span>0</span><span>{used / len(bins):.2f}</span></div>'
    return f'<div class="histogram">{columns}</div>{axis}'


def _evidence(card: Mapping[str, Any]) -> str:
    several = " Several policies decided; see which." if len(card["policies"]) > 1 else ""
    parts = []
    for policy_id, policy in card["policies"].items():
        said = "<br>".join(escape(text) for text in policy["evidence"])
        limits = ", ".join(
            f"{name.replace('_', ' ')} {escape(str(policy[name]))}"
            for name in THRESHOLDS
            if policy.get(name) is not None
        )
        parts.append(
            f"<tr><td>{escape(str(policy.get('name', '')))}<br><code>{escape(policy_id)}</code></td>"
            f'<td>{said}</td><td>{limits}</td><td class="n">{policy["videos"]:,}</td></tr>'
        )
    head = '<tr><th>policy</th><th>evidence</th><th>limits</th><th class="n">videos</th></tr>'
    return _section("Policy", f"what was trusted, and why.{several}", f"<table>{head}{''.join(parts)}</table>")


def _left_out(card: Mapping[str, Any]) -> str:
    left_out = card["left_out"]
    facts = [f"videos without an accepted object: {left_out['videos_without_an_object']:,}"]
    if card["options"]["image_quality"] is None:
        facts.append("equal frames were not looked for, as no pictures were read")
    else:
        facts.append(f"frames dropped because they equal the one before: {left_out['duplicate_frames']:,}")
    if left_out["removed_later"]:
        facts.append(f"videos taken out after it was made: {left_out['removed_later']:,}")
    told = [(one["video_uri"] or one["video_id"], one["reason"]) for one in left_out["videos"]]
    told += [(one["video_uri"], one["note"]) for one in left_out["cut_short"]]
    table = ""
    if told:
        rows = "".join(f"<tr><td>{escape(what)}</td><td>{escape(why)}</td></tr>" for what, why in told[:MOST_ROWS])
        more = f"<p>… and {len(told) - MOST_ROWS:,} more in card.json</p>" if len(told) > MOST_ROWS else ""
        table = f"<table><tr><th>video</th><th>why</th></tr>{rows}</table>{more}"
    return _section("Videos and frames left out", "", f"<p>{'<br>'.join(facts)}</p>{table}")


def _made_with(card: Mapping[str, Any]) -> str:
    rows = []
    for maker in card["models"]:
        model, decoder = maker.get("model") or {}, maker.get("decoder") or {}
        heads = f"<code>{escape(maker['heads_sha256'])}</code>" if maker.get("heads_sha256") else "none"
        rows.append(
            f"<tr><td>{escape(str(model.get('name')))}<br><code>{escape(str(model.get('sha256')))}</code></td>"
            f"<td>{heads}</td><td>{escape(str(decoder.get('name')))}</td></tr>"
        )
    generations = ", ".join(f"{number} (videos: {count:,})" for number, count in card["generations"].items())
    software = ", ".join(f"{name} {version}" for name, version in card["software"].items())
    head = '<tr><th>model</th><th>heads</th><th class="nb">decoder</th></tr>'
    table = f"<table>{head}{''.join(rows)}</table>"
    about = f"<p style='margin-top:10px' class=faint>generations {escape(generations)} · {escape(software)}</p>"
    return _section("Made with", "checksums are SHA-256", table + about)


def _usage(card: Mapping[str, Any]) -> str:
    code = (
        "from pipeline.snapshot.dataset import SnapshotDataset\n"
        "from torch.utils.data import DataLoader\n\n"
        f'frames = SnapshotDataset(".../snapshots/{card["name"]}", split="train")\n'
        "for batch in DataLoader(frames, batch_size=8, num_workers=4, collate_fn=list):\n"
        "    ...  # image, masks, weights, ignore"
    )
    options = ", ".join(f"{name} {value}" for name, value in card["options"].items() if value not in (None, []))
    return _section("Train with it", escape(options), f"<pre><code>{escape(code)}</code></pre>")


def _section(title: str, note: str, inner: str) -> str:
    faint = f'<p class="faint" style="margin-top:-8px">{note}</p>' if note else ""
    return f"<section><h2>{title}</h2>{faint}{inner}</section>"


def _bars(counts: Mapping[str, int]) -> str:
    """Bars by name, the largest first; many small ones in one."""
    items = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    if len(items) > MOST_BARS:
        rest = items[MOST_BARS - 1 :]
        items = [*items[: MOST_BARS - 1], (f"{len(rest)} others", sum(count for _, count in rest))]
    if not items:
        return '<p class="faint">None.</p>'
    return "".join(_bar(items))


def _bar(items: Sequence[tuple[str, int]]) -> Iterable[str]:
    top = max(1, *(count for _, count in items))
    for name, count in items:
        yield (
            f'<div class="bar"><span title="{escape(name)}">{escape(name)}</span><span class="track">'
            f'<i style="width:{100 * count / top:.1f}%"></i></span><span>{count:,}</span></div>'
        )


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
