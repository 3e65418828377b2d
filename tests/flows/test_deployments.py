"""What masksieve puts on a server leaves what others have there alone, and what it has there itself."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import ReceivedEvent
from prefect.settings import PREFECT_API_URL

from flows.deployments import DEPLOYMENTS, DROPS, automations, deploy
from pipeline.errors import SettingsError

OURS = {one.name: uuid4() for one in DEPLOYMENTS}


def heartbeat(deployment: UUID | None) -> ReceivedEvent:
    """As Prefect's flow engine sends it."""
    related = [{"prefect.resource.id": f"prefect.flow.{uuid4()}", "prefect.resource.role": "flow"}]
    if deployment is not None:
        related.append(
            {"prefect.resource.id": f"prefect.deployment.{deployment}", "prefect.resource.role": "deployment"}
        )
    body: dict[str, Any] = {
        "occurred": datetime.now(UTC), "event": "prefect.flow-run.heartbeat", "id": uuid4(), "related": related,
        "resource": {"prefect.resource.id": f"prefect.flow-run.{uuid4()}"},
    }  # fmt: skip
    return ReceivedEvent.model_validate(body)


def test_only_runs_of_masksieve_are_taken_for_silent() -> None:
    silent = automations(OURS, 60.0, 120.0)[0].trigger
    trigger = EventTrigger.model_validate(silent.model_dump(mode="json"))
    assert all(trigger.covers(heartbeat(deployment)) for deployment in OURS.values())
    assert not any(trigger.covers(heartbeat(deployment)) for deployment in (uuid4(), None))


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_another_drop_takes_the_place_of_the_first_only_when_asked_to() -> None:
    api = PREFECT_API_URL.value()
    assert api is not None
    with get_client(sync_client=True) as client:

        def planned() -> tuple[str, str]:
            parameters = client.read_deployment_by_name(DROPS).parameters
            return parameters["drop"], parameters["out"]

        made = deploy(api, drop="s3://a/in", out="s3://a/out", schedules=(), reviews=None)
        try:
            assert deploy(api, drop="s3://a/in", out="s3://a/out", schedules=(), reviews=None) == made
            for drop, out in (("s3://b/in", "s3://a/out"), ("s3://a/in", "s3://b/out")):
                with pytest.raises(SettingsError, match="--replace"):
                    deploy(api, drop=drop, out=out, schedules=(), reviews=None)
            assert planned() == ("s3://a/in", "s3://a/out")
            deploy(api, drop="s3://b/in", out="s3://b/out", schedules=(), reviews=None, replace=True)
            assert planned() == ("s3://b/in", "s3://b/out")
        finally:
            for deployment in made.values():
                client.delete_deployment(deployment)
            for automation in automations(made, 1.0, 1.0):
                for there in client.read_automations_by_name(automation.name):
                    client.delete_automation(there.id)
