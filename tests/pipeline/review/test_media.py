"""Pictures and masks of items: the right frames, within bounds, and what is kept of them."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import StorageError, UnavailableError
from pipeline.models import LoadedModel
from pipeline.nano.clips import render_clip
from pipeline.review import media as media_module
from pipeline.review import shown as shown_module
from pipeline.review.editor import Editor
from pipeline.review.items import Item, read_items
from pipeline.review.media import Media
from pipeline.review.refusals import NotFound
from pipeline.review.shown import Shown, ShownMasks, ShownRow
from pipeline.rle import decode
from pipeline.storage.objects import ObjectStore

from .answering import facts
from .clip import Clip
from .conftest import FRAMES, SEEDS, SIZE_PX, Drop


@pytest.fixture(scope="module")
def items(review_drop: Drop) -> list[Item]:
    return [item for one in read_items(ObjectStore(review_drop.out)) for item in one.items]


@pytest.fixture
def media(review_drop: Drop, nano: LoadedModel) -> Iterator[Media]:
    editor = Editor(nano)
    one = Media(ObjectStore(review_drop.out), review_drop.settings, lambda: editor)
    yield one
    one.close()


def test_frames_are_those_of_the_video(media: Media, items: list[Item]) -> None:
    item = next(one for one in items if one.video_uri.endswith("two.mp4"))
    truth = render_clip(SEEDS["two"], frames=FRAMES, size=SIZE_PX).frames_thw3
    for row in media.masks.of(item).loop(item.frame_index, 24):
        seen = np.asarray(Image.open(io.BytesIO(media.jpeg(item, row.frame_index)))).astype(float)
        far = [np.abs(seen - frame).mean() for frame in truth]
        assert int(np.argmin(far)) == row.frame_index
    with pytest.raises(NotFound):
        media.jpeg(item, FRAMES + 5)


def test_what_is_kept_stays_within_its_bytes(media: Media, items: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_module, "KEPT_PICTURES_BYTES", 1)
    for item in items:
        media.prepare(item).result(60)
    media.prepare(items[0]).result(60)
    media.prepare(items[0])
    assert len(media._kept) == 1


def test_a_store_that_was_away_for_a_moment_is_asked_again_and_its_keys_are_not_told(
    media: Media, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, clock, tries = media_module.local_video, [0.0], list[int]()

    def away_at_first(*args: Any, **more: Any) -> Any:
        tries.append(1)
        if len(tries) == 1:
            raise UnavailableError("an answer of https://bucket/?X-Amz-Signature=0123456789", "none", "wait")
        return real(*args, **more)

    monkeypatch.setattr(media_module, "local_video", away_at_first)
    monkeypatch.setattr(media_module.time, "monotonic", lambda: clock[0])
    for _ in range(2):
        note = media.note(items[0])
        assert note is not None
        assert "0123456789" not in note
    assert len(tries) == 1
    clock[0] += media_module.AGAIN_SECONDS + 1
    assert media.note(items[0]) is None


def test_who_waits_too_long_for_a_video_is_told_so(
    media: Media, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    come = threading.Event()
    monkeypatch.setattr(media_module, "WAIT_SECONDS", 0.05)
    monkeypatch.setattr(media, "_decode", lambda item: come.wait(30))
    with pytest.raises(UnavailableError, match="ask again"):
        media.note(items[0])
    come.set()


def test_a_video_that_has_changed_is_not_shown_for_the_one_that_was_labelled(media: Media, items: list[Item]) -> None:
    other = replace(items[0], video_uri=next(one for one in items if one.video_id != items[0].video_id).video_uri)
    note = media.note(other)
    assert note is not None
    assert "changed" in note


def test_the_loop_holds_the_representative_and_a_little_around() -> None:
    rows = {index: ShownRow(index, index / 12, None, None, "untracked") for index in range(0, 200, 2)}
    loop = [row.frame_index for row in Shown(rows, 20, 160).loop(98, 7)]
    inside = [index for index in loop if 20 <= index <= 160]
    assert [index for index in loop if index < 20] == [12, 14, 16, 18]
    assert [index for index in loop if index > 160] == [162, 164, 166, 168]
    assert (len(inside), inside[0], inside[-1]) == (7, 20, 160)
    assert 98 in inside


def test_of_long_stretches_few_are_kept(review_drop: Drop, items: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    masks = ShownMasks(ObjectStore(review_drop.out))
    monkeypatch.setattr(shown_module, "KEPT_ROWS", 2 * FRAMES)
    for item in items:
        masks.of(item)
    assert sum(len(one.rows) for one in masks._kept.values()) <= 2 * FRAMES
    assert masks.of(items[-1]) is masks.of(items[-1])


def test_facts_that_are_gone_are_told(review_drop: Drop, items: list[Item]) -> None:
    masks = ShownMasks(ObjectStore(review_drop.out))
    with pytest.raises(StorageError):
        masks.of(replace(items[0], generation=7))


def test_the_candidates_are_those_that_the_model_chose_among_where_they_were_kept(own_clip: Clip) -> None:
    own_clip.label()  # with its candidates sidecar
    item = next(one for listed in read_items(own_clip.store) for one in listed.items if one.frame_index > 0)
    media = Media(own_clip.store, own_clip.settings, lambda: pytest.fail("the model is not asked again"))
    try:
        found, shown_hw = media.candidates(item), media.masks.of(item).rows[item.frame_index].counts
    finally:
        media.close()
    kept = facts(own_clip.ledger, item.video_id, "candidates").to_pylist()
    where = [one for one in kept if (one["frame_index"], one["object_id"]) == (item.frame_index, item.object_id)]
    assert [round(one.score, 5) for one in found] == [round(one["sam_score"], 5) for one in where]
    chosen = next((number for number, one in enumerate(where) if one["chosen"]), None)
    assert chosen is not None
    assert shown_hw is not None
    assert (found[chosen].mask_hw == decode(shown_hw, item.height, item.width)).all()
    areas = [one.mask_hw.mean() - decode(low["rle"], low["height"], low["width"]).mean()
             for one, low in zip(found, where, strict=True)]  # fmt: skip
    assert np.abs(areas).max() < 0.02
