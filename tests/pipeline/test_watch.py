"""A watch voids a certificate whose promise the audit breaks or whose sources changed, and says the same however often
and whenever somebody looks."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.watch
from pipeline.audits import AuditError, Verdicts
from pipeline.certificate import Certificate, find_evidence, process_of, write_certificate
from pipeline.cli.entry import main
from pipeline.derive import derive
from pipeline.ledger import Ledger
from pipeline.mix import mix_reference
from pipeline.policy import Policy
from pipeline.retune import committed_videos
from pipeline.storage.objects import ObjectStore
from pipeline.watch import Options, Watched, picture_key, the_certificate, watch
from pipeline.watch_record import Bets, Entered, WatchError, read_record, record_key, video_mark, write_record
from pipeline.watch_video import read_video

from .judged_lake import FACTS, add_video, video_id

NOW = datetime.now(UTC)
OPTIONS = Options(batch_videos=12)
CALIBRATING, LATER, ROWS = 24, 28, 6


def issued(**changes: Any) -> Certificate:
    group = {
        "match": {}, "threshold": 0.3, "passed": (0.2, 0.3), "videos": 400, "rows": 9000, "observed": 0.03,
        "bound": 0.049, "coverage": 0.6, "level": 0.1,
    }  # fmt: skip
    values: dict[str, Any] = {
        "status": "certified", "promise": {"kind": "error_rate", "bad_iou": 0.5, "at_most": 0.05}, "confidence": 0.9,
        "estimand": "rows", "max_rows_per_video": ROWS, "start_coverage": 0.2,
        "policy": Policy().model_dump(mode="json"), "groups": [group], "processes": [process_of(FACTS)],
        "truth": {"kind": "iou", "sha256": "c" * 64, "videos": 40, "rows": 240, "attempts": 0},
        "review": {"rows_per_day": None, "stretches_per_day": None}, "issued_at": NOW,
        "valid_until": NOW + timedelta(days=90), "software": {},
    }  # fmt: skip
    return Certificate.issue(**values | changes)


def policy_of(certificate: Certificate, **changes: Any) -> Policy:
    return Policy.model_validate({"certificate": certificate.id, "max_uncertainty": 0.3, "audit_rate": 0.5} | changes)


def decide(out: Path, certificate: Certificate, **changes: Any) -> None:
    """Labels by the certificate's policy."""
    store = ObjectStore(out)
    for one in committed_videos(store):
        derive(store, Ledger(store), one, policy_of(certificate, **changes))


def labels_keys(out: Path, names: list[str]) -> list[str]:
    ids = {video_id(name) for name in names}
    return [key for key in ObjectStore(out).list("labels/") if key.rpartition("/")[2].removesuffix(".parquet") in ids]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Certificate]:
    """An output of 52 alike videos, decided by a certificate that knows the first 24 of them."""
    out, rng = tmp_path_factory.mktemp("watch") / "out", np.random.default_rng(0)
    for number in range(CALIBRATING + LATER):
        add_video(out, f"v{number}", np.clip(rng.normal(0.88, 0.04, ROWS), 0.75, 0.99).round(4).tolist())
    mix = mix_reference(ObjectStore(out), labels_keys(out, [f"v{number}" for number in range(CALIBRATING)]))
    marks = [hashlib.sha256(f"certificate:{video_id(f'v{n}')}".encode()).hexdigest()[:12] for n in range(CALIBRATING)]
    truth = {"kind": "iou", "sha256": "c" * 64, "videos": 40, "rows": 240, "attempts": 0, "marks": sorted(marks)}
    certificate = issued(mix=mix, truth=truth)
    write_certificate(ObjectStore(out), certificate)
    decide(out, certificate)
    return out, certificate


@pytest.fixture
def out(drawn: tuple[Path, Certificate], tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn[0], tmp_path / "out"))


@pytest.fixture
def certificate(drawn: tuple[Path, Certificate]) -> Certificate:
    return drawn[1]


def audited(out: Path, first: int = 0, last: int = 10**6) -> list[dict[str, Any]]:
    """The audited rows of the later videos, in the order of their commits; of some of them alone."""
    store = ObjectStore(out)
    later = {video_id(f"v{number}"): number for number in range(CALIBRATING, CALIBRATING + LATER)}
    rows = pa.concat_tables([pq.read_table(path, partitioning=None) for path in (out / "review").rglob("*.parquet")])
    keep = [row for row in rows.to_pylist() if row["audit"] and row["video_id"] in later]
    assert store.list("review/")
    keep.sort(key=lambda row: (later[row["video_id"]], row["frame_index"]))
    order = sorted({later[row["video_id"]] for row in keep})
    return [row for row in keep if first <= order.index(later[row["video_id"]]) < last]


