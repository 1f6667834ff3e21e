"""Pages as servers send them: equal as bytes, and taken apart only when somebody looks inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bson import encode

from d5agent.core.log.cursor_pages import FoundDocuments, RawPage
from tests.fakes.documents import raw_document, raw_id

if TYPE_CHECKING:
    from collections.abc import Sequence


def documents(numbers: Sequence[int]) -> list[bytes]:
    return [raw_document({"_id": number}) for number in numbers]


def page(numbers: Sequence[int]) -> RawPage:
    return RawPage(encode({"a": [{"_id": number} for number in numbers]})[7:-1])


def test_pages_are_equal_when_all_in_them_is() -> None:
    one, same, other = page(range(12)), page(range(12)), page([*range(11), 99])
    assert one == same
    assert one != other
    assert one == documents(range(12))
    assert one != documents(range(11))
    assert one != tuple(documents(range(12)))


def test_a_page_is_a_sequence_of_its_documents() -> None:
    subject = page(range(12))
    assert len(subject) == 12
    assert subject[3] == documents([3])[0]
    assert subject[1:3] == documents([1, 2])
    assert list(subject) == documents(range(12))
    assert len(subject) == 12
    assert subject.size > sum(map(len, subject))
    assert len(page([])) == 0


def test_found_documents_are_equal_however_they_were_paged() -> None:
    one, same = FoundDocuments([page(range(5))]), FoundDocuments([page(range(5))])
    paged, other = FoundDocuments([page(range(2)), page(range(2, 5))]), FoundDocuments([page(range(4))])
    assert one == same
    assert one == paged
    assert one != other
    assert one == {raw_id(number): document for number, document in enumerate(documents(range(5)))}
    assert one != documents(range(5))


def test_found_documents_are_a_mapping_by_id() -> None:
    found = FoundDocuments([page([1]), page([2])])
    assert list(found) == [raw_id(1), raw_id(2)]
    assert (len(found), found[raw_id(2)], found.get(raw_id(3))) == (2, documents([2])[0], None)
