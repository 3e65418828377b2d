"""Puts masksieve on a Prefect server: pools, deployments, schedules, and what starts the reconciler after a crash.

Everything is created or brought up to date by name: a second call changes nothing. Flows are named by module, so that a
worker runs the masksieve that it has installed, wherever it stands.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.errors import SettingsError
from pipeline.settings import load_settings, refuse_secrets

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import AutomationCore
    from prefect.flows import Flow

log = logging.getLogger(__name__)

POOL, GPU_POOL = "masksieve", "masksieve-gpu"
DROPS, LABEL = "drops/drops", "label/gpu"
ARRIVED = "drop.arrived"
"""The event that says that something was uploaded."""
HEARTBEAT_SECONDS = 30
SILENT_SECONDS = 90
"""A run that had a heartbeat and none for so long has crashed."""


@dataclass(frozen=True)
class Deployed:
    """One deployment.

    Args:
        name: FLOW/DEPLOYMENT.
        entrypoint: module path of the flow.
        pool: where its runs go unless told otherwise.
        about: one line for the UI.
        given: which of `deploy`'s arguments are parameters of its runs.
    """

    name: str
    entrypoint: str
    pool: str
    about: str
    given: tuple[str, ...] = ()


DEPLOYMENTS = (
    Deployed(
        DROPS,
        "flows.drops.watch_drop",
        POOL,
        "Plans what a drop still wants and submits it; the reconciler.",
        ("drop", "out", "config", "overrides"),
    ),
    Deployed(LABEL, "flows.label.label_batch", GPU_POOL, "Labels a batch of videos with one loaded model."),
    Deployed(
        "retune/retune",
        "flows.retune.retune",
        POOL,
        "Decides anew from stored facts, without a GPU.",
        ("out", "config", "overrides"),
    ),
    Deployed(
        "reviews/reviews",
        "flows.reviews.reviews",
        GPU_POOL,
        "Applies what people answered, and tells what waits for them.",
        ("out", "config", "overrides"),
    ),
    Deployed(
        "watch/watch",
        "flows.watch.watch",
        POOL,
        "Holds audits and new videos against a certificate.",
        ("out", "config", "overrides"),
    ),
    Deployed(
        "train/train",
        "flows.train.train",
        GPU_POOL,
        "Fits uncertainty heads to reviewed masks.",
        ("config", "overrides"),
    ),
)


@dataclass(frozen=True)
class Schedule:
    """When a deployment runs by itself.

    Args:
        cron: five fields, in `timezone`.
        every_seconds: instead of a cron.
    """

    cron: str | None = None
    every_seconds: float | None = None
    timezone: str = "UTC"


def deploy(
    api: str,
    *,
    drop: str,
    out: str,
    config: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    schedules: Sequence[Schedule] = (Schedule(cron="*/10 * * * *"),),
    reviews: Schedule | None = Schedule(cron="0 6 * * *"),
    pool: str = POOL,
    gpu_pool: str = GPU_POOL,
    environment: Mapping[str, str] | None = None,
    replace: bool = False,
) -> dict[str, UUID]:
    """Create or update everything that unattended labelling needs on a server.

    Args:
        api: the server's address, ending in /api.
        drop, out: folder or s3:// prefix, as the workers see them.
        config: a settings file on the workers, or the name of a shipped one.
        overrides: settings over it, dotted or nested; no secrets.
        schedules: of the drops deployment; none leaves it to events and to people.
        reviews: of the reviews deployment; None for none.
        pool, gpu_pool: work pools; made as process pools where they do not exist, else left as they are.
        environment: variables for every run, beside the workers' own.
        replace: let what is there for another drop or output go; a server plans one drop.
    Returns: the id of each deployment by name.
    Raises:  SettingsError for a secret among the overrides, an unknown setting, a schedule that cannot be read, or a
             server that plans another drop already; nothing was changed then.
    """
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    refuse_secrets(overrides)
    settings = load_settings(config, overrides)
    planned = [_schedule(one) for one in schedules]
    reviewed = [] if reviews is None else [_schedule(reviews)]
    given = {"drop": drop, "out": out, "config": config, "overrides": dict(overrides or {})}
    variables = {"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS), **(environment or {})}}
    found: dict[str, UUID] = {}
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        if not replace:
            _refuse_another(client, {"drop": drop, "out": out})
        for name in (pool, gpu_pool):
            _make_pool(client, name)
        for one in DEPLOYMENTS:
            found[one.name] = _create(
                client, one, {POOL: pool, GPU_POOL: gpu_pool}[one.pool], given, variables,
                {DROPS: planned, "reviews/reviews": reviewed}.get(one.name, []),
            )  # fmt: skip
        for automation in automations(found, settings.drops.settle_seconds, settings.drops.lease_seconds):
            _upsert(client, automation)
    return found


def automations(deployments: Mapping[str, UUID], settle_seconds: float, lease_seconds: float) -> list[AutomationCore]:
    """What the server does by itself.

    A run whose process is gone is marked as crashed. After a crash of `label` the reconciler comes at once for the
    videos that the run had not begun, and again when the lease of the one that it had has run out. It comes when
    something was uploaded, once that has settled.

    Args:
        deployments: ids by name.
        settle_seconds, lease_seconds: of the settings (`DropSettings`).
    """
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState, RunDeployment
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    drops, label = deployments[DROPS], deployments[LABEL]

    def plan(after_seconds: float) -> RunDeployment:
        return RunDeployment(
            source="selected", deployment_id=drops, parameters=None, job_variables=None,
            schedule_after=timedelta(seconds=after_seconds),
        )  # fmt: skip

    def of_deployments(*ids: UUID) -> ResourceSpecification:
        keys = [f"prefect.deployment.{one}" for one in ids]
        return ResourceSpecification({"prefect.resource.role": "deployment", "prefect.resource.id": keys})

    silent = EventTrigger(
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.*"},  # heartbeats, and states under whatever name
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        match_related=of_deployments(*deployments.values()),  # the server may have other flows than ours
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=SILENT_SECONDS),
    )
    crashed = EventTrigger(
        expect={"prefect.flow-run.Crashed"},
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        match_related=of_deployments(label),
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )
    arrived = EventTrigger(expect={ARRIVED}, posture=Posture.Reactive, threshold=1, within=timedelta(0))
    return [
        AutomationCore(
            name="masksieve: a silent run has crashed",
            description=f"A run of masksieve's that had a heartbeat and none for {SILENT_SECONDS} s has crashed.",
            trigger=silent,
            actions=[
                ChangeFlowRunState(
                    state=StateType.CRASHED,
                    name="Crashed",
                    message=f"no sign of life for {SILENT_SECONDS} s",
                    force=False,
                )
            ],
        ),
        AutomationCore(
            name="masksieve: reconcile after a crash",
            description="Plans anew at once, and when the lease of the video that was being labelled has run out.",
            trigger=crashed,
            actions=[plan(0), plan(lease_seconds + 5)],
        ),
        AutomationCore(
            name="masksieve: a drop arrived",
            description=f"Plans once what was uploaded has settled, on the event {ARRIVED}.",
            trigger=arrived,
            actions=[plan(settle_seconds + 1)],
        ),
    ]


def _schedule(wanted: Schedule) -> Any:
    """A schedule as the server takes it."""
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
    from pydantic import ValidationError

    try:
        if wanted.every_seconds is not None:
            schedule: Any = IntervalSchedule(interval=timedelta(seconds=wanted.every_seconds), timezone=wanted.timezone)
        else:
            schedule = CronSchedule(cron=wanted.cron or "", timezone=wanted.timezone)
    except ValidationError as error:
        got = f"{wanted.every_seconds:g} s" if wanted.every_seconds is not None else repr(wanted.cron)
        step = "write for example --cron '*/10 * * * *' or --every 600"
        raise SettingsError("a schedule: five cron fields, or a positive number of seconds", got, step) from error
    return DeploymentScheduleCreate(schedule=schedule, active=True)


def _refuse_another(client: SyncPrefectClient, wanted: Mapping[str, str]) -> None:
    """Raises: SettingsError if the server plans another drop, or into another output."""
    from prefect.exceptions import ObjectNotFound

    try:
        there = client.read_deployment_by_name(DROPS).parameters
    except ObjectNotFound:
        return
    for name, value in wanted.items():
        if (held := there.get(name, value)) != value:
            step = "--replace lets it go; for both, give each drop a server, or make one drop of their folders"
            raise SettingsError(f"a server that plans --{name} {value}", f"one that plans {held}", step)


def _make_pool(client: SyncPrefectClient, name: str) -> None:
    """Make a process pool unless there is a pool of that name, of whatever type."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
    from prefect.workers.process import ProcessWorker

    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        about = "masksieve: runs are processes on the workers' machines"
        template = ProcessWorker.get_default_base_job_template()
        try:
            client.create_work_pool(
                WorkPoolCreate(name=name, type="process", description=about, base_job_template=template)
            )
        except ObjectAlreadyExists:
            log.debug("pool %s was made by somebody else meanwhile", name)


