"""Model files by name: where they come from, the cache, and a checksum recorded once and verified ever after."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import yaml

from pipeline.checksum import file_sha256
from pipeline.errors import DiskSpaceError, ModelError
from pipeline.settings import config_dir
from pipeline.suggest import did_you_mean

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 60.0
# How a name may end, from small to large, and which of USAM's sizes that is.
_SIZES = {
    "nano": "tiny",
    "micro": "large",
    "tiny": "tiny",
    "small": "small",
    "base_plus": "base_plus",
    "large": "large",
}
_EMBEDDED = ("nano", "micro")


@dataclass(frozen=True)
class ModelSpec:
    """A model that can be named: its configuration, and where its weights come from.

    Attributes:
        name: for example "sam2.1_hiera_tiny".
        config: its YAML in configs/models/.
        url: the download address, or None when the weights ship inside the package.
        pinned_sha256: the checksum that its YAML demands, or None (recorded at the first fetch instead).
    """

    name: str
    config: Path
    url: str | None
    pinned_sha256: str | None

    @property
    def embedded(self) -> bool:
        """Whether the weights ship inside the package."""
        return self.url is None


@dataclass(frozen=True)
class ModelFile:
    """A model's weights on this disk, with the SHA-256 of their bytes as they are now."""

    name: str
    path: Path
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class ModelRow:
    """One line of `masksieve models list`. `sha256` is the pinned or recorded one; None before the first fetch."""

    name: str
    source: Literal["embedded", "download"]
    status: Literal["ready", "missing"]
    path: Path
    url: str | None
    size_bytes: int | None
    sha256: str | None


def cache_root(cache_dir: Path | None = None) -> Path:
    """The cache folder: the one given, else $MASKSIEVE_CACHE, else ~/.cache/masksieve."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    named = os.environ.get("MASKSIEVE_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "masksieve"


def model_names() -> list[str]:
    """The names of all models: the embedded ones, then SAM 2.1, then SAM 2, each from small to large."""
    words = list(_SIZES)
    names = [path.name.removesuffix(".yaml") for path in (config_dir() / "models").glob("*.yaml")]

    def order(name: str) -> tuple[bool, bool, int, str]:
        rank = next((rank for rank, word in enumerate(words) if name.endswith(word)), len(words))
        return not name.endswith(_EMBEDDED), not name.startswith("sam2.1"), rank, name

    return sorted(names, key=order)


def model_size(name: str) -> str:
    """Which of USAM's four sizes a model is: tiny, small, base_plus or large, by the end of its name.

    Of the embedded models sam2_nano is the tiny one and sam2_micro, its larger sibling, the large one.

    Raises: ModelError for a name that says no size.
    """
    for word, size in _SIZES.items():
        if name.endswith(word):
            return size
    raise ModelError(f"a name that ends in {', '.join(_SIZES)}", repr(name), "name the size too, as in tiny=NAME")


def model_spec(name: str) -> ModelSpec:
    """A model by its name.

    Raises: ModelError for an unknown name, with the nearest known one.
    """
    names = model_names()
    if name not in names:
        raise ModelError("a known model", repr(name), did_you_mean(name, names))
    path = config_dir() / "models" / f"{name}.yaml"
    # BaseLoader keeps every value a string: a checksum of digits alone is no number.
    data = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    sha256 = str(data.get("sha256", "null")).lower()
    if sha256 != "null" and not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ModelError(f"sha256 in {path} of 64 hex digits, or null", repr(sha256), "correct it")
    return ModelSpec(name, path, data.get("url"), None if sha256 == "null" else sha256)


def weights_path(spec: ModelSpec, cache_dir: Path | None = None) -> Path:
    """Where a model's weights lie, or will lie once fetched."""
    if spec.url is None:
        return Path(__file__).resolve().parent / "nano" / "weights" / f"{spec.name}.safetensors"
    return cache_root(cache_dir) / "models" / spec.url.rsplit("/", 1)[-1]


def models_table(cache_dir: Path | None = None) -> list[ModelRow]:
    """All models and whether each is ready; reads no weights and hashes nothing."""
    rows = []
    for name in model_names():
        spec = model_spec(name)
        path = weights_path(spec, cache_dir)
        there = path.is_file()
        rows.append(
            ModelRow(
                name=name,
                source="embedded" if spec.embedded else "download",
                status="ready" if there else "missing",
                path=path,
                url=spec.url,
                size_bytes=path.stat().st_size if there else None,
                sha256=spec.pinned_sha256 or _recorded(path),
            )
        )
    return rows


