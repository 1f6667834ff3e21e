"""What the services need of the world, in our language: no vendor's type crosses a port."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from d5agent.core.log.operation import ClusterTime, Namespace, Operation, Position
    from d5agent.core.log.raw import DocumentId
    from d5agent.core.replay.pace import Tickets
    from d5agent.core.replay.replay import Barrier, Failure, Write, WriteBatch
    from d5agent.core.replay.specification import Specification
    from d5agent.core.replay.ttl import TtlIndex
    from d5agent.core.replay.unique_key import Key, UniqueIndex
    from d5agent.core.servers import ServerFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class EventBatch:
    """Raw events in the order of the stream; none means that there is nothing new at this moment.

    `position` is where the stream goes on after them, as the server says it; None when it does not say. Its time is the
    server's own at that moment. `is_reduced`: the event was too large to be sent whole, and lacks something. `size`: in
    bytes, where it is known without a look at the events.
    """

    events: Sequence[bytes]
    position: Position | None
    is_reduced: bool = False
    size: int | None = None


class Clock(Protocol):
    """The time. Only its adapter asks the machine."""

    def now(self) -> datetime:
        """Return the time of day, in UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class ChangeSource(Protocol):
    """The database whose changes are captured."""

    async def check(self, *, before_enabling: Callable[[], Awaitable[None]] | None) -> None:
        """Raise OperatorError unless changes of the whole cluster can be read, saying what to do.

        With `before_enabling`, where they are not kept yet they may be switched on, if the configuration says so; it
        is called first.
        """
        ...

    def stream(self, after: Position | None) -> AbstractAsyncContextManager[AsyncGenerator[EventBatch]]:
        """Open the cluster-wide stream after a position (None: from now), endless, reopened when it can be.

        Its first batch is empty and tells the position that it begins at. OperatorError: the position is lost.
        """
        ...

    async def mark(self, mark_id: str) -> bool:
        """Write a mark into the agent's own database, to see it come out of the stream; False: no right to write."""
        ...

    async def running_writes(self) -> Sequence[str]:
        """Return what writes at this moment: one description an operation, none of our own."""
        ...

    async def now(self) -> ClusterTime:
        """Return the cluster's time."""
        ...

    async def close_stream(self, *, switches_off: bool) -> bool:
        """Remove the agent's marks; with `switches_off` what makes the server keep its changes, where it is a switch.

        Return whether it is still switched on. OperatorError: it was to be off, and is not.
        """
        ...


class ChangeHistory(Protocol):
    """What the captured database still has of its past changes."""

    async def check_kept(self, since: ClusterTime | None) -> ClusterTime:
        """Prove that all changes since a time can still be read, and return up to when; `since` None: only that.

        The time returned is one before the proof began. NotKeptError: some are gone.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionFacts:
    """What a collection is beside its documents: indexes and options, each as a text that is the same on every server.

    `exists`: a collection that is not there has none of either. `ttl`: what deletes its documents by their age.
    """

    indexes: Mapping[str, str]
    options: Mapping[str, str]
    exists: bool = True
    ttl: tuple[TtlIndex, ...] = ()


class DocumentReader(Protocol):
    """Documents of a database, raw, read from its primary."""

    async def collections(self) -> Sequence[Namespace]:
        """Return the collections that belong to applications: no views, no system's, none of ours."""
        ...

    async def fetch(
        self, namespace: Namespace, ids: Sequence[DocumentId], *, most_bytes: int | None = None
    ) -> Mapping[DocumentId, bytes]:
        """Return the documents with these `_id`s; absent ones are left out.

        TooManyBytesError: more than one was asked for, and together they have more than `most_bytes`.
        """
        ...

    def scan(self, namespace: Namespace) -> AsyncGenerator[Sequence[bytes]]:
        """Yield a collection's documents in the server's `_id` order, in pages; they are equal if all in them is."""
        ...

    async def count(self, namespace: Namespace, *, exactly: bool) -> int:
        """Return how many documents there are: what the server has written down, or counted, which reads an index."""
        ...

    async def facts(self, namespace: Namespace) -> CollectionFacts:
        """Return indexes and options; no document is read."""
        ...

    async def holders(self, namespace: Namespace, index: UniqueIndex, keys: Sequence[Key]) -> Sequence[bytes]:
        """Return the documents that hold one of these keys in a unique index: their `_id` and the index's fields."""
        ...