def _create(
    client: SyncPrefectClient,
    one: Deployed,
    pool: str,
    given: Mapping[str, Any],
    variables: Mapping[str, Any],
    schedules: list[Any],
) -> UUID:
    """Create a deployment, or bring it up to date."""
    from prefect.utilities.callables import parameter_schema

    flow = flow_of(one)
    flow_id = client.create_flow(flow)
    return client.create_deployment(
        flow_id,
        one.name.partition("/")[2],
        entrypoint=one.entrypoint,
        work_pool_name=pool,
        work_queue_name="default",
        parameters={name: given[name] for name in one.given if given[name] is not None},
        parameter_openapi_schema=parameter_schema(flow).model_dump_for_openapi(),
        enforce_parameter_schema=False,  # the flow's own checks say what is wrong, and what to do
        job_variables=dict(variables),
        schedules=schedules,
        description=one.about,
        tags=["masksieve"],
    )


def load_flows() -> None:
    """Load all flows, which takes a while; it can be done before the server is there."""
    for one in DEPLOYMENTS:
        flow_of(one)


def flow_of(one: Deployed) -> Flow[..., Any]:
    """The flow that a deployment runs."""
    module, _, name = one.entrypoint.rpartition(".")
    flow: Flow[..., Any] = getattr(import_module(module), name)
    return flow


def _upsert(client: SyncPrefectClient, automation: AutomationCore) -> None:
    """Create an automation, or bring the one of its name up to date."""
    there = client.read_automations_by_name(automation.name)
    if there:
        client.update_automation(there[0].id, automation)
    else:
        client.create_automation(automation)
    for one in there[1:]:
        client.delete_automation(one.id)
