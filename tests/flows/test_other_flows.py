"""Deciding anew, telling what waits for people, fitting heads: each on a real output, without a key of a store."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from prefect.client.orchestration import get_client

import flows.events
from flows.label import label_batch
from flows.retune import retune
from flows.reviews import reviews
from pipeline.errors import SettingsError
from pipeline.waiting import reason_kind

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

Items = Callable[[Path], list[dict[str, Any]]]
FAST = {"output.review_frames": False, "model.device": "cpu"}
SECRET, KEY = "s3cr3t-of-the-store", "AKIA-of-the-store"


@pytest.fixture
def labelled(drop: Path, items: Items, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output of three videos of a drop, labelled with keys in the settings."""
    monkeypatch.setenv("MASKSIEVE_SLOTS", str(tmp_path / "slots"))
    config = tmp_path / "keys.yaml"
    config.write_text(json.dumps({"storage": {"access_key_id": KEY, "secret_access_key": SECRET}}))
    out = tmp_path / "out"
    assert label_batch(items(drop), str(out), config=str(config), overrides=FAST, return_state=True).is_completed()
    return out


def decisions(out: Path) -> Counter[str]:
    return Counter(
        row for path in out.glob("labels/*/*.parquet") for row in pq.read_table(path)["decision"].to_pylist()
    )


def test_retune_decides_anew_and_goes_on_where_it_was(labelled: Path) -> None:
    rows = sum(decisions(labelled).values())
    strict = {"policy.max_uncertainty": 0.0, "policy.absent": "review"}
    result: Any = retune(str(labelled), overrides=strict)
    assert (result["written"], result["failed"]) == (3, 0)
    assert decisions(labelled)["review"] + decisions(labelled)["hold"] == rows
    assert result["rows"] == {"accept": 0, "hold": 0, "review": rows} or result["rows"]["review"] == rows
    next(labelled.glob("labels/*/*.parquet")).unlink()  # a run that was killed
    again: Any = retune(str(labelled), overrides=strict)
    assert (again["written"], again["unchanged"]) == (1, 2)
    with pytest.raises(SettingsError, match="'night'"):
        retune(str(labelled), drops=["nihgt"], overrides=strict)
    back: Any = retune(str(labelled), undo=True)
    assert (back["written"], back["rows"]["accept"] > 0) == (3, True)
    facts = next(labelled.glob("masks/*/*.parquet"))
    facts.write_bytes(b"damaged")
    state: Any = retune(str(labelled), overrides={"policy.max_uncertainty": 1.0}, return_state=True)
    assert state.is_failed()
    assert "1 failed" in state.message
    assert "2 written" in state.message


def test_reviews_counts_what_the_lists_hold_and_tells_each_drop(
    labelled: Path, monkeypatch: pytest.MonkeyPatch, artifacts: Callable[[str], str]
) -> None:
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(
        flows.events,
        "emit_event",
        lambda event, resource, **more: told.append((event, resource["prefect.resource.id"])),
    )
    retune(str(labelled), overrides={"policy.max_uncertainty": 0.0})
    found: Any = reviews(str(labelled))
    tables = [pq.read_table(path) for path in labelled.glob("review/*/*.parquet")]
    assert found["night"]["stretches"] == sum(len(set(table["review_id"].to_pylist())) for table in tables)
    assert found["night"]["rows"] == decisions(labelled)["review"]
    assert (found["night"]["labelled"], found["night"]["videos"]) == (3, 3)
    assert found["night"]["reasons"]["uncertainty"] > 0
    assert told == [("frames.need_review", "masksieve.drop.night")]
    page = artifacts("reviews")
    assert "uncertainty: " in page
    assert str(labelled / "review" / "drop=night") in page
    assert "Applied 0 answers on 0 videos" in page
    assert reviews(str(labelled), drop="another") == {}


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("uncertainty 0.31 > 0.24", "uncertainty"),
        ("uncertainty with 0.05 for an automatic prompt 0.31 > 0.24", "uncertainty"),
        ("temporal break: IoU 0.10 < 0.30", "temporal break: IoU"),
        ("area change -0.91 beyond 0.7", "area change"),
        ("across a scene cut", "across a scene cut"),
        ("object absent", "object absent"),
    ],
)
def test_a_reason_is_counted_without_its_figures(reason: str, kind: str) -> None:
    assert reason_kind(reason) == kind


def test_no_key_of_a_store_reaches_the_server(
    labelled: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SettingsError, match=r"storage\.secret_access_key") as refused:
        label_batch([], str(labelled), overrides={"storage": {"secret_access_key": SECRET}})
    assert SECRET not in str(refused.value)

    async def everything() -> str:
        async with get_client() as client:
            runs = await client.read_flow_runs()
            found = await client.read_artifacts()
            logs = await client.read_logs()
            recent = await client._client.post("/events/filter", json={"limit": 50})
            return "\n".join([*map(str, runs), *map(str, found), *map(str, logs), recent.text])

    text = asyncio.run(everything())
    assert "video.labelled" in text or "prefect.flow-run" in text
    text += caplog.text + "".join(capfd.readouterr())
    text += "".join(path.read_text() for path in labelled.rglob("*.json"))
    logging.getLogger().debug("looked through %d characters", len(text))
    assert str(labelled) in text
    for secret in (SECRET, KEY):
        assert secret not in text


def test_heads_are_fitted_to_videos_with_truth(clips: Path, artifacts: Callable[[str], str], tmp_path: Path) -> None:
    from flows.train import train

    folder = Path(__import__("shutil").copytree(clips, tmp_path / "truth"))
    cache = tmp_path / "cache"
    result: Any = train(
        str(folder), model="sam2_nano", overrides={"model.device": "cpu", "model.cache_dir": str(cache)}
    )
    assert Path(result["path"]).is_file()
    assert Path(result["path"]).is_relative_to(cache)
    assert result["heads"]
    assert {row["head"] for row in result["heldout"]} <= {*result["heads"], "iou_stacked"}
    assert "pearson" in artifacts("train")
