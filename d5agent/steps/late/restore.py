"""Carries out an operator's word on late operations: writes what was reported and accepted, and nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.replay.replay import Write
from d5agent.core.run.late import LateDocument, check_late_words
from d5agent.steps.log.late_pages import get_hashed, read_page
from d5agent.steps.parallel import parallel

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from d5agent.core.log.operation import Namespace
    from d5agent.core.log.raw import DocumentId
    from d5agent.core.run.services import LateWord, PhaseState
    from d5agent.ports import ObjectStore, StateStore, Target
    from d5agent.service import Coordinator
    from d5agent.steps.late.report import LateReporter

LATE: Final = "restore_late"
"""The state that holds how far an accepted report is written."""

_VERSION: Final = 1
_AT_ONCE: Final = 8  # transactions
_FETCH: Final = 50
_NAMED: Final = 1000


@dataclass(slots=True, kw_only=True)
class _Result:
    """What became of the documents of an accepted report."""

    as_accepted: int = 0
    left_alone: int = 0
    different: int = 0
    documents: list[dict[str, Any]] = field(default_factory=list)

    def add(self, document: LateDocument, reason: str) -> None:
        """Count a document that is not what was accepted, and name it unless too many are named already."""
        self.different += 1
        if len(self.documents) < _NAMED:
            self.documents.append({**document.to_json(), "reason": reason})


@dataclass(slots=True, kw_only=True)
class LateRestore:
    """A restore after the proof (ADR 35)."""

    reporter: LateReporter
    target: Target
    states: StateStore

    async def run(self, coordinator: Coordinator) -> None:
        """Carry out the operator's word, then report what came since. OperatorError: another word is needed."""
        word = coordinator.state.late.pending
        if word is not None:
            await self._carry_out(coordinator, word)
        check_late_words(coordinator.state)
        await self.reporter.look(coordinator)
        state = coordinator.state
        coordinator.journal.info(
            "restore_already_certified",
            certificate="" if state.verified is None else state.verified.certificate,
            hint=f"after MongoDB was put back to its dump: d5agent start restore --again {state.run_id}",
        )

    async def _carry_out(self, coordinator: Coordinator, word: LateWord) -> None:
        report = json.loads(await get_hashed(self._store, word.shown.report, word.shown.digest))
        reasons = await self._write(coordinator, word, report["pages"])
        coordinator.begin_step("verifying late operations")
        result = await self._verify(report["pages"], reasons)
        ended_at = self.reporter.clock.now().isoformat(timespec="milliseconds")
        key = word.shown.report.replace("report.json", "result.json")
        body = {
            "version": _VERSION,
            "kind": "result of late operations",
            "run_id": coordinator.state.run_id,
            "accepted_at": word.at,
            "ended_at": ended_at,
            "report": word.shown.report,
            "as_accepted": result.as_accepted,
            "left_alone": result.left_alone,
            "different": result.different,
            "documents": result.documents,
        }
        await self._store.put(key, json.dumps(body, indent=1, ensure_ascii=False).encode(errors="backslashreplace"))
        ended = replace(word, ended_at=ended_at, different=result.different, result=key)
        await coordinator.update(lambda state: _with_ended(state, ended))
        await self.states.delete(LATE)
        coordinator.journal.info(
            "late_operations_restored",
            as_accepted=result.as_accepted,
            left_alone=result.left_alone,
            different=result.different,
            result=key,
        )

    @property
    def _store(self) -> ObjectStore:
        return self.reporter.store

    async def _write(
        self, coordinator: Coordinator, word: LateWord, pages: Sequence[dict[str, str]]
    ) -> dict[tuple[Namespace, DocumentId], str]:
        """Write what was accepted, page by page; return why documents were not written."""
        reasons: dict[tuple[Namespace, DocumentId], str] = {}
        done = await self._written_pages(word)
        for number, page in enumerate(pages, 1):
            if number <= done:
                continue
            for documents in _portions(await read_page(self._store, page)):
                reasons |= await self._write_some(documents)
            await self.states.save(LATE, {"version": _VERSION, "report": word.shown.digest, "pages": number})
            coordinator.begin_step("writing accepted late operations")
            progress = coordinator.progress
            progress.restore = replace(progress.restore, pages=number, pages_total=len(pages))
        return reasons

    async def _written_pages(self, word: LateWord) -> int:
        """Return how many pages an earlier start has written: one again does no harm, but might find later writes."""
        value = await self.states.load(LATE)
        is_ours = value is not None and (value.get("version"), value.get("report")) == (_VERSION, word.shown.digest)
        return int(value["pages"]) if value is not None and is_ours else 0

    async def _write_some(self, documents: Sequence[LateDocument]) -> dict[tuple[Namespace, DocumentId], str]:
        async def write(document: LateDocument) -> str:
            to_write = Write(id=document.id, document=document.source)
            return await self.target.exchange(document.namespace, to_write, expected=document.target)

        wanted = [document for document in documents if document.state.is_written]
        answers = await parallel(write, wanted, limit=_AT_ONCE)
        return {(d.namespace, d.id): reason for d, reason in zip(wanted, answers, strict=True) if reason}

    async def _verify(
        self, pages: Sequence[dict[str, str]], reasons: dict[tuple[Namespace, DocumentId], str]
    ) -> _Result:
        """Compare the accepted documents, and no others, with what was accepted or the source has; repair nothing."""
        result = _Result()
        for page in pages:
            for documents in _portions(await read_page(self._store, page)):
                async for document, target in self._differing(documents, result):
                    seen = "MongoDB has another version" if target is not None else "MongoDB has none"
                    result.add(document, reasons.get((document.namespace, document.id)) or seen)
        return result

    async def _differing(
        self, documents: Sequence[LateDocument], result: _Result
    ) -> AsyncGenerator[tuple[LateDocument, bytes | None]]:
        namespace, ids = documents[0].namespace, [document.id for document in documents]
        target = await self.reporter.target.fetch(namespace, ids)
        source = await self.reporter.source.fetch(namespace, ids)
        for document in documents:
            now = target.get(document.id)
            if now in {document.source, source.get(document.id)}:
                result.as_accepted += 1
            elif not document.state.is_written:
                result.left_alone += 1
            else:
                yield document, now


def _with_ended(state: PhaseState, ended: LateWord) -> PhaseState:
    words = (*state.late.words[:-1], ended)
    return replace(state, late=replace(state.late, settled=ended.shown.sequence, words=words))


def _portions(documents: Sequence[LateDocument]) -> list[list[LateDocument]]:
    """Return the documents in portions of one namespace each, small enough to be fetched at a time."""
    portions: list[list[LateDocument]] = []
    for document in documents:
        last = portions[-1] if portions else []
        if not last or last[0].namespace != document.namespace or len(last) == _FETCH:
            portions.append([document])
        else:
            last.append(document)
    return portions
