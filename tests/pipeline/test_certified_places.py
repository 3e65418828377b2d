"""Every place that shows a threshold says until when and by what it is certified, or why it is not."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.certificate import Certificate, process_of, void_certificate, write_certificate
from pipeline.cli.entry import main
from pipeline.derive import derive
from pipeline.label import label_video
from pipeline.ledger import Ledger
from pipeline.models import load_model
from pipeline.policy import GroupThreshold, Policy
from pipeline.records import read_metadata
from pipeline.render.labelled import read_labelled
from pipeline.settings import StorageSettings, load_settings
from pipeline.snapshot.write import SnapshotOptions, write_snapshot
from pipeline.storage.objects import ObjectStore

from .judged_lake import add_video, issued

TODAY = datetime.now(UTC)
LATER = TODAY + timedelta(days=90)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        add_video(tmp_path / "out", name, [0.9, 0.5, 0.8])
    return tmp_path / "out"


def certify(out: Path) -> Certificate:
    """A certificate in the output, and all labels decided by it."""
    certificate = issued(issued_at=TODAY, valid_until=LATER)
    write_certificate(ObjectStore(out), certificate)
    retune(out, Policy(certificate=certificate.id, max_uncertainty=0.3))
    return certificate


def retune(out: Path, policy: Policy) -> None:
    store = ObjectStore(out)
    for commit in Ledger(store).read_all():
        derive(store, Ledger(store), commit.video_id, policy)


def shown(out: Path) -> str:
    video_id = next(iter(Ledger(ObjectStore(out)).newest_generations()))
    return read_labelled(str(out), video_id, StorageSettings()).evidence


def card(out: Path, name: str, **options: tuple[str, ...]) -> tuple[dict[str, object], str]:
    asked = SnapshotOptions(name, image_quality=None, val_share=0.0, **options)
    write_snapshot(str(out), asked, load_settings(None, {}))
    folder = out / "snapshots" / name
    return json.loads((folder / "card.json").read_text()), (folder / "card.html").read_text()


def test_pictures_and_cards_are_certified_until_they_are_not(out: Path) -> None:
    one = certify(out)
    words = f"certified until {LATER:%Y-%m-%d} by {one.id[:12]}"
    assert shown(out) == f"threshold 0.30, {words}"
    made, page = card(out, "v1")
    assert (made["certified"], made["evidence"]) == (True, {words: 2})
    assert words in page
    mixed, page = card(out, "v2", decisions=("accept", "review"))
    assert not mixed["certified"]
    assert "masks that were not accepted" in page
    void_certificate(ObjectStore(out), one.id, "the audit broke the promise")
    assert shown(out).endswith(f"uncertified: certificate {one.id[:12]} was voided: the audit broke the promise")
    made, page = card(out, "v3")
    assert not made["certified"]
    assert "was voided: the audit broke the promise" in page


def test_other_thresholds_than_the_certified_ones_are_shown_as_such(out: Path) -> None:
    one = certify(out)
    retune(out, Policy(certificate=one.id, max_uncertainty=0.5))
    assert shown(out) == (
        f"threshold 0.50, uncertified: certificate {one.id[:12]} is for other thresholds (0.1 to 0.3, not 0.5)"
    )
    retune(out, Policy(max_uncertainty=0.5))
    assert shown(out) == "threshold 0.50, uncertified"


def test_the_threshold_that_is_shown_is_that_of_the_group(out: Path) -> None:
    retune(out, Policy(groups=(GroupThreshold(source="day", max_uncertainty=0.15),)))
    assert shown(out) == "threshold 0.15, uncertified"
    retune(out, Policy(groups=(GroupThreshold(label="cup", max_uncertainty=None),)))
    assert shown(out) == "no threshold, uncertified"


def test_status_lists_certificates_with_their_state(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = certify(out)
    old = issued(confidence=0.95, issued_at=TODAY - timedelta(days=100), valid_until=TODAY - timedelta(days=10))
    write_certificate(ObjectStore(out), old)

    def status(*words: str) -> str:
        with pytest.raises(SystemExit) as exited:
            main(["status", str(out), *words])
        assert not exited.value.code
        return capsys.readouterr().out

    told = status()
    assert f"certificate {one.id}: valid until {LATER:%Y-%m-%d}; threshold 0.3 (at most 5% of accepted masks" in told
    assert f"certificate {old.id}: expired on " in told
    assert told.index(one.id) < told.index(old.id)
    void_certificate(ObjectStore(out), one.id, "the sources changed")
    found = json.loads(status("--json"))["certificates"]
    assert [(line["id"], line["state"]) for line in found] == [(old.id, "expired"), (one.id, "void")]
    assert "void: the sources changed" in status()


@pytest.mark.slow
def test_the_summary_of_a_label_run_says_it(lake: Path, night: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.cli.label import tell

    store = ObjectStore(lake)
    made_by = read_metadata(pq.read_schema(next((lake / "masks").rglob("*.parquet"))))
    one = issued(issued_at=TODAY, valid_until=LATER, processes=[process_of(made_by)])
    write_certificate(store, one)
    policy = {"policy.max_uncertainty": 0.3, "policy.certificate": one.id}
    settings = load_settings(None, {"output.tokens": True, **policy})
    clip = night / "night/exit.mp4"
    prompts = clip.with_suffix(".prompts.json")
    report = label_video(str(clip), prompts, store.url, settings, drop="night", model=load_model("sam2_nano"))
    words = f"certified until {LATER:%Y-%m-%d} by {one.id[:12]}"
    assert (report.status, report.certified, report.evidence) == ("re-decided", True, words)
    tell([report], store.url)
    told = capsys.readouterr().out
    assert words in told
    assert "uncertified" not in told
