"""The data card of a snapshot: what is in it, what is not and why, what its labels rest on; as JSON and a page."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.snapshot.manifest import CARD, PAGE, SPLITS, Manifest, Video
from pipeline.snapshot.page import draw_page
from pipeline.snapshot.thumbs import draw_thumbs
from pipeline.storage.objects import ObjectStore

ALSO_OTHERS = "uncertified: it holds masks that were not accepted, of which no certificate speaks"


def data_card(manifest: Manifest) -> dict[str, Any]:
    """The card as JSON values; equal snapshots have equal cards, so it tells no time.

    Returns: counts and shares, by split, drop, label, decision and source; evidence with how many videos have it;
             policies with theirs; models;
             options; what is left out.
    """
    videos = [video for video in manifest.videos if video.frames]
    decisions = _summed(video.by_decision for video in manifest.videos)
    rows = sum(decisions.values())
    counted = set(manifest.options["decisions"])
    used = {video.policy_id for video in manifest.videos}
    evidence = dict(sorted(Counter(video.evidence for video in manifest.videos).items()))
    certified = bool(videos) and all(video.certified for video in manifest.videos)
    models = [manifest.makers[one] for one in sorted({video.made_by for video in manifest.videos})]
    return {
        "name": manifest.name,
        "options": manifest.options,
        "software": manifest.software,
        "videos": len(videos),
        "frames": manifest.frames,
        "objects": _objects(videos),
        "bytes": sum(part.bytes for part in manifest.parts),
        "coverage": sum(decisions.get(one, 0) for one in counted) / rows if rows else None,
        "certified": certified and counted == {"accept"},
        "evidence": evidence if counted == {"accept"} or not certified else {ALSO_OTHERS: len(videos)},
        "split": {
            split: {
                "videos": sum(video.split == split for video in videos),
                "frames": sum(part.rows for part in manifest.parts if part.split == split),
                "objects": _objects(video for video in videos if video.split == split),
                "files": sum(part.split == split for part in manifest.parts),
            }
            for split in SPLITS
        },
        "drops": {
            drop: {
                "videos": sum(video.drop == drop for video in videos),
                "frames": sum(video.frames for video in videos if video.drop == drop),
                "objects": _objects(video for video in videos if video.drop == drop),
            }
            for drop in sorted({video.drop for video in videos})
        },
        "labels": _summed(video.by_label for video in videos),
        "decisions": decisions,
        "sources": _summed(video.by_source for video in videos),
        "origins": _summed(video.by_origin for video in videos),
        "uncertainty": [sum(column) for column in zip(*(video.uncertainty for video in videos), strict=True)],
        "policies": {
            one: {
                "videos": sum(video.policy_id == one for video in manifest.videos),
                **manifest.policies[one],
                "evidence": sorted({video.evidence for video in manifest.videos if video.policy_id == one}),
            }
            for one in sorted(used)
        },
        "models": models,
        "generations": {
            str(number): count
            for number, count in sorted(Counter(video.generation for video in manifest.videos).items())
        },
        "left_out": {
            "rows": _summed(video.left_out for video in manifest.videos),
            "duplicate_frames": sum(video.duplicates for video in manifest.videos),
            "videos": [one.model_dump() for one in manifest.left_out],
            "videos_without_an_object": sum(not video.frames for video in manifest.videos),
            "cut_short": [
                {"video_id": video.video_id, "video_uri": video.video_uri, "note": video.note}
                for video in videos
                if video.note
            ],
            "removed_later": manifest.removed,
        },
    }


def put_cards(store: ObjectStore, folder: str, manifest: Manifest) -> Manifest:
    """Draw card.json and card.html from what the manifest names, and put both in the store.

    Returns: the manifest with their checksums.
    """
    card = data_card(manifest)
    pages = {
        CARD: json.dumps(card, indent=1, ensure_ascii=False).encode(),
        PAGE: draw_page(card, draw_thumbs(store, folder, manifest)).encode(),
    }
    for key, data in pages.items():
        store.put_atomic(f"{folder}{key}", data)
    return manifest.model_copy(update={"cards": {key: hashlib.sha256(data).hexdigest() for key, data in pages.items()}})


def _objects(videos: Iterable[Video]) -> int:
    return sum(sum(video.by_origin.values()) for video in videos)


def _summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Sums by name, the largest first."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))
