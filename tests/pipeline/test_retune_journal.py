"""A retune of a selection: told beforehand, gone on with after a kill, taken back to the byte, and back once more."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.derive import Derived
from pipeline.errors import SettingsError, StorageError
from pipeline.ledger import Ledger
from pipeline.policy import Policy
from pipeline.retune import Retune, begin_retune, begin_undo, carry_out, committed_videos, derive_all
from pipeline.retune_log import Journal
from pipeline.retune_preview import Move, preview
from pipeline.selection import Selection
from pipeline.settings import Settings
from pipeline.storage.objects import ObjectStore

ODD = Policy(
    max_uncertainty=0.9, groups=[{"label": "shape", "max_uncertainty": 0.12}], review_stretches_per_video=1,
    audit_rate=0.2,
)  # fmt: skip
KILLED = """
import os, sys
import pipeline.retune as retune
from pipeline.policy import Policy
from pipeline.settings import Settings
from pipeline.storage.objects import ObjectStore

store, derive, left = ObjectStore(sys.argv[1]), retune.derive, [int(sys.argv[3])]

def killed(*given, **more):
    if not left[0]:
        os._exit(9)
    left[0] -= 1
    return derive(*given, **more)

retune.derive = killed
policy = sys.argv[2]
begun = retune.begin_undo(store) if policy == "undo" else retune.begin_retune(store, Policy.model_validate_json(policy))
list(retune.carry_out(store, begun, Settings(), threads=1))
"""


def derived_files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.glob("[lr]*/drop=*/*.parquet")}


@pytest.fixture
def out(lake: Path) -> Path:
    """The lake, whose review lists name pictures where they lie now and not where they were copied from."""
    done(lake, begin_retune(ObjectStore(lake), Policy(seed=99)))
    done(lake, begin_undo(ObjectStore(lake)))
    shutil.rmtree(lake / "retunes")
    return lake


def done(out: Path, begun: Retune) -> Counter[str]:
    return Counter(
        one.status if isinstance(one, Derived) else "failed"
        for _, one in carry_out(ObjectStore(out), begun, Settings(), threads=2)
    )


def kill(out: Path, policy: str, after: int) -> None:
    """Run a retune in another process that dies without a word before the next video."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run([sys.executable, "-c", KILLED, out, policy, str(after)], env=environment, check=False)
    assert ended.returncode == 9


@contextmanager
def damaged_facts(out: Path) -> Iterator[None]:
    """The facts of one video are damaged within the block."""
    path = next(out.glob("masks/*/*.parquet"))
    whole = path.read_bytes()
    path.write_bytes(b"no facts")
    yield
    path.write_bytes(whole)


def test_a_retune_goes_back_and_forth_to_the_byte(out: Path) -> None:
    store, before = ObjectStore(out), derived_files(out)
    assert done(out, begin_retune(store, ODD)) == {"written": 3}
    after = derived_files(out)
    assert all(after[name] != before[name] for name in before)
    assert done(out, begin_retune(store, ODD)) == {"unchanged": 3}  # nothing changed, so it is no retune to undo
    assert done(out, begin_undo(store)) == {"written": 3}
    assert derived_files(out) == before
    assert done(out, begin_undo(store)) == {"written": 3}
    assert derived_files(out) == after
    last = Journal(store).last()
    assert last is not None
    assert (last.number, last.kind, last.of, last.finished_at is None) == (3, "undo", 2, False)


@pytest.mark.parametrize("after", [0, 2])
def test_after_a_kill_the_same_call_goes_on_and_an_undo_takes_all_of_it_back(out: Path, after: int) -> None:
    store, before = ObjectStore(out), derived_files(out)
    kill(out, ODD.model_dump_json(), after)
    assert sum(derived_files(out)[name] != before[name] for name in before) == 2 * after
    assert done(out, begin_retune(store, ODD)) == Counter(unchanged=after, written=3 - after)
    assert done(out, begin_undo(store)) == {"written": 3}
    assert derived_files(out) == before