def verdicts(path: Path, rows: list[dict[str, Any]], bad: float = 0.0, seed: int = 0) -> Verdicts:
    rng = np.random.default_rng(seed)
    said = ["reject" if rng.random() < bad else "accept" for _ in rows]
    names = ("review_id", "video_id", "frame_index", "object_id")
    table = [{name: row[name] for name in names} | {"verdict": one} for row, one in zip(rows, said, strict=True)]
    pq.write_table(pa.Table.from_pylist(table), path)
    return Verdicts(path)


def look(
    out: Path, certificate: Certificate, given: Verdicts | None, options: Options = OPTIONS, **more: Any
) -> Watched:
    return watch(ObjectStore(out), certificate, given, options, **more)


def record(out: Path, certificate: Certificate) -> bytes:
    return (out / record_key(certificate.id)).read_bytes()


def test_a_promise_that_holds_stays_certified(out: Path, certificate: Certificate, tmp_path: Path) -> None:
    rows = audited(out)
    watched = look(out, certificate, verdicts(tmp_path / "v.parquet", rows))
    assert watched.void is None
    assert watched.e_value < 1
    assert watched.record.judged == pytest.approx((0, len(rows)), abs=0.1)
    assert len(watched.e_values) == len({row["video_id"] for row in rows}) > 22
    assert [one.changed for one in watched.record.looks] == [False, False]
    assert (watched.waiting, watched.pending, watched.others) == (0, LATER - 24, 0)
    assert find_evidence(ObjectStore(out), policy_of(certificate), FACTS).certified
    assert (out / picture_key(certificate.id)).read_bytes()[:4] == b"\x89PNG"
    before = record(out, certificate)
    assert look(out, certificate, None).e_values == watched.e_values
    assert record(out, certificate) == before
    assert not any(row["video_id"] in before.decode() for row in rows)  # nothing that `forget` would have to find


def test_a_broken_promise_voids_the_certificate_with_its_number(
    out: Path, certificate: Certificate, tmp_path: Path
) -> None:
    given = verdicts(tmp_path / "v.parquet", audited(out), bad=0.4)
    watched = look(out, certificate, given)
    assert watched.void is not None
    assert watched.void.startswith("the audit broke the promise: ")
    assert "e-value " in watched.void
    assert watched.e_value >= 20 > watched.e_values[-2]
    said = find_evidence(ObjectStore(out), policy_of(certificate), FACTS)
    assert said == (False, f"uncertified: certificate {certificate.id[:12]} was voided: {watched.void}")
    assert look(out, certificate, given).e_values == watched.e_values  # what is void stays as it was found


def test_however_often_one_looks_the_evidence_is_the_same(out: Path, certificate: Certificate, tmp_path: Path) -> None:
    at_once = Path(shutil.copytree(out, tmp_path / "at_once"))
    rows = audited(out)
    look(at_once, certificate, verdicts(tmp_path / "all.parquet", rows, bad=0.07))
    everything = pq.read_table(tmp_path / "all.parquet")
    for count in (1, 5, 40, len(rows)):
        pq.write_table(everything.slice(0, count), tmp_path / "some.parquet")
        look(out, certificate, Verdicts(tmp_path / "some.parquet"))
    assert record(out, certificate) == record(at_once, certificate)


def test_a_video_without_verdicts_holds_those_behind_it_until_patience_ends(
    out: Path, certificate: Certificate, tmp_path: Path
) -> None:
    """Whoever judged the bad ones first would otherwise raise alarms; what nobody judged counts as right at last."""
    rows = audited(out, first=0, last=2) + audited(out, first=3)
    given = verdicts(tmp_path / "v.parquet", rows, bad=1.0)
    watched = look(out, certificate, given)
    assert (len(watched.e_values), watched.void) == (2, None)
    assert watched.waiting > 15
    missing = len(audited(out, first=2, last=3))
    watched = look(out, certificate, given, now=datetime.now(UTC) + timedelta(days=15))
    third = watched.record.entered[2]
    assert third.unjudged == missing
    assert (sum(third.lost_g), sum(third.rows_g)) == pytest.approx((0, missing), abs=0.01)
    assert watched.e_values[2] < watched.e_values[1]


