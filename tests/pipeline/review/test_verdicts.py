"""Answers are evidence of the masks that were shown, also once corrections have taken their place."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import rle
from pipeline.audits import Verdicts
from pipeline.certificate import Certificate, write_certificate
from pipeline.cli.entry import main
from pipeline.derive import derive
from pipeline.ledger import Ledger
from pipeline.mix import mix_reference
from pipeline.models import LoadedModel
from pipeline.policy import Policy
from pipeline.records import HEAD_COLUMNS, MASKS
from pipeline.review.answers import Answer, write_answer
from pipeline.review.corrections import apply_answers, unfinished
from pipeline.review.items import about, read_items
from pipeline.review.verdicts import answers_as_verdicts, export_verdicts
from pipeline.storage.manifest import facts_key, write_facts
from pipeline.storage.objects import ObjectStore
from pipeline.truth import open_truth, read_truth
from pipeline.watch import Options, watch
from pipeline.watch_video import read_video

from ..judged_lake import FACTS, MASK, add_video, issued
from .answering import answer, give, iou, labels, true_mask
from .conftest import Drop

VIDEOS, ROWS = 60, 6
RIGHT = rle.encode_mask(np.triu(np.ones((8, 8), bool)))
Row = dict[str, Any]


def answered(row: Row, verdict: str, **changes: Any) -> Answer:
    """An answer on a row of the review list, as the queue would write it."""
    fixed = verdict in ("pick", "fix")
    mask = {"height": 8, "width": 8, "counts": RIGHT.counts.decode()} if fixed else None
    values: Row = {
        "answer_id": hashlib.sha256(f"{row['video_id']}{row['frame_index']}{changes}".encode()).hexdigest()[:16],
        "item_id": "i", "review_id": row["review_id"], "video_id": row["video_id"], "generation": 1,
        "object_id": row["object_id"], "label": row["label"], "frame_index": row["frame_index"],
        "first_frame": row["frame_index"], "last_frame": row["frame_index"], "rows": 1,
        "verdict": verdict, "mask": mask,
        "area_px": row["area_px"], "iou": 0.2 if fixed else None, "audit": row["audit"],
        "review_probability": row["review_probability"], "uncertainty": row["uncertainty"], "reviewer": "ada",
        "answered_at": datetime(2026, 11, 28, tzinfo=UTC) + timedelta(seconds=row["frame_index"]),
    }  # fmt: skip
    return Answer.model_validate(values | changes)


def correct(store: ObjectStore, video_id: str, answers: list[Answer], policy: Policy) -> None:
    """A generation in which what was answered on is a person's, as corrections leave it."""
    ledger = Ledger(store)
    before = ledger.newest(video_id)
    assert before is not None
    given = {(one.frame_index, one.object_id): one.verdict for one in answers}
    rows = pq.read_table(store.path(before.file("masks").key), partitioning=None).to_pylist()
    for row in rows:
        verdict = given.get((row["frame_index"], row["object_id"]))
        if verdict is not None:
            row |= dict.fromkeys(HEAD_COLUMNS) | {"score_source": None, "prompted": "answer"}
            if verdict in ("pick", "fix"):
                row |= {"rle": RIGHT.counts, "area_px": RIGHT.area_px, "bbox_xyxy": RIGHT.bbox_xyxy}
    batch = pa.RecordBatch.from_pylist(rows, schema=MASKS)
    record = write_facts(store, "masks", facts_key("masks", before.drop, video_id, "2"), [batch], MASKS, FACTS)
    ledger.commit(
        video_id, parent=before.generation, work_key=before.label_key, video_uri=before.video_uri, drop=before.drop,
        files=[record], run_id="r2", attempt=1, started_at=datetime.now(UTC),
        corrects=before.corrects or before.generation, answers=[one.answer_id for one in answers],
    )  # fmt: skip
    derive(store, ledger, video_id, policy)


def review_rows(out: Path) -> list[Row]:
    tables = [pq.read_table(path, partitioning=None) for path in sorted((out / "review").rglob("*.parquet"))]
    rows: list[Row] = pa.concat_tables(tables).to_pylist()
    return rows


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Certificate, Policy]:
    """Sixty videos decided by a certificate, half of their accepted masks audited."""
    out, rng = tmp_path_factory.mktemp("verdicts") / "out", np.random.default_rng(0)
    certificate = issued(max_rows_per_video=ROWS)
    store = ObjectStore(out)
    ids = [add_video(out, f"v{n}", rng.uniform(0.6, 0.99, ROWS).round(4).tolist()) for n in range(VIDEOS)]
    write_certificate(store, certificate)
    policy = Policy.model_validate({"certificate": certificate.id, "max_uncertainty": 0.3, "audit_rate": 0.5})
    for one in ids:
        derive(store, Ledger(store), one, policy)
    return out, certificate, policy


