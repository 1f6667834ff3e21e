"""Foresees what the target's unique indexes will refuse: final states against each other, and against what stays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from d5agent.core.log.raw import document_id
from d5agent.core.plan.plan import UniqueConflict
from d5agent.core.replay.unique_key import UniqueIndex, comparable, key_to_text, keys_of, unique_indexes
from d5agent.steps.compare.touched import Portion, operations_until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from d5agent.core.log.chain import Link
    from d5agent.core.log.operation import Namespace
    from d5agent.core.log.raw import DocumentId
    from d5agent.core.plan.compact_hash_set import CompactHashSet
    from d5agent.core.plan.plan import Plan
    from d5agent.core.replay.unique_key import Key
    from d5agent.ports import DocumentReader
    from d5agent.steps.log.reader import LogReader

_MOST: Final = 1000  # values that two written documents share, and documents of which it is not known yet
_OWNERS: Final = 10  # of one value
_FULL: Final = "not all documents could be checked against each other for unique indexes: there are too many"

Value = tuple["Namespace", str, bytes]
"""A value of a unique index: the namespace, the index's name, the value as bytes."""


@dataclass(slots=True, kw_only=True)
class UniqueConflictForecast:
    """Takes documents as they will be. `keys` holds their values: which are taken twice, and no more.

    `portion`: how many documents are held at a time.
    """

    source: DocumentReader
    target: DocumentReader
    plan: Plan
    keys: CompactHashSet
    portion: int
    _indexes: dict[Namespace, list[UniqueIndex]] = field(default_factory=dict)
    _shared: set[Value] = field(default_factory=set)
    _uncertain: dict[tuple[Namespace, DocumentId], list[UniqueConflict]] = field(default_factory=dict)

    async def take(
        self,
        namespace: Namespace,
        finals: Mapping[DocumentId, bytes],
        touches: Callable[[Namespace, DocumentId], bool | None],
    ) -> None:
        """Look at documents that restore will write, each once. `touches`: whether it writes another one too."""
        for index in await self._unique(namespace):
            keys: dict[bytes, tuple[DocumentId, Key]] = {}
            for id_, document in finals.items():
                found = {comparable(index, key): key for key in keys_of(index, document)}
                for value, key in found.items():
                    keys[value] = (id_, key)
                    self._note((namespace, index.name, value))
            await self._look_for_holders(namespace, index, keys, touches)

    async def settle(self, reader: LogReader, last: Link) -> None:
        """Read the log once more if need be: who shares a value, and which uncertain holders are written themselves."""
        if not self._shared and not self._uncertain:
            return
        owners: dict[Value, list[tuple[DocumentId, Key]]] = {value: [] for value in self._shared}
        namespaces = {namespace for namespace, _, _ in self._shared}
        portion = Portion()
        async for _, operation in operations_until(reader, last):
            id_ = operation.document_id
            if id_ is None:
                continue
            self._uncertain.pop((operation.namespace, id_), None)
            if operation.namespace in namespaces:
                is_first = id_ not in portion.sizes.get(operation.namespace, ())
                portion.add(operation, id_, is_first=is_first)
            if portion.count == self.portion:
                await self._find_owners(portion, owners)
                portion = Portion()
        await self._find_owners(portion, owners)
        self._tell(owners)

    async def _unique(self, namespace: Namespace) -> list[UniqueIndex]:
        if namespace not in self._indexes:
            self._indexes[namespace] = unique_indexes((await self.target.facts(namespace)).indexes)
        return self._indexes[namespace]

    def _note(self, value: Value) -> None:
        if self.keys.is_full or len(self._shared) == _MOST:
            self._give_up()
        elif not self.keys.add(value):
            self._shared.add(value)

    def _give_up(self) -> None:
        if _FULL not in self.plan.notes:
            self.plan.notes.append(_FULL)

    async def _look_for_holders(
        self,
        namespace: Namespace,
        index: UniqueIndex,
        keys: Mapping[bytes, tuple[DocumentId, Key]],
        touches: Callable[[Namespace, DocumentId], bool | None],
    ) -> None:
        """Look who has these values in the target, and keeps them since restore does not write him."""
        if not keys:
            return
        for document in await self.target.holders(namespace, index, [key for _, key in keys.values()]):
            holder = document_id(document)
            is_touched = touches(namespace, holder)
            values = () if is_touched else (comparable(index, key) for key in keys_of(index, document, is_in=True))
            for id_, key in (keys[value] for value in values if value in keys):
                conflict = _conflict(namespace, index, key, (id_, holder), is_written=False)
                if is_touched is False:
                    self.plan.conflicts.add(conflict)
                elif len(self._uncertain) < _MOST:
                    self._uncertain.setdefault((namespace, holder), []).append(conflict)
                else:
                    self._give_up()

    async def _find_owners(self, portion: Portion, owners: dict[Value, list[tuple[DocumentId, Key]]]) -> None:
        for batch in portion.batches():
            finals = await self.source.fetch(batch.namespace, batch.ids)
            for index in await self._unique(batch.namespace):
                for id_, key in ((id_, key) for id_, document in finals.items() for key in keys_of(index, document)):
                    known = owners.get((batch.namespace, index.name, comparable(index, key)))
                    if known is not None and len(known) < _OWNERS and id_ not in {owner for owner, _ in known}:
                        known.append((id_, key))

    def _tell(self, owners: Mapping[Value, Sequence[tuple[DocumentId, Key]]]) -> None:
        for conflicts in self._uncertain.values():
            for conflict in conflicts:
                self.plan.conflicts.add(conflict)
        for (namespace, name, _), found in sorted(owners.items(), key=str):
            index = next(index for index in self._indexes[namespace] if index.name == name)
            for id_, key in found[1:]:
                self.plan.conflicts.add(_conflict(namespace, index, key, (id_, found[0][0]), is_written=True))


def _conflict(
    namespace: Namespace, index: UniqueIndex, key: Key, ids: tuple[DocumentId, DocumentId], *, is_written: bool
) -> UniqueConflict:
    return UniqueConflict(
        namespace=namespace,
        index=index.name,
        value=key_to_text(index, key),
        id=ids[0],
        holder=ids[1],
        is_written=is_written,
    )
