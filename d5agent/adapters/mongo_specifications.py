"""Indexes and options of MongoDB's collections: read as raw BSON, and built again."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from bson import encode
from bson.raw_bson import RawBSONDocument
from pymongo.errors import OperationFailure

from d5agent.adapters.mongo import RAW, Client, application_databases, translating
from d5agent.adapters.retry import retrying
from d5agent.adapters.write_gate import WriteGate
from d5agent.core.log import raw
from d5agent.core.log.operation import Namespace
from d5agent.core.replay.specification import Specification
from d5agent.errors import OperatorError
from d5agent.steps.parallel import parallel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from d5agent.ports import Clock

_SIDE: Final = "target"
_AT_ONCE: Final = 4
_MANY: Final = 1_000  # more than a collection may have indexes: one reply holds them all
_NAMESPACE_NOT_FOUND: Final = 26
_NAMESPACE_EXISTS: Final = 48
_MAJORITY: Final = {"w": "majority", "j": True}
# What collMod changes; all other options are those of a collection's creation ("create", MongoDB manual).
_CHANGEABLE: Final = ("validator", "validationLevel", "validationAction")
_NOTHING: Final = encode({})


class MongoSpecifications:
    """Reads what collections are beside their documents, and builds it again where it was lost."""

    def __init__(self, client: Client, *, clock: Clock, gate: WriteGate | None = None) -> None:
        self._client = client
        self._clock = clock
        self._gate = gate or WriteGate()

    async def specifications(self) -> Mapping[Namespace, Specification]:
        """Return those of all application collections that have an index beside that of `_id`, or an option."""
        found: dict[Namespace, Specification] = {}
        for database in await retrying(partial(application_databases, self._client, _SIDE), clock=self._clock):
            options = await retrying(partial(self._options, database, {}), clock=self._clock)
            names = sorted(options)
            indexes = await parallel(self._indexes, [Namespace(database, name) for name in names], limit=_AT_ONCE)
            for name, each in zip(names, indexes, strict=True):
                if each or options[name] != _NOTHING:
                    found[Namespace(database, name)] = Specification(options=options[name], indexes=each)
        return found

    async def build(self, namespace: Namespace, specification: Specification) -> Sequence[str]:
        """Make a collection what a specification says; return what was refused, in words. Safe to repeat."""
        options = RawBSONDocument(specification.options)
        refused = [await self._make(namespace, options)]
        for index in map(RawBSONDocument, specification.indexes):
            command = {"createIndexes": namespace.collection, "indexes": [index], "writeConcern": _MAJORITY}
            reason = await self._asked(namespace, command)
            refused.append(f"index {index['name']}: {reason}" if reason else "")
        return [reason for reason in refused if reason]

    async def _make(self, namespace: Namespace, options: Mapping[str, Any]) -> str:
        """Make the collection, or give its validator back to one that is there; return why that is refused."""
        reason = await self._asked(namespace, {"create": namespace.collection, **options, "writeConcern": _MAJORITY})
        if reason != str(_NAMESPACE_EXISTS):
            return reason and f"options: {reason}"
        which = {"name": namespace.collection}
        found = await retrying(partial(self._options, namespace.database, which), clock=self._clock)
        if not found:
            return "options: what has its name is no collection"
        (there,) = map(RawBSONDocument, found.values())
        fixed = [name for name in options if name not in _CHANGEABLE and there.get(name) != options[name]]
        if fixed:
            return f"options that only a new collection can have: {', '.join(fixed)}"
        changes = {name: options[name] for name in _CHANGEABLE if name in options and there.get(name) != options[name]}
        if not changes:
            return ""
        reason = await self._asked(namespace, {"collMod": namespace.collection, **changes, "writeConcern": _MAJORITY})
        return reason and f"validator: {reason}"

    async def _asked(self, namespace: Namespace, command: dict[str, Any]) -> str:
        """Return why a command is refused; empty: it was done. `48`: the collection is there already."""

        async def once() -> str:
            with translating(_SIDE):
                try:
                    await self._client[namespace.database].command(command)
                except OperationFailure as error:
                    if error.code != _NAMESPACE_EXISTS:
                        raise
                    return str(_NAMESPACE_EXISTS)
            return ""

        try:
            return await self._gate.retrying(once, clock=self._clock)
        except OperatorError as error:
            return str(error.facts.get("server_says") or error)

    async def _options(self, database: str, which: Mapping[str, Any]) -> dict[str, bytes]:
        """Return the collections' options by name, as raw BSON."""
        with translating(_SIDE):
            cursor = await self._client[database].list_collections(filter={"type": "collection", **which})
            rows = [encode(row) async for row in cursor]
        names = [raw.text_named(row, b"name") for row in rows]
        return {
            name: _field(row, b"options")
            for name, row in zip(names, rows, strict=True)
            if not name.startswith("system.")
        }

    async def _indexes(self, namespace: Namespace) -> tuple[bytes, ...]:
        async def once() -> tuple[bytes, ...]:
            command = {"listIndexes": namespace.collection, "cursor": {"batchSize": _MANY}}
            with translating(_SIDE):
                try:
                    answer = await self._client[namespace.database].command(command, codec_options=RAW)
                except OperationFailure as error:
                    if error.code != _NAMESPACE_NOT_FOUND:
                        raise
                    return ()
            found = answer["cursor"]["firstBatch"]
            return tuple(_of_an_index(index) for index in found if index["name"] != "_id_" and "clustered" not in index)

        return await retrying(once, clock=self._clock)


def _of_an_index(index: Mapping[str, Any]) -> bytes:
    """Return a specification as createIndexes takes it: servers before 4.4 add the namespace."""
    return encode({name: value for name, value in index.items() if name != "ns"})


def _field(row: bytes, name: bytes) -> bytes:
    span = raw.spans(row).get(name)
    return _NOTHING if span is None else row[span[1] : span[2]]