@pytest.mark.parametrize("half", [1, 3])
def test_a_kill_can_be_undone_at_once_and_an_undo_that_was_killed_goes_on(out: Path, half: int) -> None:
    store, before = ObjectStore(out), derived_files(out)
    kill(out, ODD.model_dump_json(), 2)
    if half < 3:
        kill(out, "undo", half)
    assert done(out, begin_undo(store)).total() == 3
    assert derived_files(out) == before


def test_another_policy_after_a_kill_is_a_retune_of_its_own(out: Path) -> None:
    store = ObjectStore(out)
    kill(out, ODD.model_dump_json(), 1)
    mixed = derived_files(out)
    begun = begin_retune(store, Policy(max_uncertainty=0.0))
    assert begun.entry is not None
    assert (begun.entry.number, list(begun.entry.after)) == (2, [Policy(max_uncertainty=0.0).policy_id])
    done(out, begun)
    done(out, begin_undo(store))
    assert derived_files(out) == mixed


def test_one_that_failed_keeps_the_retune_open_and_an_undo_takes_all_of_it_back(out: Path) -> None:
    store, before = ObjectStore(out), derived_files(out)
    with damaged_facts(out):
        assert done(out, begin_retune(store, ODD)) == Counter(written=2, failed=1)
    assert done(out, begin_retune(store, ODD)) == Counter(written=1, unchanged=2)
    assert done(out, begin_undo(store)) == {"written": 3}
    assert derived_files(out) == before


def test_what_a_video_got_meanwhile_is_what_an_undo_goes_back_to(out: Path) -> None:
    """As when `masksieve label` comes by with another policy while a retune is open."""
    store = ObjectStore(out)
    with damaged_facts(out):
        done(out, begin_retune(store, ODD))
    list(derive_all(store, committed_videos(store), Settings(policy=Policy(max_uncertainty=0.4))))
    between = derived_files(out)
    assert done(out, begin_retune(store, ODD)) == {"written": 3}
    assert done(out, begin_undo(store)) == {"written": 3}
    assert derived_files(out) == between


def test_nothing_to_undo_and_a_damaged_journal_are_told(lake: Path) -> None:
    store = ObjectStore(lake)
    with pytest.raises(SettingsError, match="a retune to undo"):
        begin_undo(store)
    done(lake, begin_retune(store, ODD))
    (lake / "retunes/000001.json").write_text('{"version": 1}')
    for begin in (lambda: begin_undo(store), lambda: begin_retune(store, Policy(seed=3))):
        with pytest.raises(StorageError, match=r"retunes/000001\.json"):
            begin()


@pytest.mark.parametrize("policy", [ODD, Policy(max_uncertainty=0.6, absent="score"), Policy()])
def test_a_dry_run_tells_what_the_run_then_does_and_writes_nothing(lake: Path, policy: Policy) -> None:
    store, before = ObjectStore(lake), {path: path.stat().st_mtime_ns for path in lake.rglob("*")}
    told = {video_id: moved for video_id, _, moved in preview(store, policy, Settings())}
    assert {path: path.stat().st_mtime_ns for path in lake.rglob("*")} == before
    was = {path.stem: pq.read_table(path, columns=["decision"]) for path in lake.glob("labels/*/*.parquet")}
    done(lake, begin_retune(store, policy))
    for path in lake.glob("labels/*/*.parquet"):
        now = pq.read_table(path, columns=["label", "decision"])
        columns = (now["label"].to_pylist(), was[path.stem]["decision"].to_pylist(), now["decision"].to_pylist())
        assert told[path.stem] == Counter(Move("night", *row) for row in zip(*columns, strict=True))
    again = [moved for _, _, moved in preview(store, policy, Settings())]
    assert all(move.before == move.after for moved in again if isinstance(moved, Counter) for move in moved)


def test_a_dry_run_counts_rows_without_labels_and_names_a_video_that_it_cannot_read(lake: Path) -> None:
    bare, damaged = sorted(lake.glob("labels/*/*.parquet"))[:2]
    rows = pq.read_metadata(bare).num_rows
    bare.unlink()
    next(lake.glob(f"masks/*/{damaged.stem}*")).write_bytes(b"no facts")
    found = {video_id: moved for video_id, _, moved in preview(ObjectStore(lake), Policy(), Settings())}
    bare_moves, damaged_moves = found[bare.stem], found[damaged.stem]
    assert isinstance(bare_moves, Counter)
    assert sum(number for move, number in bare_moves.items() if move.before == "none") == rows
    assert isinstance(damaged_moves, StorageError)


