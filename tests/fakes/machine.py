"""What surrounds the data path: a dump tool, the application, a power switch, a journal."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.log.operation import ClusterTime
from d5agent.ports import ToolVersion

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from d5agent.errors import AgentError


_VERSION: Final = ToolVersion(number="100.11.0")
_TIME: Final = ClusterTime(1_793_600_000, 1)


@dataclass(slots=True, kw_only=True)
class FakeDump:
    """One running dump; its error comes after its chunks, as a tool's exit status does."""

    pieces: Sequence[bytes]
    counts: Mapping[str, int]
    error: BaseException | None

    async def chunks(self) -> AsyncGenerator[bytes]:
        for piece in self.pieces:
            yield piece
        if self.error is not None:
            raise self.error

    def documents_so_far(self) -> int:
        return sum(self.counts.values())

    def documents(self) -> Mapping[str, int]:
        return self.counts


@dataclass(slots=True, kw_only=True)
class FakeDumpTool:
    """Dumps what it was given: by database, an archive in pieces, and the documents of each collection.

    `errors` names the databases whose dump fails; `running` those being dumped, `ended` those that no longer are.
    """

    archives: dict[str, Sequence[bytes]] = field(default_factory=dict)
    documents: dict[str, Mapping[str, int]] = field(default_factory=dict)
    errors: dict[str, BaseException] = field(default_factory=dict)
    tool_version: ToolVersion = _VERSION
    version_error: AgentError | None = None
    time: ClusterTime = _TIME
    running: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    async def server_version(self) -> str:
        return "6.0.5"

    async def version(self) -> ToolVersion:
        if self.version_error is not None:
            raise self.version_error
        return self.tool_version

    async def databases(self) -> Sequence[str]:
        return sorted(self.archives)

    async def operation_time(self) -> ClusterTime:
        return self.time

    @asynccontextmanager
    async def dump(self, database: str) -> AsyncGenerator[FakeDump]:
        self.running.append(database)
        try:
            yield FakeDump(
                pieces=self.archives[database],
                counts=self.documents.get(database, {}),
                error=self.errors.get(database),
            )
        finally:
            self.running.remove(database)
            self.ended.append(database)


def shop_tool(**changed: Any) -> FakeDumpTool:  # noqa: ANN401 -- fields of the tool
    """Return a tool that dumps two databases, one of them in two pieces and with a name that a key must escape."""
    archives: dict[str, Sequence[bytes]] = {"shop": [b"one", b"two"], "a/b": [b"three"]}
    return FakeDumpTool(archives=archives, documents={"shop": {"shop.orders": 7}}, **changed)


@dataclass(slots=True, kw_only=True)
class FakePowerSwitch:
    """Counts the requests; fails with `error`, if there is one. `boot`: the name of the boot that the machine is in."""

    error: AgentError | None = None
    requests: int = 0
    boot: str = "first boot"

    async def off(self) -> None:
        self.requests += 1
        if self.error is not None:
            raise self.error

    async def boot_id(self) -> str:
        return self.boot


@dataclass(slots=True, kw_only=True)
class FakeApplication:
    """Remembers what it was told, and writes to the very moment at which it is refused. `error`: what it answers.

    `is_told` False: there are no commands, and somebody else has done it.
    """

    told: list[str] = field(default_factory=list)
    error: AgentError | None = None
    is_told: bool = True
    last_writes: Callable[[], None] = lambda: None

    async def refuse_writes(self) -> bool:
        self.last_writes()
        return self._tell("refuse")

    async def accept_writes(self) -> bool:
        return self._tell("accept")

    def _tell(self, word: str) -> bool:
        self.told.append(word)
        if self.error is not None:
            raise self.error
        return self.is_told


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a journal."""

    level: str
    event: str
    facts: Mapping[str, object]


@dataclass(slots=True)
class FakeJournal:
    """Keeps what was said."""

    entries: list[Entry] = field(default_factory=list)

    def info(self, event: str, **facts: object) -> None:
        self.entries.append(Entry(level="info", event=event, facts=facts))

    def warning(self, event: str, **facts: object) -> None:
        self.entries.append(Entry(level="warning", event=event, facts=facts))

    def facts_of(self, event: str) -> list[Mapping[str, object]]:
        """Return the facts of each entry of that name."""
        return [entry.facts for entry in self.entries if entry.event == event]