def test_other_sources_void_it_with_the_feature_that_moved(out: Path, certificate: Certificate, tmp_path: Path) -> None:
    for number in range(10):
        name = f"other{number}"
        add_video(out, name, [0.8] * ROWS, metadata={**FACTS, "fps": 30.0})
    decide(out, certificate)
    watched = look(out, certificate, None, Options(batch_videos=12))
    assert watched.void is not None
    assert watched.void.startswith("the source mix changed: energy distance ")
    assert "in look 3, p " in watched.void
    assert "most in fps (+" in watched.void
    assert [one.changed for one in watched.record.looks] == [False, False, True]


def test_only_what_the_certificate_covers_counts(out: Path, certificate: Certificate, tmp_path: Path) -> None:
    add_video(out, "heads", [0.9] * ROWS, metadata={**FACTS, "heads_sha256": "d" * 64})
    decide(out, certificate)
    add_video(out, "retuned", [0.9] * ROWS)  # decided by another policy
    watched = look(out, certificate, None)
    assert (watched.covered, watched.others) == (LATER, 2)
    marks = {*watched.record.seen, *(one.mark for one in watched.record.entered)}
    assert video_mark(video_id("v0")) not in marks  # it calibrated
    fresh = issued(confidence=0.8)
    write_certificate(ObjectStore(out), fresh)
    notes = look(out, fresh, None).notes
    assert any("retune by its policy" in note for note in notes)
    assert any("no reference of the source mix" in note for note in notes)
    decide(out, fresh, audit_rate=0.0)
    assert any("set policy.audit_rate" in note for note in look(out, fresh, None).notes)


def test_groups_are_watched_each_and_together(out: Path) -> None:
    """A small group that breaks its promise is found where all masks together still keep it."""
    whole = issued().groups[0].model_dump()
    both, alone = issued(groups=[whole | {"match": {"label": "hat"}}, whole]), issued()
    hats, rest = Bets(both, 0.05, 8.0), Bets(alone, 0.05, 8.0)
    for number in range(300):  # a tenth of the masks are hats, and three in ten of these are bad
        video = Entered(mark=f"{number}", at=NOW, lost_g=(0.3, 0.0), rows_g=(1.0, 9.0))
        two, one = hats.add(video), rest.add(video.model_copy(update={"lost_g": (0.3,), "rows_g": (10.0,)}))
    assert two > 20 > one
    store = ObjectStore(out)
    write_certificate(store, both)
    for label, group in (("hat", 0), ("bag", 1)):
        made, groups = add_video(out, label, [0.9] * 4, label=label), [{"label": "hat", "max_uncertainty": 0.3}]
        derive(store, Ledger(store), made, policy_of(both, audit_rate=1.0, groups=groups))
        commit = Ledger(store).newest(made)
        assert commit is not None
        seen = read_video(store, commit, both)
        assert seen is not None
        assert seen.groups == [group] * 4


def test_every_video_counts_alike_where_the_certificate_says_so(out: Path) -> None:
    store, found = ObjectStore(out), {}
    for rows in (2, ROWS, 3 * ROWS):
        add_video(out, f"of{rows}", [0.9] * rows)
    for estimand in ("rows", "videos"):
        certificate = issued(estimand=estimand)
        write_certificate(store, certificate)
        for rows in (2, ROWS, 3 * ROWS):
            derive(store, Ledger(store), video_id(f"of{rows}"), policy_of(certificate, audit_rate=1.0))
            commit = Ledger(store).newest(video_id(f"of{rows}"))
            assert commit is not None
            video = read_video(store, commit, certificate)
            assert video is not None
            found[estimand, rows] = video.scale * len(video.audited)
    assert [found["videos", rows] for rows in (2, ROWS, 3 * ROWS)] == pytest.approx([ROWS] * 3)
    assert [found["rows", rows] for rows in (2, ROWS, 3 * ROWS)] == pytest.approx([2, ROWS, ROWS])  # ROWS is the most


def test_killed_before_it_was_voided_the_next_call_voids_it(
    out: Path, certificate: Certificate, tmp_path: Path, killed_after: Callable[[int], AbstractContextManager[None]]
) -> None:
    given = verdicts(tmp_path / "v.parquet", audited(out), bad=0.4)
    with killed_after(1):  # the record is written, and nothing else
        look(out, certificate, given)
    assert find_evidence(ObjectStore(out), policy_of(certificate), FACTS).certified
    before = record(out, certificate)
    assert look(out, certificate, None).void is not None
    assert record(out, certificate) == before