def test_a_selection_means_the_videos_of_which_all_of_it_is_true(lake: Path) -> None:
    store = ObjectStore(lake)
    commits = sorted(Ledger(store).read_all(), key=lambda one: one.finished_at)
    labels = {one.video_id: set(pq.read_table(lake / one.file("masks").key)["label"].to_pylist()) for one in commits}
    label = sorted(name for names in labels.values() for name in names if name)[0]
    for said, meant in (
        ({}, set(labels)),
        ({"drops": ["night"]}, set(labels)),
        ({"labels": [label, "no such thing"]}, {video for video, names in labels.items() if label in names}),
        ({"labels": ["no such thing"]}, set()),
        ({"since": commits[1].finished_at.isoformat()}, {one.video_id for one in commits[1:]}),
        ({"until": commits[1].finished_at.isoformat()}, {commits[0].video_id}),
        ({"since": f"{commits[0].finished_at:%Y-%m-%d}"}, set(labels)),
        ({"until": f"{commits[-1].finished_at:%Y-%m-%d}"}, set(labels)),
        ({"since": "2199-01-01"}, set()), ({"until": "9999-12-31"}, set(labels)),
    ):  # fmt: skip
        selection = Selection.of(**said)  # type: ignore[arg-type]
        assert set(begin_retune(store, Policy(seed=5), selection).policy_ids) == meant, said
    with pytest.raises(SettingsError, match="did you mean 'night'"):
        begin_retune(store, ODD, Selection.of(["nigt"]))
    for wrong in ({"since": "yesterday"}, {"since": "2026-02-02", "until": "2026-02-01"}):
        with pytest.raises(SettingsError):
            Selection.of(**wrong)  # type: ignore[arg-type]


def test_what_is_not_selected_stays(lake: Path) -> None:
    store, before = ObjectStore(lake), derived_files(lake)
    first = min(Ledger(store).read_all(), key=lambda one: one.finished_at)
    chosen = Selection(until=max(one.finished_at for one in Ledger(store).read_all()))
    assert done(lake, begin_retune(store, ODD, chosen)) == {"written": 2}
    changed = {Path(name).stem for name, data in derived_files(lake).items() if data != before[name]}
    assert len(changed) == 2
    assert first.video_id in changed
    assert set(committed_videos(store)) > changed


def test_a_forgotten_video_leaves_the_journal_and_an_undo_goes_on_without_it(lake: Path) -> None:
    from pipeline.forget import find_subject, forget, known_videos

    store = ObjectStore(lake)
    done(lake, begin_retune(store, ODD))
    gone = committed_videos(store)[0]
    subject = find_subject(store, gone, Settings(), known_videos(store))
    assert forget(store, Ledger(store), Settings(), subject).proof.traces == ()
    assert gone not in (lake / "retunes/000001.json").read_text()
    assert done(lake, begin_undo(store)) == {"written": 2}


@pytest.mark.parametrize("kind", ["local", "rclone", "moto"])
def test_a_journal_is_kept_by_every_store(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    store = ObjectStore(tmp_path)
    if kind != "local":
        server = request.getfixturevalue(f"{kind}_s3")
        store = ObjectStore(server.new_bucket() + "/out", server.settings())
    journal = Journal(store)
    assert journal.last() is None
    first = journal.begin("retune", {"a": {}, "n": {}}, {"v1": "a", "v2": "a"}, {"v1": "n", "v2": "n"})
    assert (first.number, first.before, first.after) == (1, {"a": ["v1", "v2"]}, {"n": ["v1", "v2"]})
    more = journal.extend(1, {"b": {}}, {"v2": "b", "v3": "a"}, {"v2": "n", "v3": "n"})
    assert (more.before, sorted(more.policies)) == ({"a": ["v1", "v3"], "b": ["v2"]}, ["a", "b", "n"])
    assert journal.finish(1).finished_at is not None
    assert journal.begin("undo", {}, {}, {}, of=1).number == 2
    last = journal.last()
    assert last is not None
    assert (last.number, last.of) == (2, 1)
