"""An S3 bucket as an object store, through s3fs; conditional writes where the server knows them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import io
import os
import threading
import time
import uuid
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeGuard, TypeVar

from pipeline.errors import DiskSpaceError, StorageError, UnavailableError
from pipeline.storage.download import CHUNK_BYTES, READINGS, Entry, ObjectFacts, Staged, stopped
from pipeline.storage.ranged import READ_AHEAD_BYTES, ranged
from pipeline.storage.retry import BrokenConnection, DamagedUpload, Misread, Patience, passing, reason
from pipeline.storage.s3_answers import content_md5, md5_hex, md5_of, not_implemented, refused_by_condition, sha256_of
from pipeline.storage.s3_client import client_of
from pipeline.storage.s3_parts import abort, put_in_parts, uploads
from pipeline.storage.secrets import blot_out, checked_url, remember

if TYPE_CHECKING:
    from pipeline.settings import StorageSettings

SINGLE_PUT_BYTES = 64 * 2**20
"""Up to here one PUT, which can be conditional; larger files go in parts, which can't."""
CONNECT_SECONDS = 10
CLIENT_SECONDS = 60.0
WRITE = "masksieve-write"
"""Metadata of objects that were written on a condition: which write it was."""

T = TypeVar("T")


class S3Backend:
    """Objects of one bucket below a prefix. A PUT is atomic by itself, and so is the end of a multipart upload.

    All requests go through `call`, which waits out passing errors; the libraries below try once.
    """

    def __init__(self, bucket: str, prefix: str, settings: StorageSettings) -> None:
        self.bucket, self.prefix, self._settings = bucket, prefix, settings
        client = {"endpoint_url": settings.endpoint_url, "region_name": settings.region}
        endpoint = client["endpoint_url"] or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        self.no_conditions = False
        self.identity = f"{checked_url(endpoint or 'aws').rstrip('/')}|s3://{bucket}/{prefix}"
        secrets = {
            "key": settings.access_key_id,
            "secret": settings.secret_access_key,
            "token": settings.session_token,
        }
        remember(secrets.values())
        blot_out("botocore.auth", "botocore.endpoint")
        self.fs = client_of(
            {name: value.get_secret_value() for name, value in secrets.items() if value is not None},
            {name: value for name, value in client.items() if value is not None},
            min(CONNECT_SECONDS, settings.stall_seconds),
        )
        self._connected = False

    def patience(self) -> Patience:
        """The budget of a new operation."""
        return Patience(self._settings.retry_seconds, self._settings.stall_seconds)

    def uri(self, key: str) -> str:
        """`s3://bucket/prefix/key`."""
        return f"s3://{self.bucket}/{self.full_key(key)}"

    def path(self, key: str) -> Path | None:
        """Nothing: the object is not on this machine."""
        return None

    def put(self, key: str, source: Path | bytes) -> None:
        """One PUT, or a multipart upload for a large file; the server compares checksums."""
        if _is_large(source):
            put_in_parts(self, key, source)
        else:
            self._put_object(key, _bytes(source), self.patience())

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """PUT with `If-None-Match: *`. A server that does not know it overwrites: see `ObjectStore.capabilities`."""
        return self._conditional(key, data, None)

    def replace(self, key: str, source: Path | bytes, version: str | None) -> bool:
        """PUT with `If-Match`, after a look at the version, for servers and sizes that ignore the condition."""
        if self.version(key) != version:
            return False
        if _is_large(source):
            put_in_parts(self, key, source)
            return True
        return self._conditional(key, _bytes(source), version)

    def refuses_stale(self, key: str) -> bool:
        """Whether the server refuses to replace an object that is no longer of the version named."""
        return not self.no_conditions and not self._conditional(key, b"stale", f'"{"0" * 32}"')

    def version(self, key: str) -> str | None:
        """The ETag; None if there is no such object."""
        try:
            return str(self.call("head_object", key, self.patience())["ETag"])
        except FileNotFoundError:
            return None

    def get(self, key: str) -> bytes:
        """The whole object, of the length and the MD5 that the server says."""
        patience = self.patience()
        for reading in range(READINGS):
            try:
                return patience.insist(lambda: self._read(key, patience))
            except Misread:
                if reading + 1 == READINGS:
                    raise
        raise AssertionError("unreachable")

    def open(self, key: str) -> BinaryIO:
        """Open for random reads of the version that is there now; a small object is read whole and checked."""
        facts = self.facts(key)
        if facts.size_bytes <= READ_AHEAD_BYTES:
            return io.BytesIO(self.get(key))
        only = {"IfMatch": facts.tag} if facts.tag else {}

        def fetch(start: int, end: int) -> bytes:
            patience = self.patience()
            try:
                return patience.insist(lambda: self._read(key, patience, start, end, **only))
            except StorageError:
                raise
            except Exception as error:
                raise self.error(error, "read", self.uri(key)) from error

        return ranged(facts.size_bytes, fetch)

    def facts(self, key: str) -> ObjectFacts:
        """Size, ETag, and the checksums that are of the bytes."""
        head = self.call("head_object", key, self.patience(), ChecksumMode="ENABLED")
        return ObjectFacts(int(head["ContentLength"]), head.get("ETag"), md5_of(head, self.bucket), sha256_of(head))

    def stream(
        self, key: str, offset: int, facts: ObjectFacts, patience: Patience, stop: threading.Event
    ) -> Iterator[bytes]:
        """The bytes from an offset on, of the version that `facts` describes."""
        only = {"IfMatch": facts.tag} if facts.tag else {}
        part = {"Range": f"bytes={offset}-"} if offset else {}
        try:
            answered = self.once("get_object", key, patience, stop, **only, **part)
        except Exception as error:
            if refused_by_condition(error):
                raise Misread(f"the version {facts.tag}", "another one") from error
            if passing(error):
                raise BrokenConnection(reason(error)) from error
            raise
        if facts.tag and answered.get("ETag", facts.tag) != facts.tag:
            raise Misread(f"the version {facts.tag}", f"{answered['ETag']}")
        skip = 0 if str(answered.get("ContentRange", "")).startswith(f"bytes {offset}-") else offset
        for chunk in self._body(answered["Body"], patience, key, stop):
            yield chunk[skip:]  # a server that knows no ranges begins at the beginning
            skip = max(0, skip - len(chunk))

    def list(self, prefix: str) -> list[str]:
        """Keys below a folder prefix."""
        return [entry.key for entry in self.entries(prefix)]

    def entries(self, prefix: str) -> Iterator[Entry]:
        """Objects below a folder prefix, a page of the listing at a time."""
        root = self.full_key("")
        more: dict[str, str] = {}
        while True:
            page = self.call("list_objects_v2", None, self.patience(), Prefix=self.full_key(prefix), **more)
            for found in page.get("Contents", []):
                key = found["Key"]
                if key.startswith(root) and not key.endswith("/"):
                    modified = found["LastModified"].timestamp()
                    yield Entry(key[len(root) :], int(found["Size"]), found.get("ETag"), modified)
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        self.call("delete_object", key, self.patience())

    def staged(self) -> Iterator[Staged]:
        """Uploads in parts that have not ended; their parts cost room and nobody sees them."""
        return uploads(self)

    def abort(self, key: str, upload: str) -> None:
        """Let go of the parts of an upload."""
        abort(self, key, upload)

    def keeps_versions(self) -> bool | None:
        """Whether the bucket does, or did once; None if the server or its policy does not let us ask."""
        try:
            answered = self.call("get_bucket_versioning", None, self.patience())
        except Exception:  # noqa: BLE001 - whatever it is, the question stays open
            return None
        return answered.get("Status") in ("Enabled", "Suspended")

    def error(self, error: Exception, doing: str, uri: str) -> StorageError:
        """The typed error of an exception."""
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskSpaceError(f"room on this machine to {doing} {uri}", "a full disk", "set output.scratch_dir")
        if isinstance(error, Misread):
            step = "see whether it is being written, or upload it again"
            return StorageError(f"{error.expected} at {uri}", error.got, step)
        if passing(error):
            expected = f"to {doing} {uri} within {self._settings.retry_seconds:g} s"
            return UnavailableError(expected, reason(error), "check AWS_ENDPOINT_URL, the region and the network")
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
            step = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            return StorageError(f"credentials to {doing} {uri}", "none", step)
        if isinstance(error, PermissionError):
            got = f"refused ({reason(error)})"
            return StorageError(f"leave to {doing} {uri}", got, "check the keys and the bucket's policy")
        if isinstance(error, FileNotFoundError):
            step = f"check the path, and that the bucket {self.bucket} exists"
            return StorageError(f"an object or bucket to {doing} at {uri}", "nothing there", step)
        return StorageError(f"to {doing} {uri}", reason(error), "check AWS_ENDPOINT_URL, the region and the network")

    def full_key(self, key: str) -> str:
        """A key below the bucket."""
        return f"{self.prefix}/{key}" if self.prefix else key

    def call(self, method: str, key: str | None, patience: Patience, **arguments: Any) -> dict[str, Any]:
        """One request and its answer; passing errors are waited out."""
        return patience.insist(lambda: self.once(method, key, patience, **arguments))

    def once(
        self, method: str, key: str | None, patience: Patience, stop: threading.Event | None = None, **arguments: Any
    ) -> dict[str, Any]:
        """One request and its answer, tried once."""
        if not self._connected:  # reads the libraries' models and the keys, which is no matter of the store's
            self._await(self.fs.set_session(), Patience(0, CLIENT_SECONDS), self.uri(key or ""), stop)
            self._connected = True
            patience.renew()
        named = arguments if key is None else {**arguments, "Key": self.full_key(key)}
        uri = self.uri(key or "")
        if "Body" not in named:
            got: dict[str, Any] = self._await(
                self.fs._call_s3(method, Bucket=self.bucket, **named), patience, uri, stop
            )
            return got
        body, md5 = _Upload(named["Body"]), md5_hex(named["Body"])
        named = {**named, "Body": body, "ContentMD5": content_md5(md5)}
        request = self.fs._call_s3(method, Bucket=self.bucket, **named)
        answered: dict[str, Any] = self._await(request, patience, uri, stop, body)
        if md5_of(answered, self.bucket) not in (None, md5):  # of a server that does not look at Content-MD5
            raise DamagedUpload(answered["ETag"])
        return answered

    def _conditional(self, key: str, data: bytes, version: str | None) -> bool:
        """PUT only over this version, None for nothing.

        A try that broke may have landed all the same, and then the next one is refused (aiohttp makes one on its own
        where a connection was reset): the object that lies there says whose it is.
        """
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        mark, patience = uuid.uuid4().hex, self.patience()
        while not self.no_conditions:
            try:
                self.once("put_object", key, patience, Body=data, Metadata={WRITE: mark}, **condition)
            except Exception as error:
                if refused_by_condition(error):
                    return self._landed(key, data, mark, patience)
                if isinstance(error, DamagedUpload):
                    condition = {"IfMatch": error.tag}  # it is ours to mend
                if not_implemented(error):
                    self.no_conditions = True  # some servers answer 501 instead of ignoring the condition
                elif version is not None and isinstance(error, FileNotFoundError):
                    return False  # there is nothing any more that it could replace
                elif not passing(error):
                    raise
                else:
                    patience.pause(error)
            else:
                return True
        if self.version(key) != version:
            return False
        self._put_object(key, data, patience)
        return True

    def _landed(self, key: str, data: bytes, mark: str, patience: Patience) -> bool:
        """Whether the object is what this write made; by its bytes where a server keeps no metadata."""
        try:
            there = self.call("head_object", key, self.patience()).get("Metadata", {}).get(WRITE)
            return bool(there == mark if there else patience.breaks and self.get(key) == data)
        except FileNotFoundError:
            return False

    def _put_object(self, key: str, data: bytes, patience: Patience) -> None:
        self.call("put_object", key, patience, Body=data)

    def _read(self, key: str, patience: Patience, start: int | None = None, end: int = 0, **only: Any) -> bytes:
        """An object, or the bytes of [start, end). Raises BrokenConnection if fewer came, Misread if others did."""
        part: dict[str, Any] = {} if start is None else {"Range": f"bytes={start}-{end - 1}"}
        try:
            answered = self.once("get_object", key, patience, **only, **part)
        except Exception as error:
            if refused_by_condition(error):
                raise Misread("an object that holds still", "another version of it") from error
            raise
        data = b"".join(self._body(answered["Body"], patience, key, None))
        if len(data) != int(answered.get("ContentLength", len(data))):
            raise BrokenConnection(f"{len(data)} of {answered['ContentLength']} bytes came")
        if start is not None:
            if not str(answered.get("ContentRange", "")).startswith(f"bytes {start}-"):
                data = data[start:end]  # a server that knows no ranges
            if len(data) != end - start:
                raise BrokenConnection(f"{len(data)} of {end - start} bytes came")
            return data
        expected, got = md5_of(answered, self.bucket), md5_hex(data)
        if expected not in (None, got):
            raise Misread(f"bytes with MD5 {expected}", f"{got}, a damaged copy")
        return data

    def _body(self, body: Any, patience: Patience, key: str, stop: threading.Event | None) -> Iterator[bytes]:
        try:
            while True:
                try:
                    chunk = self._await(body.read(CHUNK_BYTES), patience, self.uri(key), stop)
                except (BrokenConnection, StorageError):
                    raise
                except Exception as error:  # the many ways of two HTTP libraries to say that the rest did not come
                    raise BrokenConnection(reason(error)) from error
                if not chunk:
                    return
                yield chunk
        finally:
            self.fs.loop.call_soon_threadsafe(body.close)

    def _await(
        self,
        coroutine: Coroutine[Any, Any, T],
        patience: Patience,
        uri: str,
        stop: threading.Event | None,
        upload: _Upload | None = None,
    ) -> T:
        """Run a coroutine in the loop of s3fs; end at a stop, at an interrupt, and when nothing comes or goes."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self.fs.loop)
        stall_seconds, begun = patience.stall_seconds(), time.monotonic()
        try:
            while not concurrent.futures.wait([future], timeout=min(0.1, stall_seconds)).done:
                if stop is not None and stop.is_set():
                    raise stopped(uri)
                if time.monotonic() - max(begun, upload.read_at if upload else begun) > stall_seconds:
                    raise BrokenConnection(f"nothing for {stall_seconds:.3g} s")
            return future.result()
        finally:
            future.cancel()


class _Upload(io.BytesIO):
    """The body of a PUT, which knows when it was last read from."""

    read_at = 0.0

    def read(self, size: int | None = -1, /) -> bytes:
        self.read_at = time.monotonic()
        return super().read(size)


def _is_large(source: Path | bytes) -> TypeGuard[Path]:
    return isinstance(source, Path) and source.stat().st_size > SINGLE_PUT_BYTES


def _bytes(source: Path | bytes) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()
