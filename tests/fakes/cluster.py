"""A cluster in memory: its documents, and the change events that tell how they came to be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from bson import Timestamp, encode
from bson.raw_bson import RawBSONDocument

from d5agent.core.log.operation import ClusterTime, Namespace
from d5agent.core.log.raw import document_id, elements, id_document
from tests.fakes.documents import FakeDatabase, raw_document, raw_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from d5agent.core.log.raw import DocumentId
    from d5agent.ports import Clock

BEFORE_ALL: Final = ClusterTime(0, 0)
_WITH_DOCUMENT: Final = frozenset({"insert", "update", "replace"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """What somebody does to a cluster. An update's document is what it leaves behind."""

    kind: str
    namespace: Namespace
    id: DocumentId | None = None
    document: bytes | None = None
    rename_to: Namespace | None = None


def _with_document(kind: str, namespace: Namespace, fields: Mapping[str, object]) -> Op:
    return Op(kind=kind, namespace=namespace, id=raw_id(fields["_id"]), document=raw_document(fields))


def insert(namespace: Namespace, fields: Mapping[str, object]) -> Op:
    return _with_document("insert", namespace, fields)


def update(namespace: Namespace, fields: Mapping[str, object]) -> Op:
    return _with_document("update", namespace, fields)


def replace(namespace: Namespace, fields: Mapping[str, object]) -> Op:
    return _with_document("replace", namespace, fields)


def delete(namespace: Namespace, id_: object) -> Op:
    return Op(kind="delete", namespace=namespace, id=raw_id(id_))


def drop(namespace: Namespace) -> Op:
    return Op(kind="drop", namespace=namespace)


def rename(namespace: Namespace, to: Namespace) -> Op:
    return Op(kind="rename", namespace=namespace, rename_to=to)


def drop_database(name: str) -> Op:
    return Op(kind="dropDatabase", namespace=Namespace(name))