def test_two_that_watch_at_once_lose_no_evidence(
    out: Path, certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = audited(out)
    at_once = Path(shutil.copytree(out, tmp_path / "at_once"))
    look(at_once, certificate, verdicts(tmp_path / "all.parquet", rows))
    first = verdicts(tmp_path / "first.parquet", rows[:20])
    rival: list[Watched] = []

    def late(*given: Any) -> bool:
        monkeypatch.setattr(pipeline.watch, "write_record", write_record)
        rival.append(look(out, certificate, first))
        return write_record(*given)

    monkeypatch.setattr(pipeline.watch, "write_record", late)
    look(out, certificate, Verdicts(tmp_path / "all.parquet"))
    assert 0 < len(rival[0].e_values) < len(read_record(ObjectStore(out), certificate.id)[0].entered)  # type: ignore[union-attr]
    assert record(out, certificate) == record(at_once, certificate)


def test_a_watch_goes_on_as_it_began(out: Path, certificate: Certificate) -> None:
    look(out, certificate, None)
    with pytest.raises(WatchError, match=r"alpha 0\.05 and batches of 12"):
        look(out, certificate, None, Options(alpha=0.1, batch_videos=12))
    (out / record_key(certificate.id)).write_text("{}")
    with pytest.raises(WatchError, match="a readable record"):
        look(out, certificate, None)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"review_id": "a", "verdict": "good"}], "a verdict out of accept, reject, absent"),
        ([{"review_id": "a", "verdict": "accept"}, {"review_id": "a", "verdict": "reject"}], "two that differ on a"),
        ([{"video_id": "a", "verdict": "accept"}], "columns review_id, or video_id, frame_index, object_id"),
        ([{"review_id": "a", "iou": 1.5}], r"iou in \[0, 1\]"),
        ([{"review_id": None, "verdict": "accept"}], "an empty one"),
    ],
)
def test_verdicts_that_mean_nothing_are_refused(rows: list[dict[str, Any]], told: str, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "v.parquet")
    with pytest.raises(AuditError, match=told):
        Verdicts(tmp_path / "v.parquet")


def test_a_mean_iou_is_watched_by_iou_and_not_by_accept(out: Path, certificate: Certificate, tmp_path: Path) -> None:
    certificate = issued(promise={"kind": "mean_iou", "at_least": 0.9}, truth=certificate.truth)
    write_certificate(ObjectStore(out), certificate)
    decide(out, certificate)
    rows = audited(out)
    with pytest.raises(AuditError, match="a column iou"):
        look(out, certificate, verdicts(tmp_path / "v.parquet", rows))
    for iou, void in ((0.95, False), (0.6, True)):
        said = [{"review_id": row["review_id"], "iou": iou} for row in rows]
        pq.write_table(pa.Table.from_pylist(said), tmp_path / "v.parquet")
        (out / record_key(certificate.id)).unlink(missing_ok=True)
        assert (look(out, certificate, Verdicts(tmp_path / "v.parquet")).void is not None) == void


def test_the_command(out: Path, certificate: Certificate, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: object) -> int:
        with pytest.raises(SystemExit) as exited:
            main(["watch", str(out), "--batch", "12", *map(str, words)])
        return int(exited.value.code or 0)

    foreign = [{"video_id": "f" * 64, "frame_index": 0, "object_id": 1, "verdict": "accept"}]
    pq.write_table(pa.Table.from_pylist(foreign), tmp_path / "foreign.parquet")
    assert run("--audits", tmp_path / "foreign.parquet") == 0
    assert "none of the 1 verdicts is of an audited mask" in " ".join(capsys.readouterr().out.split())
    verdicts(tmp_path / "good.parquet", audited(out, last=14))
    assert run("--audits", tmp_path / "good.parquet") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"holds so far: certificate {certificate.id[:12]}, at most 5% of accepted masks below IoU 0.5" in said
    assert "of 20 after 14 videos" in said
    assert "mix: 2 looks, in the last one energy distance" in said
    verdicts(tmp_path / "bad.parquet", audited(out, first=14), bad=0.9)
    assert run("--audits", tmp_path / "bad.parquet", "--json") == 1
    about = json.loads(capsys.readouterr().out)
    assert "e-value" in about["void"]
    assert about["audit"]["e_value"] >= about["audit"]["limit"] == 20
    assert run("--audits", tmp_path / "none.parquet") == 2
    assert run("--certificate", "0" * 16) == 2
    assert the_certificate(ObjectStore(out)).id == certificate.id
    unused = {**certificate.model_dump(exclude={"id"}), "issued_at": certificate.issued_at + timedelta(hours=1)}
    write_certificate(ObjectStore(out), Certificate.issue(**unused))
    assert the_certificate(ObjectStore(out)).id == certificate.id  # by which the labels are decided, though it is void
    shutil.rmtree(out / "certificates")
    assert run() == 2
    assert "run `masksieve calibrate` first" in capsys.readouterr().err
