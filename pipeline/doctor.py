"""Looks at the machine and says, per part, whether it works and what to do when it does not."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.checkpoints import cache_root
from pipeline.errors import MasksieveError
from pipeline.settings import Settings

log = logging.getLogger(__name__)

State = Literal["ok", "warn", "broken"]
_GIB = 1024**3


@dataclass(frozen=True)
class Check:
    """One line of the doctor's table.

    Args:
        part: what was looked at.
        state: ok; warn (works, with a limit); broken (something needed does not work).
        found: what is there, with versions and sizes.
        next_step: what to do, empty when there is nothing to do.
    """

    part: str
    state: State
    found: str
    next_step: str = ""


def examine(settings: Settings, store_url: str | None = None) -> list[Check]:
    """Run every check; none of them raises.

    Args:
        settings: model, scratch and storage settings to look at.
        store_url: an output to try, for example "s3://bucket/labels"; None skips it.
    Returns: one check per part, in reading order.
    """
    parts: list[tuple[str, Callable[[], Check]]] = [
        ("Python", check_python),
        ("torch", check_torch),
        ("device", lambda: check_device(settings)),
        ("sam2", lambda: check_package("sam2", "sam2", exactly="1.1.0")),
        ("decord", check_decord),
        ("PyAV", check_pyav),
        ("embedded model", lambda: check_embedded(settings)),
        ("model cache", lambda: check_cache(settings)),
        ("scratch disk", lambda: check_disk(settings)),
        ("flows", check_prefect),
    ]
    if store_url:
        parts.append(("object store", lambda: check_store(store_url, settings)))
    return [_guarded(part, check) for part, check in parts]


def healthy(checks: Sequence[Check]) -> bool:
    """True when nothing needed is broken."""
    return all(check.state != "broken" for check in checks)


def _guarded(part: str, check: Callable[[], Check]) -> Check:
    """A check whose own failure is a finding, not a crash."""
    try:
        return check()
    except MasksieveError as error:
        return Check(part, "broken", f"expected {error.expected}, got {error.got}", error.next_step)
    except Exception as error:
        log.debug("check of %s failed", part, exc_info=True)
        reason = " ".join(str(error).split())[:160]
        return Check(
            part, "broken", f"{type(error).__name__}: {reason}", "install masksieve again into a fresh environment"
        )


def check_python() -> Check:
    """The interpreter is 3.11 or newer."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    oldest = (3, 11)
    if sys.version_info[:2] < oldest:
        return Check("Python", "broken", version, "use Python 3.11 or newer")
    return Check("Python", "ok", version)


def check_package(part: str, distribution: str, *, exactly: str | None = None) -> Check:
    """A distribution is installed, in the one version that is supported where there is only one."""
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return Check(part, "broken", "not installed", f"pip install {distribution}{f'=={exactly}' if exactly else ''}")
    if exactly and version != exactly:
        return Check(
            part, "broken", version, f"pip install {distribution}=={exactly}, propagation is built on its methods"
        )
    return Check(part, "ok", version)


def check_torch() -> Check:
    """torch imports and multiplies."""
    import torch

    total = float((torch.ones(8, 8) @ torch.ones(8, 8)).sum())
    if total != 512.0:
        return Check("torch", "broken", f"{torch.__version__}, a product of ones gave {total}", "install torch again")
    return Check("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")


def check_device(settings: Settings) -> Check:
    """The device that the settings ask for is there and computes."""
    import torch

    wanted = settings.model.device
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        torch.ones(8, device="cuda").sum().item()
        return Check(
            "device", "ok", f"{torch.cuda.get_device_name()}, {free / _GIB:.0f} of {total / _GIB:.0f} GiB free"
        )
    if wanted == "cuda":
        return Check(
            "device",
            "broken",
            "cuda is set, no GPU is seen",
            "set model.device to auto, or install a CUDA build of torch",
        )
    hint = "large SAM2 models want a GPU; sam2_nano does not"
    return Check("device", "ok", f"CPU, {len(os.sched_getaffinity(0))} cores", hint)


