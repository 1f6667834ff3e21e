"""The LargeObjectStore: in memory, and on a real S3 server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from d5agent.adapters.clock import SystemClock
from d5agent.adapters.s3 import open_s3
from d5agent.adapters.s3_large import S3LargeObjects
from d5agent.errors import OperatorError
from tests.fakes.mortal import DiedError
from tests.fakes.store import FakeObjectStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from d5agent.drill.s3_server import S3Server
    from d5agent.ports import LargeObjectStore, ObjectStore

LARGE = 9 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """Both views of one bucket. `leave_half_way` begins an upload that nobody ends."""

    small: ObjectStore
    large: LargeObjectStore
    leave_half_way: Callable[[str], Awaitable[None]]

    async def keys(self) -> list[str]:
        """Return what is there."""
        return [found.key async for page in self.small.list_objects("") for found in page]


@pytest.fixture(params=["fake", "s3", "s3 with a prefix"])
async def stores(
    request: pytest.FixtureRequest, s3_server: S3Server, s3_credentials: None, fresh_name: str
) -> AsyncIterator[Stores]:
    _ = s3_credentials
    if request.param == "fake":
        fake = FakeObjectStore()

        async def die(key: str) -> None:
            with pytest.raises(DiedError):
                await fake.upload(key, _breaking(DiedError()))

        yield Stores(small=fake, large=fake, leave_half_way=die)
        return
    await s3_server.create_bucket(fresh_name)
    prefix = "domain5/agent/" if "prefix" in request.param else ""
    address = {"endpoint_url": s3_server.endpoint_url, "region": s3_server.region}
    async with (
        s3_server.client() as client,
        open_s3(bucket=fresh_name, prefix=prefix, clock=SystemClock(), **address) as opened,
    ):

        async def leave(key: str) -> None:
            begun = await client.create_multipart_upload(Bucket=fresh_name, Key=prefix + key)
            await client.upload_part(
                Bucket=fresh_name, Key=prefix + key, UploadId=begun["UploadId"], PartNumber=1, Body=b"lost"
            )

        yield Stores(small=opened, large=S3LargeObjects(opened), leave_half_way=leave)


async def _chunks(*pieces: bytes) -> AsyncGenerator[bytes]:
    for piece in pieces:
        yield piece


async def _breaking(error: BaseException) -> AsyncGenerator[bytes]:
    yield bytes(LARGE)
    raise error


async def _read(stores: Stores, key: str) -> bytes:
    return b"".join([piece async for piece in stores.large.read(key)])


async def test_a_stream_is_stored_as_one_object(stores: Stores) -> None:
    await stores.large.upload("dump/small", _chunks(b"a", b"", b"bc"))
    await stores.large.upload("dump/empty", _chunks())
    pieces = [bytes([n]) * LARGE for n in range(3)]
    await stores.large.upload("dump/large", _chunks(*pieces))
    assert await stores.small.get("dump/small") == await _read(stores, "dump/small") == b"abc"
    assert await stores.small.get("dump/empty") == await _read(stores, "dump/empty") == b""
    assert await stores.small.get("dump/large") == await _read(stores, "dump/large") == b"".join(pieces)


async def test_an_object_that_is_there_is_replaced(stores: Stores) -> None:
    await stores.large.upload("dump/a", _chunks(b"before"))
    await stores.large.upload("dump/a", _chunks(b"after"))
    assert await _read(stores, "dump/a") == b"after"


async def test_of_a_stream_that_breaks_nothing_is_there(stores: Stores) -> None:
    with pytest.raises(OperatorError, match="the dump failed"):
        await stores.large.upload("dump/broken", _breaking(OperatorError("the dump failed")))
    assert await stores.keys() == []
    assert await stores.large.abort_uploads("") == 0


async def test_what_is_not_there_cannot_be_read(stores: Stores) -> None:
    with pytest.raises(OperatorError, match="there is no such object"):
        await _read(stores, "dump/none")


async def test_uploads_that_a_crash_left_half_way_are_aborted_below_a_prefix_only(stores: Stores) -> None:
    await stores.small.put("dump/run/kept", b"kept")
    for key in ("dump/run/a", "dump/run/a", "dump/run/b", "dump/other/c"):
        await stores.leave_half_way(key)
    assert await stores.large.abort_uploads("dump/run/") == 3
    assert await stores.large.abort_uploads("dump/run/") == 0
    assert await stores.keys() == ["dump/run/kept"]
    assert await stores.large.abort_uploads("") == 1
