"""`masksieve review apply`: killed at any moment and called again, every answer is applied exactly once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import pipeline.cli
from pipeline.ledger import Ledger
from pipeline.review.answers import Answer
from pipeline.review.queue import Queue
from pipeline.storage.objects import ObjectStore

from .answering import answer, facts, give, labels, true_mask
from .conftest import Drop
from .queueing import answer_to

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

ENGINE = """
import importlib, json, os, signal, sys
from pipeline.ledger import Ledger
from pipeline.models import load_model
from pipeline.review.corrections import apply_answers
from pipeline.settings import load_settings
from pipeline.storage.objects import ObjectStore

model = load_model("sam2_nano")
for line in sys.stdin:
    work = json.loads(line)
    child = os.fork()
    if not child:
        if work["kill"]:
            module, name, when = work["kill"]
            owner = importlib.import_module(module)
            *path, name = name.split(".")
            for part in path:
                owner = getattr(owner, part)
            real = getattr(owner, name)
            def dying(*args, **kwargs):
                if when == "after":
                    real(*args, **kwargs)
                os.kill(os.getpid(), signal.SIGKILL)
            setattr(owner, name, dying)
        store = ObjectStore(work["out"])
        apply_answers(work["video_id"], store, Ledger(store), load_settings(None, work["settings"]), model=model)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
CORRECTIONS = "pipeline.review.corrections"
KILLS = [
    (CORRECTIONS, "carry_on", "before"),
    (CORRECTIONS, "carry_on", "after"),
    (CORRECTIONS, "write_facts", "after"),
    ("pipeline.ledger", "Ledger.commit", "before"),
    ("pipeline.ledger", "Ledger.commit", "after"),
    ("pipeline.derive", "Plan.publish", "before"),
    ("pipeline.derive", "Plan._publish_layer", "after"),
]
"""Before the work, before the facts, between facts and commit, between commit and labels, between the two lists."""


def answers(drop: Drop) -> tuple[str, list[Answer]]:
    """A fix, a stretch and a rejection on one video."""
    (commit,) = [one for one in Ledger(ObjectStore(drop.out)).read_all() if one.video_uri.endswith("/one.mp4")]
    rows = labels(drop.out, commit.video_id)
    return commit.video_id, [
        answer(rows[8, 1], "fix", true_mask(rows[8, 1], drop.truth["one"]), answer_id="a" * 32),
        answer(rows[2, 1], "accept", scope="stretch", first_frame=1, last_frame=3, rows=3, answer_id="b" * 32),
        answer(rows[12, 1], "reject", answer_id="c" * 32),
    ]


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_no_answer_and_applies_none_twice(
    labelled_copy: Callable[[], Drop], tmp_path: Path
) -> None:
    reference = labelled_copy()
    video_id, given = answers(reference)
    killed = [(labelled_copy(), kill) for kill in KILLS]
    settings = {"model.device": "cpu", "output.scratch_dir": str(tmp_path / "scratch")}
    (tmp_path / "scratch").mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(
        [sys.executable, "-c", ENGINE], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
        text=True,
    ) as engine:  # fmt: skip
        assert engine.stdin is not None
        assert engine.stdout is not None

        def run(drop: Drop, kill: tuple[str, str, str] | None) -> int:
            assert engine.stdin is not None
            assert engine.stdout is not None
            work = {"out": str(drop.out), "video_id": video_id, "settings": settings, "kill": kill}
            engine.stdin.write(json.dumps(work) + "\n")
            engine.stdin.flush()
            said = engine.stdout.readline()
            assert said, (tmp_path / "log").read_text()[-3000:]
            return int(said)

        for drop, kill in [(reference, None), *killed]:
            give(ObjectStore(drop.out), *given)
            assert run(drop, kill) == (-9 if kill else 0), kill
            assert run(drop, None) == 0
            assert run(drop, None) == 0
        engine.stdin.close()
    expected = Ledger(ObjectStore(reference.out))
    for drop, kill in killed:
        ledger = Ledger(ObjectStore(drop.out))
        commit = ledger.newest(video_id)
        assert commit is not None
        assert commit.generation == 2, kill
        assert set(commit.answers) == {"a" * 32, "b" * 32, "c" * 32}
        assert facts(ledger, video_id).equals(facts(expected, video_id)), kill
        for layer in ("labels", "review"):
            where = {"frame_uri": None, "overlay_uri": None}  # pictures lie in another place
            found, wanted = ({k: {**row, **where} for k, row in labels(one.out, video_id, layer).items()}
                             for one in (drop, reference))  # fmt: skip
            assert found == wanted, kill


def test_apply_takes_what_a_queue_still_has_and_says_what_waits(
    labelled_copy: Callable[[], Drop],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drop = labelled_copy()
    store, ledger = ObjectStore(drop.out), Ledger(ObjectStore(drop.out))
    monkeypatch.setenv("MASKSIEVE_REVIEW", str(tmp_path / "none.sqlite"))
    queue = Queue(tmp_path / "queue.sqlite", store.identity, drop.settings.review)
    queue.sync(store)
    (leased,) = queue.claim("ann")
    item = leased.item
    row = labels(drop.out, item.video_id)[item.frame_index, item.object_id]
    queue.answer(leased.lease_id, answer_to(item, "d" * 32, "ann", verdict="reject", scope="frame"))
    queue.close()

    def apply(*more: str) -> tuple[int, dict[str, object]]:
        with pytest.raises(SystemExit) as done:
            pipeline.cli.main(["review", "apply", str(drop.out), "--json", *more])
        return int(done.value.code or 0), json.loads(capsys.readouterr().out)

    assert apply()[1]["videos"] == []  # a worker elsewhere, which the answer has not come to
    assert not (tmp_path / "none.sqlite").exists()
    monkeypatch.setenv("MASKSIEVE_REVIEW", str(tmp_path / "queue.sqlite"))
    code, said = apply()
    assert code == 0
    (video,) = said["videos"]  # type: ignore[misc]
    assert (video["video_id"], len(video["applied"]), video["changed"]) == (item.video_id, 1, 1)
    assert labels(drop.out, item.video_id)[item.frame_index, item.object_id]["prompted"] == "reject"
    assert apply()[1]["videos"] == []
    newest = ledger.newest(item.video_id)
    assert newest is not None
    (drop.out / newest.file("masks").key).write_bytes(b"damaged")
    give(store, answer(row, "reject", minutes=9))
    code, said = apply()
    assert code == 1
    assert "facts with SHA-256" in str(said)
