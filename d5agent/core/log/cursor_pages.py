"""Documents as a server sends them: pages that are taken apart only where two sides differ."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, overload

from typing_extensions import override

from d5agent.core.log.raw import count_documents_of, document_id, documents_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from d5agent.core.log.raw import DocumentId


class LazyDocuments(Sequence[bytes]):
    """Documents that lie in a reply, which is taken apart when somebody looks inside."""

    __slots__ = ()

    @abstractmethod
    def _taken_apart(self) -> list[bytes]:
        """Return the documents; the work is done once."""

    @override
    def __len__(self) -> int:
        return len(self._taken_apart())

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...
    @override
    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        return self._taken_apart()[index]

    @override
    def __iter__(self) -> Iterator[bytes]:
        return iter(self._taken_apart())


class RawPage(LazyDocuments):
    """The documents of one reply: a BSON array, as it came. Equal arrays are equal pages, at the price of a memcmp."""

    __slots__ = ("_array", "_documents")

    def __init__(self, array: bytes) -> None:
        self._array = array
        self._documents: list[bytes] | None = None

    @property
    def size(self) -> int:
        """Its bytes."""
        return len(self._array)

    @override
    def __eq__(self, other: object) -> bool:
        if isinstance(other, RawPage):
            return self._array == other._array
        return isinstance(other, list) and self._taken_apart() == other

    __hash__ = None  # type: ignore[assignment]  # it is compared, never a key

    @override
    def __len__(self) -> int:
        return count_documents_of(self._array) if self._documents is None else len(self._documents)

    @override
    def _taken_apart(self) -> list[bytes]:
        if self._documents is None:
            self._documents = documents_of(self._array)
        return self._documents


class FoundDocuments(Mapping["DocumentId", bytes]):
    """Documents by `_id`, in pages that are taken apart only when somebody looks inside."""

    __slots__ = ("_by_id", "_pages")

    def __init__(self, pages: Sequence[RawPage]) -> None:
        self._pages = pages
        self._by_id: dict[DocumentId, bytes] | None = None

    @override
    def __eq__(self, other: object) -> bool:
        if isinstance(other, FoundDocuments) and self._pages == other._pages:
            return True
        return isinstance(other, Mapping) and self._documents() == dict(other)

    __hash__ = None  # type: ignore[assignment]  # it is compared, never a key

    @override
    def __getitem__(self, id_: DocumentId) -> bytes:
        return self._documents()[id_]

    @override
    def __iter__(self) -> Iterator[DocumentId]:
        return iter(self._documents())

    @override
    def __len__(self) -> int:
        return len(self._documents())

    def _documents(self) -> dict[DocumentId, bytes]:
        if self._by_id is None:
            self._by_id = {document_id(document): document for page in self._pages for document in page}
        return self._by_id