@pytest.fixture
def lake(drawn: tuple[Path, Certificate, Policy], tmp_path: Path) -> tuple[Path, Certificate, Policy]:
    return Path(shutil.copytree(drawn[0], tmp_path / "out")), *drawn[1:]


@pytest.fixture
def people(lake: tuple[Path, Certificate, Policy]) -> Callable[[], list[Answer]]:
    """All that waits is answered: every fourth audit is mended, flagged masks are."""

    def all_of_them() -> list[Answer]:
        store, answers = ObjectStore(lake[0]), []
        for number, row in enumerate(review_rows(lake[0])):
            if row["audit"] or row["representative"]:
                verdict = "accept" if row["audit"] and number % 4 else "fix"
                answers.append(answered(row, verdict))
                write_answer(store, answers[-1])
        return answers

    return all_of_them


def corrected(out: Path, answers: list[Answer], policy: Policy) -> None:
    for video_id in {one.video_id for one in answers}:
        correct(ObjectStore(out), video_id, [one for one in answers if one.video_id == video_id], policy)


def evidence(store: ObjectStore) -> list[tuple[Any, ...]]:
    """What a calibration by the output's own answers sees."""
    found = []
    with answers_as_verdicts(store, Path("answers")) as path:
        for video in read_truth(open_truth(path), store):
            scores = video.facts["iou_tracked"].to_pylist()
            columns = zip(video.facts["frame_index"].to_pylist(), scores, video.iou_n, video.weight_n, strict=True)
            found += [(video.commit.video_id, video.predicted, *row) for row in columns]
    return sorted(found)


def test_a_calibration_sees_masks_as_they_were_shown(
    lake: tuple[Path, Certificate, Policy], people: Callable[[], list[Answer]]
) -> None:
    out, _, policy = lake
    answers, store = people(), ObjectStore(out)
    before = evidence(store)
    corrected(out, answers, policy)
    assert Ledger(store).newest_generation(answers[0].video_id) == 2
    assert evidence(store) == before
    iou = [row[4] for row in before]
    assert len(iou) == sum(one.audit for one in answers)
    assert 0.15 < iou.count(0.2) / len(iou) < 0.35
    assert {row[5] for row in before} == {2.0}, "each audited mask stands for two"
    assert all(row[3] is not None for row in before), "the model's own scores, which a given mask has lost"


def test_a_watch_counts_bad_masks_that_were_corrected(
    lake: tuple[Path, Certificate, Policy], people: Callable[[], list[Answer]], tmp_path: Path
) -> None:
    out, certificate, policy = lake
    answers, twin = people(), tmp_path / "twin"
    shutil.copytree(out, twin)
    export_verdicts(ObjectStore(twin), tmp_path / "verdicts.parquet")
    expected = watch(ObjectStore(twin), certificate, Verdicts(tmp_path / "verdicts.parquet"), Options())
    corrected(out, answers, policy)
    with answers_as_verdicts(ObjectStore(out), Path("answers")) as path:
        found = watch(ObjectStore(out), certificate, Verdicts(path), Options())
    assert "the audit broke the promise" in str(found.void)
    assert found.record.judged == pytest.approx(expected.record.judged)
    assert found.record.judged[0] > 0


def test_masks_of_other_heads_than_those_in_place_are_no_evidence(
    lake: tuple[Path, Certificate, Policy], people: Callable[[], list[Answer]]
) -> None:
    out, certificate, policy = lake
    store, ledger = ObjectStore(out), Ledger(ObjectStore(out))
    corrected(out, people(), policy)
    before = evidence(store)
    name = before[0][0]
    newest = ledger.newest(name)
    assert newest is not None
    assert read_video(store, newest, certificate) is not None
    rescored = ledger.commit(
        name, parent=2, work_key="other heads", video_uri=newest.video_uri, drop=newest.drop, files=newest.files,
        run_id="r3", attempt=1, started_at=datetime.now(UTC), corrects=1, answers=newest.answers,
    )  # fmt: skip
    derive(store, ledger, name, policy)
    assert evidence(store) == [row for row in before if row[0] != name]
    assert read_video(store, rescored, certificate) is None
    mix = mix_reference(store, [key for key in store.list("labels/") if key.endswith(".parquet")])
    assert mix is not None
    assert len(mix["videos"]) == VIDEOS - 1


def test_the_mix_of_sources_is_that_of_the_masks_as_they_were_made(
    lake: tuple[Path, Certificate, Policy], people: Callable[[], list[Answer]]
) -> None:
    out, _, policy = lake
    store = ObjectStore(out)
    keys = [key for key in store.list("labels/") if key.endswith(".parquet")]
    before = mix_reference(store, keys)
    corrected(out, people(), policy)
    assert mix_reference(store, keys) == before


