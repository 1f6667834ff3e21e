"""The ObjectStore: in memory, and on a real S3 server."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

import pytest

from d5agent.adapters.clock import SystemClock
from d5agent.adapters.s3 import open_s3
from d5agent.adapters.s3_large import S3LargeObjects
from d5agent.adapters.write_gate import WriteGate
from d5agent.core.log.naming import segment_key
from d5agent.core.log.operation import ClusterTime, Namespace
from d5agent.errors import LogHeldError
from tests.fakes.documents import raw_id
from tests.fakes.store import FakeObjectStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from d5agent.drill.s3_server import S3Server
    from d5agent.ports import ObjectStore


@pytest.fixture(params=["fake", "s3", "s3 with a prefix"])
async def store(
    request: pytest.FixtureRequest, s3_server: S3Server, s3_credentials: None, fresh_name: str
) -> AsyncIterator[ObjectStore]:
    _ = s3_credentials
    if request.param == "fake":
        yield FakeObjectStore()
        return
    await s3_server.create_bucket(fresh_name)
    prefix = "domain5/agent/" if "prefix" in request.param else ""
    async with open_s3(
        bucket=fresh_name,
        prefix=prefix,
        endpoint_url=s3_server.endpoint_url,
        region=s3_server.region,
        clock=SystemClock(),
    ) as opened:
        yield opened


async def _keys(store: ObjectStore, prefix: str, *, after: str = "") -> list[str]:
    return [found.key async for page in store.list_objects(prefix, after=after) for found in page]


async def _chunks(*pieces: bytes) -> AsyncGenerator[bytes]:
    for piece in pieces:
        yield piece


async def test_what_is_put_is_got(store: ObjectStore) -> None:
    assert await store.get("a/b") is None
    await store.put("a/b", b"one")
    await store.put("a/b", b"two")
    await store.put("empty", b"")
    assert await store.get("a/b") == b"two"
    assert await store.get("empty") == b""


async def test_what_is_replaced_is_what_was_seen(store: ObjectStore) -> None:
    assert not await store.put("key", b"one", replacing=b"zero")
    assert await store.get("key") is None
    assert await store.put("key", b"one")
    assert await store.put("key", b"two", replacing=b"one")
    assert not await store.put("key", b"three", replacing=b"one")
    assert await store.put("key", b"two", replacing=b"one"), "it is so already: a repetition whose answer was lost"
    assert await store.get("key") == b"two"


async def test_of_several_that_replace_the_same_content_one_wins(store: ObjectStore) -> None:
    await store.put("key", b"before")
    async with asyncio.TaskGroup() as group:
        puts = [store.put("key", bytes([number]), replacing=b"before") for number in range(8)]
        tasks = [group.create_task(put) for put in puts]
    winners = [number for number, task in enumerate(tasks) if task.result()]
    assert len(winners) == 1
    assert await store.get("key") == bytes(winners)


async def test_behind_a_closed_fence_nothing_is_written_and_all_is_read(
    s3_server: S3Server, s3_credentials: None, fresh_name: str
) -> None:
    class Lost:
        is_fresh = False

        async def confirm(self) -> None:
            raise LogHeldError("another agent holds this log")

    _ = s3_credentials
    await s3_server.create_bucket(fresh_name)
    address = {"endpoint_url": s3_server.endpoint_url, "region": s3_server.region}
    async with open_s3(bucket=fresh_name, prefix="", clock=SystemClock(), **address) as opened:
        await opened.put("key", b"one")
        fenced = opened.behind(WriteGate(Lost()))
        for write in (
            fenced.put("key", b"two"),
            fenced.put("key", b"two", replacing=b"one"),
            fenced.put_once("new", b"two"),
            fenced.delete(["key"]),
            fenced.copy("key", "new", tags={}),
            S3LargeObjects(fenced).upload("new", _chunks(b"two")),
        ):
            with pytest.raises(LogHeldError):
                await write
        assert await fenced.get("key") == b"one"
        assert await _keys(fenced, "") == ["key"]


async def test_a_taken_key_is_never_written_again(store: ObjectStore) -> None:
    assert await store.put_once("key", b"one")
    assert not await store.put_once("key", b"two")
    assert await store.get("key") == b"one"


async def test_of_several_that_race_for_a_key_one_wins(store: ObjectStore) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(store.put_once("key", bytes([number]))) for number in range(8)]
    winners = [number for number, task in enumerate(tasks) if task.result()]
    assert len(winners) == 1
    assert await store.get("key") == bytes(winners)


async def test_a_deleted_key_is_free_again(store: ObjectStore) -> None:
    await store.put_once("key", b"one")
    await store.delete(["key", "never there"])
    assert await store.get("key") is None
    assert await store.put_once("key", b"two")
    await store.delete([])


async def test_a_copy_is_the_same_and_its_hash_is_told(store: ObjectStore) -> None:
    for key in ("replication/shop/a b+c%25&é_1.bson", "plain"):
        await store.put_once(key, key.encode())
        for _ in range(2):  # it may be done again
            sha256 = await store.copy(key, f"archive/run/{key}", tags={"d5agent-keep-log-days": "30"})
            assert sha256 == hashlib.sha256(key.encode()).hexdigest()
        assert await store.get(f"archive/run/{key}") == await store.get(key) == key.encode()
    assert await store.copy("missing", "archive/run/missing", tags={}) is None
    assert await store.get("archive/run/missing") is None


async def test_objects_are_listed_in_the_order_of_their_keys_bytes_with_their_sizes(store: ObjectStore) -> None:
    keys = ["x/b", "x/a", "x/a/1", "x/A", "x/~", "x/_", "x/é", "x/漢", "x/\uffee", "x/𝄞", "y/a"]
    for key in keys:
        await store.put(key, key.encode())
    found = [item async for page in store.list_objects("x/") for item in page]
    assert [item.key for item in found] == sorted(keys[:-1], key=str.encode)
    assert all(item.bytes == len(item.key.encode()) for item in found)


async def test_a_listing_begins_after_a_key_that_need_not_exist(store: ObjectStore) -> None:
    for number in range(5):
        await store.put(f"log/{number}", b"")
    assert await _keys(store, "log/", after="log/2") == ["log/3", "log/4"]
    assert await _keys(store, "log/", after="log/2x") == ["log/3", "log/4"]
    assert await _keys(store, "log/", after="log/") == [f"log/{number}" for number in range(5)]
    assert await _keys(store, "log/", after="log/4") == []
    assert await _keys(store, "nothing/") == []
    assert await _keys(store, "") == [f"log/{number}" for number in range(5)]


async def test_more_than_a_page_is_listed_and_deleted(store: ObjectStore) -> None:
    keys = [f"many/{number:04d}_%7B%22x%22%7D" for number in range(1005)]  # as segments of odd `_id`s are called
    free = asyncio.Semaphore(16)

    async def put(key: str) -> None:
        async with free:
            await store.put(key, b"")

    async with asyncio.TaskGroup() as group:
        for key in keys:
            group.create_task(put(key))
    assert await _keys(store, "many/") == keys
    assert await _keys(store, "many/", after=keys[1000]) == keys[1001:]
    await store.delete(keys)
    assert await _keys(store, "many/") == []


async def test_keys_of_segments_come_back_as_they_are(store: ObjectStore) -> None:
    namespace = Namespace("shop", "a b+c&d%é漢")
    ids = ("x/y_z~%", "漢" * 300, {"a": 1}, 1.5, "'\"<>&?#")
    keys = [segment_key(namespace, ClusterTime(n, 1), raw_id(id_), ordinal=n) for n, id_ in enumerate(ids, 1)]
    for key in keys:
        assert await store.put_once(key, key.encode())
    assert await _keys(store, "replication/") == keys
    assert [await store.get(key) for key in keys] == [key.encode() for key in keys]
