"""The few questions that `masksieve up` asks a Prefect server, without loading Prefect."""

from __future__ import annotations

import base64
import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

UNFINISHED = ("SCHEDULED", "PENDING", "RUNNING", "CANCELLING", "PAUSED")


@dataclass(frozen=True)
class Api:
    """A server's REST interface.

    Args:
        url: ends in /api.
    """

    url: str

    def healthy(self) -> bool:
        """Whether it answers."""
        try:
            return self._ask("/health", seconds=2) is True
        except (OSError, ValueError):
            return False

    def run(self, deployment: str) -> str:
        """Start a deployment by its FLOW/NAME now.

        Returns: the id of its run.
        Raises:  OSError if the server does not answer or does not know it.
        """
        found = self._ask(f"/deployments/name/{quote(deployment)}")
        return str(self._ask(f"/deployments/{found['id']}/create_flow_run", {})["id"])

    def counts(self) -> dict[str, int]:
        """How many flow runs are due or under way, by state; those of a later time are not.

        Raises: OSError if the server does not answer.
        """
        due = {"before_": datetime.now(UTC).isoformat()}
        wanted = {state: {"state": {"type": {"any_": [state]}}, "expected_start_time": due} for state in UNFINISHED}
        return {state: int(self._ask("/flow_runs/count", {"flow_runs": runs})) for state, runs in wanted.items()}

    def _ask(self, path: str, body: dict[str, Any] | None = None, *, seconds: float = 30.0) -> Any:
        headers = {"Content-Type": "application/json"}
        if auth := os.environ.get("PREFECT_API_AUTH_STRING") or os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
            headers["Authorization"] = f"Basic {base64.b64encode(auth.encode()).decode()}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            return json.loads(answer.read())
