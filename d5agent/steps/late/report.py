"""Reports what came behind the certified end of the log, and asks for the operator's word. It writes to no target."""

from __future__ import annotations

import json
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.compare.report import VerifyReport
from d5agent.core.log.chain import foreign_operations
from d5agent.core.log.identity import identity_of
from d5agent.core.log.naming import id_to_text, parse_segment_key, segment_key
from d5agent.core.log.operation import ClusterTime, Namespace
from d5agent.core.replay.replay import is_known_barrier
from d5agent.core.run.late import Certified, LateDocument, LateState, covered_sequence, late_folder
from d5agent.core.run.services import Late, LateShown
from d5agent.errors import OperatorError
from d5agent.steps.capture.expiries import Expiries
from d5agent.steps.compare.verifier import Verifier
from d5agent.steps.log.late_pages import PageWriter, put_hashed
from d5agent.steps.log.reader import LogReader, link_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from d5agent.core.log.chain import Link
    from d5agent.core.log.operation import Operation
    from d5agent.core.replay.replay import Unresolved
    from d5agent.core.run.services import PhaseState
    from d5agent.ports import Clock, DocumentReader, ObjectStore
    from d5agent.service import Coordinator
    from d5agent.steps.servers import Servers

VERSION: Final = 1
_NAMED: Final = 1000  # operations and documents that the report names; the pages hold all
_SHOWN: Final = 3
_FETCH: Final = 50  # documents read at a time: nobody knows their sizes
_OPERATIONS_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Range:
    """The late part of a log: what comes after one commit, up to another; `operations`: of others."""

    after: Link
    last: Link
    operations: int


@dataclass(slots=True, kw_only=True)
class _Found:
    """What the report says."""

    operations: list[dict[str, Any]] = field(default_factory=list)
    unknown: int = 0
    documents: list[dict[str, Any]] = field(default_factory=list)
    states: dict[str, int] = field(default_factory=dict)
    too_many: list[str] = field(default_factory=list)

    @property
    def written(self) -> int:
        """How many documents an accepting word writes."""
        return sum(count for state, count in self.states.items() if LateState(state).is_written)

    @property
    def asks(self) -> bool:
        """Whether anything of it is not in the target already."""
        return bool(self.states or self.too_many or self.unknown)

    def add(self, document: LateDocument) -> None:
        """Count a document, and name it unless too many are named already."""
        self.states[str(document.state)] = self.states.get(str(document.state), 0) + 1
        if len(self.documents) < _NAMED:
            self.documents.append(document.to_json())


