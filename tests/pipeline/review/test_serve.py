"""`masksieve review serve` as a process: it ends well with every answer written out, and refuses what is unsafe."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from pipeline.cli.entry import main
from pipeline.review.answers import read_answers
from pipeline.storage.objects import ObjectStore

from .conftest import Drop
from .review_server import served


def test_at_sigterm_every_answer_is_written_out(review_drop: Drop, tmp_path: Path) -> None:
    with served(review_drop, tmp_path, settings={"review.undo_seconds": 3600}) as server:
        headers = {"authorization": f"Bearer {server.token}", "x-reviewer": "ann"}
        with httpx.Client(base_url=f"{server.url}api/v1/", headers=headers, timeout=60) as client:
            lease = client.post("claim", json={}).json()["leases"][0]
            body = {
                "answer_id": "a" * 16, "lease_id": lease["lease_id"], "verdict": "reject",
                "frame_index": lease["item"]["frame_index"],
            }  # fmt: skip
            assert client.post(f"items/{lease['item']['item_id']}/answer", json=body).status_code == 200
        assert list(read_answers(ObjectStore(server.out))) == []  # it can be taken back still
    assert [one.answer_id for one in read_answers(ObjectStore(server.out))] == ["a" * 16]


def test_a_public_address_without_a_token_is_refused(
    review_drop: Drop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MASKSIEVE_REVIEW_TOKEN", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["review", "serve", str(review_drop.out), "--host", "0.0.0.0", "--database", str(tmp_path / "q.sqlite")])
    assert ended.value.code == 2
    assert "a token, because 0.0.0.0 can be reached from elsewhere" in capsys.readouterr().err
    assert not (tmp_path / "q.sqlite").exists()
