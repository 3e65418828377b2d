"""The clients of S3 servers, one for all stores of a process that reach a server with the same keys."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

CONNECTIONS = 64  # of one client, which all threads share
_MAKING = threading.Lock()


def client_of(secrets: Mapping[str, str], client: Mapping[str, str], connect_seconds: float) -> Any:
    """The file system of s3fs with these keys; making one takes a quarter of a second, so that it is made once.

    Args:
        secrets: key, secret and token, those that are not left to the environment.
        client: endpoint and region, those that are not left to the environment.
        connect_seconds: how long a connection may take to come about.
    """
    with _MAKING:
        return _filesystem(tuple(secrets.items()), tuple(client.items()), connect_seconds, _surroundings())


@lru_cache(maxsize=16)
def _filesystem(
    secrets: tuple[tuple[str, str], ...],
    client: tuple[tuple[str, str], ...],
    connect_seconds: float,
    surroundings: tuple[object, ...],
) -> Any:
    import s3fs

    made = s3fs.S3FileSystem(
        **dict(secrets),
        client_kwargs=dict(client),
        # Checksums in trailers are new; servers that are not AWS often refuse them.
        config_kwargs={
            "connect_timeout": connect_seconds,
            "max_pool_connections": CONNECTIONS,
            "retries": {"total_max_attempts": 1},
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        },
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    made.retries = 1
    return made


def _surroundings() -> tuple[object, ...]:
    """What else decides how a client reaches its server: the process, the AWS_* variables, and the files of keys."""
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_") or name == "HOME"}
    files = [
        Path(variables.get(name, f"~/.aws/{default}")).expanduser()
        for name, default in (("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config"))
    ]
    written = [path.stat().st_mtime_ns if path.is_file() else None for path in files]
    return os.getpid(), *sorted(variables.items()), *written
