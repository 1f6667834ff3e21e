"""The ObjectStore on Amazon S3, or on what speaks its language."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlencode

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ParamValidationError,
)

from d5agent.adapters.aws_credentials import credentials_error
from d5agent.adapters.retry import retrying
from d5agent.adapters.s3_connection import S3Connection
from d5agent.adapters.write_gate import WriteGate
from d5agent.errors import AgentError, CredentialsError, OperatorError, TransientError, UnclassifiedError
from d5agent.ports import StoredObject

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from types_aiobotocore_s3.client import S3Client
    from types_aiobotocore_s3.type_defs import ListObjectsV2OutputTypeDef

    from d5agent.ports import Clock

_Result = TypeVar("_Result")
_DELETE_BATCH: Final = 1000  # keys a DeleteObjects request takes at most
_READ_SECONDS: Final = 30
# The client's own time-out begins when the answer does, or the body has been sent: a server that takes a connection and
# never says "100 Continue", or stops reading, would hold us for ever.
_MOST_WORDS: Final = 200
_UPLOAD_SECONDS: Final = 30
_SLOWEST_BYTES_A_SECOND: Final = 64 * 1024
_TAKEN: Final = frozenset({"PreconditionFailed", "412"})
_ABSENT: Final = frozenset({"NoSuchKey", "NoSuchUpload", "404"})
_HINTS: Final = {
    "NoSuchBucket": "create the bucket, or mend [store] bucket",
    "AccessDenied": "give the instance's role s3:GetObject, s3:PutObject, s3:DeleteObject, s3:ListBucket, "
    "s3:AbortMultipartUpload and s3:ListBucketMultipartUploads on it, for an archive s3:PutObjectTagging too",
    "RequestTimeTooSkewed": "set this machine's clock right (timedatectl, chronyc tracking): S3 allows it 15 minutes",
    "PermanentRedirect": "mend [store] region: the bucket is in another one",
    "AuthorizationHeaderMalformed": "mend [store] region: the bucket is in another one",
    "InvalidBucketName": "mend [store] bucket",
}
FINAL: Final = frozenset(_HINTS)
"""What a person must change before the same request can succeed: docs/failure-modes.md lists each with its reason."""

_SERVER_ERROR: Final = 500
_TOO_MANY_REQUESTS: Final = 429
_PASSING: Final = frozenset(
    {
        "BadDigest",  # damaged on its way
        "BandwidthLimitExceeded",
        "ConditionalRequestConflict",
        "OperationAborted",
        "PriorRequestNotComplete",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "RequestTimeout",
        "RequestTimeoutException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "TooManyRequestsException",
    }
)
_PASSING_OF_ONE: Final = _PASSING | {"InternalError", "ServiceUnavailable"}  # of one object among many


def translated(error: ClientError | BotoCoreError | OSError, *, bucket: str, key: str) -> AgentError:
    """Return what a failed request means to us (S3's list of error responses)."""
    where = {"bucket": bucket, "key": key} if key else {"bucket": bucket}
    refused = credentials_error(error, **where)
    if refused is not None:
        return refused
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", "?"))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if status >= _SERVER_ERROR or status == _TOO_MANY_REQUESTS or code in _PASSING:
            hint = "it passes as a rule; else see the AWS Health Dashboard"
            return TransientError("S3 did not answer well", hint=hint, code=code, status=status, **where)
        if code not in FINAL:
            return UnclassifiedError(
                "S3 refused a request, for a reason that d5agent does not know",
                hint="see what it says, and S3's list of error codes",
                code=code,
                status=status,
                server_says=str(error.response.get("Error", {}).get("Message", ""))[:_MOST_WORDS],
                **where,
            )
        message = "the bucket is missing" if code == "NoSuchBucket" else "S3 refused a request"
        return OperatorError(message, hint=_HINTS[code], code=code, **where)
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

    def open_client() -> AbstractAsyncContextManager[S3Client]:
        return get_session().create_client("s3", endpoint_url=endpoint_url, region_name=region, config=config)

    async with AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(open_client())
        except (BotoCoreError, ValueError) as error:
            raise OperatorError(
                "no S3 client can be made of the configuration",
                hint="mend [store] endpoint_url and region, and the AWS profile",
                reason=str(error),
            ) from error
        connection = S3Connection(client, open_client)
        stack.push_async_callback(connection.close)
        yield S3Store(connection, bucket=bucket, prefix=prefix, clock=clock)


class S3Store:
    """Objects of one bucket, below one prefix."""

    def __init__(
        self, client: S3Client | S3Connection, *, bucket: str, prefix: str, clock: Clock, gate: WriteGate | None = None
    ) -> None:
        self._connection = client if isinstance(client, S3Connection) else S3Connection(client)
        self.bucket = bucket
        self.prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self._clock = clock
        self._gate = gate or WriteGate()

    @property
    def client(self) -> S3Client:
        """The client to be used for the next request: it may be another one then."""
        return self._connection.client

    def behind(self, gate: WriteGate) -> S3Store:
        """Return the same store, whose every write must pass a gate."""
        return S3Store(self._connection, bucket=self.bucket, prefix=self.prefix, clock=self._clock, gate=gate)

    async def put_once(self, key: str, body: bytes) -> bool:
        """Store an object unless its key is taken (a conditional write, `If-None-Match: *`)."""
        try:
            await self.call(
                lambda: self.client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=body, IfNoneMatch="*"),
                key,
                sends=len(body),
            )
        except TakenError:
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
            await self.call(
                lambda: self.client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=body, **match),
                key,
                sends=len(body),
            )
        except (TakenError, AbsentError):
            return await self.get(key) == body  # a put that timed out may have been stored, and was repeated
        return True

    async def get(self, key: str) -> bytes | None:
        """Return an object's content; None: there is none."""
        return (await self._read(key))[0]

    async def _read(self, key: str) -> tuple[bytes | None, str]:
        """Return an object's content and its tag, which changes with the content."""

        async def read() -> tuple[bytes, str]:
            response = await self.client.get_object(Bucket=self.bucket, Key=self.prefix + key)
            async with response["Body"] as body:
                return await body.read(), response["ETag"]

        try:
            return await self.call(read, key)
        except AbsentError:
            return None, ""

    async def list_objects(self, prefix: str, *, after: str = "") -> AsyncGenerator[Sequence[StoredObject]]:
        """Yield objects in key order, up to 1,000 at a time."""
        start, token = self.prefix + after if after else "", ""
        while True:
            more: dict[str, Any] = {"ContinuationToken": token} if token else {"StartAfter": start} if start else {}
            page = await self.call(
                partial(self._list, Bucket=self.bucket, Prefix=self.prefix + prefix, **more),
                prefix,
            )
            yield [
                StoredObject(key=found["Key"].removeprefix(self.prefix), bytes=found["Size"])
                for found in page.get("Contents", [])
            ]
            token = page.get("NextContinuationToken", "")
            if not token:
                return

    async def _list(self, **request: Any) -> ListObjectsV2OutputTypeDef:  # noqa: ANN401 -- S3's own
        return await self.client.list_objects_v2(**request)

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects, a thousand in a request; those that S3 refuses for a passing reason once more."""
        for at in range(0, len(keys), _DELETE_BATCH):
            batch = list(keys[at : at + _DELETE_BATCH])
            await self.call(partial(self._delete_batch, batch), batch[0], writes=True)

    async def _delete_batch(self, left: list[str]) -> None:
        """Delete, and leave in the list what is still there: an answer of 200 may name objects that are."""
        objects: list[Any] = [{"Key": self.prefix + key} for key in left]
        answer = await self.client.delete_objects(Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True})
        errors = answer.get("Errors", [])
        left[:] = [error.get("Key", "?").removeprefix(self.prefix) for error in errors]
        if errors:
            worst = next((error for error in errors if error.get("Code") not in _PASSING_OF_ONE), errors[0])
            kind = TransientError if worst.get("Code") in _PASSING_OF_ONE else OperatorError
            raise kind(
                "objects were not deleted",
                hint=_HINTS.get(worst.get("Code", ""), "see S3's list of error codes; then type the same again"),
                count=len(errors),
                key=worst.get("Key", "?"),
                code=worst.get("Code", "?"),
            )

    async def copy(self, key: str, to: str, *, tags: Mapping[str, str]) -> str | None:
        """Copy an object within the bucket, at most 5 GB; return the sha256 that S3 computed of the copy.

        A server that computes none lets us read the copy.
        """
        source: Any = {"Bucket": self.bucket, "Key": self.prefix + key}
        with_tags: dict[str, Any] = {"Tagging": urlencode(tags), "TaggingDirective": "REPLACE"} if tags else {}
        try:
            answer = await self.call(
                lambda: self.client.copy_object(
                    Bucket=self.bucket,
                    Key=self.prefix + to,
                    CopySource=source,
                    ChecksumAlgorithm="SHA256",
                    **with_tags,
                ),
                key,
                writes=True,
            )
        except AbsentError:
            return None
        computed = answer["CopyObjectResult"].get("ChecksumSHA256")
        if computed:
            return base64.b64decode(computed).hex()
        return hashlib.sha256(await self.get(to) or b"").hexdigest()

    async def call(
        self, request: Callable[[], Awaitable[_Result]], key: str, *, sends: int | None = None, writes: bool = False
    ) -> _Result:
        """Make one request, repeated while it fails for a passing reason. `sends`: the bytes of an upload."""
        deadline = None if sends is None else _UPLOAD_SECONDS + sends / _SLOWEST_BYTES_A_SECOND

        async def once() -> _Result:
            client = self.client
            try:
                return await self._once(request, key, deadline)
            except CredentialsError:
                await self._connection.renew(client)
                raise

        if writes or sends is not None:
            return await self._gate.retrying(once, clock=self._clock)
        return await retrying(once, clock=self._clock)

    async def _once(self, request: Callable[[], Awaitable[_Result]], key: str, deadline: float | None) -> _Result:
        try:
            async with asyncio.timeout(deadline):
                return await request()
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", "?"))
            if code in _TAKEN:
                raise TakenError("the key is taken", key=key) from error
            if code in _ABSENT:
                raise AbsentError("there is no such object", key=key) from error
            raise translated(error, bucket=self.bucket, key=key) from error
        except (BotoCoreError, OSError, TimeoutError) as error:
            raise translated(error, bucket=self.bucket, key=key) from error


class TakenError(AgentError):
    """A conditional write found its key taken."""


class AbsentError(AgentError):
    """There is no such object, or no such upload."""
