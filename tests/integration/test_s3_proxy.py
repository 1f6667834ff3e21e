"""The proxy before the S3 server: what it lets through unchanged, and each of its faults, on the real server."""

from __future__ import annotations

import asyncio
import io
import os
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import ClientError, ReadTimeoutError
from botocore.exceptions import ConnectionError as LineError

from d5agent.drill.s3_proxy import Fault, S3Proxy, ignore, lose_answer, refuse, slow_down, stall, tear_upload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from types_aiobotocore_s3.client import S3Client

    from d5agent.drill.s3_server import S3Server

MEBIBYTE = 1024 * 1024


def client_of(s3_proxy: S3Proxy, *, read_timeout: float = 30) -> AbstractAsyncContextManager[S3Client]:
    """Return a client that goes through the proxy and tries everything once."""
    config = AioConfig(
        s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, read_timeout=read_timeout, connect_timeout=5
    )
    return get_session().create_client(
        "s3",
        endpoint_url=s3_proxy.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=config,
    )


async def stored(s3_server: S3Server, bucket: str) -> dict[str, int]:
    """Return what the server has, asked without the proxy."""
    async with s3_server.client() as s3:
        return {o["Key"]: o["Size"] for o in (await s3.list_objects_v2(Bucket=bucket)).get("Contents", [])}


async def test_objects_of_all_sizes_and_names_pass_unchanged(
    s3_server: S3Server, s3_proxy: S3Proxy, bucket: str
) -> None:
    bodies = {
        "empty": b"",
        "replication/shop/a b%41+ü~&?=#.bson": b"name",
        "large": os.urandom(64 * MEBIBYTE),
    }
    async with client_of(s3_proxy) as s3:
        for key, body in bodies.items():
            await s3.put_object(Bucket=bucket, Key=key, Body=body, IfNoneMatch="*")
        await s3.put_object(Bucket=bucket, Key="asked first", Body=io.BytesIO(b"x" * MEBIBYTE))  # 100-continue
        for key, body in bodies.items():
            answer = await s3.get_object(Bucket=bucket, Key=key)
            assert await answer["Body"].read() == body
            assert (await s3.head_object(Bucket=bucket, Key=key))["ContentLength"] == len(body)
        with pytest.raises(ClientError, match="PreconditionFailed"):
            await s3.put_object(Bucket=bucket, Key="empty", Body=b"again", IfNoneMatch="*")
        with pytest.raises(ClientError, match="404"):
            await s3.head_object(Bucket=bucket, Key="absent")
        await s3.delete_object(Bucket=bucket, Key="empty")
    sizes = {key: len(body) for key, body in bodies.items()} | {"asked first": MEBIBYTE}
    del sizes["empty"]
    assert await stored(s3_server, bucket) == sizes


async def test_a_chunked_body_passes_unchanged(s3_server: S3Server, s3_proxy: S3Proxy, bucket: str) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b"10000\r\n" + b"y" * 0x10000 + b"\r\n"
        yield b"0\r\n\r\n"

    headers = {
        "Content-Encoding": "aws-chunked",
        "x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        "x-amz-decoded-content-length": str(4 * 0x10000),
    }
    async with (
        aiohttp.ClientSession() as session,
        session.put(f"{s3_proxy.endpoint_url}/{bucket}/chunked", headers=headers, data=chunks()) as answer,
    ):
        assert answer.status == 200, await answer.text()
    assert await stored(s3_server, bucket) == {"chunked": 4 * 0x10000}


@pytest.mark.parametrize(
    ("status", "code"), [(500, "InternalError"), (503, "SlowDown"), (403, "AccessDenied"), (400, "ExpiredToken")]
)
async def test_requests_are_refused_by_method_and_key_so_many_times(
    s3_server: S3Server, s3_proxy: S3Proxy, bucket: str, status: int, code: str
) -> None:
    fault = s3_proxy.fail(refuse(status, code), method="PUT", key_prefix="replication/", times=2)
    async with client_of(s3_proxy) as s3:
        await s3.put_object(Bucket=bucket, Key="state/phase.json", Body=b"another key")
        for body in (b"x" * MEBIBYTE, io.BytesIO(b"x" * MEBIBYTE)):
            with pytest.raises(ClientError, match=code) as raised:
                await s3.put_object(Bucket=bucket, Key="replication/a", Body=body)
            assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
            with pytest.raises(ClientError, match="NoSuchKey"):  # another method: the server itself answers
                await s3.get_object(Bucket=bucket, Key="replication/a")
        await s3.put_object(Bucket=bucket, Key="replication/a", Body=b"third")
    assert fault.met == 2
    assert await stored(s3_server, bucket) == {"state/phase.json": 11, "replication/a": 5}


