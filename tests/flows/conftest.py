"""One temporary Prefect server for all flow tests (starting it takes about 20 s), and tiny drops."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """Prefect's own test harness: a throw-away database."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drop of three clips of four frames, with prompts."""
    from pipeline.demo import make_drop

    folder = tmp_path_factory.mktemp("clips") / "night"
    make_drop(folder, num_frames=4)
    return folder


@pytest.fixture
def drop(clips: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(clips, tmp_path / "night"))


@pytest.fixture
def items() -> Callable[[Path], list[dict[str, Any]]]:
    """The videos of a folder as pieces of work."""

    def find(folder: Path) -> list[dict[str, Any]]:
        found = []
        for video in sorted(folder.glob("*.mp4")):
            prompts = video.with_name(f"{video.stem}.prompts.json")
            found.append(
                {
                    "video": str(video),
                    "prompts": str(prompts) if prompts.exists() else None,
                    "drop": folder.name,
                    "plan_key": hashlib.sha256(str(video).encode()).hexdigest(),
                }
            )
        return found

    return find


@pytest.fixture
def artifacts(prefect_server: None) -> Callable[[str], str]:
    """The newest artifact of a key, as text."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    async def newest(key: str) -> str:
        async with get_client() as client:
            wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
            found = await client.read_artifacts(artifact_filter=wanted)
            return str(max(found, key=lambda artifact: artifact.created).data)

    return lambda key: asyncio.run(newest(key))