class Server(Protocol):
    """One of the two clusters, as far as it tells who it is."""

    async def facts(self) -> ServerFacts:
        """Return its hosts, its set's name, its id and its version."""
        ...

    async def collations(self) -> Mapping[Namespace, str]:
        """Return the locales of the collections whose default collation is not simple."""
        ...


class Target(Protocol):
    """The database that is brought up to date. Every call returns after `w: majority, j: true`."""

    async def write(self, batch: WriteBatch) -> Sequence[Failure]:
        """Make each document what the batch says, in any order; return those that the server refused, all of them."""
        ...

    async def exchange(self, namespace: Namespace, write: Write, *, expected: bytes | None) -> str:
        """Make a document what the write says if it is `expected` at that moment (None: absent), or is so already.

        Return why it was not written, in words; empty: it was. Nobody's write in between is overwritten.
        """
        ...

    async def apply(self, barrier: Barrier) -> None:
        """Apply a drop, a rename or a dropDatabase; what is so already, stays so."""
        ...

    async def create_collection(self, namespace: Namespace) -> None:
        """Make an empty collection, unless it is there."""
        ...

    async def tickets(self) -> Tickets | None:
        """Return how many more writes the server would let in at this moment; None: it does not tell us."""
        ...


class TargetSpecifications(Protocol):
    """Indexes and options of the target's collections."""

    async def specifications(self) -> Mapping[Namespace, Specification]:
        """Return those of all application collections that have any."""
        ...

    async def build(self, namespace: Namespace, specification: Specification) -> Sequence[str]:
        """Make a collection what the specification says, as far as it is not; return what was refused, in words."""
        ...


class TargetChanges(Protocol):
    """The target's own change stream: what is written there, by whomever, the agent included."""

    async def position(self) -> bytes:
        """Return the token of this moment. OperatorError: there is no such stream, or the user may not read it."""
        ...

    def after(self, position: bytes) -> AsyncGenerator[Sequence[Operation]]:
        """Yield what happened after a position, in order, without documents, endless; a batch may be empty.

        OperatorError: the target does not remember the position.
        """
        ...

    async def mark(self, mark_id: str) -> None:
        """Write a mark into the agent's own database, in the place of the one before."""
        ...

    async def remove_marks(self) -> None:
        """Remove the mark."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """An object's key and its size in bytes."""

    key: str
    bytes: int


class ObjectStore(Protocol):
    """Objects under one bucket and prefix; keys are relative to the prefix."""

    async def put_once(self, key: str, body: bytes) -> bool:
        """Store an object unless its key is taken; False: it is taken. Durable when it returns."""
        ...

    async def put(self, key: str, body: bytes, *, replacing: bytes | None = None) -> bool:
        """Store an object, replacing what is there; with `replacing`, only that content: False, it is another now."""
        ...

    async def get(self, key: str) -> bytes | None:
        """Return an object's content; None: there is none."""
        ...

    def list_objects(self, prefix: str, *, after: str = "") -> AsyncGenerator[Sequence[StoredObject]]:
        """Yield the objects whose key begins with `prefix` and comes after `after`, in key order, in pages."""
        ...

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; a missing one is deleted already."""
        ...

    async def copy(self, key: str, to: str, *, tags: Mapping[str, str]) -> str | None:
        """Copy an object beside itself, with these tags; return the copy's sha256. None: there is no such object."""
        ...


