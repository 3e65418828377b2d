"""Checkpoints: fetched whole from a real web server, verified ever after, nothing half-written left behind."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline import checkpoints
from pipeline.checkpoints import (
    cache_root,
    download,
    fetch,
    model_names,
    model_size,
    model_spec,
    models_table,
    verify,
)
from pipeline.errors import DiskSpaceError, ModelError

NAME = "sam2.1_hiera_tiny"
BODY = bytes(range(256)) * 9000  # 2.3 MB: several chunks
SHA256 = hashlib.sha256(BODY).hexdigest()


@dataclass
class Server:
    """A web server on this machine whose answers a test chooses."""

    url: str = ""
    body: bytes = BODY
    announced_bytes: int | None = None
    status: int = 200
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    answers = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers.requests.append(self.path)
            self.send_response(answers.status)
            if answers.announced_bytes != -1:
                self.send_header("Content-Length", str(answers.announced_bytes or len(answers.body)))
            self.end_headers()
            self.wfile.write(answers.body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        answers.url = f"http://127.0.0.1:{http.server_port}/models"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield answers
        http.shutdown()
        thread.join()


def left(cache: Path) -> list[str]:
    """All files of a cache."""
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


def test_a_fetch_leaves_the_file_and_its_checksum(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    file = fetch(NAME, tmp_path, mirror=server.url, progress=lambda done, total: seen.append((done, total)))
    assert file.path.read_bytes() == BODY
    assert (file.sha256, file.size_bytes) == (SHA256, len(BODY))
    assert server.requests == [f"/models/{NAME}.pt"]
    assert left(tmp_path) == [f"{NAME}.pt", f"{NAME}.pt.sha256"]
    assert file.path.with_name(f"{NAME}.pt.sha256").read_text() == f"{SHA256}  {NAME}.pt\n"
    assert seen[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) > 1


def test_a_second_fetch_asks_no_server(server: Server, tmp_path: Path) -> None:
    first = fetch(NAME, tmp_path, mirror=server.url)
    assert fetch(NAME, tmp_path, mirror=server.url) == first
    assert len(server.requests) == 1


def test_the_mirror_may_come_from_the_environment(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKSIEVE_MIRROR", f"{server.url}/")
    assert fetch(NAME, tmp_path).sha256 == SHA256


def test_a_recorded_checksum_outlives_its_file(server: Server, tmp_path: Path) -> None:
    fetch(NAME, tmp_path, mirror=server.url).path.unlink()
    server.body = BODY[::-1]
    with pytest.raises(ModelError, match=f"sha256 {SHA256}"):
        fetch(NAME, tmp_path, mirror=server.url)
    assert left(tmp_path) == [f"{NAME}.pt.sha256"]


def test_a_pinned_checksum_is_demanded(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = tmp_path / "configs"
    (configs / "models").mkdir(parents=True)
    text = model_spec(NAME).config.read_text()
    (configs / "models" / f"{NAME}.yaml").write_text(text.replace("sha256: null", f"sha256: {'0' * 64}"))
    monkeypatch.setattr(checkpoints, "config_dir", lambda: configs)
    cache = tmp_path / "cache"
    with pytest.raises(ModelError, match=f"sha256 {'0' * 64}.*{SHA256}"):
        fetch(NAME, cache, mirror=server.url)
    assert left(cache) == []


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        ({"announced_bytes": len(BODY) + 5}, f"{len(BODY) + 5} bytes.*got {len(BODY)} bytes"),
        ({"status": 404, "body": b"no"}, "HTTP 404"),
        ({"status": 503, "body": b"no"}, "HTTP 503"),
        ({"body": b"", "announced_bytes": -1}, "an empty one"),
    ],
)
def test_a_bad_answer_leaves_nothing(
    server: Server, tmp_path: Path, setup: dict[str, int | bytes], message: str
) -> None:
    for key, value in setup.items():
        setattr(server, key, value)
    with pytest.raises(ModelError, match=message):
        fetch(NAME, tmp_path, mirror=server.url)
    assert left(tmp_path) == []


def test_no_server_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="refused"):
        fetch(NAME, tmp_path, mirror="http://127.0.0.1:9")
    assert left(tmp_path) == []


def test_an_interrupt_leaves_nothing(server: Server, tmp_path: Path) -> None:
    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(NAME, tmp_path, mirror=server.url, progress=stop)
    assert left(tmp_path) == []


def test_too_little_disk_is_told_before_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = checkpoints.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DiskSpaceError, match="MASKSIEVE_CACHE"):
        fetch(NAME, tmp_path, mirror=server.url)
    assert left(tmp_path) == []


def test_a_failed_download_leaves_the_older_file(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(b"older")
    with pytest.raises(ModelError):
        download(f"{server.url}/file.pt", path, "0" * 64)
    assert path.read_bytes() == b"older"


def test_a_cache_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match="MASKSIEVE_CACHE"):
        fetch(NAME, tmp_path / "file", mirror="http://127.0.0.1:9")


def test_a_changed_file_is_refused_by_verify_and_by_fetch(server: Server, tmp_path: Path) -> None:
    path = fetch(NAME, tmp_path, mirror=server.url).path
    path.write_bytes(BODY[:-1] + b"x")
    for check in (verify, fetch):
        with pytest.raises(ModelError, match=f"sha256 {SHA256}.*delete it"):
            check(NAME, tmp_path)


def test_a_file_put_there_by_hand_is_recorded_and_then_held_to_it(tmp_path: Path) -> None:
    path = tmp_path / "models" / f"{NAME}.pt"
    path.parent.mkdir()
    path.write_bytes(b"by hand")
    assert verify(NAME, tmp_path).sha256 == hashlib.sha256(b"by hand").hexdigest()
    path.write_bytes(b"changed")
    with pytest.raises(ModelError):
        verify(NAME, tmp_path)


def test_a_damaged_record_is_not_taken_for_a_missing_one(server: Server, tmp_path: Path) -> None:
    path = fetch(NAME, tmp_path, mirror=server.url).path
    path.with_name(f"{path.name}.sha256").write_text("")
    with pytest.raises(ModelError, match="record the checksum anew"):
        verify(NAME, tmp_path)


def test_missing_weights_name_command_and_address(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"models fetch {NAME}.*https://dl\.fbaipublicfiles\.com/.*/{NAME}\.pt"):
        verify(NAME, tmp_path)


def test_the_table_lists_every_model_and_what_is_here(server: Server, tmp_path: Path) -> None:
    fetch(NAME, tmp_path, mirror=server.url)
    rows = {row.name: row for row in models_table(tmp_path)}
    sizes = ("tiny", "small", "base_plus", "large")
    assert list(rows) == [
        "sam2_nano",
        "sam2_micro",
        *(f"sam2.1_hiera_{size}" for size in sizes),
        *(f"sam2_hiera_{size}" for size in sizes),
    ]
    assert (rows[NAME].status, rows[NAME].sha256, rows[NAME].size_bytes) == ("ready", SHA256, len(BODY))
    assert (rows["sam2_hiera_large"].status, rows["sam2_hiera_large"].sha256) == ("missing", None)
    assert rows["sam2_nano"].source == rows["sam2_micro"].source == "embedded"


def test_every_download_address_ends_in_the_models_name() -> None:
    downloads = [name for name in model_names() if not model_spec(name).embedded]
    assert len(downloads) == 8
    for name in downloads:
        url = model_spec(name).url
        assert url is not None
        assert url.startswith("https://dl.fbaipublicfiles.com/segment_anything_2/")
        assert url.endswith(f"/{name}.pt")


def test_models_are_named_embedded_first_and_from_small_to_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["sam2_hiera_large", "sam2.1_hiera_base_plus", "sam2_micro", "sam2.1_hiera_small", "sam2_nano", "sam2_mine"]
    (tmp_path / "models").mkdir()
    for name in names:
        (tmp_path / "models" / f"{name}.yaml").write_text("model: {}\n")
    monkeypatch.setattr(checkpoints, "config_dir", lambda: tmp_path)
    wanted = ["sam2_nano", "sam2_micro", "sam2.1_hiera_small", "sam2.1_hiera_base_plus", "sam2_hiera_large"]
    assert model_names() == [*wanted, "sam2_mine"]
    assert [model_size(name) for name in wanted] == ["tiny", "large", "small", "base_plus", "large"]
    with pytest.raises(ModelError, match="sam2_mine"):
        model_size("sam2_mine")


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_root(tmp_path) == tmp_path
    monkeypatch.setenv("MASKSIEVE_CACHE", "/elsewhere")
    assert cache_root() == Path("/elsewhere")
    monkeypatch.delenv("MASKSIEVE_CACHE")
    assert cache_root() == Path.home() / ".cache" / "masksieve"
