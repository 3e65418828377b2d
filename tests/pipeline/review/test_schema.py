"""The API keeps to its own OpenAPI document, whatever it is sent: schemathesis against the real app."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from .conftest import Drop
from .review_server import ReviewServer, served

EXAMPLES = 12
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(review_drop: Drop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReviewServer]:
    with served(review_drop, tmp_path_factory.mktemp("schema")) as running:
        yield running


def test_every_operation_answers_as_its_document_says(server: ReviewServer) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}api/v1/openapi.json")
    headers = {"Authorization": f"Bearer {server.token}", "X-Reviewer": "ann"}
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(
            max_examples=EXAMPLES, deadline=None, database=None, derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )  # fmt: skip
        def keeps_its_word(case: schemathesis.Case) -> None:
            case.call_and_validate(headers=headers, checks=CHECKS, timeout=30)

        keeps_its_word()
        tried += 1
    assert tried >= 17
