"""Sees that source and target are two clusters, and that the log is the source's, before anything is written."""

from __future__ import annotations

from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from d5agent.core.log.operation import OWN_DATABASE, Namespace
from d5agent.core.reports.certificate import CertifiedClusters, certified_clusters
from d5agent.errors import CorruptDataError, OperatorError
from d5agent.steps.capture.fence import write_marker
from d5agent.steps.log.marks import mark_document_id
from d5agent.steps.replay.checkpoint import load_checkpoint

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from d5agent.core.log.raw import DocumentId
    from d5agent.core.run.services import Fence, PhaseState, Verified
    from d5agent.core.servers import ServerFacts
    from d5agent.ports import ChangeSource, Clock, DocumentReader, ObjectStore, Server, StateStore
    from d5agent.steps.log.reader import LogReader

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
    """The two clusters, as one who must not confuse them sees them. `changes` writes the markers to the source.

    `url_of`: where an object is, in an operator's words.
    """

    changes: ChangeSource
    source: Server
    target: Server
    source_reader: DocumentReader
    target_reader: DocumentReader
    store: ObjectStore
    states: StateStore
    clock: Clock
    url_of: Callable[[str], str] = str

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

    async def require_certified(self, state: PhaseState, *, again: str) -> None:
        """Raise unless these are the clusters of the run's certificate, if it has one; `again`: what to type.

        OperatorError: one of them is another.
        """
        if state.verified is None:
            return
        certified = await self._certified(state, state.verified)
        where = "" if certified.source is None else f"{self.url_of(state.verified.certificate)} names both clusters; "
        source, target = await self.source.facts(), await self.target.facts()
        for side, before, now in (("source", certified.source, source), ("target", certified.target, target)):
            if before is not None and not before.is_same(now):
                raise OperatorError(
                    f"the {side} is not the cluster that the certificate names",
                    hint=f"nothing was written or deleted; {where}correct [{side}] uri, or its secret, then type:"
                    f" {again}",
                    certified=before.in_words(),
                    now=now.in_words(),
                )
        # Removed with the log: from then on nobody looks for what came late.
        marker = "" if state.is_clearing else certified.marker
        if marker and not await self.source_reader.fetch(MARKS, [mark_document_id(marker)]):
            raise OperatorError(
                "the source does not hold the fence marker that the certificate names: it is another cluster, or"
                " somebody dropped its database d5agent",
                hint=f"nothing was written or deleted; {where}correct [source] uri, or its secret, then type: {again}."
                " If the database was dropped on the right cluster, the log goes only by d5agent start clean --force"
                f" {state.run_id}",
                marker=marker,
            )

    async def _certified(self, state: PhaseState, proof: Verified) -> CertifiedClusters:
        """Return the clusters that the certificate names; of one that is lost or altered, what else is known of them.

        Whoever builds upon the certificate itself, such as clean, refuses that. Until then nothing may be settled with
        another target.
        """
        body = await self.store.get(proof.certificate) if proof.certificate else None
        with suppress(CorruptDataError):
            named = None if body is None else certified_clusters(body)
            if named is not None:
                return named
        written = await load_checkpoint(self.states, state.run_id)
        marker = "" if state.fence is None else state.fence.marker
        return CertifiedClusters(source=None, target=written.target, marker=marker)


async def _marks(reader: LogReader) -> AsyncGenerator[Sequence[DocumentId]]:
    """Yield the markers of each commit that has any, from the first on."""
    async with aclosing(reader.links()) as links:
        async for link in links:
            own = [o async for o in reader.operations(link.commit, only_own=True)]
            ids = [o.document_id for o in own if o.document_id is not None and o.kind == "insert"]
            if ids:
                yield ids
