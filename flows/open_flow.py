"""Flows that everybody may look into who reaches the server: no parameter, message or traceback has a secret in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect.flows import Flow

from flows.one_line import log_in_one_line
from pipeline.settings import refuse_secrets
from pipeline.storage.secrets import hushed

P = ParamSpec("P")
R = TypeVar("R")


class OpenFlow(Flow[P, R]):
    """A flow that keeps store keys among its `overrides` and in its errors off the server that records them."""

    def __init__(self, fn: Callable[P, R], **options: Any) -> None:
        super().__init__(fn, **options)
        self.fn = hushed()(fn)

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The parameters as they are sent. Raises SettingsError if one of them holds a secret."""
        refuse_secrets(parameters.get("overrides"))
        return super().serialize_parameters(parameters)

    def with_options(self, **options: Any) -> Flow[P, R]:
        """The same flow with other options, as open."""
        changed = super().with_options(**options)
        changed.__class__ = type(self)
        return changed


def open_flow(**options: Any) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Decorator: `prefect.flow` for an `OpenFlow`, whose failures are logged in one line."""
    log_in_one_line()

    def decorate(function: Callable[P, R]) -> Flow[P, R]:
        return OpenFlow(function, **{"persist_result": False, "log_prints": False, **options})

    return decorate
