"""Keys of stores stay with the worker: nothing that the server, the output or the screen gets to see has one in it."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

import flows.label
import flows.label_drop
from flows.drops import watch_drop
from flows.label import label_batch
from flows.label_drop import label_drop
from pipeline.errors import StorageError
from pipeline.storage.objects import ObjectStore

from ..pipeline.conftest import S3Server, moto_s3  # noqa: F401 - a fixture

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

Items = Callable[[Path], list[dict[str, Any]]]
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIAENVIRONMENTKEY1", "AWS_SECRET_ACCESS_KEY": "env/Recognisable+Secret=1",
    "AWS_SESSION_TOKEN": "env+session/token=1", "AWS_DEFAULT_REGION": "us-east-1",
}  # fmt: skip
SETTINGS = {
    "access_key_id": "AKIASETTINGSFILE2", "secret_access_key": "set/Recognisable+Secret=2",
    "session_token": "set+session/token=2",
}  # fmt: skip
KEYS = [*list(ENVIRONMENT.values())[:3], *SETTINGS.values()]
FAST = {
    "output.review_frames": False, "model.device": "cpu", "drops.retry_seconds": 0, "drops.max_attempts": 2,
    "drops.settle_seconds": 0, "storage.retry_seconds": 0.2,
}  # fmt: skip


def _raises(error: Exception, cause: Exception | None = None) -> Callable[..., Any]:
    def job(*words: Any, **more: Any) -> Any:
        raise error from cause

    return job


def _held_by_server(last: str) -> bytes:
    """The server's database, once what was logged last has arrived there."""
    path = str(PREFECT_API_DATABASE_CONNECTION_URL.value()).partition(":///")[2]
    end = time.monotonic() + 20
    with closing(sqlite3.connect(path)) as database:
        while not database.execute("SELECT 1 FROM log WHERE message LIKE ?", [f"%{last}%"]).fetchall():
            assert time.monotonic() < end, "the server never heard of it"
            time.sleep(0.2)
        return "\n".join(database.iterdump()).encode()


def _in_output(store: ObjectStore) -> bytes:
    """All of an output, Parquet as its rows."""
    found = []
    for key in store.list():
        found.append(store.get(key))
        if key.endswith(".parquet"):
            with store.open(key) as file:
                table = pq.read_table(file)
            found.append(repr((table.schema.metadata, table.to_pylist())).encode())
    return b"\n".join(found)


def test_no_key_is_told_to_anybody_whatever_fails(
    moto_s3: S3Server,  # noqa: F811
    drop: Path, items: Items, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": moto_s3.endpoint_url}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASKSIEVE_SLOTS", str(tmp_path / "slots"))
    bucket = moto_s3.new_bucket()
    store = ObjectStore(f"{bucket}/night")
    for path in drop.iterdir():
        store.put_atomic(path.name, path)
    store.put_atomic("broken.mp4", b"no video at all" * 100)
    store.put_atomic("broken.prompts.json", next(drop.glob("*.prompts.json")))
    out = f"{bucket}/out"
    assert watch_drop(f"{bucket}/night", out, overrides=FAST, submit=False, return_state=True).is_failed()
    assert len(ObjectStore(out).list("commits/")) == 3

    # Keys of a settings file, and everything that can be wrong.
    config = tmp_path / "keys.yaml"
    storage = {**SETTINGS, "endpoint_url": moto_s3.endpoint_url, "region": "us-east-1"}
    config.write_text(json.dumps({"storage": storage}))
    options = {"config": str(config), "overrides": FAST, "return_state": True}
    one = [items(drop)[0] | {"plan_key": "1" * 64}]
    assert label_batch(one, "s3://there-is-no-such-bucket/out", **options).is_failed()
    away = {**FAST, "storage.endpoint_url": "http://127.0.0.1:9"}
    label_batch(one, out, **{**options, "overrides": away})
    label_drop(f"{bucket}/night/gone.mp4", out, **options)
    library = f"GET https://store/x?X-Amz-Security-Token={SETTINGS['session_token']}"
    for number, error, cause in (
        (2, RuntimeError(f"a library that quotes {' '.join(KEYS)} of REASON-1"), None),
        (3, StorageError("a store", "REASON-2", "wait"), OSError(library)),
        (4, ValueError("REASON-3"), KeyError(*KEYS)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(flows.label, "label_video", _raises(error, cause))
            label_batch([one[0] | {"plan_key": str(number) * 64}], out, **options)
    with monkeypatch.context() as patch:
        patch.setattr(flows.label, "load_model", _raises(RuntimeError(f"REASON-4 with {KEYS}")))
        flows.label._model.cache_clear()
        assert label_batch(one, out, **options).is_failed()
    with monkeypatch.context() as patch:
        patch.setattr(flows.label_drop, "label_video", _raises(RuntimeError(f"REASON-5 with {KEYS}")))
        patch.setattr(flows.label_drop, "label_one", flows.label_drop.label_one.with_options(retries=0))
        assert label_drop(str(drop), out, **options).is_failed()

    told = {
        "server": _held_by_server("REASON-5"),
        "output": _in_output(ObjectStore(out)),
        "screen": "".join(capfd.readouterr()).encode(),
        "log": caplog.text.encode(),
    }
    for number in (1, 2, 3, 4, 5):  # or there was nothing to look through
        assert f"REASON-{number}".encode() in told["server"]
        assert number > 3 or f"REASON-{number}".encode() in told["output"]
    leaks = {(place, key) for place, text in told.items() for key in KEYS if key.encode() in text}
    told_lines = [line for line in told["screen"].splitlines() if any(key.encode() in line for key in KEYS)]
    assert leaks == set(), told_lines
