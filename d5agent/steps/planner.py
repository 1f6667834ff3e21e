"""The dry run: what the log would do to the target, counted by namespace; nothing is written."""

from __future__ import annotations

from collections import defaultdict
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.replay import barrier_of
from d5agent.steps.verifier import Verifier

if TYPE_CHECKING:
    from collections.abc import Mapping

    from d5agent.core.operation import Namespace, Operation
    from d5agent.core.raw import DocumentId
    from d5agent.ports import Clock, DocumentReader
    from d5agent.steps.log_reader import LogReader

_BATCH: Final = 500
_WAITING_BYTES: Final = 32 * 1024 * 1024
_KINDS: Final = {"insert": "inserts", "update": "updates", "replace": "updates", "delete": "deletes"}
_COLUMNS: Final = (
    *dict.fromkeys(_KINDS.values()),
    "others",
    "documents",
    "bytes",
    "insert",
    "overwrite",
    "delete",
    "equal",
)


async def make_plan(
    *, reader: LogReader, source: DocumentReader, target: DocumentReader, clock: Clock, with_divergence: bool
) -> dict[str, Any]:
    """Return the plan as JSON values: by namespace, operations in the log and what they would do to documents.

    The counts of documents compare source and target as they are now. With divergence: what the log does not touch is
    compared too (documents that DMS had not delivered).
    """
    rows: dict[Namespace, dict[str, int]] = defaultdict(lambda: dict.fromkeys(_COLUMNS, 0))
    touched: dict[Namespace, set[DocumentId]] = defaultdict(set)
    operations = 0
    async with aclosing(reader.operations_of(reader.links())) as found:
        async for _, operation in found:
            if operation is None or operation.is_ours:
                continue
            operations += 1
            _count(rows[operation.namespace], operation)
            if operation.document_id is not None:
                touched[operation.namespace].add(operation.document_id)
    for namespace, ids in touched.items():
        rows[namespace]["documents"] = len(ids)
        await _compare(rows[namespace], namespace, sorted(ids), source, target)
    plan: dict[str, Any] = {
        "operations": operations,
        "namespaces": {str(namespace): dict(row) for namespace, row in sorted(rows.items(), key=str)},
        "notes": ["drops and renames are counted as others"] if any(row["others"] for row in rows.values()) else [],
    }
    if with_divergence:
        plan["divergence"] = await _divergence(source, target, clock, touched)
        plan["notes"].append(f"{len(plan['divergence'])} documents differ that the outage did not touch")
    return plan


def _count(row: dict[str, int], operation: Operation) -> None:
    if operation.is_barrier:
        barrier_of(operation)  # an unknown type is found now, not in the middle of the restore
    row[_KINDS.get(operation.kind, "others")] += 1
    row["bytes"] += len(operation.raw)


async def _compare(
    row: dict[str, int], namespace: Namespace, ids: list[DocumentId], source: DocumentReader, target: DocumentReader
) -> None:
    for at in range(0, len(ids), _BATCH):
        some = ids[at : at + _BATCH]
        ours, theirs = await source.fetch(namespace, some), await target.fetch(namespace, some)
        for id_ in some:
            row[_effect(ours.get(id_), theirs.get(id_))] += 1


def _effect(source: bytes | None, target: bytes | None) -> str:
    if source == target:
        return "equal"
    if source is None:
        return "delete"
    return "insert" if target is None else "overwrite"


async def _divergence(
    source: DocumentReader, target: DocumentReader, clock: Clock, touched: Mapping[Namespace, set[DocumentId]]
) -> list[dict[str, Any]]:
    report = await Verifier(
        source=source, target=target, repair_into=None, clock=clock, waiting_bytes=_WAITING_BYTES
    ).full()
    return [d.to_json() for d in report.differences if d.id not in touched.get(d.namespace, set())]
