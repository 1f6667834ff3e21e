"""The ObjectStore on Amazon S3, or on what speaks its language."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)

from d5agent.adapters.fence import Fence
from d5agent.adapters.retry import retrying
from d5agent.errors import AgentError, OperatorError, TransientError
from d5agent.ports import StoredObject
from d5agent.steps.parallel import parallel

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from types_aiobotocore_s3.client import S3Client
    from types_aiobotocore_s3.type_defs import CompletedPartTypeDef

    from d5agent.ports import Clock

_Result = TypeVar("_Result")
_DELETE_BATCH: Final = 1000  # keys a DeleteObjects request takes at most
_PART_BYTES: Final = 8 * 1024 * 1024  # S3 takes 10,000 parts of at least 5 MiB: 80 GiB a dump
_PARTS_AT_ONCE: Final = 2
_READ_SECONDS: Final = 30
# The client's own time-out begins when the answer does, or the body has been sent: a server that takes a connection and
# never says "100 Continue", or stops reading, would hold us for ever.
_UPLOAD_SECONDS: Final = 30
_SLOWEST_BYTES_A_SECOND: Final = 64 * 1024
_TAKEN: Final = frozenset({"PreconditionFailed", "412"})
_ABSENT: Final = frozenset({"NoSuchKey", "404"})
_HINTS: Final = {
    "NoSuchBucket": "create the bucket, or mend [store] bucket",
    "AccessDenied": "give the instance's role s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket on it",
    "InvalidAccessKeyId": "mend the AWS credentials that the agent runs with",
    "SignatureDoesNotMatch": "mend the AWS credentials that the agent runs with",
    "ExpiredToken": "renew the AWS credentials that the agent runs with",
    "RequestTimeTooSkewed": "set this machine's clock right (timedatectl, chronyc tracking): S3 allows it 15 minutes",
    "PermanentRedirect": "mend [store] region: the bucket is in another one",
    "AuthorizationHeaderMalformed": "mend [store] region: the bucket is in another one",
    "InvalidBucketName": "mend [store] bucket",
}
_SERVER_ERROR: Final = 500
_THROTTLED: Final = frozenset(
    {"ConditionalRequestConflict", "SlowDown", "RequestTimeout", "Throttling", "TooManyRequests", "OperationAborted"}
)


def translated(error: ClientError | BotoCoreError | OSError, *, bucket: str, key: str) -> AgentError:
    """Return what a failed request means to us (S3's list of error responses)."""
    where = {"bucket": bucket, "key": key} if key else {"bucket": bucket}
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", "?"))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if status >= _SERVER_ERROR or code in _THROTTLED:
            hint = "it passes as a rule; else see the AWS Health Dashboard"
            return TransientError("S3 did not answer well", hint=hint, code=code, status=status, **where)
        hint = _HINTS.get(code, "see S3's list of error codes")
        message = "the bucket is missing" if code == "NoSuchBucket" else "S3 refused a request"
        return OperatorError(message, hint=hint, code=code, **where)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return OperatorError("no AWS credentials", hint="run on an instance with a role, or set AWS_PROFILE", **where)
    if isinstance(error, ParamValidationError):
        return OperatorError("the bucket's name is none", hint=_HINTS["InvalidBucketName"], **where)
    return TransientError(
        "S3 is not reached",
        hint="has this machine a way to S3 (VPC endpoint, security group)? is [store] right? then try again",
        reason=type(error).__name__,
        **where,
    )


@asynccontextmanager
async def open_s3(
    *, bucket: str, prefix: str, endpoint_url: str | None, region: str | None, clock: Clock
) -> AsyncGenerator[S3Store]:
    """Open a client and give the store; nothing is sent yet."""
    config = AioConfig(
        connect_timeout=5,
        read_timeout=_READ_SECONDS,
        max_pool_connections=32,
        retries={"total_max_attempts": 1},  # the one retry policy is ours
        s3={"addressing_style": "path"} if endpoint_url else {},
    )
    async with AsyncExitStack() as stack:
        opening = get_session().create_client("s3", endpoint_url=endpoint_url, region_name=region, config=config)
        try:
            client = await stack.enter_async_context(opening)
        except (BotoCoreError, ValueError) as error:
            raise OperatorError(
                "no S3 client can be made of the configuration",
                hint="mend [store] endpoint_url and region, and the AWS profile",
                reason=str(error),
            ) from error
        yield S3Store(client, bucket=bucket, prefix=prefix, clock=clock)


class S3Store:
    """Objects of one bucket, below one prefix."""

    def __init__(self, client: S3Client, *, bucket: str, prefix: str, clock: Clock, fence: Fence | None = None) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self._clock = clock
        self._fence = fence or Fence()

    def behind(self, fence: Fence) -> S3Store:
        """Return the same store, whose every write must pass a fence."""
        return S3Store(self._client, bucket=self._bucket, prefix=self._prefix, clock=self._clock, fence=fence)

    async def put_once(self, key: str, body: bytes) -> bool:
        """Store an object unless its key is taken (a conditional write, `If-None-Match: *`)."""
        try:
            await self._call(
                lambda: self._client.put_object(
                    Bucket=self._bucket, Key=self._prefix + key, Body=body, IfNoneMatch="*"
                ),
                key,
                sends=len(body),
            )
        except _TakenError:
            return False
        return True

    async def put(self, key: str, body: bytes, *, replacing: bytes | None = None) -> bool:
        """Store an object, replacing what is there; with `replacing`, only that content (`If-Match`)."""
        match: dict[str, Any] = {}
        if replacing is not None:
            content, tag = await self._read(key)
            if content != replacing:
                return content == body
            match = {"IfMatch": tag}
        try:
            await self._call(
                lambda: self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=body, **match),
                key,
                sends=len(body),
            )
        except (_TakenError, _AbsentError):
            return await self.get(key) == body  # a put that timed out may have been stored, and was repeated
        return True

    async def get(self, key: str) -> bytes | None:
        """Return an object's content; None: there is none."""
        return (await self._read(key))[0]

    async def _read(self, key: str) -> tuple[bytes | None, str]:
        """Return an object's content and its tag, which changes with the content."""

        async def read() -> tuple[bytes, str]:
            response = await self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
            async with response["Body"] as body:
                return await body.read(), response["ETag"]

        try:
            return await self._call(read, key)
        except _AbsentError:
            return None, ""

    async def list_objects(self, prefix: str, *, after: str = "") -> AsyncGenerator[Sequence[StoredObject]]:
        """Yield objects in key order, up to 1,000 at a time."""
        start, token = self._prefix + after if after else "", ""
        while True:
            more: dict[str, Any] = {"ContinuationToken": token} if token else {"StartAfter": start} if start else {}
            page = await self._call(
                partial(self._client.list_objects_v2, Bucket=self._bucket, Prefix=self._prefix + prefix, **more),
                prefix,
            )
            yield [
                StoredObject(key=found["Key"].removeprefix(self._prefix), bytes=found["Size"])
                for found in page.get("Contents", [])
            ]
            token = page.get("NextContinuationToken", "")
            if not token:
                return

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects, a thousand in a request."""
        for at in range(0, len(keys), _DELETE_BATCH):
            objects: list[Any] = [{"Key": self._prefix + key} for key in keys[at : at + _DELETE_BATCH]]
            answer = await self._call(
                partial(self._client.delete_objects, Bucket=self._bucket, Delete={"Objects": objects, "Quiet": True}),
                keys[at],
                writes=True,
            )
            for failed in answer.get("Errors", []):
                raise OperatorError(
                    "an object was not deleted",
                    hint=_HINTS.get(failed.get("Code", ""), "see S3's list of error codes"),
                    key=failed.get("Key", "?"),
                    code=failed.get("Code", "?"),
                )

    async def upload(self, key: str, chunks: AsyncGenerator[bytes]) -> None:
        """Store a stream as a multipart upload; on any failure it is aborted, and nothing is there."""
        name: dict[str, Any] = {"Bucket": self._bucket, "Key": self._prefix + key}
        created = await self._call(lambda: self._client.create_multipart_upload(**name), key, writes=True)
        upload = {**name, "UploadId": created["UploadId"]}
        try:
            parts = await self._upload_parts(upload, key, chunks)
            await self._call(
                lambda: self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}),
                key,
                writes=True,
            )
        except BaseException:
            # Shielded: a cancelled dump must not leave parts behind that nobody sees and everybody pays for.
            await asyncio.shield(self._call(lambda: self._client.abort_multipart_upload(**upload), key))
            raise

    async def _upload_parts(
        self, upload: dict[str, Any], key: str, chunks: AsyncGenerator[bytes]
    ) -> list[CompletedPartTypeDef]:
        async def put(part: tuple[int, bytes]) -> CompletedPartTypeDef:
            number, body = part
            answer = await self._call(
                lambda: self._client.upload_part(**upload, PartNumber=number, Body=body), key, sends=len(body)
            )
            return {"PartNumber": number, "ETag": answer["ETag"]}

        done: list[CompletedPartTypeDef] = []
        waiting: list[tuple[int, bytes]] = []
        number, pending, size = 0, [], 0
        async for chunk in chunks:
            pending.append(chunk)
            size += len(chunk)
            if size >= _PART_BYTES:
                number += 1
                waiting.append((number, b"".join(pending)))
                pending, size = [], 0
            if len(waiting) == _PARTS_AT_ONCE:
                done += await parallel(put, waiting, limit=_PARTS_AT_ONCE)
                waiting = []
        if pending or number == 0:
            waiting.append((number + 1, b"".join(pending)))
        return done + await parallel(put, waiting, limit=_PARTS_AT_ONCE)

    async def _call(
        self, request: Callable[[], Awaitable[_Result]], key: str, *, sends: int | None = None, writes: bool = False
    ) -> _Result:
        """Make one request, repeated while it fails for a passing reason. `sends`: the bytes of an upload."""
        deadline = None if sends is None else _UPLOAD_SECONDS + sends / _SLOWEST_BYTES_A_SECOND

        async def once() -> _Result:
            try:
                async with asyncio.timeout(deadline):
                    return await request()
            except ClientError as error:
                code = str(error.response.get("Error", {}).get("Code", "?"))
                if code in _TAKEN:
                    raise _TakenError("the key is taken", key=key) from error
                if code in _ABSENT:
                    raise _AbsentError("there is no such object", key=key) from error
                raise translated(error, bucket=self._bucket, key=key) from error
            except (BotoCoreError, OSError, TimeoutError) as error:
                raise translated(error, bucket=self._bucket, key=key) from error

        if writes or sends is not None:
            return await self._fence.retrying(once, clock=self._clock)
        return await retrying(once, clock=self._clock)


class _TakenError(AgentError):
    """A conditional write found its key taken."""


class _AbsentError(AgentError):
    """There is no such object."""
