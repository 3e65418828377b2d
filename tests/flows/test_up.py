"""What `masksieve up` bears while it watches, and what it says before anything listens to the world."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows import machine
from flows.machine import Home, in_url, open_to_others
from flows.supervise import Supervisor
from flows.up import Machine, Standing, _watch
from pipeline.settings import load_settings
from pipeline.storage.objects import ObjectStore


class QuietApi:
    """A server that runs nothing."""

    def counts(self) -> dict[str, int]:
        return {}

    def run(self, deployment: str) -> None:
        pass


def test_a_drop_that_is_away_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    drop, out = tmp_path / "drop", tmp_path / "out"
    asked = Machine(str(drop), str(out), None, [], {}, Home(tmp_path), once=True)
    told: list[str | None] = []

    def show(standing: Standing) -> None:
        told.append(standing.trouble)
        drop.mkdir(exist_ok=True)  # it is mounted again

    _watch(asked, load_settings(), QuietApi(), Supervisor(), ObjectStore(drop), ObjectStore(out), show)  # type: ignore[arg-type]
    assert [trouble is None for trouble in told] == [False, True]
    assert str(drop) in str(told[0])


@pytest.mark.parametrize(
    ("host", "part", "others"),
    [
        ("127.0.0.1", "127.0.0.1", False),
        ("localhost", "localhost", False),
        ("::1", "[::1]", False),
        ("0.0.0.0", "127.0.0.1", True),
        ("::", "[::1]", True),
        ("192.0.2.7", "192.0.2.7", True),
        ("gpu.example", "gpu.example", True),
    ],
)
def test_an_address_is_written_as_urls_want_it_and_known_for_who_reaches_it(host: str, part: str, others: bool) -> None:
    assert (in_url(host), open_to_others(host)) == (part, others)


def test_a_log_that_grew_large_is_put_aside_while_its_process_writes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "LOG_BYTES", 10)
    file = tmp_path / "one.log"
    with file.open("ab", buffering=0) as process:
        for line in (b"short\n", b"the first that is long\n", b"next\n"):
            process.write(line)
            machine.rotate(file, tmp_path / "none.log")
    assert (tmp_path / "one.log.1").read_bytes() == b"short\nthe first that is long\n"
    assert file.read_bytes() == b"next\n"
