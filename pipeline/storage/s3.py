"""An S3 bucket as an object store, through s3fs; conditional writes where the server knows them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import concurrent.futures
import errno
import os
import re
import threading
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from pipeline.errors import DiskSpaceError, StorageError
from pipeline.storage.download import CHUNK_BYTES, BrokenConnection, Entry, Misread, ObjectFacts, stopped

if TYPE_CHECKING:
    from pipeline.settings import StorageSettings

SINGLE_PUT_BYTES = 64 * 2**20
"""Up to here one PUT, which can be conditional; larger files go in parts, which can't."""
STALL_SECONDS = 60.0
"""A download that gets no byte for so long is broken."""

T = TypeVar("T")


class S3Backend:
    """Objects of one bucket below a prefix. A PUT is atomic by itself, and so is the end of a multipart upload."""

    def __init__(self, bucket: str, prefix: str, settings: StorageSettings | None) -> None:
        import s3fs

        self.bucket, self.prefix = bucket, prefix
        client = {
            "endpoint_url": settings.endpoint_url if settings else None,
            "region_name": settings.region if settings else None,
        }
        endpoint = client["endpoint_url"] or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        self.no_conditions = False
        self.identity = f"{endpoint or 'aws'}|s3://{bucket}/{prefix}"
        secrets = {
            "key": settings.access_key_id if settings else None,
            "secret": settings.secret_access_key if settings else None,
            "token": settings.session_token if settings else None,
        }
        self.fs = s3fs.S3FileSystem(
            **{name: value.get_secret_value() for name, value in secrets.items() if value is not None},
            client_kwargs={name: value for name, value in client.items() if value is not None},
            # Checksums in trailers are new; servers that are not AWS often refuse them.
            config_kwargs={
                "connect_timeout": 10,
                "retries": {"max_attempts": 3},
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
            },
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def uri(self, key: str) -> str:
        """`s3://bucket/prefix/key`."""
        return f"s3://{self._path(key)}"

    def path(self, key: str) -> Path | None:
        """Nothing: the object is not on this machine."""
        return None

    def put(self, key: str, source: Path | bytes) -> None:
        """One PUT, or a multipart upload for a large file."""
        if isinstance(source, Path) and source.stat().st_size > SINGLE_PUT_BYTES:
            self.fs.put_file(str(source), self._path(key))
        else:
            self._put_object(key, source)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """PUT with `If-None-Match: *`. A server that does not know it overwrites: see `probe_conditional_put`."""
        return self._conditional(key, data, IfNoneMatch="*")

    def replace(self, key: str, source: Path | bytes, version: str | None) -> bool:
        """PUT with `If-Match`, after a look at the version, for servers and sizes that ignore the condition."""
        if self.version(key) != version:
            return False
        if isinstance(source, Path) and source.stat().st_size > SINGLE_PUT_BYTES:
            self.put(key, source)
            return True
        if version is None:
            return self._conditional(key, source, IfNoneMatch="*")
        return self._conditional(key, source, IfMatch=version)

    def version(self, key: str) -> str | None:
        """The ETag; None if there is no such object."""
        try:
            head = self.fs.call_s3("head_object", Bucket=self.bucket, Key=self._key(key))
        except FileNotFoundError:
            return None
        return str(head["ETag"])

    def open(self, key: str) -> BinaryIO:
        """Open for reading, random access with little read-ahead."""
        file: BinaryIO = self.fs.open(self._path(key), "rb", block_size=2**20, cache_type="readahead")
        return file

    def facts(self, key: str) -> ObjectFacts:
        """Size, ETag, and the checksums that are of the bytes."""
        head = self.fs.call_s3("head_object", Bucket=self.bucket, Key=self._key(key), ChecksumMode="ENABLED")
        tag = head.get("ETag")
        return ObjectFacts(int(head["ContentLength"]), tag, _md5(head, self.bucket), _sha256(head))

    def stream(self, key: str, offset: int, facts: ObjectFacts, stop: threading.Event) -> Iterator[bytes]:
        """The bytes from an offset on, of the version that `facts` describes."""
        only = {"IfMatch": facts.tag} if facts.tag else {}
        part = {"Range": f"bytes={offset}-"} if offset else {}
        uri = self.uri(key)
        try:
            request = self.fs._call_s3("get_object", Bucket=self.bucket, Key=self._key(key), **only, **part)
            answer = self._await(request, stop, uri)
        except Exception as error:
            if _refused_by_condition(error):
                raise Misread(f"the version {facts.tag}", "another one") from error
            if _passing(error):
                raise BrokenConnection(_reason(error)) from error
            raise
        body = answer["Body"]
        try:
            if facts.tag and answer.get("ETag", facts.tag) != facts.tag:
                raise Misread(f"the version {facts.tag}", f"{answer['ETag']}")
            skip = 0 if str(answer.get("ContentRange", "")).startswith(f"bytes {offset}-") else offset
            while chunk := self._body_chunk(body, stop, uri):
                yield chunk[skip:]  # a server that knows no ranges begins at the beginning
                skip = max(0, skip - len(chunk))
        finally:
            self.fs.loop.call_soon_threadsafe(body.close)

    def _body_chunk(self, body: Any, stop: threading.Event, uri: str) -> bytes:
        try:
            chunk: bytes = self._await(body.read(CHUNK_BYTES), stop, uri)
        except (BrokenConnection, StorageError):
            raise
        except Exception as error:  # the many ways of two HTTP libraries to say that the rest did not come
            raise BrokenConnection(_reason(error)) from error
        return chunk

    def _await(self, coroutine: Coroutine[Any, Any, T], stop: threading.Event, uri: str) -> T:
        """Run a coroutine in the loop of s3fs; end at a stop, at an interrupt, and when nothing comes."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self.fs.loop)
        end = time.monotonic() + STALL_SECONDS
        try:
            while not concurrent.futures.wait([future], timeout=0.1).done:
                if stop.is_set():
                    raise stopped(uri)
                if time.monotonic() > end:
                    raise BrokenConnection(f"nothing for {STALL_SECONDS:g} s")
            return future.result()
        finally:
            future.cancel()

    def list(self, prefix: str) -> list[str]:
        """Keys below a folder prefix."""
        root = self._path("")
        found = self.fs.find(self._path(prefix))
        return [path[len(root) :] for path in found if path.startswith(root) and not path.endswith("/")]

    def entries(self, prefix: str) -> Iterator[Entry]:
        """Objects below a folder prefix, a page of the listing at a time."""
        root = self._key("")
        more: dict[str, str] = {}
        while True:
            page = self.fs.call_s3("list_objects_v2", Bucket=self.bucket, Prefix=self._key(prefix), **more)
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
        self.fs.call_s3("delete_object", Bucket=self.bucket, Key=self._key(key))

    def error(self, error: Exception, doing: str, uri: str) -> StorageError:
        """The typed error of an exception."""
        name = type(error).__name__
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskSpaceError(f"room on this machine to {doing} {uri}", "a full disk", "set output.scratch_dir")
        if name in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
            step = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            return StorageError(f"credentials to {doing} {uri}", "none", step)
        if isinstance(error, PermissionError):
            return StorageError(
                f"leave to {doing} {uri}", f"refused ({error})", "check the keys and the bucket's policy"
            )
        if isinstance(error, FileNotFoundError):
            step = f"check the path, and that the bucket {self.bucket} exists"
            return StorageError(f"an object or bucket to {doing} at {uri}", "nothing there", step)
        reason = " ".join(str(error).split()) or name
        return StorageError(f"to {doing} {uri}", reason, "check AWS_ENDPOINT_URL, the region and the network")

    def _conditional(self, key: str, source: Path | bytes, **condition: str) -> bool:
        if not self.no_conditions:
            try:
                self._put_object(key, source, **condition)
            except Exception as error:
                if _refused_by_condition(error):
                    return False
                if not _not_implemented(error):
                    raise
                self.no_conditions = True  # some servers answer 501 instead of ignoring the condition
            else:
                return True
        if self.version(key) != condition.get("IfMatch"):
            return False
        self._put_object(key, source)
        return True

    def _put_object(self, key: str, source: Path | bytes, **condition: str) -> None:
        data = source if isinstance(source, bytes) else source.read_bytes()
        self.fs.call_s3("put_object", Bucket=self.bucket, Key=self._key(key), Body=data, **condition)

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _path(self, key: str) -> str:
        return f"{self.bucket}/{self._key(key)}"


def _answer(error: BaseException | None) -> tuple[int | None, str | None]:
    """HTTP status and S3 code of an error, under whatever exception s3fs made of it."""
    while error is not None:
        response: Any = getattr(error, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status, response.get("Error", {}).get("Code")
        error = error.__cause__
    return None, None


def _passing(error: BaseException) -> bool:
    """Whether a request failed on its way, or the server said that it will do better later."""
    if isinstance(error, BrokenConnection):
        return True
    if isinstance(error, StorageError | PermissionError | FileNotFoundError):
        return False
    status, code = _answer(error)
    return status is None or status >= 500 or status == 429 or code in ("SlowDown", "RequestTimeout")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _md5(head: dict[str, Any], bucket: str) -> str | None:
    """The MD5 of the bytes, in hex, if the ETag is one.

    It is not for an upload in parts (a dash), under a key of KMS or the customer's, and in directory buckets.
    Source: Amazon S3 API reference, `Object`, ETag.
    """
    tag = str(head.get("ETag", "")).strip('"')
    hidden = head.get("SSECustomerAlgorithm") or str(head.get("ServerSideEncryption", "")).startswith("aws:kms")
    if hidden or bucket.endswith("--x-s3") or not re.fullmatch(r"[0-9a-f]{32}", tag):
        return None
    return tag


def _sha256(head: dict[str, Any]) -> str | None:
    """The SHA-256 of the bytes, in hex, if the object was stored with one; one of parts (a dash) is of no use here."""
    try:
        digest = base64.b64decode(str(head.get("ChecksumSHA256", "")), validate=True)
    except binascii.Error:
        return None
    whole = head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
    return digest.hex() if whole and len(digest) == 32 else None


def _refused_by_condition(error: BaseException) -> bool:
    """Whether the server said 412 or 409: a rival was quicker."""
    status, code = _answer(error)
    return status in (409, 412) or code in ("PreconditionFailed", "ConditionalRequestConflict")


def _not_implemented(error: BaseException) -> bool:
    """Whether the server said that it knows no conditional writes."""
    status, code = _answer(error)
    return status == 501 or code == "NotImplemented"
