"""What the services need of the world, in our language: no vendor's type crosses a port."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from d5agent.core.operation import ClusterTime, Namespace, Position
    from d5agent.core.phase import PhaseState, Service
    from d5agent.core.raw import DocumentId
    from d5agent.core.replay import Barrier, Failure, WriteBatch


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

    async def check(self, *, may_enable: bool) -> None:
        """Raise OperatorError unless changes of the whole cluster can be read, saying what to do.

        `may_enable`: where they are not kept yet, they may be switched on, if the configuration says so.
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

    async def close_stream(self) -> None:
        """Switch off what makes the server keep its changes, where that is switched (DocumentDB)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionFacts:
    """What a comparison needs beside documents. Indexes: name to a normalised description, without `_id_`."""

    count: int
    indexes: Mapping[str, str]


class DocumentReader(Protocol):
    """Documents of a database, raw, read from its primary."""

    async def collections(self) -> Sequence[Namespace]:
        """Return the collections that belong to applications: no views, no system's, none of ours."""
        ...

    async def fetch(self, namespace: Namespace, ids: Sequence[DocumentId]) -> Mapping[DocumentId, bytes]:
        """Return the documents with these `_id`s; absent ones are left out."""
        ...

    def scan(self, namespace: Namespace) -> AsyncGenerator[Sequence[bytes]]:
        """Yield a collection's documents in the server's `_id` order, in batches."""
        ...

    async def facts(self, namespace: Namespace) -> CollectionFacts:
        """Return count and indexes; of a collection that is not there: none."""
        ...


class Target(Protocol):
    """The database that is brought up to date. Every call returns after `w: majority, j: true`."""

    async def write(self, batch: WriteBatch) -> Sequence[Failure]:
        """Make each document what the batch says, in any order; return those that the server refused, all of them."""
        ...

    async def apply(self, barrier: Barrier) -> None:
        """Apply a drop, a rename or a dropDatabase; what is so already, stays so."""
        ...

    async def create_collection(self, namespace: Namespace) -> None:
        """Make an empty collection, unless it is there."""
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

    async def upload(self, key: str, chunks: AsyncGenerator[bytes]) -> None:
        """Store a stream of unknown length in bounded memory; nothing is there until all of it is."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpResult:
    """What a finished dump says of itself. `documents` by collection, as the tool reported them."""

    documents: Mapping[str, int]


class DumpTool(Protocol):
    """The tool that dumps one of the two databases."""

    async def version(self) -> str:
        """Return the tool's version; OperatorError when it is missing or must not be used here."""
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

    def result(self) -> DumpResult:
        """Return what it said of itself, once its chunks are read."""
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


class PowerSwitch(Protocol):
    """What switches the machine off."""

    async def off(self) -> None:
        """Ask for it; OperatorError when the request failed."""
        ...


class Journal(Protocol):
    """Events with facts, one line each (a structlog logger)."""

    def info(self, event: str, **facts: object) -> None:
        """Say what happened."""
        ...

    def warning(self, event: str, **facts: object) -> None:
        """Say what somebody should look at."""
        ...


class Coordinator(Protocol):
    """What a running service knows of its surroundings, and how it speaks to them."""

    @property
    def journal(self) -> Journal:
        """Where the service's events go."""
        ...

    @property
    def stopping(self) -> asyncio.Event:
        """Set when the service is to end, drained."""
        ...

    @property
    def state(self) -> PhaseState:
        """The phase state as it is now."""
        ...

    @property
    def facts(self) -> Mapping[str, object]:
        """What the service has reported so far."""
        ...

    async def update(self, change: Callable[[PhaseState], PhaseState]) -> None:
        """Change the phase state and save it."""
        ...

    async def wait(self, reason: str) -> None:
        """Say what the service waits for, and wait a moment; the caller looks again."""
        ...

    async def start(self, service: Service) -> None:
        """Start another service, as an operator would."""
        ...

    async def stop(self, service: Service) -> None:
        """End another service, drained; returns when it has ended. It counts as done."""
        ...

    def report(self, **facts: object) -> None:
        """Say how far the service is: the facts stand in `status`."""
        ...


class Plugin(Protocol):
    """A service: `run` returns when it is done, raises when it cannot be, and may be cancelled at any moment."""

    drains: bool
    """Whether it ends by itself, soon, once `stopping` is set; if not, it is cancelled."""

    async def run(self, coordinator: Coordinator) -> None:
        """Do the service's work."""
        ...
