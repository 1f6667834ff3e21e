"""The LargeObjectStore on Amazon S3: multipart uploads and reads in ranges, each request repeated on its own."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import aclosing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from d5agent.adapters.s3 import AbsentError, TakenError
from d5agent.core.backup import part_bytes
from d5agent.errors import AgentError, OperatorError, TransientError
from d5agent.steps.parallel import parallel, streamed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from types_aiobotocore_s3.client import S3Client
    from types_aiobotocore_s3.type_defs import CompletedPartTypeDef

    from d5agent.adapters.s3 import S3Store

_RANGE_BYTES: Final = 8 * 1024 * 1024
_PARTS_AT_ONCE: Final = 2
_ABORTS_AT_ONCE: Final = 8
# A stop must not wait long for it: what is left half-way is aborted at the next start.
_ABORT_SECONDS: Final = 5
_ROUNDS: Final = 5  # a part that was on its way when its upload was aborted may bring it back once (S3's documentation)
_MARK: Final = "d5agent-upload"


class S3LargeObjects:
    """Large objects beside those of a store, through its client and its fence."""

    def __init__(self, store: S3Store) -> None:
        self._store = store

    @property
    def _client(self) -> S3Client:
        return self._store.client

    async def upload(self, key: str, chunks: AsyncGenerator[bytes]) -> None:
        """Store a stream as a multipart upload, each part with its CRC32; on any failure it is aborted."""
        name: dict[str, Any] = {"Bucket": self._store.bucket, "Key": self._store.prefix + key}
        mark = uuid.uuid4().hex
        created = await self._store.call(
            lambda: self._client.create_multipart_upload(**name, ChecksumAlgorithm="CRC32", Metadata={_MARK: mark}),
            key,
            writes=True,
        )
        upload = {**name, "UploadId": created["UploadId"]}
        try:
            parts = await self._upload_parts(upload, key, chunks)
            await self._store.call(
                lambda: self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}),
                key,
                writes=True,
            )
        except AbsentError:
            # The answer was lost, and its repetition found no upload any more: then the object bears our mark.
            if (await self._head(key)).get("Metadata", {}).get(_MARK) != mark:
                hint = "something has aborted it (a lifecycle rule of the bucket?); it is begun again"
                raise TransientError("the upload has gone", hint=hint, key=key) from None
        except BaseException:
            # Shielded: a cancelled dump must not leave parts behind that nobody sees and everybody pays for.
            await asyncio.shield(self._abort(upload, key))
            raise

    async def _head(self, key: str) -> dict[str, Any]:
        try:
            return dict(
                await self._store.call(
                    lambda: self._client.head_object(Bucket=self._store.bucket, Key=self._store.prefix + key), key
                )
            )
        except AbsentError:
            return {}

    async def _abort(self, upload: dict[str, Any], key: str) -> None:
        """Abort an upload if that can be done now; else the next start does."""
        with suppress(AgentError, TimeoutError):
            async with asyncio.timeout(_ABORT_SECONDS):
                await self._store.call(lambda: self._client.abort_multipart_upload(**upload), key, writes=True)

    async def _upload_parts(
        self, upload: dict[str, Any], key: str, chunks: AsyncGenerator[bytes]
    ) -> list[CompletedPartTypeDef]:
        async def put(numbered: tuple[int, bytes]) -> CompletedPartTypeDef:
            number, body = numbered
            answer = await self._store.call(
                lambda: self._client.upload_part(**upload, PartNumber=number, Body=body, ChecksumAlgorithm="CRC32"),
                key,
                sends=len(body),
            )
            part: CompletedPartTypeDef = {"PartNumber": number, "ETag": answer["ETag"]}
            if "ChecksumCRC32" in answer:  # S3 compares it once more as it puts the parts together
                part["ChecksumCRC32"] = answer["ChecksumCRC32"]
            return part

        async with aclosing(_parts(chunks)) as parts:
            return await streamed(put, parts, limit=_PARTS_AT_ONCE)

    async def read(self, key: str) -> AsyncGenerator[bytes]:
        """Yield an object in ranges, each asked for again on its own while the line breaks."""
        found = await self._head(key)
        if not found:
            raise OperatorError("there is no such object", hint="d5agent backups ls lists what there is", key=key)
        for begin in range(0, found["ContentLength"], _RANGE_BYTES):
            end = min(begin + _RANGE_BYTES, found["ContentLength"]) - 1
            try:
                yield await self._store.call(partial(self._read_range, key, f"bytes={begin}-{end}", found["ETag"]), key)
            except (AbsentError, TakenError):
                raise TransientError(
                    "the object has changed while it was read", hint="type the same again", key=key
                ) from None

    async def _read_range(self, key: str, content_range: str, tag: str) -> bytes:
        answer = await self._client.get_object(
            Bucket=self._store.bucket, Key=self._store.prefix + key, Range=content_range, IfMatch=tag
        )
        async with answer["Body"] as body:
            return await body.read()

    async def abort_uploads(self, prefix: str) -> int:
        """Abort the uploads that stand half-way, a page of them at a time, and look again until there is none."""
        aborted: set[str] = set()
        again = 0
        while found := await self._some_uploads(prefix):
            new = {upload["UploadId"] for upload in found} - aborted
            again = 0 if new else again + 1
            if again == _ROUNDS:
                raise TransientError("uploads come back", hint="does another agent write there?", prefix=prefix)
            await parallel(self._abort_found, found, limit=_ABORTS_AT_ONCE)
            aborted |= new
        return len(aborted)

    async def _abort_found(self, upload: dict[str, Any]) -> None:
        with suppress(AbsentError):  # gone meanwhile
            await self._store.call(
                lambda: self._client.abort_multipart_upload(Bucket=self._store.bucket, **upload),
                upload["Key"],
                writes=True,
            )

    async def _some_uploads(self, prefix: str) -> list[dict[str, Any]]:
        """Return key and id of uploads below a prefix, of a thousand at most."""
        bucket, below = self._store.bucket, self._store.prefix + prefix
        page = await self._store.call(lambda: self._client.list_multipart_uploads(Bucket=bucket, Prefix=below), prefix)
        return [{"Key": upload["Key"], "UploadId": upload["UploadId"]} for upload in page.get("Uploads", [])]


async def _parts(chunks: AsyncGenerator[bytes]) -> AsyncGenerator[tuple[int, bytes]]:
    """Join chunks to numbered parts; of an empty stream, one empty part."""
    number, pending, size = 1, [], 0
    async for chunk in chunks:
        pending.append(chunk)
        size += len(chunk)
        if size >= part_bytes(number):
            yield number, b"".join(pending)
            number, pending, size = number + 1, [], 0
    if pending or number == 1:
        yield number, b"".join(pending)
