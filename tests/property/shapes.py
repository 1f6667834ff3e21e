"""What the documents of a history look like, and the unique index in which they meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from typing_extensions import override

from tests.fakes.indexes import UniqueIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True)
class Shape:
    """An index, and how a document that wants `value` in it looks. None: a document without a value."""

    name: str
    index: UniqueIndex
    of: Callable[[object, int], Mapping[str, Any]]

    def fields(self, id_: object, value: object, number: int) -> Mapping[str, Any]:
        """Return a document; `number` tells it from every other version of it."""
        return {"_id": id_, **self.of(value, number), "n": number}

    @override
    def __repr__(self) -> str:
        """As a test's example shows it."""
        return self.name


def _single(value: object, _: int) -> Mapping[str, Any]:
    return {} if value is None else {"u": value}


def _many(value: object, number: int) -> Mapping[str, Any]:
    if isinstance(value, int) and number % 2:
        return {"u": [value, value % 3 + 1]}
    return _single(value, number)


_P: Final[tuple[Mapping[str, Any], ...]] = ({}, {"p": 1})
SPARSE: Final = Shape("sparse", UniqueIndex(("u",), is_sparse=True), _single)
DENSE: Final = Shape("dense", UniqueIndex(("u",)), _single)
COMPOUND: Final = Shape("compound", UniqueIndex(("u", "v")), lambda u, n: {**_single(u, n), "v": n % 2})
PARTIAL: Final = Shape(
    "partial", UniqueIndex(("u",), partial="p"), lambda u, n: {**_single(u, n), **({"p": 1} if n % 3 else {})}
)
MULTIKEY: Final = Shape("multikey", UniqueIndex(("u",), is_sparse=True), _many)
SHAPES: Final = (SPARSE, DENSE, COMPOUND, PARTIAL, MULTIKEY)
