"""The commands that make documents what they should be, as raw bytes: what is sent, and what a refusal means."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from bson.raw_bson import RawBSONDocument

from d5agent.adapters.mongo import WRITES_BLOCKED, writes_blocked
from d5agent.core.log import raw
from d5agent.core.log.extended_json import to_readable
from d5agent.core.log.raw import documents_of, id_document, spans
from d5agent.core.replay.replay import Failure
from d5agent.errors import CorruptDataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from d5agent.core.log.operation import Namespace
    from d5agent.core.log.raw import DocumentId
    from d5agent.core.replay.replay import Write

_DUPLICATE_KEY: Final = 11000
_SHOWN: Final = 300  # characters of a server's message
_BATCH_WRITES: Final = 1000
_BATCH_BYTES: Final = 4 * 1024 * 1024  # a command is one BSON document: 16 MiB at most
_STATEMENT_BYTES: Final = 64
# By kind: the command, and what its statements are called.
_COMMANDS: Final = {
    "delete": ("delete", "deletes"),
    "insert": ("insert", "documents"),
    "update": ("update", "updates"),
    "rewrite": ("update", "updates"),
}
# The server puts the current time in the place of a top-level Timestamp(0, 0), on insert and on replacement ("BSON
# types", MongoDB manual), but not in what a pipeline computes.
_ZERO_TIMESTAMP: Final = re.compile(rb"\x11[^\0]*\0{9}")
_NINE_ZEROS: Final = b"\0" * 9
# It takes a top-level field that begins with a dollar in an insert and from a pipeline, but not in a replacement
# ("Field names with periods and dollar signs", MongoDB manual, 5.0).
_DOLLAR: Final = b"$"
# "Cannot remove from a capped collection in a multi-document transaction", and for an update (mongod 6.0.5).
_CAPPED: Final = frozenset({20, 263})


def command_of(kind: str, namespace: Namespace, writes: Sequence[Write]) -> dict[str, Any]:
    """Return the command that does writes of one kind."""
    name, statements = _COMMANDS[kind]
    return {name: namespace.collection, statements: [_statement(kind, write) for write in writes]}


def find_command(namespace: Namespace, id_: DocumentId) -> dict[str, Any]:
    """Return the command that reads one document."""
    return {"find": namespace.collection, "filter": _Raw(id_document(id_)), "limit": 1, "singleBatch": True}


def found_document(answer: RawBSONDocument) -> bytes | None:
    """Return the document in the answer to a `find_command`; None: there is none."""
    reply = bytes(answer.raw)
    _, start, end = spans(reply)[b"cursor"]
    cursor = reply[start:end]
    return next(iter(documents_of(cursor, spans(cursor)[b"firstBatch"][1])), None)


def exchange_commands(namespace: Namespace, write: Write) -> list[dict[str, Any]]:
    """Return the commands that replace or delete one document in a transaction that has read it."""
    (kind,) = (kind for kind, some in kinds_of([write], may_insert=False).items() if some)
    absent = [command_of("delete", namespace, [write._replace(document=None)])] if kind == "rewrite" else []
    return [*absent, command_of(kind, namespace, [write])]


def kinds_of(writes: Sequence[Write], *, may_insert: bool) -> dict[str, list[Write]]:
    """Return the writes by the command that does them: deletes first, since they free unique values.

    `rewrite` is for what neither an insert nor a replacement stores as it is; the document must not be there then.
    """
    deletes: list[Write] = []
    inserts: list[Write] = []
    updates: list[Write] = []
    rewrites: list[Write] = []
    for write in writes:
        _, document, is_new = write
        if document is None:
            deletes.append(write)
        elif _NINE_ZEROS in document and _ZERO_TIMESTAMP.search(document) and _holds_zero_timestamp(document):
            rewrites.append(write)
        elif is_new and may_insert:
            inserts.append(write)
        elif _DOLLAR in document and _has_dollar_field(document):
            rewrites.append(write)
        else:
            updates.append(write)
    return {"delete": deletes, "insert": inserts, "update": updates, "rewrite": rewrites}


def is_capped_refusal(answer: Mapping[str, Any]) -> bool:
    """Whether a statement of a transaction was refused because its collection is capped."""
    return any(error.get("code") in _CAPPED for error in answer.get("writeErrors", ()))


def _holds_zero_timestamp(document: bytes) -> bool:
    return _has_element(
        document, lambda e: e.type == raw.TIMESTAMP and e.name != b"_id" and not any(document[e.start : e.end])
    )


def _has_dollar_field(document: bytes) -> bool:
    return _has_element(document, lambda e: e.name.startswith(_DOLLAR))


def _has_element(document: bytes, is_it: Callable[[raw.Element], bool]) -> bool:
    try:
        return any(map(is_it, raw.elements(document)))
    except CorruptDataError:
        return False  # the server says what is wrong with it


class _Raw:
    """A document that the driver's encoder copies as it is: what it asks of a RawBSONDocument, at a tenth of its cost.

    (`bson` looks at `_type_marker`, and takes `raw` of whatever has RawBSONDocument's.)
    """

    __slots__ = ("raw",)
    _type_marker = RawBSONDocument._type_marker  # noqa: SLF001 -- bson's own protocol between its types

    def __init__(self, raw: bytes) -> None:
        self.raw = raw


def _statement(kind: str, write: Write) -> _Raw | dict[str, Any]:
    document = write.document
    if kind == "insert" and document is not None:
        return _Raw(document)
    which = _Raw(id_document(write.id))
    if document is None:
        return {"q": which, "limit": 1}
    if kind == "rewrite":
        return {"q": which, "u": [{"$replaceWith": {"$literal": _Raw(document)}}], "upsert": True}
    return {"q": which, "u": _Raw(document), "upsert": True}


def batches_of(writes: Sequence[Write]) -> Iterator[list[Write]]:
    """Yield writes in portions that fit into one command; a document of 16 MB is a command of its own."""
    batch: list[Write] = []
    size = 0
    for write in writes:
        bytes_ = len(write.document or b"") + len(write.id) + _STATEMENT_BYTES
        if batch and (len(batch) == _BATCH_WRITES or size + bytes_ > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(write)
        size += bytes_
    if batch:
        yield batch


def is_large(writes: Sequence[Write]) -> bool:
    """Whether a command is larger than others are: then it holds one document.

    With a transaction number a server whose cache is small (15 MB of 256) tries for minutes, or refuses it (388,
    TransactionTooLargeForCache); without one it writes it at once.
    """
    return sum(len(write.document or b"") for write in writes) > _BATCH_BYTES


def failure_of(namespace: Namespace, write: Write, error: Mapping[str, Any]) -> Failure:
    """Return a write that the server refused. OperatorError: it refuses each of ours."""
    if error.get("code") == WRITES_BLOCKED:
        raise writes_blocked(str(error.get("errmsg", "?")))
    is_conflict = error.get("code") == _DUPLICATE_KEY
    message = str(error.get("errmsg", "?"))
    index = message.split(" index: ")[1].split(" ", maxsplit=1)[0] if is_conflict and " index: " in message else ""
    value = error.get("keyValue")
    held = to_readable(bytes(value.raw)) if is_conflict and isinstance(value, RawBSONDocument) else message
    reason = f"the unique index {index} holds {held} for another document" if is_conflict else message
    return Failure(namespace=namespace, write=write, reason=reason[:_SHOWN], is_conflict=is_conflict, index=index)
