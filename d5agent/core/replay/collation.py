"""Collections of the target whose `_id` index follows a collation: what is written to one document may hit another.

To such an index "A" is "a": deleting one deletes the other ("Collation", MongoDB manual). DocumentDB has no collations
before 8.0, so that its ids are told apart byte by byte.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from d5agent.core.log import raw
from d5agent.errors import CorruptDataError, OperatorError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from d5agent.core.log.operation import Namespace
    from d5agent.core.log.raw import DocumentId

_NESTING: Final = frozenset({raw.DOCUMENT, raw.ARRAY})
_TEXTS: Final = frozenset({raw.STRING, raw.SYMBOL})


@dataclass(slots=True)
class Collated:
    """By name, the locales of such collections. `hit`: those that the log touches by an `_id` with text in it.

    A name that the log drops stays: what is made in its place may get the options of the one before.
    """

    locales: dict[Namespace, str] = field(default_factory=dict)
    hit: set[Namespace] = field(default_factory=set)

    def see(self, namespace: Namespace, ids: Iterable[DocumentId]) -> None:
        """Take documents that the log touches."""
        if namespace in self.locales and namespace not in self.hit and any(map(has_text, ids)):
            self.hit.add(namespace)

    def rename(self, namespace: Namespace, to: Namespace) -> None:
        """Take a rename in the log: the collection has its collation under the new name."""
        if namespace in self.locales:
            self.locales[to] = self.locales[namespace]

    @property
    def found(self) -> list[str]:
        """The collections that were hit, in words."""
        return [f"{name} (locale {self.locales[name]})" for name in sorted(self.hit, key=str)]

    def require_none(self) -> None:
        """Raise when one was hit."""
        if self.hit:
            raise OperatorError(
                "collections of the target have a collation, and the log touches them by an _id with text in it",
                hint="nothing was written: a write to one document could hit another. Copy each into a collection "
                "without a collation that takes its name (docs/runbook), then type: d5agent start restore",
                collections="; ".join(self.found),
            )


def has_text(value: DocumentId) -> bool:
    """Whether a value is a string, or holds one however deep. What cannot be read counts as one."""
    if value[0] in _TEXTS:
        return True
    if value[0] not in _NESTING:
        return value[0] == raw.CODE_WITH_SCOPE
    body = value[1:]
    try:
        return any(has_text(raw.value_at(body, element)) for element in raw.elements(body))
    except (CorruptDataError, RecursionError):
        return True