async def test_a_refused_head_has_no_body(s3_proxy: S3Proxy, bucket: str) -> None:
    s3_proxy.fail(refuse(403, "AccessDenied"), method="HEAD")
    async with client_of(s3_proxy) as s3:
        with pytest.raises(ClientError, match="403"):
            await s3.head_object(Bucket=bucket, Key="a")
        await s3.put_object(Bucket=bucket, Key="a", Body=b"the connection is still in step")


async def test_a_request_that_is_ignored_times_out_and_never_arrives(
    s3_server: S3Server, s3_proxy: S3Proxy, bucket: str
) -> None:
    fault = s3_proxy.fail(ignore(), method="PUT")
    async with client_of(s3_proxy, read_timeout=0.3) as s3:
        with pytest.raises(ReadTimeoutError):
            await s3.put_object(Bucket=bucket, Key="a", Body=b"lost")
        fault.lift()
        await s3.put_object(Bucket=bucket, Key="b", Body=b"after")
    assert await stored(s3_server, bucket) == {"b": 5}


async def test_a_request_that_is_stalled_goes_on_when_the_fault_is_lifted(
    s3_server: S3Server, s3_proxy: S3Proxy, bucket: str
) -> None:
    fault = s3_proxy.fail(stall())
    async with client_of(s3_proxy) as s3, asyncio.TaskGroup() as group:
        putting = group.create_task(s3.put_object(Bucket=bucket, Key="a", Body=b"late"))
        await fault.until_met()
        assert await stored(s3_server, bucket) == {}
        assert not putting.done()
        fault.lift()
    assert await stored(s3_server, bucket) == {"a": 4}


async def test_a_stalled_request_whose_client_gave_up_never_arrives(
    s3_server: S3Server, s3_proxy: S3Proxy, bucket: str
) -> None:
    fault = s3_proxy.fail(stall(), times=1)
    async with client_of(s3_proxy) as s3:
        given_up = asyncio.create_task(s3.put_object(Bucket=bucket, Key="a", Body=b"given up"))
        await fault.until_met()
        given_up.cancel()
        await asyncio.wait([given_up])
        fault.lift()
        await s3.put_object(Bucket=bucket, Key="b", Body=b"after")
    assert await stored(s3_server, bucket) == {"b": 5}


async def test_a_body_goes_on_slowly(s3_server: S3Server, s3_proxy: S3Proxy, bucket: str) -> None:
    fault = s3_proxy.fail(slow_down(bytes_per_second=400_000), method="PUT")
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with client_of(s3_proxy) as s3:
        await s3.put_object(Bucket=bucket, Key="a", Body=b"x" * 200_000)
    assert loop.time() - began >= 0.5
    assert fault.met == 1
    assert await stored(s3_server, bucket) == {"a": 200_000}


# Twice: aiohttp repeats an idempotent request itself when its connection breaks.
@pytest.mark.parametrize("size", [3, 5 * MEBIBYTE])
async def test_a_torn_upload_leaves_no_object(s3_server: S3Server, s3_proxy: S3Proxy, bucket: str, size: int) -> None:
    fault = s3_proxy.fail(tear_upload(), method="PUT", times=2)
    async with client_of(s3_proxy) as s3:
        with pytest.raises(LineError):
            await s3.put_object(Bucket=bucket, Key="a", Body=b"x" * size, IfNoneMatch="*")
        assert fault.met == 2
        assert await stored(s3_server, bucket) == {}
        await s3.put_object(Bucket=bucket, Key="a", Body=b"x" * size, IfNoneMatch="*")
    assert await stored(s3_server, bucket) == {"a": size}


async def test_an_upload_whose_answer_is_lost_is_stored(s3_server: S3Server, s3_proxy: S3Proxy, bucket: str) -> None:
    fault = s3_proxy.fail(lose_answer(), method="PUT", times=2)
    async with client_of(s3_proxy) as s3:
        with pytest.raises(LineError):
            await s3.put_object(Bucket=bucket, Key="a", Body=b"stored", IfNoneMatch="*")
        assert fault.met == 2
        assert await stored(s3_server, bucket) == {"a": 6}
        with pytest.raises(ClientError, match="PreconditionFailed"):  # the repetition meets our own object
            await s3.put_object(Bucket=bucket, Key="a", Body=b"stored", IfNoneMatch="*")


async def test_a_server_that_is_gone_is_a_reset(s3_proxy: S3Proxy) -> None:
    nowhere = S3Proxy("http://127.0.0.1:1")
    await nowhere.start()
    try:
        async with client_of(nowhere) as s3:
            with pytest.raises(LineError):
                await s3.list_buckets()
    finally:
        await nowhere.stop()
    async with client_of(s3_proxy) as s3:
        assert (await s3.list_buckets())["ResponseMetadata"]["HTTPStatusCode"] == 200


async def test_waiting_for_a_fault_that_hits_nothing_ends() -> None:
    with pytest.raises(TimeoutError):
        await Fault(act=stall()).until_met(seconds=0.05)
