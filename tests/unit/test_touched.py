"""Documents of a portion, in batches that fit into memory."""

from __future__ import annotations

from d5agent.core.log.operation import ClusterTime, Namespace, Operation
from d5agent.steps.compare.touched import Batch, Portion
from tests.fakes.documents import raw_id

ORDERS = Namespace("shop", "orders")
OTHERS = Namespace("shop", "others")
MIB = 1024 * 1024


def operation(number: int, *, namespace: Namespace = ORDERS, kind: str = "update", size: int = 100) -> Operation:
    return Operation(kind, namespace, ClusterTime(1, 1), b"", raw_id(number), None, None, bytes(size))


def batches(*operations: Operation) -> list[Batch]:
    portion = Portion()
    for one in operations:
        assert one.document_id is not None
        known = portion.sizes.get(one.namespace, {})
        portion.add(one, one.document_id, is_first=one.document_id not in known)
    return list(portion.batches())


def test_a_batch_has_five_hundred_documents_of_one_namespace() -> None:
    found = batches(*[operation(n) for n in range(1_001)], *[operation(n, namespace=OTHERS) for n in range(3)])
    assert [(batch.namespace, len(batch.ids)) for batch in found] == [
        (ORDERS, 500),
        (ORDERS, 500),
        (ORDERS, 1),
        (OTHERS, 3),
    ]
    assert len({id_ for batch in found[:3] for id_ in batch.ids}) == 1_001


def test_large_documents_are_in_batches_of_a_few_and_very_large_ones_alone() -> None:
    found = batches(*[operation(n, size=MIB) for n in range(4)], operation(9, size=16 * MIB))
    assert [len(batch.ids) for batch in found] == [2, 2, 1]


def test_the_largest_event_of_a_document_counts() -> None:
    found = batches(operation(1), operation(2), operation(1, size=2 * MIB), operation(1))
    assert [batch.ids for batch in found] == [(raw_id(1),), (raw_id(2),)]


def test_what_began_with_an_insert_is_told_as_new() -> None:
    (batch,) = batches(operation(1, kind="insert"), operation(1), operation(2), operation(2, kind="insert"))
    assert batch.new == {raw_id(1)}


def test_a_document_that_belongs_elsewhere_is_left_out() -> None:
    portion = Portion()
    portion.add(operation(1), raw_id(1), is_first=False)
    assert list(portion.batches()) == []
