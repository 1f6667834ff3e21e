"""Sees that source and target are two clusters, and that the log is the source's, before anything is written."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from d5agent.core.operation import OWN_DATABASE, Namespace
from d5agent.errors import OperatorError
from d5agent.steps.fence import write_marker
from d5agent.steps.marks import mark_document_id

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from d5agent.core.raw import DocumentId
    from d5agent.core.servers import ServerFacts
    from d5agent.core.services import Fence
    from d5agent.ports import ChangeSource, Clock, DocumentReader, Server
    from d5agent.steps.log_reader import LogReader

MARKS: Final = Namespace(OWN_DATABASE, "marks")
_LOOKS: Final = 2
_PAUSE_SECONDS: Final = 0.2
_CORRECT: Final = "correct [target] uri, or [source] uri: nothing was written to the target"


@dataclass(frozen=True, slots=True, kw_only=True)
class Both:
    """Who the source is, and who the target."""

    source: ServerFacts
    target: ServerFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """The two clusters, as one who must not confuse them sees them. `changes` writes the markers to the source."""

    changes: ChangeSource
    source: Server
    target: Server
    source_reader: DocumentReader
    target_reader: DocumentReader
    clock: Clock

    async def tell_apart(self) -> Both:
        """Return who they are. OperatorError: they are one.

        Names of sets are no evidence, since DocumentDB's is always rs0, and neither are names that somebody resolved. A
        marker that was just written to the source must not be readable at the target.
        """
        both = Both(source=await self.source.facts(), target=await self.target.facts())
        shared = sorted(set(both.source.hosts) & set(both.target.hosts))
        if shared:
            raise OperatorError("source and target name the same host", hint=_CORRECT, hosts=", ".join(shared))
        marker = mark_document_id(await write_marker(self.changes, "apart", again="d5agent start restore"))
        for look in range(_LOOKS):
            if look:
                await self.clock.sleep(_PAUSE_SECONDS)
            if await self.target_reader.fetch(MARKS, [marker]):
                raise OperatorError(
                    "source and target are the same cluster: what was written to one is read at the other",
                    hint=_CORRECT,
                )
        return both

    async def require_own_log(self, reader: LogReader, fence: Fence | None) -> None:
        """Raise unless the source holds a marker that the log holds: else it is another cluster's log.

        The fence's marker once there is one, else any of the log: the agent writes some at each start of replication. A
        log without markers is left to the fence, which cannot be drawn without one.
        """
        if fence is None:
            has_any = False
            async for ids in _marks(reader):
                has_any = True
                if await self.source_reader.fetch(MARKS, ids):
                    return
            if not has_any:
                return
        elif await self.source_reader.fetch(MARKS, [mark_document_id(fence.marker)]):
            return
        raise OperatorError(
            "the log is another cluster's: the source does not hold the markers that the log holds",
            hint="correct [source] uri, or [store] bucket and prefix: nothing was written to the target; if somebody "
            "dropped the database d5agent on the source, type: d5agent stop replication, then d5agent start "
            "replication, then d5agent start restore",
        )


async def _marks(reader: LogReader) -> AsyncGenerator[Sequence[DocumentId]]:
    """Yield the markers of each commit that has any, from the first on."""
    async with aclosing(reader.links()) as links:
        async for link in links:
            own = [o async for o in reader.operations(link.commit, only_own=True)]
            ids = [o.document_id for o in own if o.document_id is not None and o.kind == "insert"]
            if ids:
                yield ids
