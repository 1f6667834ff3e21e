"""Keeps what restore overwrites and no dump of the target holds: what was written there after its dump began (ADR 43).

Once the target is closed to others, and before restore's first write, the target's own change stream says what that is.
So no document is read before each write. Where the target cannot be closed, repairs keep what they overwrite.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.backup import Beginning, beginning_key, decode_beginning, encode_beginning
from d5agent.core.compare.repair import Cause
from d5agent.core.log.identity import Identity, identity_of
from d5agent.core.log.operation import DOCUMENT_KINDS, UNNAMED, Namespace
from d5agent.core.log.raw import DocumentId, document_id
from d5agent.core.replay.overwritten import (
    AGAIN,
    KeptDocument,
    Look,
    Overwritten,
    decode_overwritten,
    overwritten_folder,
    overwritten_key,
)
from d5agent.core.reports.certificate import certificate_key
from d5agent.core.run.hold import Block
from d5agent.errors import CorruptDataError, LogHeldError, OperatorError
from d5agent.steps.backups import load_manifest
from d5agent.steps.compare.written_since import operations_since
from d5agent.steps.log.late_pages import PageWriter, read_rows

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence

    from d5agent.core.compare.repair import Repair
    from d5agent.core.compare.report import VerifyReport
    from d5agent.core.log.operation import Operation
    from d5agent.core.run.hold import Hold
    from d5agent.core.servers import ServerFacts
    from d5agent.ports import Clock, DocumentReader, ObjectStore, Server, TargetChanges
    from d5agent.service import Coordinator, Journal
    from d5agent.steps.replay.target_hold import TargetHold

    _Place = tuple[Namespace, DocumentId]

_FETCH: Final = 20  # a document may be 16 MiB
_PENDING: Final = 5_000
_MOST_REMEMBERED: Final = 100_000  # about 20 MB; what is forgotten is only stored twice
_SINCE_DUMP: Final = "written to the target after its dump began, or while it was open"
_RENAMED: Final = "in a collection that was renamed after the dump began"
_REPAIRED: Final = "replaced or deleted by a repair"
_EXPLAINED: Final = frozenset({Cause.EVENT_WITHOUT_DOCUMENT, Cause.NAME_MOVED, Cause.CAME_LATER})
_UNNAMED: Final = "an event of the target's change stream does not say which document it is about"
_HINT: Final = "what is not kept cannot be read again: have no application write to MongoDB until the certificate"


async def note_beginning(
    store: ObjectStore, changes: TargetChanges, server: Server, *, run_id: str, has_archives: bool, at: str
) -> str:
    """Note where the target's change stream is, before the first byte of its dump is read; return why it cannot be.

    Where a part of the dump is stored already, the moment is over, and what was noted then stays.
    """
    if has_archives:
        return ""
    position, why = None, ""
    try:
        position = await changes.position()
    except LogHeldError:
        raise
    except OperatorError as error:
        why = str(error)
    beginning = Beginning(position=position, why=why, at=at, server=await server.facts())
    await store.put(beginning_key(run_id), encode_beginning(beginning))
    return why


@dataclass(slots=True, kw_only=True)
class OverwrittenKeeper:
    """Keeps documents of one target, during one restore. `server`: which target it is."""

    store: ObjectStore
    changes: TargetChanges
    target: DocumentReader
    clock: Clock
    run_id: str
    server: ServerFacts
    _known: Overwritten = field(init=False)
    _writer: PageWriter = field(init=False)
    _repairs: PageWriter = field(init=False)
    _has_repaired_before: bool = False
    _settled: set[_Place] = field(default_factory=set)
    """Repaired documents that somebody had written while the target was open, and that are kept therefore."""
    _seen: set[int] = field(default_factory=set)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def keep_all(self, coordinator: Coordinator, hold: TargetHold, held: Hold, *, has_begun: bool) -> None:
        """Keep what was written to the target, since its dump began or since it was given back; once.

        `held`: the hold that the target is under. `has_begun`: the target holds restore's writes already.
        """
        await self._load()
        look = await self._due(held, has_begun=has_begun)
        is_new = look is not None
        if look is not None:
            coordinator.begin_step("keeping what no dump holds")
            await self._look(look)
            self._known.looks.append(look)
            self._tell(coordinator.journal, look)
        if held.block is Block.NONE and not self._known.open_why:
            self._known.open_why, is_new = held.obstacle or "its write-block mode is not used", True
        if is_new:
            await self.store.put(overwritten_key(self.run_id), self._known.encode())
        if held.opened_at is not None:
            await hold.note_looked()

    async def keep(self, repairs: Sequence[tuple[Repair, bytes]]) -> None:
        """Keep documents that repairs are about to overwrite or delete, where somebody else may have written them.

        As long as the target is closed, what the log explains is restore's own, or in the dump.
        """
        is_open = bool(self._known.open_why)
        foreign = {
            (repair.difference.namespace, repair.difference.id): document
            for repair, document in repairs
            if is_open or repair.cause not in _EXPLAINED
        }
        async with self._lock:
            for place in await self._kept_by_looks(foreign):
                self._settled.add(place)
                del foreign[place]
            for place, document in foreign.items():
                if self._is_new(hash((*place, document))):
                    await self._repairs.add(KeptDocument(*place, _REPAIRED, document))
                    self._known.repaired += 1
            await self._repairs.flush()

    async def _kept_by_looks(self, documents: Mapping[_Place, bytes]) -> set[_Place]:
        """Return those of the documents that a look has kept as they are; a page that is damaged keeps none."""
        names = {namespace for namespace, _ in documents}
        found = set[tuple[Namespace, DocumentId]]()
        for page in self._known.pages:
            if Namespace(page["db"], page["coll"]) in names:
                with suppress(CorruptDataError):
                    rows = await read_rows(self.store, page["objects"], ("target",))
                    versions = {(namespace, id_): kept for namespace, id_, _, (kept,) in rows}
                    found |= {place for place, document in documents.items() if versions.get(place) == document}
        return found

    def summary(self, report: VerifyReport, hold: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return what the certificate says. `hold`: what it says of the target's hold."""
        doubts = []
        if hold is not None and hold["write_block"] == "lifted by somebody else":
            doubts.append("somebody else ended the target's write-block mode while restore was at work")
        unexplained = {
            (repair.difference.namespace, repair.difference.id)
            for repair in report.repaired
            if repair.cause in {Cause.UNEXPLAINED, Cause.FOREIGN_WRITE}
        }
        if self._has_repaired_before or unexplained - self._settled:
            doubts.append("no event explains some repairs: somebody may have written to the target meanwhile")
        return self._known.summary(self.server, doubts)

    async def _load(self) -> None:
        """Take what an earlier start has kept. CorruptDataError: it is damaged."""
        key, folder = overwritten_key(self.run_id), overwritten_folder(self.run_id)
        body = await self.store.get(key)
        self._known = Overwritten(run_id=self.run_id) if body is None else decode_overwritten(body, key=key)
        self._writer = PageWriter(store=self.store, folder=folder, before=len(self._known.pages))
        self._repairs = PageWriter(store=self.store, folder=f"{folder}repaired/")
        async for page in self.store.list_objects(self._repairs.folder):
            for stored in page:
                if stored.key.endswith(".json"):  # it comes after what it names
                    self._repairs.before += 1
                    self._known.repaired += len(json.loads(await self.store.get(stored.key) or b"[]"))
        self._has_repaired_before = self._known.repaired > 0

    async def _due(self, held: Hold, *, has_begun: bool) -> Look | None:
        """Return the look that is to be taken, with why it cannot be complete; None: none is."""
        looks = self._known.looks_at(self.server)
        look = Look(server=self.server, at=self.clock.now().isoformat(timespec="seconds"))
        if looks and (held.opened_at is None or held.opened_at == looks[-1].since):
            return None
        if await self.store.get(certificate_key(self.run_id)) is not None:
            # It was revoked, and MongoDB put back to its dump: all of that stands in the target's change stream.
            return replace(look, since=held.opened_at or None, why=AGAIN)
        if not looks:
            return await self._first(look, has_begun=has_begun)
        if not held.opened_at:
            return replace(look, why="the target was open to others for a time, and it is not known since when")
        return replace(look, since=held.opened_at)

    async def _first(self, look: Look, *, has_begun: bool) -> Look:
        if has_begun:
            return replace(look, why="restore had begun with a version of d5agent that did not look")
        try:
            manifest = await load_manifest(self.store, self.run_id, "target")
            body = await self.store.get(beginning_key(self.run_id))
            begun = None if body is None else decode_beginning(body, beginning_key(self.run_id))
        except CorruptDataError as error:
            return replace(look, why=str(error))
        if manifest is None:
            return replace(look, why="no dump of the target is stored")
        if begun is None:
            return replace(look, why="its dump was begun by a version of d5agent that noted no position")
        if not begun.server.is_same(self.server):
            return replace(look, why="the dump is another target's")
        dumped = {archive.database for archive in manifest.archives}
        left_out = sorted({namespace.database for namespace in await self.target.collections()} - dumped)
        named = f"no dump holds the databases {', '.join(left_out)}" if left_out else ""
        return replace(look, since=begun.position, why="; ".join(filter(None, (begun.why, named))))

    async def _look(self, look: Look) -> None:
        """Store what was written since the look's beginning, as it is now. What cannot be known is said in the look."""
        if not look.since or look.why == AGAIN:
            return
        pending, renamed = _Pending(), dict[Namespace, None]()
        try:
            stream = operations_since(self.changes, look.since, clock=self.clock, purpose="overwritten")
            async with aclosing(_readable(stream)) as batches:
                async for operations in batches:
                    for operation in operations:
                        self._note(operation, look, pending, renamed)
                    if len(pending) >= _PENDING:
                        await self._store_pending(pending, look)
        except _UnreadableError as error:
            look.why = "; ".join(filter(None, (look.why, str(error))))
        await self._store_pending(pending, look)
        there = set(await self.target.collections()) if renamed else set[Namespace]()
        for namespace in renamed:
            if namespace in there:
                await self._store_whole(namespace, look)

    def _note(self, operation: Operation, look: Look, pending: _Pending, renamed: dict[Namespace, None]) -> None:
        namespace, id_ = operation.namespace, operation.document_id
        is_document = operation.kind in DOCUMENT_KINDS
        if namespace == UNNAMED or (is_document and id_ is None):
            look.why = look.why or _UNNAMED
        elif is_document and id_ is not None:
            if self._is_new(hash((namespace, identity_of(id_)))):
                pending.add(namespace, id_)
        else:
            look.name_moved((namespace, operation.rename_to))
            if operation.rename_to is not None:
                # What had been written under the old name is here now, or in what takes its place.
                renamed[operation.rename_to] = None

    def _is_new(self, mark: int) -> bool:
        if mark in self._seen:
            return False
        if len(self._seen) >= _MOST_REMEMBERED:
            self._seen.clear()
        self._seen.add(mark)
        return True

    async def _store_pending(self, pending: _Pending, look: Look) -> None:
        for namespace, ids in pending.take():
            for at in range(0, len(ids), _FETCH):
                which = ids[at : at + _FETCH]
                found = await self.target.fetch(namespace, which)
                await self._add((KeptDocument(namespace, id_, _SINCE_DUMP, found.get(id_)) for id_ in which), look)
            await self._end_page(namespace)

    async def _store_whole(self, namespace: Namespace, look: Look) -> None:
        async with aclosing(self.target.scan(namespace)) as pages:
            async for page in pages:
                await self._add((KeptDocument(namespace, document_id(d), _RENAMED, d) for d in page), look)
        await self._end_page(namespace)

    async def _add(self, documents: Iterable[KeptDocument], look: Look) -> None:
        for document in documents:
            look.documents += document.target is not None
            look.deleted += document.target is None
            await self._writer.add(document)

    async def _end_page(self, namespace: Namespace) -> None:
        """Let each page hold documents of one collection only: so mongorestore can read it."""
        await self._writer.flush()
        new = self._writer.pages[len(self._known.pages) - self._writer.before :]
        self._known.pages += [{"db": namespace.database, "coll": namespace.collection, "objects": o} for o in new]

    def _tell(self, journal: Journal, look: Look) -> None:
        key = overwritten_key(self.run_id)
        if look.why:
            journal.warning("overwritten_not_known", why=look.why, kept=look.documents, key=key, hint=_HINT)
        if look.documents or look.deleted or look.moved_total:
            journal.warning(
                "target_written_since_dump",
                kept=look.documents,
                deleted=look.deleted,
                moved=list(look.moved)[:_FETCH],
                key=key,
            )


