"""Fifty reviewers at one review queue: how long claim and answer take, and whether any item is given twice or lost.

`python benchmarks/review_queue.py [--items 100000] [--reviewers 50] [--seconds 30] [--think 1.0] [--http]
[--database postgresql://...] [--seed 0]` writes review lists of so many items (100 a video, a tenth of them audits),
brings them into a queue, and lets reviewers claim and answer for a while, each in a thread of its own that thinks for
`think` seconds on average between two answers. Some let a lease run out or send an answer twice. With `--http` they
talk to `masksieve review serve` in a process of its own. It prints times, and exits 1 if an item was in two hands at
once, an answer that was confirmed is not in the output, or one is there twice.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from pipeline import rle
from pipeline.ledger import Ledger
from pipeline.records import MASKS, REVIEW, file_metadata
from pipeline.review.answers import Answer, read_answers
from pipeline.review.items import about
from pipeline.review.queue import Queue
from pipeline.review.refusals import LeaseLost
from pipeline.settings import ReviewSettings
from pipeline.storage.manifest import derived_key, facts_key, write_facts
from pipeline.storage.objects import ObjectStore

HEIGHT, WIDTH = 120, 160
LEASE_SECONDS = 10.0
TWICE, LEFT = 0.05, 0.02
"""Shares of answers that are sent twice, and of items that a reviewer walks away from."""
PER_VIDEO = 100


class Flagged(NamedTuple):
    """Some flagged rows of one object."""

    object_id: int
    first_frame: int
    rows: int
    uncertainty: float | None
    audit: bool = False
    label: str | None = "cup"
    frame_uri: str | None = None
    box_xyxy: tuple[float, ...] | None = (2.0, 1.0, 5.0, 3.0)
    rle: bytes = b"a mask"


def write_list(
    store: ObjectStore,
    video_id: str,
    flagged: Sequence[Flagged],
    *,
    generation: int = 1,
    drop: str = "day",
    height: int = 8,
    width: int = 12,
) -> str:
    """Write the review list of a video as `derive` does. Returns: its key."""
    rows = []
    for one in flagged:
        kind = "audit" if one.audit else "review"
        text = f"{video_id}:{one.object_id}:{kind}:{one.first_frame}"
        review_id = hashlib.sha256(text.encode()).hexdigest()[:20]
        rows += [
            {
                "video_id": video_id, "video_uri": f"{video_id[:8]}.mp4", "frame_index": one.first_frame + number,
                "pts_seconds": 0.0, "object_id": one.object_id, "label": one.label, "height": height, "width": width,
                "rle": one.rle, "area_px": 6, "bbox_xyxy": one.box_xyxy, "visibility": "visible", "auto": False,
                "shot_index": 0, "direction": "forward", "across_cut": False, "uncertainty": one.uncertainty,
                "decision": "accept" if one.audit else "review",
                "reasons": ["audit" if one.audit else "uncertainty 0.31 > 0.24"], "suggested_action": "check_mask",
                "audit": one.audit, "review_probability": 0.1 if one.audit else 1.0, "weight": 1.0, "policy_id": "p",
                "review_id": review_id, "representative": number == 0, "frame_uri": None if number else one.frame_uri,
            }
            for number in range(one.rows)
        ]  # fmt: skip
    counts = {"stretches": len(flagged), "review": len(rows), "audit": sum(one.audit for one in flagged)}
    metadata = file_metadata({"generation": generation, "fps": 25.0, "counts": counts})
    table = pa.Table.from_pylist(rows, REVIEW.with_metadata(metadata))
    file = io.BytesIO()
    pq.write_table(table, file)
    key = derived_key("review", drop, video_id)
    store.put_atomic(key, file.getvalue())
    return key


def fill(store: ObjectStore, items: int, seed: int) -> None:
    """Facts, commits and review lists of so many items, as a labelled drop has them."""
    rng, ledger = random.Random(seed), Ledger(store)
    mask_hw = np.zeros((HEIGHT, WIDTH), bool)
    mask_hw[20:70, 30:90] = True
    mask = rle.encode_mask(mask_hw)
    for number in range(-(-items // PER_VIDEO)):
        video_id = hashlib.sha256(f"{seed}:{number}".encode()).hexdigest()
        flagged = [
            Flagged(one, 0, 1 if one % 10 == 0 else 4, rng.random(), one % 10 == 0, f"label {one % 7}", None,
                    mask.bbox_xyxy, mask.counts)
            for one in range(min(PER_VIDEO, items - number * PER_VIDEO))
        ]  # fmt: skip
        facts = [
            {
                "video_id": video_id, "video_uri": "gone.mp4", "frame_index": frame, "pts_seconds": frame / 25,
                "object_id": one.object_id, "label": one.label, "height": HEIGHT, "width": WIDTH, "rle": mask.counts,
                "area_px": mask.area_px, "bbox_xyxy": mask.bbox_xyxy, "visibility": "visible", "auto": False,
                "direction": "forward", "shot_index": 0, "across_cut": False,
            }
            for frame in range(4) for one in flagged
        ]  # fmt: skip
        key = facts_key("masks", "day", video_id, "000001-benchmark")
        rows = pa.RecordBatch.from_pylist(facts, schema=MASKS)
        record = write_facts(store, "masks", key, [rows], MASKS, {"drop": "day", "fps": 25.0})
        ledger.commit(
            video_id, parent=0, work_key="k", video_uri="gone.mp4", drop="day", files=[record], run_id="r", attempt=1,
            started_at=datetime.now(UTC),
        )  # fmt: skip
        write_list(store, video_id, flagged, height=HEIGHT, width=WIDTH)


class Given(NamedTuple):
    """An item in somebody's hands."""

    item_id: str
    lease_id: str
    frame_index: int
    item: Any = None