def check_decord() -> Check:
    """decord imports; without it PyAV reads everything, slower."""
    try:
        import decord
    except (ImportError, OSError, RuntimeError) as error:
        return Check(
            "decord", "warn", f"not usable: {error}", "pip install decord==0.6.0, or read everything with PyAV"
        )
    return Check("decord", "ok", str(decord.__version__))


def check_pyav() -> Check:
    """PyAV writes and reads a small film."""
    import av
    import numpy as np

    from pipeline.render.film import FilmWriter

    with tempfile.TemporaryDirectory(prefix="masksieve-doctor-") as folder:
        path = Path(folder) / "film.mp4"
        with FilmWriter(path, 25.0) as film:
            for shade in (0, 120, 240):
                film.append(np.full((64, 64, 3), shade, np.uint8))
        with av.open(str(path)) as container:
            shades = [int(frame.to_ndarray(format="rgb24").mean()) for frame in container.decode(video=0)]
    if len(shades) != 3 or shades != sorted(shades):
        return Check(
            "PyAV", "broken", f"{av.__version__}, three frames came back as {shades}", "install av from its wheel"
        )
    if film.codec != "libx264":
        return Check(
            "PyAV", "warn", f"{av.__version__}, writes {film.codec}", "av's wheel has libx264, which browsers play"
        )
    return Check("PyAV", "ok", f"{av.__version__}, reads and writes H.264")


def check_embedded(settings: Settings) -> Check:
    """The model that ships in the package loads and has its heads."""
    from pipeline.models import load_model

    loaded = load_model("sam2_nano", device="cpu", cache_dir=settings.model.cache_dir)
    weights = sum(parameter.numel() for parameter in loaded.model.parameters()) / 1e6
    found = f"sam2_nano, {weights:.1f} M parameters, sha256 {loaded.sha256[:12]}"
    if loaded.bank is None:
        return Check(
            "embedded model", "warn", f"{found}, no heads", "uncertainty falls back to 1 - sam_score, uncertified"
        )
    return Check("embedded model", "ok", f"{found}, with heads")


def check_cache(settings: Settings) -> Check:
    """The folder of downloaded checkpoints can be written, or made."""
    folder = cache_root(settings.model.cache_dir)
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not os.access(existing, os.W_OK):
        return Check("model cache", "warn", f"{folder} cannot be written", "set MASKSIEVE_CACHE to a folder of yours")
    if not folder.exists():
        return Check("model cache", "ok", f"{folder}, empty", "masksieve models list shows what can be fetched")
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return Check("model cache", "ok", f"{folder}, {len(sizes)} files, {sum(sizes) / 1e6:.0f} MB")


def check_disk(settings: Settings) -> Check:
    """The scratch folder can be written and has room."""
    folder = Path(settings.output.scratch_dir or tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    with tempfile.NamedTemporaryFile(dir=folder) as probe:
        probe.write(b"masksieve")
    found = f"{folder}, {free / _GIB:.1f} GiB free"
    if free < 2 * _GIB:
        return Check("scratch disk", "warn", found, "long videos need more: set output.scratch_dir to a larger disk")
    return Check("scratch disk", "ok", found)


def check_prefect() -> Check:
    """Prefect is needed by flows/ only; `masksieve label` runs without it."""
    found = check_package("flows", "prefect")
    if found.state == "broken":
        return Check(
            "flows",
            "warn",
            "prefect is not installed",
            "pip install 'prefect>=3.8.8,<3.9' to run flows; label needs none",
        )
    return Check("flows", "ok", f"prefect {found.found}")


def check_store(url: str, settings: Settings) -> Check:
    """A small object can be written, and a second conditional write is refused."""
    from pipeline.storage.objects import ObjectStore

    store = ObjectStore(url, settings.storage)
    if store.probe_conditional_put():
        return Check("object store", "ok", f"{url}, conditional writes are honoured")
    return Check(
        "object store", "ok", f"{url}, writable", "it ignores If-None-Match: commits go through a SQL unique key"
    )
