"""Names, beside the target's dump, writes that DMS had not delivered and that restore is about to overwrite (ADR 42).

Restore reads no document before it writes one. The target's dump has all of them as they were, and until it is stored
restore does not write: so this is when to look.
"""

from __future__ import annotations

import json
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.backup import run_folder
from d5agent.core.compare.compare import difference_of
from d5agent.core.compare.named_fields import FieldBits, differing_names, undelivered_part
from d5agent.core.plan.plan import Named
from d5agent.errors import AgentError, LogHeldError
from d5agent.steps.compare.divergence import without_later_ones
from d5agent.steps.compare.touched import log_parts
from d5agent.steps.compare.undelivered_report import undelivered_key
from d5agent.steps.log.reader import LogReader
from d5agent.steps.parallel import parallel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from d5agent.core.compare.compare import Difference
    from d5agent.core.log.chain import Link
    from d5agent.core.log.operation import ClusterTime, Namespace
    from d5agent.ports import Clock, DocumentReader, ObjectStore
    from d5agent.service import Coordinator
    from d5agent.steps.compare.touched import Batch, LogPart

VERSION: Final = 1
_PORTION: Final = 5_000
_PATIENCE_SECONDS: Final = 2.0
_PAUSE_SECONDS: Final = 0.1


@dataclass(slots=True, kw_only=True)
class Undelivered:
    """One look at all documents that the log touches. `now` asks for the source's time.

    `memory_bytes` bounds what it remembers of the log.
    """

    source: DocumentReader
    target: DocumentReader
    store: ObjectStore
    clock: Clock
    now: Callable[[], Awaitable[ClusterTime]]
    memory_bytes: int
    _is_over: bool = False
    _is_looking: bool = False
    _named: Named[Difference] = field(default_factory=Named)
    _compared: int = 0

    async def look(self, coordinator: Coordinator) -> None:
        """Look, and store what was found; a failure is a warning, and no backup fails for it."""
        self._is_looking = True
        try:
            await self._look(coordinator)
        except LogHeldError:
            raise
        except AgentError as error:
            coordinator.journal.warning("undelivered_writes_not_looked_for", error=str(error), hint=error.hint)
        finally:
            self._is_looking = False

    async def end(self) -> None:
        """Look at nothing more: the target's dump is about to be stored, and restore may write from then on.

        A small database is dumped as quickly as it is looked at: then it is waited for, a moment.
        """
        began = self.clock.monotonic()
        while self._is_looking and self.clock.monotonic() - began < _PATIENCE_SECONDS:
            await self.clock.sleep(_PAUSE_SECONDS)
        self._is_over = True

    async def _look(self, coordinator: Coordinator) -> None:
        reader = LogReader(store=self.store)
        last = await reader.last()
        if last is None:
            return
        self._named, self._compared = Named(), 0
        fields = FieldBits()
        for part in log_parts(reader, last, room_bytes=self.memory_bytes, portion=_PORTION, fields=fields):
            await self._look_at_part(part)
        is_complete, self._is_looking = not self._is_over, False  # what follows reads the log only
        is_sure = await without_later_ones(self._named, reader, last, now=self.now, clock=self.clock)
        await self._store(coordinator, last, is_complete=is_complete and is_sure)

    async def _look_at_part(self, part: LogPart) -> None:
        moved: set[Namespace] = set()
        async with aclosing(part.operations()) as operations:
            async for _, operation in operations:
                if operation.document_id is None:
                    moved.update(name for name in (operation.namespace, operation.rename_to) if name is not None)

        def is_wanted(namespace: Namespace) -> bool:
            return moved.isdisjoint({namespace, namespace._replace(collection=None)})

        async with aclosing(part.portions(is_wanted)) as portions:
            async for portion in portions:
                for batch in portion.batches():
                    if self._is_over:
                        return
                    await self._look_at(batch, part)

    async def _look_at(self, batch: Batch, part: LogPart) -> None:
        namespace, ids = batch.namespace, batch.ids
        ours, theirs = await parallel(lambda side: side.fetch(namespace, ids), (self.source, self.target), limit=2)
        if self._is_over:  # the target may be written to by now
            return
        self._compared += len(ids)
        for id_ in ids:
            difference = difference_of(namespace, id_, ours.get(id_), theirs.get(id_))
            if difference is None:
                continue
            lost = part.unnamed(namespace, id_, differing_names(ours.get(id_), theirs.get(id_)))
            found = undelivered_part(difference, lost, begins_with_insert=id_ in batch.new)
            if found is not None:
                self._named.add(found)

    async def _store(self, coordinator: Coordinator, last: Link, *, is_complete: bool) -> None:
        run_id = coordinator.state.run_id
        kept_in = f"{run_folder(run_id)}target/"
        value: dict[str, Any] = {
            "version": VERSION,
            "run_id": run_id,
            "at": self.clock.now().isoformat(timespec="seconds"),
            "sequence": last.commit.sequence,
            "state": "complete" if is_complete else "unfinished",
            "compared": self._compared,
            "undelivered": [difference.to_json() for difference in self._named.first],
            "undelivered_total": self._named.total,
            "kept_in": kept_in,
        }
        key = undelivered_key(run_id)
        await self.store.put(key, json.dumps(value, indent=1).encode() + b"\n")
        if self._named.total:
            coordinator.journal.warning(
                "undelivered_writes_found", documents=self._named.total, report=key, kept_in=kept_in
            )
