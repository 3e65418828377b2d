"""Labels and review list: from the newest facts only, at one key per video, in stretches a person can work through."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pytest

from pipeline import survey
from pipeline.derive import Plan, ReviewImages, derive, picture_keys, prepared
from pipeline.errors import StorageError, UnavailableError
from pipeline.ledger import Ledger
from pipeline.policy import Policy
from pipeline.records import LABELS, MASKS, REVIEW, SCHEMA_VERSION, read_metadata
from pipeline.storage.manifest import FileRecord, derived_key, facts_key, write_facts
from pipeline.storage.objects import ObjectStore
from pipeline.stretches import Stretch

from .deriving import POLICY, SCORES, VIDEO, commit, facts, read


@pytest.fixture(params=["local", "rclone", "moto"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    if request.param == "local":
        return Ledger(ObjectStore(tmp_path / "out"))
    server = request.getfixturevalue(f"{request.param}_s3")
    return Ledger(ObjectStore(server.new_bucket() + "/out", server.settings()), tmp_path / "commits.sqlite")


@pytest.fixture
def local(tmp_path: Path) -> Ledger:
    return Ledger(ObjectStore(tmp_path / "out"))


def test_every_row_is_labelled_and_flagged_stretches_are_listed(ledger: Ledger) -> None:
    commit(ledger, facts(SCORES), "k1")
    done = derive(ledger.store, ledger, VIDEO, POLICY)
    assert (done.status, done.generation, done.policy_id) == ("written", 1, POLICY.policy_id)
    assert done.counts == {
        "rows": 12, "accept": 8, "review": 4, "hold": 0, "visible": 12, "absent": 0, "untracked": 0, "given": 0,
        "audit": 0, "stretches": 2, "objects": 2,
    }  # fmt: skip
    labels, review = read(ledger, "labels"), read(ledger, "review")
    assert labels.schema.remove_metadata().equals(LABELS)
    assert review.schema.remove_metadata().equals(REVIEW)
    assert labels.select(MASKS.names).to_pylist() == pa.Table.from_batches([facts(SCORES)]).to_pylist()
    assert review["frame_index"].to_pylist() == [1, 2, 3, 5]
    assert review["representative"].to_pylist() == [False, True, False, True]
    ids = review["review_id"].to_pylist()
    assert ids[0] == ids[1] == ids[2] != ids[3]
    metadata = read_metadata(labels.schema)
    assert (metadata["generation"], metadata["policy_id"], metadata["certified"]) == (1, POLICY.policy_id, False)
    assert derive(ledger.store, ledger, VIDEO, POLICY).status == "unchanged"
    assert derive(ledger.store, ledger, VIDEO, POLICY).counts == done.counts


def test_a_new_generation_replaces_the_labels_at_the_key_of_the_first_drop(ledger: Ledger) -> None:
    commit(ledger, facts(SCORES), "k1")
    first = derive(ledger.store, ledger, VIDEO, POLICY)
    commit(ledger, facts({1: [0.9] * 6, 2: [0.9] * 6}), "k2", drop="later")
    second = derive(ledger.store, ledger, VIDEO, POLICY)
    assert (second.status, second.generation) == ("written", 2)
    assert second.labels_uri == first.labels_uri
    assert second.labels_uri.endswith(f"labels/drop=first/{VIDEO}.parquet")
    assert read(ledger, "labels")["decision"].to_pylist() == ["accept"] * 12
    assert read(ledger, "review").num_rows == 0


def test_the_late_derivation_of_an_older_generation_is_fenced_off(ledger: Ledger) -> None:
    old = commit(ledger, facts(SCORES), "k1")
    with prepared(ledger.store, old, POLICY) as late:
        commit(ledger, facts({1: [0.95] * 6, 2: [0.95] * 6}), "k2")
        assert derive(ledger.store, ledger, VIDEO, POLICY).generation == 2
        assert late.publish(ledger).status == "fenced"
    assert read_metadata(read(ledger, "labels").schema)["generation"] == 2
    assert read(ledger, "labels")["decision"].to_pylist() == ["accept"] * 12
    assert read(ledger, "review").num_rows == 0


def test_an_older_generation_is_fenced_before_the_newer_one_has_labels(ledger: Ledger) -> None:
    old = commit(ledger, facts(SCORES), "k1")
    with prepared(ledger.store, old, POLICY) as late:
        commit(ledger, facts({1: [0.95] * 6, 2: [0.95] * 6}), "k2")
        assert late.publish(ledger).status == "fenced"
    assert [key for key in ledger.store.list() if key.startswith(("labels/", "review/"))] == []


def test_a_newer_generation_that_comes_between_look_and_write_still_wins(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rival commits and derives at the worst moment: after the older derivation has looked, before it writes."""
    commit(ledger, facts(SCORES), "k1")
    replace = ledger.store.replace
    rival: list[str] = []

    def interrupted(key: str, source: Path | bytes, version: str | None) -> bool:
        if not rival and key.startswith("labels/"):
            rival.append(key)
            commit(ledger, facts({1: [0.95] * 6, 2: [0.95] * 6}), "k2")
            assert derive(ledger.store, ledger, VIDEO, POLICY).generation == 2
        return replace(key, source, version)

    monkeypatch.setattr(ledger.store, "replace", interrupted)
    derive(ledger.store, ledger, VIDEO, POLICY)
    assert rival
    for layer in ("labels", "review"):
        assert read_metadata(read(ledger, layer).schema)["generation"] == 2
    assert read(ledger, "labels")["decision"].to_pylist() == ["accept"] * 12