class ImpossibleError(Exception):
    """A cluster would refuse this: a taken `_id` or unique value, an absent document or collection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Happened:
    op: Op
    time: ClusterTime
    incarnation: int
    before: bytes | None = None


@dataclass(slots=True, kw_only=True)
class FakeCluster:
    """Applies operations, and tells them as change events.

    The post-image of an update is looked up when its event is read, so it may be newer than the event, or null. By
    default nothing is found once the collection is dropped, or has another name (MongoDB would find it there: this is
    the harder case); with `looks_up_by_name`, a new collection of the old name answers. `kept_from`: the number of the
    first event that the cluster still remembers. `moves_while_idle`: its time moves although nothing happens.
    """

    clock: Clock
    database: FakeDatabase = field(default_factory=FakeDatabase)
    looks_up_by_name: bool = False
    kept_from: int = 0
    moves_while_idle: bool = False
    _happened: list[_Happened] = field(default_factory=list)
    _time: ClusterTime = BEFORE_ALL
    _incarnations: dict[Namespace, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin at the clock's time."""
        self._tick()

    def __len__(self) -> int:
        """How many events there were."""
        return len(self._happened)

    def now(self) -> ClusterTime:
        """Return the cluster's time; while nothing happens it may stay at the time of what happened last."""
        return self._tick() if self.moves_while_idle else self._time

    def pass_time(self) -> ClusterTime:
        """Let something happen that no event tells, and return its time."""
        return self._tick()

    def _tick(self) -> ClusterTime:
        """Return the time of what happens now; it is later than all before it."""
        seconds = max(int(self.clock.now().timestamp()), self._time.seconds)
        increment = self._time.increment + 1 if seconds == self._time.seconds else 1
        self._time = ClusterTime(seconds, increment)
        return self._time

    def apply(self, *ops: Op) -> None:
        """Apply one operation, or several as a transaction: they share one cluster time. All or none of them."""
        before = self.database.copy() if len(ops) > 1 else None
        try:
            earlier = []
            for op in ops:
                earlier.append(None if op.id is None else self.database.find(op.namespace, op.id))
                self._do(op)
        except ImpossibleError:
            if before is not None:
                self.database = before
            raise
        time = self._tick()
        for op, document in zip(ops, earlier, strict=True):
            self._tell(op, time, document)

    def event(self, number: int) -> bytes:
        """Return an event as the stream would give it at this moment."""
        happened = self._happened[number]
        op = happened.op
        fields: dict[str, Any] = {
            "_id": {"_data": token_data(number)},
            "operationType": op.kind,
            "clusterTime": Timestamp(*happened.time),
            "ns": _ns(op.namespace),
        }
        if op.rename_to is not None:
            fields["to"] = _ns(op.rename_to)
        if op.id is not None:
            fields["documentKey"] = RawBSONDocument(id_document(op.id))
        if op.kind in _WITH_DOCUMENT:
            document = self._looked_up(happened, op.id) if op.kind == "update" and op.id else op.document
            fields["fullDocument"] = None if document is None else RawBSONDocument(document)
        if op.kind == "update":
            fields["updateDescription"] = _description(happened.before, op.document)
        return encode(fields)

    def touched(self) -> list[Namespace]:
        """Return the namespace of each event, in order."""
        return [happened.op.namespace for happened in self._happened]

    def operations(self) -> list[Op]:
        """Return what happened, in order."""
        return [happened.op for happened in self._happened]

    def first_at(self, time: ClusterTime) -> int:
        """Return the number of the first event at a time, or after it."""
        return next((n for n, happened in enumerate(self._happened) if happened.time >= time), len(self))

    def _looked_up(self, happened: _Happened, id_: DocumentId) -> bytes | None:
        namespace = happened.op.namespace
        if not self.looks_up_by_name and happened.incarnation != self._incarnations.get(namespace, 0):
            return None
        return self.database.find(namespace, id_)

    def _do(self, op: Op) -> None:
        database = self.database
        if op.id is not None:
            self._do_document(op, op.id)
            return
        known = (
            database.collections if op.kind != "dropDatabase" else {Namespace(n.database) for n in database.collections}
        )
        if op.namespace not in known or op.rename_to == op.namespace:
            raise ImpossibleError(op)
        if op.rename_to is not None:
            database.rename(op.namespace, op.rename_to)

    def _do_document(self, op: Op, id_: DocumentId) -> None:
        before = self.database.find(op.namespace, id_)
        is_there = before is not None and document_id(before) == id_
        if (op.kind == "insert") != (before is None) or is_there == (op.kind == "insert"):
            raise ImpossibleError(op)
        if op.document is None:
            self.database.remove(op.namespace, id_)
        elif self.database.put(op.namespace, id_, op.document) is not None:
            raise ImpossibleError(op)

    def _tell(self, op: Op, time: ClusterTime, before: bytes | None = None) -> None:
        if op.kind == "dropDatabase":
            for name in self.database.names(op.namespace.database):
                self._tell(Op(kind="drop", namespace=name), time)
                time = self._tick()
        if op.kind == "drop":
            self.database.drop(op.namespace)
        self._happened.append(
            _Happened(op=op, time=time, incarnation=self._incarnations.get(op.namespace, 0), before=before),
        )
        for namespace in (op.namespace, op.rename_to) if op.id is None else ():
            if namespace is not None:
                self._incarnations[namespace] = len(self._happened)


def _description(before: bytes | None, after: bytes | None) -> dict[str, Any]:
    """Return which fields an update changed: none that it set to the value that it had. Values are not decoded."""
    old, new = (_fields(document) for document in (before, after))
    changed = b"".join(element for name, element in new.items() if old.get(name) != element)
    size = (len(changed) + 5).to_bytes(4, "little")
    return {
        "updatedFields": RawBSONDocument(size + changed + b"\0"),
        "removedFields": [name.decode(errors="replace") for name in old if name not in new],
    }


def _fields(document: bytes | None) -> dict[bytes, bytes]:
    """Return each element of a document, by its name, as it stands there."""
    found = () if document is None else elements(document)
    return {e.name: (document or b"")[e.start - len(e.name) - 2 : e.end] for e in found}


def token_data(number: int) -> str:
    """Return the text in the token of an event."""
    return f"{number:016x}"


def token_of(number: int) -> bytes:
    """Return the token of an event."""
    return encode({"_data": token_data(number)})


def _ns(namespace: Namespace) -> dict[str, str]:
    parts = {"db": namespace.database}
    if namespace.collection is not None:
        parts["coll"] = namespace.collection
    return parts
