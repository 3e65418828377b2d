"""The reconciler: it submits exactly what nobody works on, whatever became of the runs before."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import FlowRun
from prefect.flow_engine import run_flow
from prefect.states import Cancelled, Completed, Crashed, Failed, Pending, Running, Scheduled, State

import flows.drops
import flows.label
from flows.drops import label_runs, watch_drop
from pipeline.errors import SettingsError
from pipeline.plan import plan_drop
from pipeline.settings import DropSettings, load_settings
from pipeline.storage.objects import ObjectStore
from pipeline.work import Item, WorkLog

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

SETTINGS = {"drops.settle_seconds": 0, "drops.batch_videos": 2, "prompts.on_missing": "auto"}


@pytest.fixture
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as found:
        yield found


@pytest.fixture
def deployment(client: SyncPrefectClient) -> Iterator[UUID]:
    """A deployment `label/gpu` that no worker serves, so that the test alone decides what becomes of its runs."""
    made = client.create_deployment(client.create_flow_from_name("label"), "gpu", enforce_parameter_schema=False)
    yield made
    client.delete_deployment(made)


@pytest.fixture
def drop(tmp_path: Path) -> str:
    folder = tmp_path / "night"
    folder.mkdir()
    for number, name in enumerate(("a", "b", "c")):
        (folder / f"{name}.mp4").write_bytes(bytes(number + 1))
    return str(folder)


@pytest.fixture
def out(tmp_path: Path) -> str:
    return str(tmp_path / "out")


def plan(drop: str, out: str, **changes: Any) -> dict[str, Any]:
    options = {"overrides": {**SETTINGS, **changes.pop("overrides", {})}, **changes}
    found = watch_drop(drop, out, **options)
    assert isinstance(found, dict)
    return found


def under_way(out: str) -> list[list[str]]:
    """The videos of each run that has not ended, by name."""
    found = [[Path(item["video"]).stem for item in run.parameters["items"]] for run in label_runs(out)]
    return sorted(found)


def runs(out: str) -> list[FlowRun]:
    return sorted(label_runs(out), key=lambda run: str(run.parameters["items"]))


def finish(records: WorkLog, item: Item) -> None:
    """Record an item as labelled, with the objects that speak for it."""
    records.put(records.done_key(item, "ab" * 32), {})
    for key in ("commits/{}/000001.json", "labels/drop=night/{}.parquet", "review/drop=night/{}.parquet"):
        records.store.put_atomic(key.format("ab" * 32), b"{}")


def put(client: SyncPrefectClient, run: FlowRun, state: State[Any]) -> None:
    client.set_flow_run_state(run.id, state, force=True)


def test_what_is_wanted_is_submitted_once_and_again_after_runs_that_left_nothing(
    deployment: UUID, client: SyncPrefectClient, drop: str, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = plan(drop, out)
    assert (first["drop"], first["wanted"], len(first["submitted"])) == ("night", 3, 2)
    assert first["submitted"] == ["night: a.mp4 and 1 more", "night: c.mp4"]
    assert under_way(out) == [["a", "b"], ["c"]]
    parameters = runs(out)[0].parameters
    assert (parameters["out"], parameters["overrides"]["drops.batch_videos"]) == (out, 2)
    assert Item(**parameters["items"][0]).video == f"{drop}/a.mp4"
    assert plan(drop, out)["submitted"] == []  # they wait for a worker

    ended: list[State[Any]] = [Crashed(), Cancelled()]
    for run, state in zip(runs(out), ended, strict=True):
        put(client, run, state)
    for _ in range(2):  # the same work at the same number of attempts: a new run each time, and one at a time
        assert plan(drop, out)["submitted"] == first["submitted"]
        assert plan(drop, out)["submitted"] == []
        for run in runs(out):
            put(client, run, Failed())

    asked: list[str] = []
    real = flows.drops.run_deployment
    monkeypatch.setattr(
        flows.drops,
        "run_deployment",
        lambda *words, **more: (asked.append(more["idempotency_key"]), real(*words, **more))[1],
    )
    assert plan(drop, out)["submitted"] == first["submitted"]
    assert [key[-2:] for key in asked] == [":2", ":3"] * 2  # not all that came before, one by one
    for run in runs(out):
        put(client, run, Failed())

    records = WorkLog(ObjectStore(out), DropSettings())
    for fields in (*parameters["items"],):
        item = Item(**fields)
        finish(records, item)
    last = plan(drop, out)
    assert (last["done"], last["submitted"]) == (2, ["night: c.mp4"])
    assert under_way(out) == [["c"]]


def test_a_plan_that_was_just_made_is_not_made_again(
    deployment: UUID, drop: str, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan_drop(ObjectStore(drop), ObjectStore(out), load_settings(None, SETTINGS))

    def never(*words: Any, **more: Any) -> Any:
        raise AssertionError("one look at the drop is enough")

    monkeypatch.setattr(flows.drops, "plan_drop", never)
    with flows.drops.already(made):
        assert plan(drop, out)["submitted"] == ["night: a.mp4 and 1 more", "night: c.mp4"]


def test_a_run_whose_process_is_gone_does_not_keep_its_videos(
    deployment: UUID, client: SyncPrefectClient, drop: str, out: str
) -> None:
    lease = {"drops.lease_seconds": 4.0}
    assert len(plan(drop, out, overrides=lease)["submitted"]) == 2
    first, second = runs(out)
    records = WorkLog(ObjectStore(out), DropSettings(lease_seconds=4.0))
    put(client, first, Running())
    put(client, second, Running())
    assert plan(drop, out, overrides=lease)["submitted"] == []  # they have just begun
    time.sleep(4.5)
    begun = Item(**first.parameters["items"][0])
    records.put(records.attempt_key(begun, f"{int(time.time() * 1000):013x}-1", "running"), {})
    again = plan(drop, out, overrides=lease)
    assert (again["live"], again["submitted"]) == (1, ["night: c.mp4"])  # the first run still works: b waits its turn
    time.sleep(4.5)
    assert plan(drop, out, overrides=lease)["submitted"] == ["night: a.mp4 and 1 more"]


def test_a_run_that_its_worker_left_while_starting_it_is_given_up_in_time(
    deployment: UUID, client: SyncPrefectClient, drop: str, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan(drop, out)
    for run in runs(out):
        put(client, run, Pending())
    assert plan(drop, out)["submitted"] == []
    monkeypatch.setattr(flows.drops, "PENDING_SECONDS", 0.0)
    assert len(plan(drop, out)["submitted"]) == 2


def test_only_so_many_runs_are_under_way_and_none_is_overlooked(
    deployment: UUID, client: SyncPrefectClient, drop: str, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.drops, "PAGE", 1)
    few = {"drops.batch_videos": 1, "drops.max_batches": 2}
    found = plan(drop, out, overrides=few)
    assert (found["submitted"], found["waiting"]) == (["night: a.mp4", "night: b.mp4"], 1)
    found = plan(drop, out, overrides=few)
    assert (found["submitted"], found["waiting"]) == ([], 1)
    assert plan(drop, f"{out}-2", overrides=few)["waiting"] == 1  # another output has room of its own
    records = WorkLog(ObjectStore(out), DropSettings())
    first = runs(out)[0]
    finish(records, Item(**first.parameters["items"][0]))
    put(client, first, Completed())
    assert plan(drop, out, overrides=few)["submitted"] == ["night: c.mp4"]


def test_missing_labels_are_submitted_for_repair_once(
    deployment: UUID, client: SyncPrefectClient, tmp_path: Path, out: str
) -> None:
    ObjectStore(out).put_atomic(f"commits/{'ab' * 32}/000001.json", b"{}")
    (tmp_path / "empty").mkdir()
    for _ in range(2):
        assert plan(str(tmp_path / "empty"), out)["submitted"] == ["empty: 1 repairs"]
        (run,) = runs(out)
        assert (run.parameters["items"], run.parameters["repairs"]) == ([], ["ab" * 32])
        assert plan(str(tmp_path / "empty"), out)["submitted"] == []
        put(client, run, Completed())


def test_without_a_deployment_the_batches_are_worked_off_here(
    drop: str, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[str], str]] = []

    @flow(name="label")
    def label_batch(
        items: list[dict[str, Any]],
        out: str,
        config: str | None = None,
        overrides: dict[str, Any] | None = None,
        repairs: list[str] | None = None,
    ) -> State[Any]:
        seen.append(([Path(item["video"]).stem for item in items], out))
        return Failed(message="one is in quarantine") if len(seen) == 1 else Completed()

    monkeypatch.setattr(flows.label, "label_batch", label_batch)
    state: Any = watch_drop(drop, out, overrides=SETTINGS, return_state=True)
    assert seen == [(["a", "b"], out), (["c"], out)]  # the first one's failure does not stop the second
    assert (state.name, state.message) == (flows.drops.SOME_FAILED, "1 of 2 batches have videos that failed")
    assert plan(drop, out, submit=False)["here"] == 2


def test_a_dry_run_shows_the_plan_and_writes_nothing(
    deployment: UUID, client: SyncPrefectClient, drop: str, out: str
) -> None:
    (Path(drop) / "x|`y`.mp4").write_bytes(b"1234")
    found = plan(drop, out, dry_run=True, drop_name="Dry Run!")
    assert (found["wanted"], found["submitted"]) == (4, [])
    assert not Path(out).exists()
    assert list(label_runs(out)) == []
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["drop-dry-run"]))
    (artifact,) = client.read_artifacts(artifact_filter=wanted)
    assert "| wanted | 4 | `a.mp4`<br>" in str(artifact.data)
    assert "`x\\|'y'.mp4`" in str(artifact.data)


def test_a_secret_among_the_overrides_never_reaches_the_server(client: SyncPrefectClient, drop: str, out: str) -> None:
    before = {run.id for run in client.read_flow_runs()}
    with pytest.raises(SettingsError, match=r"storage\.secret_access_key") as caught:
        watch_drop(drop, out, overrides={"storage": {"secret_access_key": "hush"}})
    assert "hush" not in str(caught.value)
    new = [run for run in client.read_flow_runs() if run.id not in before]
    assert "hush" not in str([run.parameters for run in new])


def test_plans_that_fell_due_together_cost_one_look_and_none_waits_for_a_run_that_was_killed(
    deployment: UUID, client: SyncPrefectClient, drop: str, out: str
) -> None:
    parameters = {"drop": drop, "out": out, "overrides": SETTINGS}

    def due(seconds_ago: float, **changes: Any) -> FlowRun:
        state: State[Any] = Scheduled(scheduled_time=datetime.now(UTC) - timedelta(seconds=seconds_ago))
        return client.create_flow_run(watch_drop, parameters={**parameters, **changes}, state=state)

    killed, first, second, other = due(40), due(30), due(20), due(10, out=f"{out}2")
    put(client, killed, Pending())
    states = []
    for run in (first, second, other):
        states.append(run_flow(watch_drop, run, run.parameters, return_type="state"))
    assert [state.name for state in states] == ["Completed", "Answered", "Completed"]
    assert under_way(out) == [["a", "b"], ["c"]]
    planned, answered = (client.read_flow_run(run.id).start_time for run in (first, second))
    assert planned is not None
    assert answered is not None
    since = (datetime.now(UTC) - (planned + (answered - planned) / 2)).total_seconds()
    late = due(since)  # after the plan began, before the run that made none
    assert run_flow(watch_drop, late, late.parameters, return_type="state").name == "Completed"