def test_a_server_without_conditions_is_repaired_by_the_look_afterwards(
    rclone_s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rival slips in inside the backend, after its own look: only the check after writing can see it."""
    ledger = Ledger(ObjectStore(rclone_s3.new_bucket(), rclone_s3.settings()), tmp_path / "commits.sqlite")
    commit(ledger, facts(SCORES), "k1")
    backend = ledger.store._backend
    put = backend._conditional  # type: ignore[attr-defined]
    rival: list[str] = []

    def interrupted(key: str, data: bytes, version: str | None) -> bool:
        if not rival and key.startswith("labels/"):
            rival.append(key)
            commit(ledger, facts({1: [0.95] * 6, 2: [0.95] * 6}), "k2")
            assert derive(ledger.store, ledger, VIDEO, POLICY).generation == 2
        return bool(put(key, data, version))

    monkeypatch.setattr(backend, "_conditional", interrupted)
    derive(ledger.store, ledger, VIDEO, POLICY)
    assert rival
    assert read_metadata(read(ledger, "labels").schema)["generation"] == 2


def test_a_new_policy_needs_no_new_facts_and_keeps_the_pictures(local: Ledger) -> None:
    made = commit(local, facts(SCORES), "k1")
    seen: list[Stretch] = []

    def images(stretches: Sequence[Stretch]) -> dict[str, ReviewImages]:
        seen.extend(stretches)
        found = {}
        for stretch in stretches:
            keys = picture_keys(made, stretch)
            for key in keys:
                local.store.put_atomic(key, b"a picture")
            found[stretch.review_id] = ReviewImages(*(local.store.uri(key) for key in keys))
        return found

    def pictures() -> list[str | None]:
        uris = read(local, "review")["frame_uri"].to_pylist()
        return [None if uri is None else Path(uri).stem for uri in uris]

    derive(local.store, local, VIDEO, POLICY, images=images)
    assert [(s.object_id, s.first_frame, s.last_frame, s.rows, s.representative_frame) for s in seen] == [
        (1, 1, 3, 3, 2), (1, 5, 5, 1, 5),
    ]  # fmt: skip
    assert seen[0].uncertainty == pytest.approx(0.7)
    assert pictures() == [None, "00000002", None, "00000005"]
    first = local.store.get(derived_key("review", "first", VIDEO))
    stricter = derive(local.store, local, VIDEO, Policy(max_uncertainty=0.05))
    assert (stricter.status, stricter.counts["review"]) == ("written", 12)
    looser = derive(local.store, local, VIDEO, Policy(max_uncertainty=0.75))
    assert looser.counts["review"] == 1
    derive(local.store, local, VIDEO, POLICY)  # back again, and so are the pictures that the others did not need
    assert local.store.get(derived_key("review", "first", VIDEO)) == first


def test_pictures_that_a_repair_could_not_make_are_made_by_who_has_the_video(local: Ledger) -> None:
    commit(local, facts(SCORES), "a")
    assert not derive(local.store, local, VIDEO, POLICY).pictured  # nobody had the video

    def pictures(stretches: Sequence[Stretch]) -> dict[str, ReviewImages]:
        return {stretch.review_id: ReviewImages("f.jpg", "o.jpg") for stretch in stretches}

    made = derive(local.store, local, VIDEO, POLICY, images=pictures)
    assert (made.status, made.pictured) == ("written", True)
    assert derive(local.store, local, VIDEO, POLICY, images=pictures).status == "unchanged"
    retuned = derive(local.store, local, VIDEO, Policy(max_uncertainty=0.3))
    assert (retuned.status, retuned.pictured) == ("written", True)


def test_audited_rows_are_listed_one_by_one(local: Ledger) -> None:
    commit(local, facts(SCORES), "k1")
    done = derive(local.store, local, VIDEO, Policy(max_uncertainty=0.25, audit_rate=1.0))
    review = read(local, "review")
    assert done.counts["audit"] == 8
    assert review.num_rows == 12
    audited = review.filter(review["audit"])
    assert len(set(audited["review_id"].to_pylist())) == 8
    assert audited["representative"].to_pylist() == [True] * 8
    assert review.filter(pa.compute.equal(review["object_id"], 1))["review_id"].to_pylist()[1] not in set(
        audited["review_id"].to_pylist()
    )


def test_stretches_go_on_over_batches(local: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(local, facts({1: [0.1] * 40, 2: [0.2, 0.9] * 20}), "k1")
    derive(local.store, local, VIDEO, POLICY)
    whole = read(local, "review")
    monkeypatch.setattr(survey, "BATCH_ROWS", 3)
    derive(local.store, local, VIDEO, Policy(name="other", max_uncertainty=0.25))
    cut = read(local, "review")
    assert cut["review_id"].to_pylist() == whole["review_id"].to_pylist()
    assert cut["representative"].to_pylist() == whole["representative"].to_pylist()
    assert len(set(whole["review_id"].to_pylist())) == 21


def test_absent_and_untracked_rows_are_counted_and_never_lost(local: Ledger) -> None:
    visibility = {(0, 1): "untracked", (1, 1): "absent", (2, 1): "absent"}
    prompted = {(3, 1): "mask"}
    commit(local, facts(SCORES, visibility=visibility, prompted=prompted), "k1")
    counts = derive(local.store, local, VIDEO, POLICY).counts
    assert (counts["rows"], counts["untracked"], counts["absent"], counts["given"], counts["hold"]) == (12, 1, 2, 1, 1)


def test_readers_with_a_glob_see_each_row_once_and_no_orphan(local: Ledger, tmp_path: Path) -> None:
    commit(local, facts(SCORES), "k1")
    derive(local.store, local, VIDEO, POLICY)
    commit(local, facts(SCORES), "k2")
    orphan = facts_key("masks", "first", VIDEO, "000003-dead")
    write_facts(local.store, "masks", orphan, [facts(SCORES)], MASKS, {})
    derive(local.store, local, VIDEO, POLICY)
    folder = tmp_path / "out/labels"
    frame = pd.read_parquet(folder)
    assert len(frame) == 12
    assert list(frame["drop"].unique()) == ["first"]
    assert not frame.duplicated(["video_id", "frame_index", "object_id"]).any()
    query = f"SELECT count(*) FROM '{folder}/**/*.parquet' WHERE decision = 'accept' AND uncertainty <= 0.25"
    assert duckdb.sql(query).fetchall() == [(8,)]


def test_deriving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        ledger = Ledger(ObjectStore(tmp_path / name))
        commit(ledger, facts(SCORES), "k1")
        derive(ledger.store, ledger, VIDEO, POLICY)
        found.append({key: ledger.store.get(key) for key in ledger.store.list() if not key.startswith("commits/")})
    assert len(found[0]) == 3
    assert found[0] == found[1]


def test_nothing_committed_and_damaged_facts_are_named(local: Ledger, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="label the video first"):
        derive(local.store, local, VIDEO, POLICY)
    record = commit(local, facts(SCORES), "k1").file("masks")
    path = tmp_path / "out" / record.key
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StorageError, match="facts with SHA-256"):
        derive(local.store, local, VIDEO, POLICY)
    path.unlink()
    with pytest.raises(StorageError, match="no file"):
        derive(local.store, local, VIDEO, POLICY)
    assert isinstance(record, FileRecord)
    assert local.store.list("labels/") == []


def _older(record_version: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commit facts as another schema version would have written them."""
    monkeypatch.setattr("pipeline.records.SCHEMA_VERSION", record_version)
    lacking = {"2": ["prompt_xyxy"]}.get(record_version, ["prompt_xyxy", "auto", "shot_index", "across_cut"])
    kept = [name for name in MASKS.names if name not in lacking]
    batch = facts(SCORES).select(kept)
    key = facts_key("masks", "first", VIDEO, "000001-old")
    record = write_facts(ledger.store, "masks", key, [batch], batch.schema, {"drop": "first"})
    ledger.commit(
        VIDEO, parent=0, work_key="old", video_uri="v.mp4", drop="first", files=[record], run_id="r", attempt=1,
        started_at=datetime.now(UTC),
    )  # fmt: skip
    monkeypatch.undo()


@pytest.mark.parametrize("version", ["1", "2"])
def test_facts_of_an_older_schema_are_read_as_one_shot_without_automatic_objects(
    local: Ledger, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    _older(version, local, monkeypatch)
    assert derive(local.store, local, VIDEO, POLICY).status == "written"
    labels = read(local, "labels")
    assert labels.schema.remove_metadata().equals(LABELS)
    assert read_metadata(labels.schema)["schema_version"] == SCHEMA_VERSION
    assert labels.select(MASKS.names).to_pylist() == pa.Table.from_batches([facts(SCORES)]).to_pylist()


def test_facts_of_a_later_schema_are_refused(local: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    _older("99", local, monkeypatch)
    with pytest.raises(StorageError, match="version '99'; update masksieve"):
        derive(local.store, local, VIDEO, POLICY)


@pytest.mark.parametrize("layer", ["labels", "review"])
def test_labels_that_cannot_be_read_are_derived_again(ledger: Ledger, layer: str) -> None:
    commit(ledger, facts(SCORES), "k1")
    done = derive(ledger.store, ledger, VIDEO, POLICY)
    key = derived_key(layer, "first", VIDEO)
    whole = ledger.store.get(key)
    ledger.store.put_atomic(key, whole[:-40] + b"\xff" * 32 + whole[-8:])
    assert derive(ledger.store, ledger, VIDEO, POLICY).status == "written"
    assert ledger.store.get(key) == whole
    assert derive(ledger.store, ledger, VIDEO, POLICY).counts == done.counts
    ledger.store.put_atomic(key, whole[:4] + b"\xff" * 400 + whole[404:])  # rows, and not what the file says of them
    assert derive(ledger.store, ledger, VIDEO, Policy(max_uncertainty=0.05)).status == "written"


def test_labels_whose_store_is_away_are_not_taken_for_damaged_ones(
    local: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(local, facts(SCORES), "k1")
    derive(local.store, local, VIDEO, POLICY)

    def away(key: str) -> None:
        raise UnavailableError("a store", "none", "wait")

    monkeypatch.setattr(local.store, "open", away)
    with pytest.raises(UnavailableError):
        derive(local.store, local, VIDEO, POLICY)


def test_labels_and_review_list_come_from_one_policy_whoever_meets_whom(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rival with another policy publishes both files between our two."""
    commit(ledger, facts(SCORES), "k1")
    publish, rival = Plan._publish_layer, [Policy(max_uncertainty=0.05)]

    def interrupted(self: Plan, ledger: Ledger, layer: str) -> bool:
        if layer == "labels" and rival:
            derive(ledger.store, ledger, VIDEO, rival.pop())
        return publish(self, ledger, layer)

    monkeypatch.setattr(Plan, "_publish_layer", interrupted)
    done = derive(ledger.store, ledger, VIDEO, POLICY)
    policies = {read_metadata(read(ledger, layer).schema)["policy_id"] for layer in ("labels", "review")}
    assert policies == {done.policy_id}
