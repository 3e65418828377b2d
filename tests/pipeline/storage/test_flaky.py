"""A store behind a bad network: nothing lost, nothing twice, bounded time."""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import StorageError, UnavailableError
from pipeline.settings import load_settings
from pipeline.storage import retry
from pipeline.storage.objects import ObjectStore

from .flaky_proxy import AFTER, BEFORE, FLIPS, FlakyProxy

STALL_SECONDS = 0.4
SEEDS = (1, 2, 3)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.02)


@contextmanager
def behind(
    server: Any, seed: int, bucket: str, *, patience: float = 30.0, faults: Sequence[str] = (*BEFORE, *AFTER),
    rate: float = 0.2,
) -> Iterator[tuple[FlakyProxy, ObjectStore]]:  # fmt: skip
    """A bucket of a server, as it looks through the proxy."""
    with FlakyProxy(server.endpoint_url, seed, rate=rate, faults=faults) as proxy:
        settings = server.settings(endpoint_url=proxy.url, retry_seconds=patience, stall_seconds=STALL_SECONDS)
        yield proxy, ObjectStore(bucket, settings)


@pytest.fixture(params=["moto", "rclone"])
def server(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"{request.param}_s3")


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS[:2])
def test_every_operation_does_what_it_does_on_a_good_store(server: Any, seed: int, tmp_path: Path) -> None:
    rng, model = random.Random(seed), dict[str, bytes]()
    keys = [f"{folder}/{name}" for folder in "ab" for name in "xyz"]
    with behind(server, seed, f"{server.new_bucket()}/out", rate=0.3) as (proxy, store):
        for step in range(60):
            key, data = rng.choice(keys), f"{step} ".encode() * rng.choice((1, 1000, 500_000))
            match rng.randrange(7):
                case 0:
                    store.put_atomic(key, data)
                    model[key] = data
                case 1:
                    if key in model:
                        assert store.replace(key, data, store.version(key))
                        model[key] = data
                    else:
                        assert store.put_if_absent(key, data)
                        model[key] = data
                case 2:
                    if key in model:
                        assert store.get(key) == model[key]
                    else:
                        with pytest.raises(StorageError, match="nothing there"):
                            store.get(key)
                case 3:
                    if key in model:
                        with store.open(key) as file:
                            file.seek(len(model[key]) // 3)
                            assert file.read(100) == model[key][len(model[key]) // 3 :][:100]
                        store.get_file(key, tmp_path / "copy")
                        assert (tmp_path / "copy").read_bytes() == model[key]
                case 4:
                    assert store.list("a/") == sorted(one for one in model if one.startswith("a/"))
                case 5:
                    assert {one.key: one.size_bytes for one in store.entries()} == {k: len(v) for k, v in model.items()}
                case 6:
                    store.delete(key)
                    model.pop(key, None)
        faults = sum(count for fault, count in proxy.done.items() if fault != "fine")
        assert faults > 5
        proxy.rate = 0.0
        assert {key: store.get(key) for key in store.list()} == model


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_of_racing_writers_exactly_one_wins_and_knows_it(moto_s3: Any, seed: int) -> None:
    bucket, writers = moto_s3.new_bucket(), 4
    nasty = ("500 after", "reset after", "stall after", "500", "reset")
    with behind(moto_s3, seed, bucket, faults=nasty, rate=0.35) as (proxy, _), ThreadPoolExecutor(writers) as pool:
        stores = [ObjectStore(bucket, _settings(moto_s3, proxy)) for _ in range(writers)]
        for race in range(8):
            gate = threading.Barrier(writers)

            def write(number: int, race: int = race, gate: threading.Barrier = gate) -> bool:
                gate.wait()
                return stores[number].put_if_absent(f"race/{race}", str(number).encode())

            won = list(pool.map(write, range(writers)))
            assert sum(won) == 1, won
            assert stores[0].get(f"race/{race}") == str(won.index(True)).encode()
        assert len(stores[0].list()) == 8


def _settings(server: Any, proxy: FlakyProxy) -> Any:
    return server.settings(endpoint_url=proxy.url, retry_seconds=30, stall_seconds=STALL_SECONDS)


@pytest.mark.parametrize("fault", [*BEFORE, *AFTER])
def test_a_store_that_never_gets_better_is_unavailable_within_the_budget(moto_s3: Any, fault: str) -> None:
    bucket = moto_s3.new_bucket()
    with behind(moto_s3, 0, bucket, patience=0.6, faults=(fault,), rate=1.0) as (proxy, store):
        began = time.monotonic()
        with pytest.raises(UnavailableError, match=r"to list s3://.* within 0\.6 s"):
            store.list()
        assert time.monotonic() - began < 0.6 + 2 * STALL_SECONDS + 2.0
        assert proxy.requests > (1 if "stall" not in fault else 0)


@pytest.mark.parametrize("fault", ["500 after", "reset after", "stall after"])
def test_a_write_that_landed_without_an_answer_was_won(moto_s3: Any, fault: str) -> None:
    with behind(moto_s3, 0, moto_s3.new_bucket(), rate=0.0) as (proxy, store):
        proxy.puts = [fault]
        assert store.put_if_absent("x", b"1")
        proxy.puts = [fault, fault]
        assert store.replace("x", b"2", store.version("x"))
        assert proxy.puts == []
        assert store.get("x") == b"2"
        for rival in (b"3", b"2"):  # also one that would write the very same
            proxy.puts = [fault]
            assert not store.put_if_absent("x", rival)


def test_a_lasting_error_is_told_at_once(moto_s3: Any) -> None:
    store = ObjectStore(moto_s3.new_bucket(), moto_s3.settings(retry_seconds=60))
    store.list()  # connects
    began = time.monotonic()
    for url, work in ((store.url, "get"), ("s3://no-such-bucket-here", "list")):
        other = ObjectStore(url, moto_s3.settings(retry_seconds=60))
        with pytest.raises(StorageError) as told:
            getattr(other, work)(*(("missing",) if work == "get" else ()))
        assert not isinstance(told.value, UnavailableError)
    assert time.monotonic() - began < 5


def test_a_bit_that_flips_on_the_way_is_noticed(server: Any) -> None:
    data = os.urandom(100_000)
    with behind(server, 3, server.new_bucket(), faults=FLIPS[:1], rate=0.5) as (proxy, store):
        for number in range(8):
            store.put_atomic(f"x/{number}", data)
        assert proxy.done["flip up"] > 0
        proxy.rate = 0.0
        assert all(store.get(f"x/{number}") == data for number in range(8))
        proxy.faults, proxy.rate = FLIPS[1:], 1.0
        with pytest.raises(StorageError, match="damaged copy"):
            store.get("x/0")
        proxy.rate = 0.3
        assert all(store.get(f"x/{number}") == data for number in range(4))


def test_a_server_that_looks_at_checksums_never_shows_a_damaged_object(rclone_s3: Any) -> None:
    with behind(rclone_s3, 0, rclone_s3.new_bucket(), patience=0.0, faults=("flip up",), rate=1.0) as (proxy, store):
        with pytest.raises(UnavailableError):
            store.put_atomic("x", os.urandom(1000))
        assert proxy.done["flip up"] > 0
        assert not store.exists("x")


@pytest.mark.slow
def test_uploads_in_parts_come_whole_and_leave_nothing(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.s3.SINGLE_PUT_BYTES", 2**20)
    monkeypatch.setattr("pipeline.storage.s3_parts.PART_BYTES", 5 * 2**20)
    source = tmp_path / "large.bin"
    source.write_bytes(os.urandom(11 * 2**20 + 17))
    with behind(server, 5, f"{server.new_bucket()}/out", rate=0.3) as (proxy, store):
        for number in range(3):
            store.put_atomic(f"large-{number}", source)
            digest = store.get_file(f"large-{number}", tmp_path / "copy")
            assert digest == hashlib.sha256(source.read_bytes()).hexdigest()
        proxy.rate = 0.0
        for one in list(store.staged()):  # an upload whose beginning was not answered has begun twice
            store.abort(one.key, one.upload or "")
        assert list(store.staged()) == []


def test_an_upload_in_parts_that_fails_is_aborted_and_a_dead_writers_is_swept(
    rclone_s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.s3.SINGLE_PUT_BYTES", 2**20)
    source = tmp_path / "large.bin"
    source.write_bytes(os.urandom(2**20 + 17))
    store = ObjectStore(f"{rclone_s3.new_bucket()}/out", rclone_s3.settings())
    backend: Any = store._backend
    once = backend.once

    def short(method: str, *words: Any, **more: Any) -> Any:
        answered = once(method, *words, **more)
        return {**answered, "ContentLength": 3} if method == "head_object" else answered

    def forbidden(method: str, *words: Any, **more: Any) -> Any:
        if method == "upload_part":
            raise PermissionError("no more")
        return once(method, *words, **more)

    monkeypatch.setattr(backend, "once", forbidden)
    with pytest.raises(StorageError, match="check the keys"):
        store.put_atomic("large", source)
    assert list(store.staged()) == []
    monkeypatch.setattr(backend, "once", short)
    with pytest.raises(StorageError, match=r"1048593 bytes.*3 after the upload"):
        store.put_atomic("large", source)
    monkeypatch.undo()
    assert list(store.staged()) == []
    backend.call("create_multipart_upload", "dead", backend.patience())
    ObjectStore(store.url.rpartition("/")[0], rclone_s3.settings()).put_atomic("elsewhere", b"1")
    (dead,) = store.staged()
    assert dead.key == "dead"
    assert abs(dead.modified - time.time()) < 3600
    store.abort(dead.key, dead.upload or "")
    assert list(store.staged()) == []


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six drawn frames and one click."""
    from pipeline.nano.clips import render_clip
    from pipeline.render.film import FilmWriter

    folder = tmp_path_factory.mktemp("night")
    drawn = render_clip(900_100_006, frames=6, size=96)
    with FilmWriter(folder / "clip.mp4", 25.0, quality=8) as film:
        for frame in drawn.frames_thw3:
            film.append(frame)
    ys, xs = np.nonzero(drawn.mask(drawn.object_ids[0])[0])
    points = [[int(xs[len(xs) // 2]), int(ys[len(ys) // 2]), 1]]
    objects = [{"object_id": 1, "prompts": [{"frame_index": 0, "points": points}]}]
    (folder / "clip.prompts.json").write_text(json.dumps({"version": 1, "objects": objects}))
    return folder


@pytest.mark.slow
def test_a_video_is_labelled_as_on_a_good_store(
    server: Any, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    from pipeline.label import label_video
    from pipeline.models import load_model

    monkeypatch.setenv("MASKSIEVE_LEDGER", str(tmp_path / "ledger.sqlite"))
    model, bucket = load_model("sam2_nano"), server.new_bucket()
    good = ObjectStore(bucket, server.settings())
    for name in ("clip.mp4", "clip.prompts.json"):
        good.put_atomic(f"night/{name}", clip / name)

    def label(out: str, storage: Any) -> tuple[str, dict[str, str]]:
        settings = load_settings(None, {"output.review_frames": False, "output.tokens": True})
        settings = settings.model_copy(update={"storage": storage})
        place = f"{bucket}/night/clip"
        report = label_video(f"{place}.mp4", f"{place}.prompts.json", f"{bucket}/{out}", settings, model=model)
        store = ObjectStore(f"{bucket}/{out}", server.settings())
        layers = ("masks", "tokens", "labels", "review")
        found = {key: key.split("/")[0] for key in store.list() if key.split("/")[0] != "commits"}
        assert sorted(found.values()) == sorted(layers)  # each once: nothing lost, double, or left of the probe
        assert len(store.list("commits/")) == 1
        return report.status, {layer: hashlib.sha256(store.get(key)).hexdigest() for key, layer in found.items()}

    status, expected = label("good", server.settings())
    assert status == "labelled"
    for seed in SEEDS if server is request.getfixturevalue("moto_s3") else SEEDS[:1]:
        with FlakyProxy(server.endpoint_url, seed) as proxy:
            began = time.monotonic()
            storage = server.settings(endpoint_url=proxy.url, retry_seconds=30, stall_seconds=STALL_SECONDS)
            assert label(f"flaky-{seed}", storage) == ("labelled", expected)
            if seed == SEEDS[0]:
                assert label(f"flaky-{seed}", storage) == ("unchanged", expected)
            assert time.monotonic() - began < 60
            assert sum(proxy.done.values()) - proxy.done["fine"] >= 3
