"""Large objects on a real S3 server behind the proxy: what happens to an upload or to a reader half-way."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from d5agent.adapters.clock import SystemClock
from d5agent.adapters.s3 import S3Store, open_s3
from d5agent.adapters.s3_large import S3LargeObjects
from d5agent.core.backup import part_bytes
from d5agent.drill.s3_proxy import Exchange, S3Proxy, lose_answer, refuse
from d5agent.errors import OperatorError, TransientError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from aiohttp import web
    from types_aiobotocore_s3.client import S3Client

    from d5agent.drill.s3_server import S3Server

PART = part_bytes(1)


@pytest.fixture
async def store(
    s3_proxy: S3Proxy, s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[S3Store]:
    """The bucket, through the proxy."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    async with open_s3(
        bucket=bucket, prefix="p", endpoint_url=s3_proxy.endpoint_url, region=s3_server.region, clock=SystemClock()
    ) as opened:
        yield opened


@pytest.fixture
async def client(s3_server: S3Server) -> AsyncIterator[S3Client]:
    """The server itself."""
    async with s3_server.client() as opened:
        yield opened


async def pieces(count: int) -> AsyncGenerator[bytes]:
    """Yield so many parts' worth of bytes."""
    for number in range(count):
        yield bytes([number]) * PART


async def uploads(client: S3Client, bucket: str) -> list[str]:
    """Return the keys of what stands half-way."""
    return [upload["Key"] for upload in (await client.list_multipart_uploads(Bucket=bucket)).get("Uploads", [])]


async def test_a_part_that_is_damaged_on_its_way_is_found_and_sent_again(
    store: S3Store, client: S3Client, bucket: str, s3_proxy: S3Proxy
) -> None:
    async def damage(exchange: Exchange) -> web.StreamResponse:
        async def damaged() -> AsyncGenerator[bytes]:
            async with aclosing(exchange.body()) as body:
                async for chunk in body:
                    yield bytes([chunk[0] ^ 1]) + chunk[1:]

        return await exchange.forward(damaged())

    fault = s3_proxy.fail(damage, method="PUT", times=2)
    await S3LargeObjects(store).upload("a", pieces(2))
    assert fault.met == 2
    found = await client.get_object(Bucket=bucket, Key="p/a")
    assert await found["Body"].read() == b"".join([piece async for piece in pieces(2)])
    assert "ChecksumCRC32" in await client.head_object(Bucket=bucket, Key="p/a", ChecksumMode="ENABLED")


async def test_an_upload_whose_last_answer_is_lost_is_stored(
    store: S3Store, client: S3Client, bucket: str, s3_proxy: S3Proxy
) -> None:
    lost: list[str] = []

    async def lose_the_last(exchange: Exchange) -> web.StreamResponse:
        if lost or "uploadId" not in exchange.request.query_string:
            return await exchange.forward()
        lost.append(exchange.request.query_string)
        return await lose_answer()(exchange)

    await store.put("a", b"before")
    s3_proxy.fail(lose_the_last, method="POST")
    await S3LargeObjects(store).upload("a", pieces(1))
    assert len(lost) == 1
    assert await store.get("a") == bytes(PART)
    assert await uploads(client, bucket) == []


async def test_an_upload_that_somebody_aborts_is_begun_again_later(
    store: S3Store, client: S3Client, bucket: str
) -> None:
    async def meddled() -> AsyncGenerator[bytes]:
        yield bytes(PART)
        (upload,) = (await client.list_multipart_uploads(Bucket=bucket))["Uploads"]
        await client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        yield bytes(PART)

    with pytest.raises(TransientError, match="the upload has gone"):
        await S3LargeObjects(store).upload("a", meddled())


async def test_an_upload_that_is_cancelled_is_aborted_though_s3_does_not_answer_at_once(
    store: S3Store, client: S3Client, bucket: str
) -> None:
    begun = asyncio.Event()

    async def endless() -> AsyncGenerator[bytes]:
        yield bytes(PART)
        begun.set()
        await asyncio.Event().wait()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(S3LargeObjects(store).upload("a", endless()))
        await begun.wait()
        assert await uploads(client, bucket) == ["p/a"]
        task.cancel()
    assert await uploads(client, bucket) == []


async def test_an_abort_that_fails_hides_no_error_and_is_left_to_the_next_start(
    store: S3Store, client: S3Client, bucket: str, s3_proxy: S3Proxy
) -> None:
    async def broken() -> AsyncGenerator[bytes]:
        yield bytes(PART)
        raise OperatorError("the dump failed")

    fault = s3_proxy.fail(refuse(403, "AccessDenied"), method="DELETE")
    with pytest.raises(OperatorError, match="the dump failed"):
        await S3LargeObjects(store).upload("a", broken())
    assert fault.met
    assert await uploads(client, bucket) == ["p/a"]
    fault.lift()
    assert await S3LargeObjects(store).abort_uploads("") == 1
    assert await uploads(client, bucket) == []


async def test_uploads_that_come_back_for_ever_are_told(
    store: S3Store, client: S3Client, bucket: str, s3_proxy: S3Proxy
) -> None:
    await client.create_multipart_upload(Bucket=bucket, Key="p/dump/a")
    s3_proxy.fail(refuse(404, "NoSuchUpload"), method="DELETE")
    with pytest.raises(TransientError, match="uploads come back"):
        await S3LargeObjects(store).abort_uploads("dump/")


async def test_more_than_a_page_of_uploads_is_aborted(store: S3Store, client: S3Client, bucket: str) -> None:
    free = asyncio.Semaphore(16)

    async def begin(number: int) -> None:
        async with free:
            await client.create_multipart_upload(Bucket=bucket, Key=f"p/dump/{number}")

    async with asyncio.TaskGroup() as group:
        for number in range(1001):
            group.create_task(begin(number))
    assert await S3LargeObjects(store).abort_uploads("dump/") == 1001
    assert await uploads(client, bucket) == []


@pytest.mark.parametrize("replaces", [True, False])
async def test_an_object_that_changes_while_it_is_read_is_told(store: S3Store, *, replaces: bool) -> None:
    large = S3LargeObjects(store)
    await large.upload("a", pieces(2))
    async with aclosing(large.read("a")) as reading:
        assert await anext(reading) == bytes(PART)
        if replaces:
            await store.put("a", b"other")
        else:
            await store.delete(["a"])
        with pytest.raises(TransientError, match="changed while it was read"):
            await anext(reading)


async def test_a_reader_goes_on_where_the_line_broke(store: S3Store, s3_proxy: S3Proxy) -> None:
    large = S3LargeObjects(store)
    await large.upload("a", pieces(3))
    read, faults = b"", []
    async with aclosing(large.read("a")) as reading:
        async for piece in reading:
            read += piece
            faults.append(s3_proxy.fail(refuse(503, "SlowDown"), method="GET", times=1))
    assert [fault.met for fault in faults] == [1, 1, 0]
    assert read == b"".join([piece async for piece in pieces(3)])
