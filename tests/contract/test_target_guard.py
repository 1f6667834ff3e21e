"""The TargetGuard: in memory, and on a real MongoDB server with access control."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, cast

import pytest
from bson import encode
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

from d5agent.adapters.clock import SystemClock
from d5agent.adapters.mongo import open_mongo
from d5agent.adapters.mongo_guard import MongoGuard
from d5agent.adapters.mongo_target import MongoTarget
from d5agent.adapters.target_changes import MongoTargetChanges
from d5agent.core.log.operation import ClusterTime, Namespace
from d5agent.core.log.raw import document_id
from d5agent.core.replay.replay import Barrier, Write, WriteBatch
from d5agent.core.replay.ttl import NEVER, TtlIndex
from d5agent.drill.child import wait_until
from d5agent.drill.servers import Credentials, Mongod, ServerOptions
from d5agent.drill.stage import TARGET_ROLES, WRITE_BLOCK_ROLE
from d5agent.errors import OperatorError
from d5agent.steps.compare.written_since import written_since
from tests.fakes.guard import FakeGuard
from tests.fakes.target import FakeTarget, FakeTargetChanges
from tests.running import running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from d5agent.adapters.mongo import Client
    from d5agent.ports import Target, TargetChanges, TargetGuard

Plain = AsyncMongoClient[dict[str, Any]]
BLOCKED: Final = 371
ANOTHER: Final = [{"role": "readWriteAnyDatabase", "db": "admin"}, {"role": "dbAdminAnyDatabase", "db": "admin"}]


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    """A server with access control, which deletes what has expired every second."""
    folder = tmp_path_factory.mktemp("locked")
    root = Credentials(username="root", password="hush-root")
    with running(Mongod(folder, options=ServerOptions(credentials=root, ttl_seconds=1)), folder) as server:
        asyncio.run(_make_users(server))
        yield server


async def _make_users(server: Mongod) -> None:
    async with Plain(server.uri) as root:
        await root.admin.command(WRITE_BLOCK_ROLE)
        for name, roles in {"agent": TARGET_ROLES, "another": ANOTHER}.items():
            await root.admin.command({"createUser": name, "pwd": "hush", "roles": roles})


def uri_of(server: Mongod, user: str) -> str:
    return f"mongodb://{user}:hush@127.0.0.1:{server.port}/?replicaSet=rs0&authSource=admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarded:
    """A target, the agent's guard over it, another user's guard, and what that user writes: False, it is refused."""

    guard: TargetGuard
    others: TargetGuard
    target: Target
    changes: TargetChanges
    write_as_another: Callable[[Namespace], Awaitable[bool]]
    make_ttl: Callable[[Namespace, float], Awaitable[None]]
    name: str

    def collection(self, name: str) -> Namespace:
        return Namespace(self.name, name)

    async def ttl(self) -> dict[str | None, float]:
        """Return the expiry of each TTL index of this database."""
        found = [i for i in await self.guard.ttl_indexes() if i.namespace.database == self.name]
        return {index.namespace.collection: index.seconds for index in found}

    async def index(self, collection: str) -> TtlIndex:
        """Return the TTL index of a collection."""
        (found,) = [i for i in await self.guard.ttl_indexes() if i.namespace == self.collection(collection)]
        return found


@pytest.fixture(params=["fake", "mongodb"])
async def guarded(request: pytest.FixtureRequest, locked: Mongod, fresh_name: str) -> AsyncIterator[Guarded]:
    if request.param == "fake":
        yield _fake(fresh_name)
        return
    async with (
        open_mongo(uri_of(locked, "agent"), side="target") as agent,
        open_mongo(uri_of(locked, "another"), side="target") as another,
        Plain(uri_of(locked, "another")) as plain,
    ):

        async def write_as_another(namespace: Namespace) -> bool:
            answer = await plain[namespace.database].command({"insert": namespace.collection, "documents": [{}]})
            errors = [error["code"] for error in answer.get("writeErrors", ())]
            assert errors in ([], [BLOCKED])
            return not errors

        async def make_ttl(namespace: Namespace, seconds: float) -> None:
            collection = plain[namespace.database][namespace.collection or ""]
            await collection.create_index("at", name="at_1", expireAfterSeconds=seconds)

        clock, asked = SystemClock(), [f"127.0.0.1:{locked.port}"]
        guard = MongoGuard(agent, clock=clock, asked=asked)
        yield Guarded(
            guard=guard,
            others=MongoGuard(another, clock=clock, asked=asked),
            target=MongoTarget(agent, clock=clock),
            changes=MongoTargetChanges(agent, clock=clock),
            write_as_another=write_as_another,
            make_ttl=make_ttl,
            name=fresh_name,
        )
        await guard.block_writes(is_on=False)
        await plain.drop_database(fresh_name)


def _fake(name: str) -> Guarded:
    target = FakeTarget()

    async def write_as_another(namespace: Namespace) -> bool:
        return target.database.write_as_another(namespace, {"_id": 1})

    async def make_ttl(namespace: Namespace, seconds: float) -> None:
        await target.create_collection(namespace)
        index = TtlIndex(namespace=namespace, name="at_1", field="at", seconds=seconds, collection_id=str(namespace))
        target.database.ttl[namespace] = (index,)

    missing = "the agent's user may not bypassWriteBlockingMode, setUserWriteBlockMode"
    return Guarded(
        guard=FakeGuard(target=target),
        others=FakeGuard(target=target, obstacle=missing, may_see=False),
        target=target,
        changes=FakeTargetChanges(target),
        write_as_another=write_as_another,
        make_ttl=make_ttl,
        name=name,
    )


def _one(namespace: Namespace, id_: object) -> WriteBatch:
    document = encode({"_id": id_})
    return WriteBatch(namespace=namespace, writes=(Write(id=document_id(document), document=document),))


async def test_a_block_refuses_others_and_lets_the_agent_write(guarded: Guarded) -> None:
    orders = guarded.collection("orders")
    assert await guarded.write_as_another(orders)
    for _ in range(2):
        await guarded.guard.block_writes(is_on=True)
        assert (await guarded.guard.write_block()).is_on
        assert not await guarded.write_as_another(orders)
        assert not await guarded.target.write(_one(orders, "the agent's"))
    for _ in range(2):
        await guarded.guard.block_writes(is_on=False)
        assert (await guarded.guard.write_block()).is_on is False
        assert await guarded.write_as_another(guarded.collection("others"))


async def test_what_others_write_after_a_position_is_told_from_there_on(guarded: Guarded) -> None:
    orders = guarded.collection("orders")
    assert await guarded.write_as_another(orders)
    position = await guarded.guard.position()
    assert await guarded.write_as_another(guarded.collection("others"))
    found = await written_since(guarded.changes, position, clock=SystemClock())
    named = {name for name in {*found.documents, *found.moved} if name.database == guarded.name}
    assert named == {guarded.collection("others")}


async def test_both_guards_name_one_target(guarded: Guarded) -> None:
    ours, theirs = await guarded.guard.facts(), await guarded.others.facts()
    assert ours.hosts
    assert ours.is_same(theirs)  # another user may not see the cluster's id: the hosts tell


async def test_whoever_lacks_the_right_is_told_what_to_grant(guarded: Guarded) -> None:
    found = await guarded.others.write_block()
    assert "may not bypassWriteBlockingMode, setUserWriteBlockMode" in found.obstacle
    assert "grant" in found.hint
    assert found.is_on is None  # another user has no clusterMonitor
    with pytest.raises(OperatorError, match="a privilege is missing"):
        await guarded.others.block_writes(is_on=True)
    assert (await guarded.guard.write_block()).obstacle == ""


async def test_ttl_indexes_are_held_and_given_back(guarded: Guarded) -> None:
    for name, seconds in {"at once": 0, "hour": 3600}.items():
        await guarded.make_ttl(guarded.collection(name), seconds)
    assert await guarded.ttl() == {"at once": 0, "hour": 3600}
    found = [await guarded.index(name) for name in ("at once", "hour")]
    assert all(index.field == "at" and index.deletes for index in found)
    for number, index in enumerate(found):
        await guarded.guard.set_ttl(index, NEVER - number)
    assert await guarded.ttl() == {"at once": NEVER, "hour": NEVER - 1}
    assert not (await guarded.index("hour")).deletes
    for index in found:
        await guarded.guard.set_ttl(index, index.seconds)
    assert await guarded.ttl() == {"at once": 0, "hour": 3600}


async def test_a_ttl_index_is_known_again_after_a_rename(guarded: Guarded) -> None:
    await guarded.make_ttl(guarded.collection("sessions"), 60)
    before = await guarded.index("sessions")
    barrier = Barrier(
        kind="rename",
        namespace=guarded.collection("sessions"),
        rename_to=guarded.collection("archive"),
        cluster_time=ClusterTime(1, 1),
    )
    await guarded.target.apply(barrier)
    after = await guarded.index("archive")
    assert after.is_same(before)
    assert after.namespace != before.namespace
    await guarded.make_ttl(guarded.collection("other"), 60)
    assert not (await guarded.index("other")).is_same(before)


async def test_a_ttl_index_that_is_gone_stays_gone(guarded: Guarded) -> None:
    gone = TtlIndex(namespace=guarded.collection("nowhere"), name="at_1", field="at", seconds=60)
    await guarded.guard.set_ttl(gone, NEVER)
    await guarded.make_ttl(guarded.collection("here"), 60)
    other = TtlIndex(namespace=guarded.collection("here"), name="other_1", field="other", seconds=60)
    await guarded.guard.set_ttl(other, NEVER)
    assert await guarded.ttl() == {"here": 60}


@pytest.fixture
async def agent(locked: Mongod) -> AsyncIterator[MongoGuard]:
    async with open_mongo(uri_of(locked, "agent"), side="target") as client:
        yield MongoGuard(client, clock=SystemClock())


async def test_a_block_stops_the_servers_own_deletes_by_age(agent: MongoGuard, locked: Mongod) -> None:
    async with Plain(locked.uri) as root:
        await root.ages.sessions.create_index("at", expireAfterSeconds=0)
        await agent.block_writes(is_on=True)
        await root.ages.sessions.insert_one({"_id": 1, "at": datetime.now(UTC)})
        before = await _passes(root)
        await _until(lambda: _is_after(root, before + 2), locked)
        assert await root.ages.sessions.count_documents({}) == 1
        await agent.block_writes(is_on=False)
        await _until(lambda: _is_empty(root), locked)
        await root.drop_database("ages")


async def _until(condition: Callable[[], Awaitable[bool]], server: Mongod) -> None:
    await wait_until(condition, seconds=120, what="the reaper has passed by", log=server.log)


async def _is_after(root: Plain, passes: int) -> bool:
    return await _passes(root) >= passes


async def _is_empty(root: Plain) -> bool:
    return not await root.ages.sessions.count_documents({})


async def _passes(root: Plain) -> int:
    return int((await root.admin.command("serverStatus"))["metrics"]["ttl"]["passes"])


async def test_the_expiry_of_a_clustered_collection_is_held_and_given_back(agent: MongoGuard, locked: Mongod) -> None:
    async with Plain(locked.uri) as root:
        clustered = {"key": {"_id": 1}, "unique": True}
        await root.ages.command({"create": "days", "clusteredIndex": clustered, "expireAfterSeconds": 100})
        for seconds in (NEVER, 100):
            (index,) = await agent.ttl_indexes()
            assert (index.name, index.field) == ("", "_id")
            await agent.set_ttl(index, seconds)
            assert [i.seconds for i in await agent.ttl_indexes()] == [seconds]
        await root.drop_database("ages")


@pytest.mark.parametrize("writes", [1, 30], ids=["one by one", "as a transaction"])
async def test_an_agent_that_may_not_bypass_a_block_fails_at_once(
    agent: MongoGuard, locked: Mongod, writes: int
) -> None:
    batch = [_one(Namespace("shop", "orders"), number).writes[0]._replace(is_new=False) for number in range(writes)]
    async with open_mongo(uri_of(locked, "another"), side="target") as client:
        target = MongoTarget(client, clock=SystemClock())
        await agent.block_writes(is_on=True)
        try:
            with pytest.raises(OperatorError, match="in write-block mode") as failed:
                await target.write(WriteBatch(namespace=Namespace("shop", "orders"), writes=tuple(batch)))
            with pytest.raises(OperatorError, match="in write-block mode"):
                await target.create_collection(Namespace("shop", "new"))
        finally:
            await agent.block_writes(is_on=False)
    assert "d5agentWriteBlock" in failed.value.hint


async def test_a_server_without_access_control_blocks_the_agent_too(mongod: Mongod) -> None:
    async with open_mongo(mongod.uri, side="target") as client:
        found = await MongoGuard(client, clock=SystemClock()).write_block()
    assert found.is_on is False
    assert "may not bypassWriteBlockingMode" in found.obstacle


class Telling:
    """A server as far as its answers to a few commands."""

    def __init__(self, *, wire_version: int, status: dict[str, Any] | None = None) -> None:
        privilege = {"resource": {"anyResource": True}, "actions": ["setUserWriteBlockMode", "bypassWriteBlockingMode"]}
        self._answers: dict[str, dict[str, Any] | None] = {
            "hello": {"maxWireVersion": wire_version},
            "serverStatus": status,
            "connectionStatus": {"authInfo": {"authenticatedUserPrivileges": [privilege]}},
        }

    @property
    def admin(self) -> Telling:
        return self

    def __getitem__(self, _: str) -> Telling:
        return self

    async def command(self, command: str | dict[str, Any], **_: object) -> dict[str, Any]:
        answer = self._answers[command if isinstance(command, str) else next(iter(command))]
        if answer is None:
            raise OperationFailure("not authorized on admin to execute command", 13)
        return answer


@pytest.mark.parametrize(
    ("server", "is_on", "obstacle"),
    [
        (Telling(wire_version=13), None, "MongoDB before 6.0 has no write-block mode"),
        (Telling(wire_version=17), None, "the agent's user may not see the mode"),
        (Telling(wire_version=17, status={}), None, "the agent's user may not see the mode"),
        (Telling(wire_version=25, status={"repl": {"userWriteBlockMode": 2}}), True, ""),
        (Telling(wire_version=25, status={"repl": {"userWriteBlockMode": 1}}), False, ""),
    ],
)
async def test_what_a_server_and_its_user_allow_decides(server: Telling, is_on: bool | None, obstacle: str) -> None:  # noqa: FBT001 -- a column
    found = await MongoGuard(cast("Client", server), clock=SystemClock()).write_block()
    assert found.is_on is is_on
    assert found.obstacle.startswith(obstacle)
    assert bool(found.obstacle) == bool(obstacle) == bool(found.hint)
