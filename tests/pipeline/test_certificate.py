"""A certificate holds for the process, rules and thresholds that it was issued for, until it expires or is voided."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.certificate import (
    Certificate,
    CertificateError,
    evidence,
    find_evidence,
    list_certificates,
    read_certificate,
    void_certificate,
    void_reason,
    write_certificate,
)
from pipeline.policy import Policy
from pipeline.storage.objects import ObjectStore

from .judged_lake import FACTS, NOW, issued


def policy(one: Certificate, **changes: Any) -> Policy:
    return Policy(**{"certificate": one.id, "max_uncertainty": 0.3} | changes)


@pytest.fixture(params=["local", "rclone", "moto"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "local":
        return ObjectStore(tmp_path)
    server = request.getfixturevalue(f"{request.param}_s3")
    return ObjectStore(server.new_bucket() + "/out", server.settings())


def test_a_certificate_comes_back_from_a_store_as_it_was_issued(store: ObjectStore) -> None:
    one = issued()
    write_certificate(store, one)
    write_certificate(store, one)
    assert read_certificate(store, one.id) == one
    assert list_certificates(store) == [one]
    assert issued().id == one.id != issued(confidence=0.95).id


def test_a_changed_certificate_is_refused(tmp_path: Path) -> None:
    store, one = ObjectStore(tmp_path), issued()
    write_certificate(store, one)
    path = tmp_path / f"certificates/{one.id}.json"
    path.write_text(path.read_text().replace("0.049", "0.048"))
    with pytest.raises(CertificateError, match="as it was issued"):
        read_certificate(store, one.id)
    path.write_text(json.dumps(json.loads(issued(confidence=0.8).model_dump_json())))
    with pytest.raises(CertificateError, match=one.id):
        read_certificate(store, one.id)
    assert not find_evidence(store, policy(one), FACTS, NOW).certified
    with pytest.raises(CertificateError, match="masksieve status"):
        read_certificate(store, "../x")


def test_it_says_until_when_and_by_what() -> None:
    one = issued()
    found = evidence(policy(one), one, None, FACTS, NOW)
    assert found == (True, f"certified until 2027-02-26 by {one.id[:12]}")
    assert evidence(policy(one).model_dump(mode="json"), one, None, FACTS, NOW).certified


@pytest.mark.parametrize("changes", [
    {"name": "mine"}, {"audit_rate": 0.5}, {"seed": 3}, {"hold_above_uncertainty": 0.6}, {"max_uncertainty": 0.1},
])  # fmt: skip
def test_what_accepts_no_other_rows_may_differ(changes: dict[str, Any]) -> None:
    one = issued()
    assert evidence(policy(one, **changes), one, None, FACTS, NOW).certified


@pytest.mark.parametrize(("changes", "words"), [
    ({"max_uncertainty": 0.25}, "other thresholds (0.1 to 0.3, not 0.25)"),
    ({"max_uncertainty": 0.05}, "other thresholds"),
    ({"absent": "accept"}, "is of other rules"),
    ({"min_temporal_iou": None}, "is of other rules"),
    ({"auto_margin": 0.0}, "is of other rules"),
    ({"certificate": None}, "the threshold rests on no evidence yet"),
    ({"certificate": "0" * 16}, "no certificate 000000000000 in this output"),
])  # fmt: skip
def test_other_rules_or_thresholds_are_uncertified(changes: dict[str, Any], words: str) -> None:
    one = issued()
    found = evidence(policy(one, **changes), one, None, FACTS, NOW)
    assert not found.certified
    assert found.text.startswith("uncertified: ")
    assert words in found.text


@pytest.mark.parametrize(("changes", "words"), [
    ({"model": {"name": "sam2_nano", "sha256": "d" * 64}}, "is for another model than sam2_nano dddddddddddd"),
    ({"heads_sha256": None}, "is for other heads"),
    ({"config": {"precision": "float16", "reverse": True, "decoder": "decord"}}, "other settings (precision)"),
    ({"config": FACTS["config"] | {"sampling": {"stride": 2}}}, "other settings (sampling)"),
    ({"config": FACTS["config"] | {"decoder": "pyav"}}, "another decoder read than pyav"),
    ({"model": None}, "say what made them"),
])  # fmt: skip
def test_facts_of_another_process_are_uncertified(changes: dict[str, Any], words: str) -> None:
    one = issued()
    found = evidence(policy(one), one, None, FACTS | changes, NOW)
    assert not found.certified
    assert words in found.text


def test_sidecars_change_no_mask() -> None:
    one = issued()
    assert evidence(policy(one), one, None, FACTS | {"config": FACTS["config"] | {"tokens": True}}, NOW).certified


def test_it_ends_on_its_day_and_when_it_is_voided(store: ObjectStore) -> None:
    one = issued()
    write_certificate(store, one)
    last = one.valid_until - timedelta(seconds=1)
    assert find_evidence(store, policy(one), FACTS, last).certified
    assert "has expired on 2027-02-26" in find_evidence(store, policy(one), FACTS, one.valid_until).text
    assert void_reason(store, one.id) is None
    void_certificate(store, one.id, "the audit broke the promise")
    void_certificate(store, one.id, "another reason")
    assert find_evidence(store, policy(one), FACTS, NOW).text.endswith("was voided: the audit broke the promise")
    assert list_certificates(store) == [one]  # a note is no certificate
    store.put_atomic(f"certificates/{one.id}.void.json", b"{")
    assert not find_evidence(store, policy(one), FACTS, NOW).certified


def test_one_without_thresholds_certifies_nothing() -> None:
    nothing = {"threshold": None, "passed": (), "observed": None, "bound": None, "coverage": 0}
    group = json.loads(issued().groups[0].model_dump_json()) | nothing
    one = issued(status="not_certified", groups=[group])
    assert "too little evidence" in evidence(policy(one), one, None, FACTS, NOW).text
    with pytest.raises(ValueError, match="not_certified"):
        issued(groups=[group])
    with pytest.raises(ValueError, match="one that passed"):
        issued(groups=[group | {"threshold": 0.2}])
    with pytest.raises(ValueError, match="matches every row"):
        issued(groups=[json.loads(issued().groups[0].model_dump_json()) | {"match": {"source": "a"}}])


@given(asked=st.floats(0, 1), passed=st.sets(st.sampled_from([0.05 * k for k in range(21)]), min_size=1))
def test_a_threshold_is_certified_if_and_only_if_it_passed(asked: float, passed: set[float]) -> None:
    group = json.loads(issued().groups[0].model_dump_json())
    one = issued(groups=[group | {"passed": sorted(passed), "threshold": max(passed)}])
    for threshold in (asked, *passed):
        found = evidence(policy(one, max_uncertainty=threshold), one, None, FACTS, NOW)
        assert found.certified == (threshold in passed)