def fetch(
    name: str,
    cache_dir: Path | None = None,
    *,
    mirror: str | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> ModelFile:
    """Download a model's weights into the cache, unless they are there already; verified either way.

    Args:
        name: a model's name; an embedded one is only verified.
        cache_dir: see `cache_root`.
        mirror: a folder's address to take the file from instead of its publisher's ($MASKSIEVE_MIRROR when None).
        progress: called with bytes done and bytes in all (None when the server does not say).
    Returns: the file, complete, with its checksum recorded beside it (`FILE.sha256`, as `sha256sum -c` reads it).
    Raises: ModelError if the server cannot be reached, stops half-way, or sends a file of another checksum than the
        pinned or recorded one; DiskSpaceError if the cache's disk is too small. Nothing half-written stays.
    """
    spec = model_spec(name)
    path = weights_path(spec, cache_dir)
    if spec.url is None or path.is_file():
        return verify(name, cache_dir)
    base = mirror or os.environ.get("MASKSIEVE_MIRROR")
    url = f"{base.rstrip('/')}/{path.name}" if base else spec.url
    known = spec.pinned_sha256 or _recorded(path)
    sha256 = download(url, path, known, progress)
    if _recorded(path) is None:
        _record(path, sha256)
    logger.info("fetched %s from %s (sha256 %s, %s)", name, url, sha256, "as known" if known else "recorded now")
    return ModelFile(name, path, sha256, path.stat().st_size)


def verify(name: str, cache_dir: Path | None = None) -> ModelFile:
    """Check a model's weights against the checksum that is pinned or was recorded.

    A file that was put into the cache by hand has none yet: its checksum is recorded now.

    Returns: the file.
    Raises: ModelError if the weights are missing or are not those that were recorded.
    """
    spec = model_spec(name)
    path = weights_path(spec, cache_dir)
    if not path.is_file():
        step = (
            "install masksieve again, or make them with `python -m pipeline.nano.train`"
            if spec.url is None
            else f"run `masksieve models fetch {name}`, or put {spec.url} there yourself"
        )
        raise ModelError(f"the weights of {name} at {path}", "no such file", step)
    sha256 = file_sha256(path)
    known = spec.pinned_sha256 or _recorded(path)
    if known is None and not spec.embedded:
        _record(path, sha256)
    elif known is not None and known != sha256:
        step = "install masksieve again" if spec.embedded else f"delete it and run `masksieve models fetch {name}`"
        raise ModelError(f"sha256 {known} for {path}", sha256, step)
    return ModelFile(name, path, sha256, path.stat().st_size)


def download(
    url: str,
    path: Path,
    sha256: str | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> str:
    """Download one file whole: hashed on the way into a temporary file, checked, then renamed into place.

    Args:
        url: http, https or file address.
        path: where the file goes; its folder is made.
        sha256: the checksum it must have, or None to accept any.
        progress: called with bytes done and bytes in all, if known.
    Returns: the file's SHA-256.
    Raises: ModelError or DiskSpaceError; then `path` is as it was before and no temporary file is left.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise ModelError(
            f"a folder to write to at {path.parent}", str(error), "set MASKSIEVE_CACHE to another"
        ) from error
    try:
        with os.fdopen(handle, "wb") as out:
            got = _receive(url, out, path, progress)
            out.flush()
            os.fsync(out.fileno())
        if sha256 is not None and got != sha256:
            raise ModelError(
                f"sha256 {sha256} from {url}", got, "the file was damaged or replaced on the way; nothing was kept"
            )
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return got


def _receive(url: str, out: BinaryIO, path: Path, progress: Callable[[int, int | None], None] | None) -> str:
    """Copy a response into a file, and return the SHA-256 of what came."""
    by_hand = f"try again, or put the file at {path} yourself"
    digest, done = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            length = response.headers.get("Content-Length")
            total = int(length) if length and length.isdigit() else None
            free = shutil.disk_usage(path.parent).free
            if total is not None and total > free:
                raise DiskSpaceError(
                    f"{total / 1e6:.0f} MB free at {path.parent}",
                    f"{free / 1e6:.0f} MB",
                    "free some, or set MASKSIEVE_CACHE",
                )
            while chunk := response.read(CHUNK_BYTES):
                digest.update(chunk)
                out.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
    except urllib.error.HTTPError as error:
        raise ModelError(f"a file at {url}", f"HTTP {error.code} {error.reason}", by_hand) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ModelError(f"a download from {url}", f"{reason} after {done} bytes", by_hand) from error
    if total is not None and done != total:
        raise ModelError(f"{total} bytes from {url}", f"{done} bytes before the connection closed", by_hand)
    if done == 0:
        raise ModelError(f"a file at {url}", "an empty one", by_hand)
    return digest.hexdigest()


def _record_path(path: Path) -> Path:
    """The checksum file that lies beside a weights file."""
    return path.with_name(f"{path.name}.sha256")


def _recorded(path: Path) -> str | None:
    """The checksum recorded for a weights file, or None."""
    record = _record_path(path)
    try:
        words = record.read_text(encoding="ascii").split()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"a readable checksum at {record}", str(error), "repair or delete it") from error
    if not words or len(words[0]) != 64:
        raise ModelError(f"a SHA-256 in {record}", repr(" ".join(words))[:80], "delete it to record the checksum anew")
    return words[0].lower()


def _record(path: Path, sha256: str) -> None:
    """Record a checksum beside its file, whole or not at all; a read-only cache is left as it is."""
    record = _record_path(path)
    temporary = record.with_name(f".{record.name}.{os.getpid()}.part")
    try:
        temporary.write_text(f"{sha256}  {path.name}\n", encoding="ascii")
        os.replace(temporary, record)
    except OSError as error:
        logger.warning("could not record the checksum of %s: %s", path, error)
    finally:
        temporary.unlink(missing_ok=True)
