"""Who or what made each mask, when and why, as an output tells it itself."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

import pipeline.cli
from pipeline.ledger import Ledger
from pipeline.models import LoadedModel
from pipeline.review.corrections import apply_answers
from pipeline.review.history import history
from pipeline.storage.objects import ObjectStore

from .answering import answer, give, labels, true_mask
from .conftest import Drop


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_each_mask_has_who_made_it_and_why(
    labelled_copy: Callable[[], Drop], nano: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    drop = labelled_copy()
    store = ObjectStore(drop.out)
    ledger = Ledger(store)
    (video_id,) = [one.video_id for one in ledger.read_all() if one.video_uri.endswith("/one.mp4")]
    rows = labels(drop.out, video_id)
    fix = answer(rows[8, 1], "fix", true_mask(rows[8, 1], drop.truth["one"]), reviewer="ann")
    gone = answer(rows[12, 1], "absent", reviewer="bob", minutes=3)
    give(store, fix)
    apply_answers(video_id, store, ledger, drop.settings, model=nano)
    give(store, gone)
    apply_answers(video_id, store, ledger, drop.settings, model=nano)

    told = [(one.generation, one.what, one.by) for one in history(ledger, video_id, object_id=1, frame_index=8)]
    assert told == [(1, "followed by sam2_nano", "sam2_nano"), (2, "corrected by a reviewer", "ann")]
    (_, fixed) = history(ledger, video_id, object_id=1, frame_index=8)
    assert (fixed.answer_id, fixed.answered_at, fixed.why) == (fix.answer_id, fix.answered_at, fix.reasons)
    told = [(one.generation, one.what) for one in history(ledger, video_id, object_id=1, frame_index=12)]
    assert told == [
        (1, "followed by sam2_nano"),
        (2, "carried on by sam2_nano from frame 8 as given by ann"),
        (3, "said to be absent by a reviewer"),
    ]
    whole = history(ledger, video_id)
    first = [(one.object_id, one.first_frame, one.rows, one.what) for one in whole if one.generation == 1]
    clicked, followed = "made by sam2_nano from a click of the prompts", "followed by sam2_nano"
    assert first == [(1, 0, 1, clicked), (1, 1, 15, followed), (2, 0, 1, clicked), (2, 1, 15, followed)]
    assert [one.object_id for one in whole if one.generation > 1] == [1, 1, 1]

    with pytest.raises(SystemExit) as done:
        pipeline.cli.main(["review", "history", str(drop.out), "one.mp4", "--object", "1", "--frame", "12", "--json"])
    assert not done.value.code
    assert [one["by"] for one in json.loads(capsys.readouterr().out)] == ["sam2_nano", "sam2_nano", "bob"]
    with pytest.raises(SystemExit):
        pipeline.cli.main(["review", "history", str(drop.out), "one.mp4", "--object", "1"])
    said = capsys.readouterr().out
    assert "generation 3" in said
    assert "object 1, frame 12 (1 mask): said to be absent by a reviewer (bob, 2026-01-02 09:03:00 UTC)" in said
    with pytest.raises(SystemExit) as wrong:
        pipeline.cli.main(["review", "history", str(drop.out), "none.mp4"])
    assert wrong.value.code == 2

    (drop.out / ledger.read(video_id, 1).file("masks").key).unlink()
    assert history(ledger, video_id)[0].what == "facts are gone"
