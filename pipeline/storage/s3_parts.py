"""Uploads in parts: each part checked and tried again, the whole measured at its end, nothing left of a failed one."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.storage.download import Staged
from pipeline.storage.retry import Misread, answer, passing, reason

if TYPE_CHECKING:
    from pipeline.storage.s3 import S3Backend

log = logging.getLogger(__name__)

PART_BYTES = 32 * 2**20
MOST_PARTS = 10_000


def put_in_parts(store: S3Backend, key: str, source: Path) -> None:
    """Upload a file in parts.

    Raises: Misread if the object has another size afterwards; the store's own exceptions.
    """
    size = source.stat().st_size
    part_bytes = max(PART_BYTES, -(-size // MOST_PARTS))
    upload = str(store.call("create_multipart_upload", key, store.patience())["UploadId"])
    try:
        parts: list[dict[str, Any]] = []
        md5 = hashlib.md5(usedforsecurity=False)
        with source.open("rb") as file:
            while data := file.read(part_bytes):
                number = len(parts) + 1
                about: dict[str, Any] = {"UploadId": upload, "PartNumber": number}
                done = store.call("upload_part", key, store.patience(), Body=data, **about)
                parts.append({"ETag": done["ETag"], "PartNumber": number})
                md5.update(data)
        _complete(store, key, upload, parts, md5.hexdigest())
        found = int(store.call("head_object", key, store.patience())["ContentLength"])
        if found != size:
            raise Misread(f"{size} bytes", f"{found} after the upload")
    except BaseException:
        try:
            abort(store, key, upload)
        except Exception as error:  # noqa: BLE001 - the first failure is what counts, and `gc` finds the parts
            log.info("left an upload of %s in parts: %s", store.uri(key), reason(error))
        raise


def _complete(store: S3Backend, key: str, upload: str, parts: list[dict[str, Any]], md5: str) -> None:
    """End an upload. A try that broke may have ended it all the same, and then there is none any more."""
    patience = store.patience()
    while True:
        try:
            store.once("complete_multipart_upload", key, patience, UploadId=upload, MultipartUpload={"Parts": parts})
            return
        except Exception as error:
            if answer(error)[0] == 404 and patience.breaks and _md5_there(store, key) == md5:
                return
            if not passing(error):
                raise
            patience.pause(error)


def _md5_there(store: S3Backend, key: str) -> str | None:
    """The MD5 of the bytes that lie there, read through; an ETag of parts is not the same on all servers."""
    md5 = hashlib.md5(usedforsecurity=False)
    try:
        with store.open(key) as file:
            while data := file.read(PART_BYTES):
                md5.update(data)
    except FileNotFoundError:
        return None
    return md5.hexdigest()


def uploads(store: S3Backend) -> Iterator[Staged]:
    """Uploads below the store's prefix that have not ended; none where the server does not list them."""
    root = store.full_key("")
    more: dict[str, str] = {}
    while True:
        try:
            page = store.call("list_multipart_uploads", None, store.patience(), Prefix=root, **more)
        except Exception as error:
            if answer(error)[0] not in (404, 405, 501):
                raise
            log.debug("%s lists no uploads: %s", store.uri(""), reason(error))
            return
        for found in page.get("Uploads", []):
            if found["Key"].startswith(root):
                yield Staged(found["Key"][len(root) :], 0, found["Initiated"].timestamp(), found["UploadId"])
        if not page.get("IsTruncated"):
            return
        more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def abort(store: S3Backend, key: str, upload: str) -> None:
    """Let go of the parts of an upload; one that is gone is no error."""
    try:
        store.call("abort_multipart_upload", key, store.patience(), UploadId=upload)
    except Exception as error:
        if answer(error)[0] != 404:
            raise
