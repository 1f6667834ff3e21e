"""What was written to the target since a moment, by whomever: it is compared again before a certificate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from d5agent.core.log.identity import identity_of
from d5agent.core.log.operation import DOCUMENT_KINDS, UNNAMED, Namespace

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from d5agent.core.log.identity import Identity
    from d5agent.core.log.operation import Operation
    from d5agent.core.log.raw import DocumentId

_MOST: Final = 100_000  # documents, about 20 MB; beyond it all that was compared is compared again


@dataclass(slots=True)
class Changed:
    """Documents by `_id`, and names that were dropped or renamed. `is_full`: there were too many to keep.

    `without`: documents that are not kept, by namespace and identity: they are compared next in any case.
    """

    without: Container[tuple[Namespace, Identity]] = frozenset()
    documents: dict[Namespace, set[DocumentId]] = field(default_factory=dict)
    moved: set[Namespace] = field(default_factory=set)
    is_full: bool = False
    _count: int = 0

    def add(self, operation: Operation) -> None:
        """Take an event of the target. Of one that does not say what it concerns, everything is taken as changed."""
        namespace, id_ = operation.namespace, operation.document_id
        is_document = operation.kind in DOCUMENT_KINDS
        if namespace == UNNAMED or (is_document and id_ is None):
            self.is_full = True
        elif is_document and id_ is not None:
            self._add_document(namespace, id_)
        else:
            self.moved.update(name for name in (namespace, operation.rename_to) if name is not None)

    def _add_document(self, namespace: Namespace, id_: DocumentId) -> None:
        known = self.documents.setdefault(namespace, set())
        if id_ in known or (namespace, identity_of(id_)) in self.without:
            return
        if self._count >= _MOST:
            self.is_full = True
            return
        known.add(id_)
        self._count += 1

    def forget(self, namespace: Namespace, ids: Iterable[DocumentId]) -> None:
        """Forget documents that were compared after this look."""
        if namespace in self.documents:
            self.documents[namespace].difference_update(ids)

    def forget_name(self, namespace: Namespace) -> None:
        """Forget that a name moved: the log says so. That of a database stands for all in it."""
        self.moved.discard(namespace)
        if namespace.collection is None:
            self.moved = {name for name in self.moved if name.database != namespace.database}

    def within(self, names: Iterable[Namespace]) -> dict[Namespace, set[DocumentId]]:
        """Return the documents of these collections and databases."""
        return {name: ids for name, ids in self.documents.items() if ids and _is_within(name, set(names))}

    def moved_within(self, names: Iterable[Namespace]) -> list[Namespace]:
        """Return the names that moved and concern these collections."""
        known = set(names)
        databases = {name.database for name in known}
        return sorted(
            (n for n in self.moved if _is_within(n, known) or (n.collection is None and n.database in databases)),
            key=str,
        )


def _is_within(namespace: Namespace, names: set[Namespace]) -> bool:
    return namespace in names or Namespace(namespace.database) in names
