"""The flow that watches a certificate ends as failed once people's verdicts break its promise."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.label import label_batch
from flows.watch import watch
from pipeline.certificate import Certificate, process_of, void_reason, write_certificate
from pipeline.derive import derive
from pipeline.ledger import Ledger
from pipeline.policy import Policy
from pipeline.records import read_metadata
from pipeline.retune import committed_videos
from pipeline.storage.objects import ObjectStore

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


def test_it_fails_when_the_audit_breaks_the_promise(
    drop: Path, items: Callable[[Path], list[dict[str, Any]]], tmp_path: Path, artifacts: Callable[[str], str]
) -> None:
    out, now = tmp_path / "out", datetime.now(UTC)
    fast = {"output.review_frames": False, "model.device": "cpu"}
    assert label_batch(items(drop), str(out), overrides=fast, return_state=True).is_completed()
    store = ObjectStore(out)
    about = read_metadata(pq.read_schema(next(out.glob("labels/*/*.parquet"))))
    group = {
        "match": {}, "threshold": 1.0, "passed": (1.0,), "videos": 400, "rows": 9000, "observed": 0.01, "bound": 0.02,
        "coverage": 0.9, "level": 0.1,
    }  # fmt: skip
    rules = Policy(
        max_uncertainty=1.0, min_temporal_iou=None, max_area_change=None, absent="accept", across_cut="accept",
        audit_rate=1.0,
    )  # fmt: skip
    certificate = Certificate.issue(
        status="certified", promise={"kind": "error_rate", "bad_iou": 0.5, "at_most": 0.02}, confidence=0.9,
        estimand="rows", max_rows_per_video=8, start_coverage=0.2, policy=rules.model_dump(mode="json"),
        groups=[group], processes=[process_of(about)],
        truth={"kind": "iou", "sha256": "c" * 64, "videos": 40, "rows": 240, "attempts": 0},
        review={"rows_per_day": None, "stretches_per_day": None}, issued_at=now,
        valid_until=now + timedelta(days=90), software={},
    )  # fmt: skip
    write_certificate(store, certificate)
    policy = rules.model_copy(update={"certificate": certificate.id})
    for one in committed_videos(store):
        derive(store, Ledger(store), one, policy)
    looked: Any = watch(str(out))
    assert (looked["void"], looked["judged"], looked["waiting"]) == (None, 0, 3)
    rows = pa.concat_tables([pq.read_table(path, partitioning=None) for path in out.glob("review/*/*.parquet")])
    said = [{"review_id": one, "verdict": "reject"} for one in rows["review_id"].to_pylist()]
    pq.write_table(pa.Table.from_pylist(said), tmp_path / "verdicts.parquet")
    state: Any = watch(str(out), str(tmp_path / "verdicts.parquet"), return_state=True)
    assert state.is_failed()
    assert state.message.startswith("void: the audit broke the promise")
    assert void_reason(store, certificate.id) is not None
    assert "the audit broke the promise" in artifacts("watch")
