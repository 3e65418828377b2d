"""review sync, stats and changes as a person calls them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks.review_queue import Flagged, write_list
from pipeline.review.answers import Answer
from pipeline.review.items import about
from pipeline.review.queue import Queue
from pipeline.storage.objects import ObjectStore

from .conftest import Run


def test_the_queue_is_filled_counted_and_followed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, place = tmp_path / "out", tmp_path / "review.sqlite"
    store = ObjectStore(out)
    write_list(store, "ab" * 32, [Flagged(1, 0, 2, 0.9), Flagged(2, 0, 1, 0.1, audit=True)])
    monkeypatch.setenv("MASKSIEVE_REVIEW", str(place))
    assert run("review", "sync", out) == 0
    assert capsys.readouterr().out == "2 added, 0 withdrawn, 2 items to answer\n"
    queue = Queue(place, store.identity)
    for number, one in enumerate(queue.claim("ann", 2)):
        answer = Answer(
            **about(one.item), answer_id=f"{number:08x}", frame_index=0, verdict="reject", reviewer="ann",
            answered_at=datetime.now(UTC), seconds=2.5,
        )  # fmt: skip
        queue.answer(one.lease_id, answer)
    queue.close()
    assert run("review", "sync", out, "--set", "review.undo_seconds=0", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "added": 0, "withdrawn": 0, "items": 0, "added_by_drop": {}, "written": 2
    }  # fmt: skip
    assert len(store.list("answers/")) == 2
    assert run("review", "stats", out, "--reviewer", "ann") == 0
    told = " ".join(capsys.readouterr().out.split())
    for words in ("0 items to answer", "2 answers, 2 today, 2 by ann", "reject 2 2.5 s 2.5 s", "1 of 1 audited masks"):
        assert words in told
    assert run("review", "stats", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["promise"]["judged"] == 1
    assert run("review", "changes", out, "--cursor", 2) == 0
    assert [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()] == ["answered"] * 2
    assert run("review", "sync", tmp_path / "nowhere") == 2
    assert run("review", "stats", out, "--database", "mysql://x/y") == 1
    for command in ("stats", "changes", "apply"):
        assert run("review", command, out, "--database", tmp_path / "typo.sqlite") == 2
        assert "a review queue at" in capsys.readouterr().err
    assert not (tmp_path / "typo.sqlite").exists()