class LargeObjectStore(Protocol):
    """Objects that do not fit into memory, under the same bucket and prefix."""

    async def upload(self, key: str, chunks: AsyncGenerator[bytes]) -> None:
        """Store a stream of unknown length in bounded memory; nothing is there until all of it is."""
        ...

    def read(self, key: str) -> AsyncGenerator[bytes]:
        """Yield an object's content in pieces; OperatorError: there is no such object."""
        ...

    async def abort_uploads(self, prefix: str) -> int:
        """Give up the uploads below `prefix` that a crash has left half-way; return how many there were."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolVersion:
    """A tool's version, and what is to be said against using it here; nothing, as a rule."""

    number: str
    advice: str = ""


class DumpTool(Protocol):
    """The tool that dumps one of the two databases."""

    async def version(self) -> ToolVersion:
        """Return the tool's version; OperatorError when it is missing or must not be used here."""
        ...

    async def server_version(self) -> str:
        """Return the version of the server that is dumped."""
        ...

    async def databases(self) -> Sequence[str]:
        """Return the databases to dump."""
        ...

    async def operation_time(self) -> ClusterTime:
        """Return the server's time, to note how old a dump may be."""
        ...

    def dump(self, database: str) -> AbstractAsyncContextManager[Dump]:
        """Begin the dump of one database."""
        ...


class Dump(Protocol):
    """A running dump."""

    def chunks(self) -> AsyncGenerator[bytes]:
        """Yield its archive; ends with an error unless the tool ended well."""
        ...

    def documents_so_far(self) -> int:
        """Return how many documents the tool has told of."""
        ...

    def documents(self) -> Mapping[str, int]:
        """Return the documents of each collection, as the tool reported them, once the chunks are read."""
        ...


class StateStore(Protocol):
    """Small named states, each replaced as a whole, on the local disk and mirrored to the object store."""

    async def load(self, name: str) -> dict[str, Any] | None:
        """Return a state; None: there is none. From the mirror when the local disk has none."""
        ...

    async def save(self, name: str, value: Mapping[str, Any], *, mirrors: bool = True) -> None:
        """Replace a state; it is on disk when this returns. Its mirror follows at once, or with a later call."""
        ...

    async def delete(self, name: str) -> None:
        """Remove a state, the mirror's too."""
        ...


class Application(Protocol):
    """What writes to the source: its writes are refused for the cutover."""

    async def refuse_writes(self) -> bool:
        """Make it read-only; it may be so already. False: somebody else does that, and has said so.

        OperatorError: it could not be told, and may be so or not.
        """
        ...

    async def accept_writes(self) -> bool:
        """Let it write again. False: somebody else does that. OperatorError: it could not be told."""
        ...


class PowerSwitch(Protocol):
    """What switches the machine off."""

    async def off(self) -> None:
        """Ask for it; OperatorError when the request failed, or nothing came of it in time."""
        ...

    async def boot_id(self) -> str:
        """Return the name of this boot: another one after each start of the machine."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteBlock:
    """How the target's write-block mode is. `is_on`: None where the agent's user may not see it, or there is none.

    `obstacle`: why the agent cannot use it, and `hint` what to do about that; empty: it can.
    """

    is_on: bool | None
    obstacle: str = ""
    hint: str = ""


class TargetGuard(Protocol):
    """What keeps others from writing to the target. Each call may be repeated."""

    async def facts(self) -> ServerFacts:
        """Return which target it is."""
        ...

    async def write_block(self) -> WriteBlock:
        """Return whether others may write, and whether the agent may decide that."""
        ...

    async def block_writes(self, *, is_on: bool) -> None:
        """Let nobody write but who may bypass it, or let everybody write again."""
        ...

    async def ttl_indexes(self) -> Sequence[TtlIndex]:
        """Return what deletes documents by their age, in the collections that belong to applications."""
        ...

    async def position(self) -> bytes:
        """Return the token of this moment in the target's change stream. OperatorError: it cannot be read."""
        ...

    async def set_ttl(self, index: TtlIndex, seconds: float) -> None:
        """Set after how many seconds a TTL index deletes; one that is gone, or is none any more, stays so."""
        ...