def test_each_kind_of_answer_is_a_verdict(lake: tuple[Path, Certificate, Policy], tmp_path: Path) -> None:
    out, _, _ = lake
    store, rows = ObjectStore(out), review_rows(out)
    audits = [row for row in rows if row["audit"]][:6]
    flagged = next(row for row in rows if not row["audit"] and row["representative"])
    said = [
        answered(audits[0], "accept"), answered(audits[1], "fix"), answered(audits[2], "pick", iou=0.95),
        answered(audits[3], "absent"), answered(audits[4], "reject"),
        answered(audits[5], "reject", area_px=MASK.area_px + 1, generation=2), answered(flagged, "accept"),
    ]  # fmt: skip
    for one in said:
        write_answer(store, one)
    assert export_verdicts(store, tmp_path / "v.parquet") == (7, 5)
    found = {row["answer_id"]: row for row in pq.read_table(tmp_path / "v.parquet").to_pylist()}
    told = [tuple(found[one.answer_id][name] for name in ("verdict", "iou", "review_probability")) for one in said]
    assert told == [
        ("accept", None, 0.5), ("reject", 0.2, 0.5), ("reject", 0.95, 0.5), ("absent", 0.0, 0.5), ("reject", None, 0.5),
        ("reject", None, None),  # of a mask that rests on a correction
        ("accept", None, None),  # of a stretch: its most uncertain frame, which nobody drew
    ]  # fmt: skip
    assert [row[4] for row in evidence(store)].count(0.95) == 1


def test_the_words_of_the_commands(
    lake: tuple[Path, Certificate, Policy],
    people: Callable[[], list[Answer]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, certificate, policy = lake

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(one) for one in arguments])
        told = capsys.readouterr()
        return int(str(ended.value.code)), told.out, told.err

    calibrate = ("calibrate", str(out), "--truth", "answers", "--at-most", "0.5", "--out", str(tmp_path / "p.yaml"))
    code, _, said = run(*calibrate)
    assert code == 2
    assert "answers on audited masks" in said
    answers = people()
    corrected(out, answers, policy)
    code, said, _ = run("review", "export", str(out), "--to", str(tmp_path / "v.parquet"))
    audits = sum(one.audit for one in answers)
    assert code == 0
    assert f"{len(answers)} verdicts, {audits} of them on audited masks" in " ".join(said.split())
    code, said, _ = run("watch", str(out), "--audits", "answers", "--certificate", certificate.id, "--json")
    assert code == 1
    assert json.loads(said)["audit"]["lost"] > 5
    by_word, by_file = (
        run(*calibrate, "--json"),
        run(*calibrate[:3], str(tmp_path / "v.parquet"), *calibrate[4:], "--json"),
    )
    groups = [json.loads(one[1])["certificate"]["groups"] for one in (by_word, by_file)]
    assert groups[0] == groups[1]
    assert groups[0][0]["observed"] > 0


def test_audits_survive_the_corrections_around_them(labelled_copy: Callable[[], Drop], nano: LoadedModel) -> None:
    drop = labelled_copy()
    store, out = ObjectStore(str(drop.out)), drop.out
    ledger = Ledger(store)
    drawn = {(row["video_id"], row["frame_index"], row["object_id"]) for row in review_rows(out) if row["audit"]}
    judged: dict[tuple[str, int, int], float] = {}
    for kind in ("review", "audit"):  # stretches first, so that corrections run past audits that nobody judged
        for item in [one for found in read_items(store) for one in found.items if one.kind == kind]:
            truth = drop.truth[Path(item.video_uri).stem]
            row = labels(out, item.video_id)[item.frame_index, item.object_id]
            right = true_mask(row, truth)
            good = iou(row, truth) >= 0.75
            verdict = "accept" if good else "fix" if right.any() else "absent"
            known = None if good else iou(row, truth)
            shown = {name: value for name, value in about(item).items() if name not in ("video_id", "object_id")}
            one = answer(row, verdict, right if verdict == "fix" else None, **shown, iou=known)
            give(store, one)
            if kind == "audit":
                judged[item.video_id, item.frame_index, item.object_id] = 1.0 if known is None else known
        for video_id in unfinished(store, ledger):
            apply_answers(video_id, store, ledger, drop.settings, model=nano)
    assert max(ledger.newest_generations().values()) == 3
    assert judged.keys() > drawn, "all that were drawn at first, and some of the masks that were carried on"
    with answers_as_verdicts(store, Path("answers")) as path:
        found = {
            (video.commit.video_id, frame, number): value
            for video in read_truth(open_truth(path), store)
            for frame, number, value in zip(
                video.facts["frame_index"].to_pylist(), video.facts["object_id"].to_pylist(), video.iou_n, strict=True
            )
        }
    assert found == pytest.approx({key: judged[key] for key in drawn})
