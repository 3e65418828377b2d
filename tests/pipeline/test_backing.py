"""Labels say whether a certificate holds for their facts, and carry calibrated IoU where it has a map for them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.certificate import Certificate, CertificateError, process_of, void_certificate, write_certificate
from pipeline.derive import Derived, derive
from pipeline.ledger import Ledger
from pipeline.policy import Policy
from pipeline.records import read_metadata
from pipeline.storage.manifest import derived_key
from pipeline.storage.objects import ObjectStore

from .deriving import SCORES, VIDEO, commit, facts, read

MADE_BY: dict[str, Any] = {
    "model": {"name": "nano", "sha256": "a" * 64}, "heads_sha256": "b" * 64, "config": {"decoder": "pyav"},
}  # fmt: skip
START = datetime(2020, 1, 1, tzinfo=UTC)
IOU_MAP = {"score": (0.5, 1.0), "value": (0.2, 0.8), "videos": 40}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(ObjectStore(tmp_path / "out"))


def certificate(ledger: Ledger, **changes: Any) -> Certificate:
    group = {
        "match": {}, "threshold": 0.3, "passed": (0.2, 0.3), "videos": 400, "rows": 9000, "observed": 0.03,
        "bound": 0.049, "coverage": 0.6, "level": 0.1,
    }  # fmt: skip
    now = datetime.now(UTC)
    values: dict[str, Any] = {
        "status": "certified", "promise": {"kind": "error_rate", "bad_iou": 0.5, "at_most": 0.05}, "confidence": 0.9,
        "estimand": "rows", "max_rows_per_video": 48, "start_coverage": 0.2, "policy": Policy().model_dump(mode="json"),
        "groups": [group], "processes": [process_of(MADE_BY)], "iou_map": IOU_MAP,
        "truth": {"kind": "davis", "sha256": "c" * 64, "videos": 500, "rows": 12000, "attempts": 0},
        "review": {"rows_per_day": 12.5, "stretches_per_day": 3.0}, "issued_at": now,
        "valid_until": now + timedelta(days=90), "software": {"masksieve": "0.1.0"},
    }  # fmt: skip
    one = Certificate.issue(**values | changes)
    write_certificate(ledger.store, one)
    return one


def labelled(ledger: Ledger, one: Certificate, made_by: dict[str, Any] = MADE_BY, **policy: Any) -> Derived:
    commit(ledger, facts(SCORES), "k1", metadata=made_by)
    return derive(ledger.store, ledger, VIDEO, Policy(**{"max_uncertainty": 0.3, "certificate": one.id} | policy))


def test_accepted_rows_weigh_what_they_are_worth_by_the_map(ledger: Ledger) -> None:
    one = certificate(ledger)
    assert labelled(ledger, one).evidence == (True, f"certified until {one.valid_until:%Y-%m-%d} by {one.id[:12]}")
    labels = read(ledger, "labels")
    metadata = read_metadata(labels.schema)
    assert (metadata["certified"], metadata["evidence"]) == (True, f"certified by {one.id}")
    for row in labels.to_pylist():
        expected = min(max(0.2 + 1.2 * (row["iou_tracked"] - 0.5), 0.2), 0.8)
        assert row["calibrated_iou"] == pytest.approx(expected, abs=1e-6)
        assert row["uncertainty"] == pytest.approx(1 - row["iou_tracked"], abs=1e-6)  # the threshold is on this one
        assert row["weight"] == (row["calibrated_iou"] if row["decision"] == "accept" else 0.0)
    assert 0 < labels["decision"].to_pylist().count("accept") < labels.num_rows


def test_equal_labels_are_equal_bytes(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        ledger = Ledger(ObjectStore(tmp_path / name))
        labelled(ledger, certificate(ledger, issued_at=START, valid_until=START + timedelta(days=36_500)))
        found.append(ledger.store.get(derived_key("labels", "first", VIDEO)))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("made_by", "policy", "text"),
    [
        (MADE_BY | {"heads_sha256": "d" * 64}, {}, "other heads"),
        (MADE_BY | {"model": {"name": "tiny", "sha256": "e" * 64}}, {}, "another model"),
        (MADE_BY | {"config": {"decoder": "pyav", "reverse": False}}, {}, "other settings"),
        ({}, {}, "facts that say what made them"),
        (MADE_BY, {"max_uncertainty": 0.5}, "other thresholds"),
        (MADE_BY, {"min_temporal_iou": None}, "other rules"),
    ],
)
def test_one_that_does_not_hold_is_named_with_the_reason(
    ledger: Ledger, made_by: dict[str, Any], policy: dict[str, Any], text: str
) -> None:
    assert not labelled(ledger, certificate(ledger), made_by, **policy).evidence.certified
    labels = read(ledger, "labels")
    metadata = read_metadata(labels.schema)
    assert not metadata["certified"]
    assert metadata["evidence"].startswith("uncertified: certificate ")
    assert text in metadata["evidence"]
    mapped = made_by == MADE_BY  # the map is of these scores, whatever the thresholds are
    assert (labels["calibrated_iou"].null_count == 0) == mapped
    if not mapped:
        assert labels["weight"].to_pylist()[0] == pytest.approx(0.9)


def test_a_certificate_that_was_voided_or_is_over_backs_nothing(ledger: Ledger) -> None:
    one = certificate(ledger)
    void_certificate(ledger.store, one.id, "the audit broke the promise")
    assert not labelled(ledger, one).evidence.certified
    assert read_metadata(read(ledger, "labels").schema)["evidence"].endswith("was voided: the audit broke the promise")
    past = certificate(ledger, valid_until=datetime.now(UTC) - timedelta(days=1))
    assert not labelled(ledger, past).evidence.certified


def test_a_certificate_that_the_output_lacks_is_an_error_and_leaves_the_labels(ledger: Ledger) -> None:
    commit(ledger, facts(SCORES), "k1")
    derive(ledger.store, ledger, VIDEO, Policy())
    before = ledger.store.get(derived_key("labels", "first", VIDEO))
    with pytest.raises(CertificateError, match="a certificate 0123456789abcdef"):
        derive(ledger.store, ledger, VIDEO, Policy(certificate="0123456789abcdef"))
    assert ledger.store.get(derived_key("labels", "first", VIDEO)) == before


def test_without_a_certificate_a_weight_is_the_raw_prediction(ledger: Ledger) -> None:
    commit(ledger, facts(SCORES), "k1", metadata=MADE_BY)
    assert not derive(ledger.store, ledger, VIDEO, Policy()).evidence.certified
    labels = read(ledger, "labels")
    assert labels["calibrated_iou"].null_count == labels.num_rows
    assert "evidence" not in read_metadata(labels.schema)