@dataclass(slots=True, kw_only=True)
class LateReporter:
    """Reads the log, the source and the target; writes below `reports/<run>/late/` only."""

    store: ObjectStore
    source: DocumentReader
    target: DocumentReader
    servers: Servers
    clock: Clock
    waiting_bytes: int

    async def look(self, coordinator: Coordinator) -> None:
        """Return when the target has all that the log holds behind the certified end, or needs nothing of it.

        OperatorError: it has not; what came is reported then, and waits for the operator's word. Or a cluster is not
        the certificate's, and what is compared with it says nothing.
        """
        await self.servers.require_certified(coordinator.state, again="d5agent start monitor-restore")
        late = await self._late_range(covered_sequence(coordinator.state))
        if late is None:
            return
        expired = await self._expired(late)
        if expired:
            coordinator.journal.info("expired_after_certificate", operations=late.operations, namespaces=dict(expired))
            await self._settle(coordinator, late)
            return
        coordinator.begin_step("reading late operations")
        at = self.clock.now().isoformat(timespec="milliseconds").replace(":", "")
        run_id = coordinator.state.run_id
        folder = f"{late_folder(run_id)}{late.last.commit.sequence:012d}-{at}/"
        shown, found = await self._store(late, run_id=run_id, folder=folder)
        if not found.asks:
            await self._settle(coordinator, late)
            coordinator.journal.info(
                "late_operations_already_in_target", operations=late.operations, report=shown.report
            )
            return
        await coordinator.update(lambda state: _with_shown(state, shown))
        if coordinator.state.late.pending is not None:
            return  # the word on an earlier report came meanwhile, and is carried out first
        coordinator.journal.warning(
            "late_operations_reported", operations=late.operations, report=shown.report, **_counts(found)
        )
        raise _needs_word(run_id, shown, found)

    async def _expired(self, late: _Range) -> Mapping[str, int]:
        """Return how many documents have expired, by namespace; none if anything else came late, too."""
        expiries = Expiries(source=self.source, open_target=lambda: nullcontext(self.target), store=self.store)
        found = await expiries.after(late.after)
        return {} if found.others else found.expired

    async def _settle(self, coordinator: Coordinator, late: _Range) -> None:
        settled = Late(settled=late.last.commit.sequence)
        await coordinator.update(lambda state: replace(state, late=replace(settled, words=state.late.words)))

    async def _late_range(self, covered: int) -> _Range | None:
        """Return the late part of the log; None: it holds no operation of others."""
        after = last = await link_of(self.store, covered)
        operations = 0
        async for link in LogReader(store=self.store).links(after=after):
            last, operations = link, operations + foreign_operations(link.commit)
        return _Range(after=after, last=last, operations=operations) if operations else None

    async def _store(self, late: _Range, *, run_id: str, folder: str) -> tuple[LateShown, _Found]:
        """Compare what late operations touch, and store the report: the pages first, what names them last."""
        unequal = await self._compare(late)
        found = _Found(too_many=sorted(map(str, unequal.whole)))
        certified = Certified({n: set(map(identity_of, ids)) for n, ids in unequal.documents.items()})
        await self._read_certified(late, certified)
        kept = await self._store_operations(late, certified, found, folder)
        pages = await self._store_documents(unequal, certified, found, folder)
        report = {
            "version": VERSION,
            "kind": "late operations",
            "run_id": run_id,
            "reported_at": self.clock.now().isoformat(timespec="milliseconds"),
            "after": late.after.commit.key,
            "until": late.last.commit.key,
            "operations_total": late.operations,
            "operations": found.operations,
            "unknown": found.unknown,
            "documents_total": dict(sorted(found.states.items())),
            "documents": found.documents,
            "too_many_differ": found.too_many,
            "events": kept,
            "pages": pages,
        }
        key = f"{folder}report.json"
        body = json.dumps(report, indent=1, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
        shown = LateShown(
            sequence=late.last.commit.sequence,
            operations=late.operations,
            documents=found.written,
            unknown=found.unknown,
            report=key,
            digest=await put_hashed(self.store, key, body),
        )
        return shown, found

    async def _compare(self, late: _Range) -> Unresolved:
        """Return which documents differ of those that late operations touch, and of collections that they move."""
        report = VerifyReport(scope="touched")
        verifier = Verifier(
            source=self.source,
            target=self.target,
            repair_into=None,
            clock=self.clock,
            waiting_bytes=self.waiting_bytes,
            rounds=1,
            report=report,
        )
        await verifier.touched(LogReader(store=self.store), self._links(late), (), with_facts=False)
        return report.unequal

    async def _links(self, late: _Range) -> AsyncGenerator[Link]:
        """Yield the late commits, and none that came since."""
        async with aclosing(LogReader(store=self.store).links(after=late.after)) as links:
            async for link in links:
                yield link
                if link.commit.sequence == late.last.commit.sequence:
                    return

    async def _read_certified(self, late: _Range, certified: Certified) -> None:
        """Read what the log says of these documents up to its certified end, from the segments that may tell it."""
        if not certified.wanted:
            return
        wanted = {None, *map(_as_in_keys, certified.wanted)}

        async def concerned() -> AsyncGenerator[Link]:
            async with aclosing(LogReader(store=self.store).links()) as links:
                async for link in links:
                    refs = link.commit.segments
                    # A rename or a dropDatabase that has a commit of its own is there under its old name.
                    if sum(ref.count for ref in refs) > 1:
                        refs = tuple(r for r in refs if parse_segment_key(r.key).namespace in wanted)
                    yield replace(link, commit=replace(link.commit, segments=refs))
                    if link.commit.sequence == late.after.commit.sequence:
                        return

        async with aclosing(LogReader(store=self.store).operations_of(concerned())) as operations:
            async for _, operation in operations:
                if operation is not None:
                    certified.add(operation)

    async def _store_operations(
        self, late: _Range, certified: Certified, found: _Found, folder: str
    ) -> list[dict[str, str]]:
        """Keep the late operations as they are in the log, which clean removes; return their keys and hashes."""
        kept: list[dict[str, str]] = []
        held = bytearray()

        async def flush() -> None:
            key = f"{folder}events-{len(kept) + 1:06d}.bson"
            kept.append({key: await put_hashed(self.store, key, bytes(held))})
            held.clear()

        async with aclosing(LogReader(store=self.store).operations_of(self._links(late))) as operations:
            async for link, operation in operations:
                if operation is None or operation.is_ours:
                    continue
                certified.add_late(operation)
                found.unknown += operation.document_id is None and not is_known_barrier(operation)
                if len(found.operations) < _NAMED:
                    found.operations.append(_named(link, operation))
                held += operation.raw
                if len(held) >= _OPERATIONS_BYTES:
                    await flush()
        if held:
            await flush()
        return kept

    async def _store_documents(
        self, unequal: Unresolved, certified: Certified, found: _Found, folder: str
    ) -> list[dict[str, str]]:
        """Keep both versions of each document that differs; return the keys and hashes of the pages."""
        writer = PageWriter(store=self.store, folder=folder)
        for namespace, ids in sorted(unequal.documents.items(), key=lambda item: str(item[0])):
            ordered = sorted(ids)
            for at in range(0, len(ordered), _FETCH):
                some = ordered[at : at + _FETCH]
                source = await self.source.fetch(namespace, some)
                target = await self.target.fetch(namespace, some)
                for id_ in some:
                    if source.get(id_) == target.get(id_):
                        continue  # it came to be equal meanwhile
                    state = certified.judge(namespace, id_, target.get(id_))
                    document = LateDocument(namespace, id_, state, target.get(id_), source.get(id_))
                    found.add(document)
                    await writer.add(document)
        await writer.flush()
        return writer.pages


def _with_shown(state: PhaseState, shown: LateShown) -> PhaseState:
    return state if state.late.pending is not None else replace(state, late=replace(state.late, shown=shown))


def _as_in_keys(namespace: Namespace) -> Namespace | None:
    """Return a namespace as the keys of its segments tell it: a long name is shortened there."""
    return parse_segment_key(segment_key(namespace, ClusterTime(0, 0), None)).namespace


def _named(link: Link, operation: Operation) -> dict[str, Any]:
    id_ = operation.document_id
    return {
        "kind": operation.kind,
        "namespace": str(operation.namespace),
        "to": None if operation.rename_to is None else str(operation.rename_to),
        "id": None if id_ is None else id_to_text(id_),
        "cluster_time": list(operation.cluster_time),
        "commit": link.commit.key,
    }


def _counts(found: _Found) -> dict[str, int]:
    return {state.replace(" ", "_"): count for state, count in sorted(found.states.items())}


def _needs_word(run_id: str, shown: LateShown, found: _Found) -> OperatorError:
    accept = f"d5agent start monitor-restore --accept-late {run_id} (writes {shown.documents} documents)"
    discard = f"d5agent start monitor-restore --discard-late {run_id} (leaves MongoDB as it is)"
    return OperatorError(
        f"{shown.operations} operations reached the source after the certificate; none was written to the target",
        hint=f"read {shown.report}, then type: " + (discard if shown.unknown else f"{accept}, or: {discard}"),
        **_first(found),
    )


def _first(found: _Found) -> dict[str, object]:
    """Return the first of what was found, in words, and nothing of what was not."""
    named = {
        "operations": [f"{row['kind']} {row['namespace']} {row['id'] or ''}".strip() for row in found.operations],
        "documents": [f"{row['namespace']} {row['id']}: {row['state']}" for row in found.documents],
        "too_many_differ": found.too_many,
    }
    facts: dict[str, object] = {name: "; ".join(lines[:_SHOWN]) for name, lines in named.items() if lines}
    return facts | ({"unknown": found.unknown} if found.unknown else {})