@dataclass(slots=True)
class _Pending:
    """Documents that are to be fetched, by collection."""

    _ids: dict[Namespace, dict[Identity, DocumentId]] = field(default_factory=dict)
    _count: int = 0

    def __len__(self) -> int:
        return self._count

    def add(self, namespace: Namespace, id_: DocumentId) -> None:
        """Take a document."""
        self._ids.setdefault(namespace, {})[identity_of(id_)] = id_
        self._count += 1

    def take(self) -> Sequence[tuple[Namespace, Sequence[DocumentId]]]:
        """Return what is held, and hold it no longer."""
        taken, self._ids, self._count = self._ids, {}, 0
        return [(namespace, list(ids.values())) for namespace, ids in taken.items()]


class _UnreadableError(Exception):
    """The target's change stream cannot be read from there on; it says why."""


async def _readable(batches: AsyncGenerator[Sequence[Operation]]) -> AsyncGenerator[Sequence[Operation]]:
    """Yield batches; an error of the stream alone, not of who takes them, is why not all is known."""
    async with aclosing(batches):
        while True:
            try:
                batch = await anext(batches)
            except StopAsyncIteration:
                return
            except LogHeldError:
                raise
            except OperatorError as error:
                raise _UnreadableError(str(error)) from error
            yield batch
