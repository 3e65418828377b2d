"""The reviews flow applies what people answered, tells it, and is stopped by no video that cannot be corrected."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import flows.events
from flows.label import label_batch
from flows.reviews import reviews
from pipeline import rle
from pipeline.ledger import Ledger
from pipeline.review.answers import Answer, GivenMask, write_answer
from pipeline.storage.objects import ObjectStore

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

FAST = {"output.review_frames": False, "model.device": "cpu"}


def answer(row: dict[str, Any], **more: Any) -> Answer:
    about = {name: row[name] for name in ("video_id", "object_id", "frame_index")}
    frame = row["frame_index"]
    return Answer(
        answer_id=uuid.uuid4().hex, item_id="item", review_id="review", generation=1, first_frame=frame,
        last_frame=frame, rows=1, reviewer="ann", answered_at=datetime.now(UTC), **about, **more,
    )  # fmt: skip


def test_the_flow_corrects_each_video_and_tells_it(
    drop: Path, items: Callable[[Path], list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    artifacts: Callable[[str], str],
) -> None:  # fmt: skip
    monkeypatch.setenv("MASKSIEVE_SLOTS", str(tmp_path / "slots"))
    out = tmp_path / "out"
    assert label_batch(items(drop), str(out), overrides=FAST, return_state=True).is_completed()
    told: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(flows.events, "emit_event", lambda event, _, payload, **more: told.append((event, payload)))
    store = ObjectStore(out)
    tables = [pq.ParquetFile(path).read().to_pylist() for path in sorted(out.glob("labels/*/*.parquet"))]
    fixed, rejected, odd = (rows[-1] for rows in tables)
    mask_hw = np.zeros((fixed["height"], fixed["width"]), bool)
    mask_hw[10:40, 10:40] = True
    mask = GivenMask(height=fixed["height"], width=fixed["width"], counts=rle.encode_mask(mask_hw).counts.decode())
    write_answer(store, answer(fixed, verdict="fix", mask=mask))
    write_answer(store, answer(rejected, verdict="reject"))
    broken = f"answers/{odd['video_id']}/{'e' * 32}.json"
    store.put_atomic(broken, b"{}")

    assert reviews(str(out), drop="another", overrides=FAST) == {}
    assert told == []
    state: Any = reviews(str(out), overrides=FAST, return_state=True)
    assert state.is_failed()
    assert odd["video_id"][:12] in state.message
    corrected = {payload["video_id"]: payload for event, payload in told if event == "video.corrected"}
    assert corrected.keys() == {fixed["video_id"], rejected["video_id"]}
    assert corrected[fixed["video_id"]]["generation"] == 2
    page = artifacts("reviews")
    assert "Applied 2 answers on 2 videos" in page
    assert f"not applied on `{odd['video_id'][:12]}`" in page
    (path,) = out.glob(f"labels/*/{fixed['video_id']}.parquet")
    last = pq.ParquetFile(path).read().to_pylist()[-1]
    assert (last["area_px"], last["reasons"]) == (900, ["reviewed"])

    store.delete(broken)
    told.clear()
    found: Any = reviews(str(out), overrides=FAST)
    assert found["night"]["labelled"] == 3
    assert "video.corrected" not in dict(told)
    assert set(Ledger(store).newest_generations().values()) == {1, 2}