class Desk(Protocol):
    """Where a reviewer works."""

    def claim(self, reviewer: str) -> Given | None: ...
    def answer(self, reviewer: str, given: Given, answer_id: str) -> bool: ...


class AtQueue:
    """The queue itself, in this process."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def claim(self, reviewer: str) -> Given | None:
        """The next item; None if nothing waits."""
        found = self._queue.claim(reviewer)
        return Given(found[0].item.item_id, found[0].lease_id, 0, found[0].item) if found else None

    def answer(self, reviewer: str, given: Given, answer_id: str) -> bool:
        """Whether the answer is kept; not if the lease is lost."""
        answer = Answer(
            **about(given.item), answer_id=answer_id, frame_index=given.item.frame_index, verdict="accept",
            reviewer=reviewer, answered_at=datetime.now(UTC), seconds=1.0,
        )  # fmt: skip
        try:
            self._queue.answer(given.lease_id, answer)
        except LeaseLost:
            return False
        return True


class AtServer:
    """A server of the review, over HTTP; each thread has a connection of its own."""

    def __init__(self, url: str, token: str) -> None:
        self._url, self._token, self._own = url, token, threading.local()

    def _post(self, reviewer: str, path: str, body: dict[str, Any]) -> httpx.Response:
        if not hasattr(self._own, "client"):
            headers = {"authorization": f"Bearer {self._token}", "x-reviewer": reviewer}
            self._own.client = httpx.Client(base_url=self._url, headers=headers, timeout=60)
        client: httpx.Client = self._own.client
        try:
            return client.post(f"/api/v1/{path}", json=body)
        except httpx.TransportError:  # a connection that was idle is closed; ask again, as the page does
            return client.post(f"/api/v1/{path}", json=body)

    def claim(self, reviewer: str) -> Given | None:
        """The next item; None if nothing waits."""
        leases = self._post(reviewer, "claim", {"count": 1}).raise_for_status().json()["leases"]
        if not leases:
            return None
        item = leases[0]["item"]
        return Given(item["item_id"], leases[0]["lease_id"], item["frame_index"])

    def answer(self, reviewer: str, given: Given, answer_id: str) -> bool:
        """Whether the answer is kept; not if the lease is lost."""
        body = {
            "answer_id": answer_id, "lease_id": given.lease_id, "verdict": "accept", "scope": "stretch",
            "frame_index": given.frame_index, "seconds": 1.0,
        }  # fmt: skip
        answered = self._post(reviewer, f"items/{given.item_id}/answer", body)
        if answered.status_code in (409, 410) and answered.json()["error"]["kind"] == "lease_lost":
            return False
        answered.raise_for_status()
        return True


@dataclass
class Seen:
    """What the reviewers saw, all together."""

    claims: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
    both: list[float] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)  # item by answer
    held: dict[str, float] = field(default_factory=dict)  # until when, as its holder believes
    twice: list[str] = field(default_factory=list)
    answered: set[str] = field(default_factory=set)
    left: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, item_id: str, begun: float, now: float) -> None:
        """An item asked for at `begun` came into somebody's hands by `now`: is it in another's, or answered?"""
        with self.lock:
            if self.held.get(item_id, 0.0) > now or item_id in self.answered:
                self.twice.append(item_id)
            self.held[item_id] = begun + LEASE_SECONDS  # at least


def review(desk: Desk, seen: Seen, number: int, think_seconds: float, end: float, seed: int) -> None:
    """One reviewer, until time is up or nothing waits."""
    reviewer, rng = f"reviewer {number}", random.Random(f"{seed}:{number}")
    time.sleep(rng.random() * think_seconds)
    while time.monotonic() < end:
        begun = time.monotonic()
        given = desk.claim(reviewer)
        claimed = time.monotonic() - begun
        if given is None:
            return
        seen.take(given.item_id, begun, begun + claimed)
        if rng.random() < LEFT:
            with seen.lock:
                seen.left += 1
            continue
        time.sleep(min(rng.expovariate(1 / think_seconds), 0.7 * LEASE_SECONDS) if think_seconds else 0.0)
        answer_id, begun = uuid.UUID(int=rng.getrandbits(128)).hex, time.monotonic()
        kept = desk.answer(reviewer, given, answer_id)
        answered = time.monotonic() - begun
        with seen.lock:
            seen.claims.append(claimed)
            seen.answers.append(answered)
            seen.both.append(claimed + answered)
            if kept:
                seen.kept[answer_id] = given.item_id
                seen.answered.add(given.item_id)
                seen.held.pop(given.item_id, None)
        if kept and rng.random() < TWICE:
            assert desk.answer(reviewer, given, answer_id), "the same answer again is no mistake"


@contextmanager
def serving(out: str, database: str) -> Iterator[AtServer]:
    """`masksieve review serve` in a process of its own, which is ended in order."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    token = secrets.token_urlsafe(24)
    words = ["review", "serve", out, "--database", database, "--port", str(port), "--sync-seconds", "3600"]
    words += ["--set", f"review.lease_seconds={LEASE_SECONDS}"]
    environment = {**os.environ, "MASKSIEVE_REVIEW_TOKEN": token, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipeline.cli", *words]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as server:
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(1200):
                try:
                    httpx.get(f"{url}/api/v1/health", timeout=5).raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(0.25)
            yield AtServer(url, token)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(120)


def run(desk: Desk, reviewers: int, seconds: float, think_seconds: float, seed: int) -> Seen:
    """All reviewers at once."""
    seen, end = Seen(), time.monotonic() + seconds
    threads = [
        threading.Thread(target=review, args=(desk, seen, number, think_seconds, end, seed))
        for number in range(reviewers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def main() -> int:
    """Run it, print the figures, say whether all promises held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--reviewers", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--think", type=float, default=1.0, help="seconds between claim and answer, on average")
    parser.add_argument("--http", action="store_true", help="through a server in a process of its own")
    parser.add_argument("--database", help="postgresql://...; a SQLite file unless given")
    parser.add_argument("--keep", type=Path, help="the output is made here, and used again if it is there")
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="masksieve-benchmark-") as folder:
        root = words.keep or Path(folder)
        store = ObjectStore(root / "out")
        if not (root / "out").is_dir():
            fill(store, words.items, words.seed)
        for key in store.list("answers/"):
            store.delete(key)
        database = words.database or str(Path(folder) / "review.sqlite")
        queue = Queue(database, store.identity, ReviewSettings(lease_seconds=LEASE_SECONDS))
        begun = time.monotonic()
        synced = queue.sync(store)
        sync_seconds = time.monotonic() - begun
        begun = time.monotonic()
        queue.sync(store)
        again_seconds = time.monotonic() - begun
        if words.http:
            with serving(str(root / "out"), database) as server:
                seen = run(server, words.reviewers, words.seconds, words.think, words.seed)
        else:
            seen = run(AtQueue(queue), words.reviewers, words.seconds, words.think, words.seed)
        begun = time.monotonic()
        stats = queue.stats()
        stats_seconds = time.monotonic() - begun
        queue.export(store, force=True)
        queue.close()
        written = {one.answer_id: one.item_id for one in read_answers(store)}
    times = Table("milliseconds", "median", "p95", "p99", "most", box=None)
    for name, values in (("claim", seen.claims), ("answer", seen.answers), ("claim + answer", seen.both)):
        figures = [*np.percentile(values, (50, 95, 99)), max(values)]
        times.add_row(name, *(f"{1000 * value:.1f}" for value in figures))
    console.print(
        f"{synced.items:,} items synced in {sync_seconds:.1f} s, again in {again_seconds:.2f} s; "
        f"stats in {stats_seconds:.2f} s"
    )
    console.print(
        f"{words.reviewers} reviewers, {len(seen.kept):,} answers in {words.seconds:g} s, {seen.left} items left lying"
    )
    console.print(times)
    lost = [one for one in seen.kept.items() if one not in written.items()]
    doubled = [item_id for item_id, count in Counter(written.values()).items() if count > 1]
    missing = synced.items - stats.waiting - len(written)
    console.print(
        f"in two hands at once: {len(seen.twice)}; lost answers: {len(lost)}; items answered twice: {len(doubled)}; "
        f"lost items: {missing}"
    )
    return int(bool(seen.twice or lost or doubled or missing))


if __name__ == "__main__":
    sys.exit(main())
