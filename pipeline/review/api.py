"""The review API: claim, answer, skip and the rest over HTTP, described at /api/v1/openapi.json, and the page at /."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi import Path as InPath
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles

from pipeline import rle
from pipeline.errors import MasksieveError
from pipeline.review import api_models as m
from pipeline.review.access import COOKIE_SECONDS, Access
from pipeline.review.answers import Answer, GivenMask
from pipeline.review.guard import Guard, PlainJSON, address, cookie_name, tell_errors, who
from pipeline.review.items import Item, about
from pipeline.review.media import Media
from pipeline.review.queue import Queue
from pipeline.review.refusals import Malformed, NotFound
from pipeline.review.seen import (
    BoolArray,
    lease_out,
    mask_in,
    rle_out,
    row_mask,
    seconds_left,
    seen_item,
    stats_out,
)
from pipeline.settings import ReviewSettings

STATIC = Path(__file__).resolve().parent / "static"
MOST_PROMPT_BYTES = 64 << 10
REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {"model": m.ErrorOut} for code in (400, 401, 403, 404, 409, 413, 422, 429, 503)
}
ItemId = Annotated[str, InPath(pattern=r"^[0-9a-f]{8,64}$")]


@dataclass(frozen=True)
class Desk:
    """What the API works on."""

    queue: Queue
    media: Media
    access: Access
    settings: ReviewSettings


def create_app(desk: Desk) -> Any:
    """The whole server as an ASGI app."""
    app = FastAPI(
        title="masksieve review",
        version=metadata.version("masksieve"),
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        default_response_class=PlainJSON,
    )
    app.state.access = desk.access
    tell_errors(app)
    app.include_router(_open_routes(desk))
    app.include_router(_routes(desk))
    app.mount("/static", StaticFiles(directory=STATIC, check_dir=False), name="static")

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers={"cache-control": "no-cache"})

    return Guard(app, desk.access)


def _who(request: Request) -> str:
    return who(request.app.state.access, request)


Reviewer = Annotated[str, Depends(_who)]


def _open_routes(desk: Desk) -> APIRouter:
    """What works without a login."""
    router = APIRouter(prefix="/api/v1", responses=REFUSALS)

    @router.get("/health")
    def health() -> m.Health:
        return m.Health(ok=True)

    @router.post("/login")
    def login(body: m.Login, request: Request, response: Response) -> m.Me:
        cookie = desk.access.log_in(body.token, body.reviewer, address(request))
        response.set_cookie(
            cookie_name(request), cookie, max_age=COOKIE_SECONDS, httponly=True, samesite="strict",
            secure=request.url.scheme == "https",
        )  # fmt: skip
        return _me(desk, body.reviewer.strip())

    @router.post("/logout")
    def logout(request: Request, response: Response) -> m.Nothing:
        response.delete_cookie(cookie_name(request), httponly=True, samesite="strict")
        return m.Nothing()

    return router


def _me(desk: Desk, reviewer: str) -> m.Me:
    rules = desk.settings
    return m.Me(
        reviewer=reviewer,
        undo_seconds=rules.undo_seconds,
        lease_seconds=rules.lease_seconds,
        max_points=rules.max_points,
    )


def _routes(desk: Desk) -> APIRouter:
    queue, media = desk.queue, desk.media
    waiting = _Waiting(queue)

    router = APIRouter(prefix="/api/v1", responses=REFUSALS, dependencies=[Depends(_who)])

    @router.get("/me")
    def me(reviewer: Reviewer) -> m.Me:
        return _me(desk, reviewer)

    @router.post("/claim")
    def claim(body: m.ClaimBody, reviewer: Reviewer) -> m.Claimed:
        leases = queue.claim(reviewer, body.count, item_id=body.item_id, drop=body.drop, label=body.label)
        for leased in leases:
            media.prepare(leased.item)
        return m.Claimed(leases=[lease_out(one, media.masks) for one in leases], waiting=waiting.count())

    @router.get("/items/{item_id}")
    def item(item_id: ItemId) -> m.SeenItem:
        return seen_item(queue.item(item_id), media.masks)

    @router.post("/items/{item_id}/answer")
    def answer(item_id: ItemId, body: m.AnswerBody, reviewer: Reviewer) -> m.AnsweredOut:
        done = queue.answer(body.lease_id, _answer(desk, queue.item(item_id), body, reviewer))
        return m.AnsweredOut(
            answer_id=done.answer_id, undo_seconds=seconds_left(done.undo_until), answered_today=done.answered_today
        )

    @router.post("/items/{item_id}/skip")
    def skip(item_id: ItemId, body: m.SkipBody) -> m.Nothing:
        queue.skip(item_id, body.lease_id, body.reason)
        return m.Nothing()

    @router.post("/items/{item_id}/release")
    def release(item_id: ItemId, body: m.LeaseBody) -> m.Nothing:
        queue.release(item_id, body.lease_id)
        return m.Nothing()

    @router.post("/items/{item_id}/renew")
    def renew(item_id: ItemId, body: m.LeaseBody) -> m.Renewed:
        return m.Renewed(seconds_left=seconds_left(queue.renew(item_id, body.lease_id)))

    @router.post("/undo")
    def undo(body: m.UndoBody, reviewer: Reviewer) -> m.LeaseOut:
        return lease_out(queue.undo(body.answer_id, reviewer), media.masks)

    @router.post("/items/{item_id}/segment")
    def segment(item_id: ItemId, body: m.SegmentBody) -> m.SegmentOut:
        return _segment(desk, queue.item(item_id), body)

    @router.get(
        "/items/{item_id}/frames/{frame_index}.jpg",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}},
    )
    def frame(
        item_id: ItemId,
        frame_index: Annotated[int, InPath(ge=0, le=2**31 - 1)],
        width: Annotated[int | None, Query(ge=16, le=8192)] = None,
    ) -> Response:
        data = media.jpeg(queue.item(item_id), frame_index, width)
        return Response(data, media_type="image/jpeg", headers={"cache-control": "private, max-age=86400, immutable"})

    @router.get("/items/{item_id}/strip")
    def strip(item_id: ItemId) -> m.StripOut:
        one = queue.item(item_id)
        note = media.note(one)
        rows = media.masks.of(one).loop(one.frame_index, desk.settings.loop_frames)
        frames = [
            m.FrameOut(
                frame_index=row.frame_index, pts_seconds=row.pts_seconds,
                in_stretch=one.first_frame <= row.frame_index <= one.last_frame,
                mask=row_mask(row, one), visibility=row.visibility,
            )
            for row in rows
        ]  # fmt: skip
        return m.StripOut(video=note is None, note=note, frames=frames)

    @router.get("/items/{item_id}/candidates")
    def candidates(item_id: ItemId) -> m.CandidatesOut:
        one = queue.item(item_id)
        found = media.candidates(one)
        row = media.masks.of(one).rows[one.frame_index]
        size = one.height, one.width
        close = [0.0 if row.counts is None else _iou(row.counts, each.mask_hw, size) for each in found]
        best = int(np.argmax(close))
        return m.CandidatesOut(
            frame_index=one.frame_index,
            candidates=[
                m.CandidateOut(mask=rle_out(each.mask_hw), score=each.score, shown=number == best)
                for number, each in enumerate(found)
            ],
        )

    @router.get("/stats")
    def stats(reviewer: Reviewer) -> m.StatsOut:
        return stats_out(queue.stats(reviewer))

    @router.get("/changes")
    def changes(
        cursor: Annotated[int, Query(ge=0, le=2**63 - 1)] = 0, limit: Annotated[int, Query(ge=1, le=1000)] = 100
    ) -> m.ChangesOut:
        found, cursor = queue.changes(cursor, limit)
        return m.ChangesOut(
            changes=[
                m.ChangeOut(
                    cursor=one.cursor, event=one.event, item_id=one.item_id,
                    item=None if one.item is None else seen_item(one.item, None),
                )
                for one in found
            ],
            cursor=cursor,
        )  # fmt: skip

    return router


class _Waiting:
    """How many items wait, asked anew every few seconds only."""

    def __init__(self, queue: Queue, seconds: float = 3.0) -> None:
        self._queue, self._seconds = queue, seconds
        self._count, self._until = 0, 0.0

    def count(self) -> int:
        if time.monotonic() > self._until:
            self._until = time.monotonic() + self._seconds
            self._count = self._queue.waiting()
        return self._count


def _segment(desk: Desk, item: Item, body: m.SegmentBody) -> m.SegmentOut:
    begun = time.perf_counter()
    if len(body.points) > desk.settings.max_points:
        raise Malformed(f"at most {desk.settings.max_points} points", f"{len(body.points)}", "draw a box or a stroke")
    if not body.points and body.box is None:
        raise Malformed("a point or a box", "neither", "click on the object")
    for x, y, _ in body.points:
        if not (0 <= x <= item.width and 0 <= y <= item.height):
            raise Malformed(f"points within {item.width} x {item.height}", f"({x:g}, {y:g})", "click on the frame")
    box = None if body.box is None else _box(body.box, item)
    current_hw = None if body.mask is None else mask_in(body.mask, item)
    features = desk.media.features(item, body.frame_index)
    points = np.array([(x, y) for x, y, _ in body.points], np.float32) if body.points else None
    labels = np.array([label for _, _, label in body.points], np.int32) if body.points else None
    found = desk.media.editor().mask(features, points, labels, box, current_hw, (item.height, item.width))
    ms = round(1000 * (time.perf_counter() - begun), 1)
    return m.SegmentOut(mask=rle_out(found.mask_hw), score=found.score, ms=ms)


def _box(box_xyxy: tuple[float, float, float, float], item: Item) -> np.ndarray[Any, np.dtype[np.float32]]:
    x0, y0, x1, y1 = box_xyxy
    if not (0 <= x0 < x1 <= item.width and 0 <= y0 < y1 <= item.height):
        expected = f"a box x0 < x1, y0 < y1 within {item.width} x {item.height}"
        raise Malformed(expected, "{:g}, {:g}, {:g}, {:g}".format(*box_xyxy), "drag it on the frame")
    return np.array(box_xyxy, np.float32)


def _answer(desk: Desk, item: Item, body: m.AnswerBody, reviewer: str) -> Answer:
    """The answer as it is kept, with what the server knows of the mask that was shown."""
    if not item.first_frame <= body.frame_index <= item.last_frame:
        expected = f"a frame of the stretch, {item.first_frame} to {item.last_frame}"
        raise Malformed(expected, f"frame {body.frame_index}", "answer on a frame of the item")
    mask_hw = _given(desk, item, body)
    area_px, iou = _shown_of(desk, item, body.frame_index, mask_hw)
    mask = None
    if mask_hw is not None:
        counts = rle.encode_mask(mask_hw).counts.decode()
        mask = GivenMask(height=item.height, width=item.width, counts=counts)
    values: dict[str, Any] = {
        **about(item), "answer_id": body.answer_id, "frame_index": body.frame_index, "verdict": body.verdict,
        "scope": body.scope if mask is None else "frame", "mask": mask,
        "candidate": body.candidate if body.verdict == "pick" else None, "prompts": _plain(body.prompts),
        "area_px": area_px, "iou": iou, "reviewer": reviewer, "answered_at": datetime.now(UTC),
        "seconds": body.seconds,
    }  # fmt: skip
    return Answer(**values)


def _given(desk: Desk, item: Item, body: m.AnswerBody) -> BoolArray | None:
    """The mask of a pick or fix. Raises Malformed if it lacks one that it needs, or has one that it must not."""
    if body.verdict not in ("pick", "fix"):
        if body.mask is not None:
            raise Malformed("a mask with pick and fix alone", f"one with {body.verdict}", "leave it out, or say fix")
        return None
    if body.mask is not None:
        mask_hw = mask_in(body.mask, item)
    elif body.verdict == "pick" and body.candidate is not None and body.frame_index == item.frame_index:
        mask_hw = desk.media.candidates(item)[body.candidate].mask_hw
    else:
        raise Malformed(f"a mask with {body.verdict}", "none", "send the mask that is right")
    if not mask_hw.any():
        raise Malformed("a mask with at least a pixel", "an empty one", "say absent where the object is not there")
    return mask_hw


def _shown_of(desk: Desk, item: Item, frame_index: int, mask_hw: BoolArray | None) -> tuple[int | None, float | None]:
    """Area of the mask that was shown on a frame, and its IoU with the given one; None where its facts are gone."""
    if mask_hw is None and frame_index == item.frame_index:
        return item.area_px, None
    try:
        row = desk.media.masks.of(item).rows.get(frame_index)
    except MasksieveError:
        return None, None
    if row is None:
        raise NotFound(f"a labelled frame of {item.first_frame}..{item.last_frame}", f"{frame_index}", "see the strip")
    if mask_hw is None or row.counts is None:
        return row.area_px, None
    return row.area_px, _iou(row.counts, mask_hw, (item.height, item.width))


def _iou(counts: bytes, mask_hw: BoolArray, size: tuple[int, int]) -> float:
    return rle.iou(counts, rle.encode_mask(mask_hw).counts, *size)


def _plain(prompts: dict[str, Any] | None) -> dict[str, Any] | None:
    """Prompts for the record, if they are small and can be written down anywhere."""
    if prompts is None:
        return None
    try:
        text = json.dumps(prompts, allow_nan=False, ensure_ascii=False)
        size_bytes = len(text.encode())
    except (ValueError, RecursionError) as error:
        raise Malformed("prompts as plain JSON", "numbers or text that are none", "leave them out") from error
    if size_bytes > MOST_PROMPT_BYTES or "\\u0000" in text:
        raise Malformed(f"prompts of at most {MOST_PROMPT_BYTES >> 10} kB", f"{size_bytes} bytes", "leave them out")
    return prompts
