"""Where the stream is cut: by size, by age, and at the borders that the log's order rests on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from d5agent.core.log.naming import parse_segment_key
from d5agent.core.log.operation import OWN_DATABASE, Namespace, Position
from d5agent.core.log.segmenter import Cut, Segmenter
from tests.fakes.events import ITEMS, ORDERS, at, operation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from d5agent.core.log.operation import Operation
    from d5agent.core.log.segment import Segment

LARGE = 1_000_000
MARKS = Namespace(OWN_DATABASE, "marks")
NAMES = [Namespace("shop", f"c{number}") for number in range(40)]


SHOP = Namespace("shop")
RENAMED: Any = {"to": {"db": "shop", "coll": "items"}}


def _segmenter(*, max_bytes: int = LARGE, max_age_seconds: float = 1, own_segments: int = 4) -> Segmenter:
    return Segmenter(max_bytes=max_bytes, max_age_seconds=max_age_seconds, own_segments=own_segments)


def _after(last: Operation) -> Position:
    return Position(cluster_time=last.cluster_time, token=last.token)


def _counts(cut: Cut) -> list[tuple[Namespace | None, int]]:
    return [(segment.namespace, segment.count) for segment in cut.segments]


def test_operations_are_collected_by_namespace() -> None:
    segmenter = _segmenter()
    for increment, namespace in enumerate((ORDERS, ITEMS, ORDERS), start=1):
        assert not list(segmenter.add(operation("insert", increment, namespace=namespace), now=0))
    segmenter.seal(None)
    cut = segmenter.drain()
    assert cut is not None
    assert _counts(cut) == [(ORDERS, 2), (ITEMS, 1)]


def test_a_new_one_is_empty_and_has_nothing_to_give() -> None:
    segmenter = _segmenter()
    segmenter.seal(None)
    assert segmenter.is_empty
    assert not segmenter.is_sealed
    assert segmenter.tick(now=100) is None
    assert segmenter.drain() is None


def test_old_operations_are_committed_when_the_time_has_passed() -> None:
    segmenter = _segmenter()
    first = operation("insert", 1)
    list(segmenter.add(first, now=0))
    (cut,) = segmenter.add(operation("insert", 2), now=1)
    assert cut.position == _after(first)
    assert _counts(cut) == [(ORDERS, 1)]


def test_events_of_one_cluster_time_stay_in_one_commit_however_old() -> None:
    segmenter = _segmenter()
    list(segmenter.add(operation("insert", 1, 1), now=0))
    assert not list(segmenter.add(operation("insert", 1, 2), now=50))
    (cut,) = segmenter.add(operation("insert", 2, 3), now=51)
    assert _counts(cut) == [(ORDERS, 2)]


@pytest.mark.parametrize(
    "barrier",
    [
        operation("unheardOf", 1),
        operation("drop", 1, namespace=SHOP),
        operation("rename", 1),
        operation("rename", 1, namespace=SHOP, **RENAMED),
        operation("rename", 1, to={"db": "shop"}),
        operation("rename", 1, to={"db": OWN_DATABASE, "coll": "marks"}),
        operation("dropDatabase", 1),
        operation("dropDatabase", 1, namespace=Namespace(OWN_DATABASE)),
        operation("drop", 1, namespace=MARKS),
    ],
)
def test_what_it_concerns_is_unknown_so_it_has_its_own_commit(barrier: Operation) -> None:
    segmenter = _segmenter()
    before, after = operation("insert", 1), operation("insert", 1)
    assert not list(segmenter.add(before, now=0))
    (first,) = segmenter.add(barrier, now=0)
    (second,) = segmenter.add(after, now=0)
    segmenter.seal(None)
    third = segmenter.drain()
    assert third is not None
    assert [cut.position for cut in (first, second, third)] == [_after(before), _after(barrier), _after(after)]
    own = [(barrier.namespace, 1)]
    assert [_counts(cut) for cut in (first, second, third)] == [[(ORDERS, 1)], own, [(ORDERS, 1)]]
    assert not second.renames_within


def _one_cut(*operations: Operation, own_segments: int = 4) -> Cut:
    """Return the cut of operations that make one commit."""
    segmenter = _segmenter(own_segments=own_segments)
    for found in operations:
        assert not segmenter.add(found, now=0)
    segmenter.seal(None)
    cut = segmenter.drain()
    assert cut is not None
    assert segmenter.is_empty
    return cut


def _body(*operations: Operation) -> bytes:
    return b"".join(found.raw for found in operations)


def test_a_drop_keeps_its_place_among_its_collections_events() -> None:
    orders = [operation(kind, n) for n, kind in ((1, "insert"), (3, "drop"), (5, "insert"), (6, "drop"))]
    items = [operation("insert", n, namespace=ITEMS) for n in (2, 4)]
    first, second, third, fourth = orders
    cut = _one_cut(first, items[0], second, items[1], third, fourth)
    assert [(s.namespace, s.body) for s in cut.segments] == [(ORDERS, _body(*orders)), (ITEMS, _body(*items))]
    assert not cut.renames_within


def test_a_rename_is_stored_in_order_with_both_its_collections() -> None:
    found = [
        operation("insert", 1, "other", namespace=NAMES[0]),
        operation("insert", 2, namespace=ITEMS),
        operation("insert", 3, namespace=ORDERS),
        operation("rename", 4, **RENAMED),
        operation("update", 5, namespace=ITEMS),
        operation("insert", 6, namespace=ORDERS),
        operation("insert", 7, "other", namespace=NAMES[0]),
    ]
    cut = _one_cut(*found)
    own, shared = cut.segments
    assert (own.namespace, own.body) == (NAMES[0], _body(found[0], found[6]))
    assert (shared.namespace, shared.first, shared.last, shared.count) == (None, at(2), at(6), 5)
    assert shared.body in {_body(*found[1:6]), _body(found[2], found[1], *found[3:6])}
    assert shared.key() == "replication/.mixed/1793600000-0000000002_1.bson"
    assert cut.renames_within


def test_renames_that_have_a_collection_in_common_are_in_one_order() -> None:
    a, b, c, d = NAMES[:4]

    def renamed(increment: int, name: Namespace, to: Namespace) -> Operation:
        return operation("rename", increment, namespace=name, to={"db": to.database, "coll": to.collection})

    found = [
        operation("insert", 1, namespace=a),
        renamed(2, a, b),
        operation("insert", 3, namespace=c),
        operation("insert", 4, namespace=c),
        operation("insert", 5, namespace=c),
        renamed(6, c, d),
        renamed(7, d, b),
        operation("insert", 8, namespace=a),
        renamed(9, a, a),
    ]
    (shared,) = _one_cut(*found).segments
    places = [shared.body.index(one.raw) for one in found]
    assert places[0] < places[1] < places[6]
    assert places[2:] == sorted(places[2:])
    assert shared.count == len(found)


def test_a_dropped_database_is_stored_in_order_with_its_collections() -> None:
    gone = Namespace("gone")
    found = [
        operation("insert", 1, namespace=ORDERS),
        operation("insert", 2, namespace=gone._replace(collection="a")),
        operation("drop", 3, namespace=gone._replace(collection="a")),
        operation("dropDatabase", 4, namespace=gone),
        operation("insert", 5, namespace=gone._replace(collection="b")),
        operation("dropDatabase", 6, namespace=gone),
        operation("insert", 7, namespace=gone._replace(collection="a")),
    ]
    cut = _one_cut(*found)
    own, shared = cut.segments
    assert (own.namespace, shared.namespace, shared.body) == (ORDERS, None, _body(*found[1:]))
    assert not cut.renames_within


@pytest.mark.parametrize("barrier", [operation("rename", 1, **RENAMED), operation("dropDatabase", 1, namespace=SHOP)])
def test_a_barrier_alone_in_its_commit_has_its_own_key(barrier: Operation) -> None:
    cut = _one_cut(barrier)
    assert _counts(cut) == [(barrier.namespace, 1)]
    assert not cut.renames_within


def test_what_barriers_join_shares_a_segment_with_the_small_ones() -> None:
    joined = [operation("insert", 50), operation("rename", 51, **RENAMED)]
    cut = _one_cut(*_spread(NAMES[:6]), *joined)
    assert [(s.namespace, s.count) for s in cut.segments] == [*((name, 1) for name in NAMES[:4]), (None, 4)]


def test_a_rename_counts_in_the_commit_that_holds_it() -> None:
    size = len(operation("insert", 1).raw)
    segmenter = _segmenter(max_bytes=3 * size, max_age_seconds=60)
    first = [operation("insert", 1), operation("rename", 2, **RENAMED), operation("insert", 3), operation("insert", 4)]
    cuts = [cut for found in first for cut in segmenter.add(found, now=0)]
    assert [(cut.position, len(cut.segments)) for cut in cuts] == [(None, 1)]
    (commit,) = segmenter.add(operation("insert", 5), now=0)
    assert (commit.segments, commit.renames_within) == ((), True)
    segmenter.seal(None)
    last = segmenter.drain()
    assert last is not None
    assert (_counts(last), last.renames_within) == ([(ORDERS, 1)], False)


def test_many_renames_onto_one_name_stay_in_order() -> None:
    names = [Namespace("shop", f"temporary {n}") for n in range(1_000)]
    found: list[Operation] = []
    for n, name in enumerate(names):
        found.append(operation("insert", 2 * n + 1, namespace=name))
        found.append(operation("rename", 2 * n + 2, namespace=name, **RENAMED))
    (shared,) = _one_cut(*found).segments
    assert shared.body == _body(*found)


def test_a_commit_is_cut_by_size_when_the_time_has_passed() -> None:
    one = operation("insert", 1)
    segmenter = _segmenter(max_bytes=2 * len(one.raw))
    list(segmenter.add(one, now=0))
    (segments,) = segmenter.add(operation("insert", 2), now=0)
    assert segments.position is None
    (commit,) = segmenter.add(operation("insert", 3), now=0)
    assert commit.segments == ()
    assert commit.position == _after(operation("insert", 2))


def test_a_huge_transaction_gives_segments_at_once_and_its_commit_at_the_end() -> None:
    segmenter = _segmenter(max_bytes=2 * len(operation("insert", 1).raw))
    cuts = [cut for number in range(6) for cut in segmenter.add(operation("insert", 1, number), now=0)]
    assert [cut.position for cut in cuts] == [None, None, None]
    assert [_counts(cut) for cut in cuts] == [[(ORDERS, 2)]] * 3
    (commit,) = segmenter.add(operation("insert", 2), now=0)
    assert (commit.segments, commit.position) == ((), _after(operation("insert", 1, 5)))


def test_a_sealed_stream_is_committed_at_its_tick_once_it_is_old_enough() -> None:
    segmenter = _segmenter()
    list(segmenter.add(operation("insert", 1), now=0))
    assert segmenter.tick(now=5) is None
    position = Position(cluster_time=at(9), token=b"token")
    segmenter.seal(position)
    assert segmenter.is_sealed
    assert segmenter.tick(now=0.9) is None
    cut = segmenter.tick(now=1)
    assert cut is not None
    assert cut.position == position
    assert segmenter.is_empty


def test_a_further_operation_breaks_the_seal() -> None:
    segmenter = _segmenter()
    list(segmenter.add(operation("insert", 1), now=0))
    segmenter.seal(None)
    list(segmenter.add(operation("insert", 1, 2), now=0))
    assert not segmenter.is_sealed
    assert segmenter.tick(now=5) is None
    assert segmenter.drain() is None


def test_a_seal_alone_is_no_commit() -> None:
    segmenter = _segmenter()
    segmenter.seal(Position(cluster_time=at(1), token=b"token"))
    assert segmenter.tick(now=5) is None
    assert segmenter.drain() is None


def test_after_a_commit_the_next_operation_begins_anew() -> None:
    segmenter = _segmenter()
    list(segmenter.add(operation("insert", 1), now=0))
    segmenter.seal(None)
    assert segmenter.drain() is not None
    list(segmenter.add(operation("insert", 2), now=10))
    segmenter.seal(None)
    assert segmenter.tick(now=10.5) is None
    assert segmenter.tick(now=11) is not None


def _cut_of(operations: Iterable[Operation], *, max_bytes: int = LARGE) -> tuple[Segment, ...]:
    """Return the segments of operations that come in at once."""
    segmenter = _segmenter(max_bytes=max_bytes)
    segments = [s for found in operations for cut in segmenter.add(found, now=0) for s in cut.segments]
    segmenter.seal(None)
    last = segmenter.drain()
    assert last is not None
    return (*segments, *last.segments)


def _spread(namespaces: Iterable[Namespace], *, filling: int = 0) -> list[Operation]:
    return [
        operation("insert", n, namespace=name, fullDocument={"_id": 1, "f": "x" * filling})
        for n, name in enumerate(namespaces, start=1)
    ]


@pytest.mark.parametrize("count", [1, 4])
def test_a_few_quiet_collections_get_a_segment_each(count: int) -> None:
    segments = _cut_of(_spread(NAMES[:count]))
    assert [segment.namespace for segment in segments] == NAMES[:count]


def test_thirty_two_quiet_collections_a_cut_have_keys_of_their_own() -> None:
    segmenter = Segmenter(max_bytes=LARGE, max_age_seconds=1)
    cuts = [cut for found in _spread(NAMES[:32]) for cut in segmenter.add(found, now=0)]
    last = segmenter.add(operation("insert", 99, namespace=ORDERS), now=1)
    keys = [segment.key() for cut in (*cuts, *last) for segment in cut.segments]
    assert keys == [f"replication/shop/c{n}/1793600000-{n + 1:010d}_1.bson" for n in range(32)]


def test_quiet_collections_beyond_those_share_a_segment_each_in_order() -> None:
    operations = [*_spread(NAMES[:7]), *[operation("update", 9, namespace=name) for name in reversed(NAMES[4:7])]]
    segments = _cut_of([*operations, *_spread(NAMES[:4], filling=10)])
    assert [segment.namespace for segment in segments] == [*NAMES[:4], None]
    shared = segments[-1]
    assert (shared.count, shared.first, shared.last) == (6, at(5), at(9))
    assert shared.body == b"".join(f.raw for name in NAMES[4:7] for f in operations if f.namespace == name)
    assert shared.key() == "replication/.mixed/1793600000-0000000005_1.bson"
    assert parse_segment_key(shared.key()).namespace is None


def test_the_largest_of_the_quiet_collections_have_segments_of_their_own() -> None:
    larger = {4, 5, 8, 11}
    found = [o for n, name in enumerate(NAMES[:12]) for o in _spread([name], filling=100 if n in larger else 0)]
    assert [segment.namespace for segment in _cut_of(found)] == [*(NAMES[n] for n in sorted(larger)), None]


def test_without_segments_of_their_own_all_quiet_collections_share_one() -> None:
    segmenter = _segmenter(own_segments=0)
    for found in _spread(NAMES[:3]):
        assert not list(segmenter.add(found, now=0))
    segmenter.seal(None)
    cut = segmenter.drain()
    assert cut is not None
    assert _counts(cut) == [(None, 3)]


def test_busy_collections_keep_their_segments_beside_those_of_the_quiet_ones() -> None:
    busy = Namespace("shop", "busy")
    quiet = _spread(NAMES[:6])
    large = _spread([busy], filling=LARGE // 16)
    assert [s.namespace for s in _cut_of([*quiet, *large])] == [*NAMES[:4], busy, None]
    assert [s.namespace for s in _cut_of([*large, *quiet])] == [busy, *NAMES[:4], None]


def test_busy_is_a_sixteenth_of_a_full_segment() -> None:
    busy = Namespace("shop", "busy")
    operations = [*_spread(NAMES[:5]), *_spread([busy])]
    size = len(operations[-1].raw)
    shares = [_cut_of(operations, max_bytes=limit) for limit in (16 * size, 16 * size + 1)]
    # The busy one does not count among the four; as a quiet one it is the largest.
    assert [[s.namespace for s in segments] for segments in shares] == [
        [*NAMES[:4], busy, None],
        [*NAMES[:3], busy, None],
    ]


def test_the_agents_own_marks_are_never_among_others() -> None:
    segments = _cut_of([*_spread(NAMES[:6]), operation("insert", 7, "mark", namespace=MARKS)])
    assert [segment.namespace for segment in segments] == [*NAMES[:4], MARKS, None]
    assert segments[4].key().startswith("replication/d5agent/marks/")


def test_marks_do_not_count_among_the_quiet_ones() -> None:
    segments = _cut_of([*_spread(NAMES[:4]), operation("insert", 7, "mark", namespace=MARKS)])
    assert [segment.namespace for segment in segments] == [*NAMES[:4], MARKS]


def test_a_collection_keeps_its_order_whether_it_is_busy_or_quiet_in_the_cuts_of_a_commit() -> None:
    names = NAMES[:12]
    operations = [
        operation("insert", 1, f"{round_} {n}", namespace=name, fullDocument={"f": "x" * (3000 if is_busy else 0)})
        for round_ in range(12)
        for n, name in enumerate(names)
        for is_busy in [(n + round_) % 6 == 0]
    ]
    segmenter = _segmenter(max_bytes=8000)
    cuts = [cut for found in operations for cut in segmenter.add(found, now=0)]
    (commit,) = segmenter.add(operation("insert", 2, namespace=ORDERS), now=0)
    assert [cut.position for cut in (*cuts, commit)] == [*([None] * len(cuts)), _after(operations[-1])]
    assert {segment.namespace for cut in cuts for segment in cut.segments} == {None, *names}
    body = b"".join(segment.body for cut in (*cuts, commit) for segment in cut.segments)
    for name in names:
        places = [body.index(found.raw) for found in operations if found.namespace == name]
        assert places == sorted(places)
    assert len(body) == sum(len(found.raw) for found in operations)


@pytest.mark.parametrize("rounds", [1, 3])
def test_of_ten_thousand_quiet_collections_all_but_a_few_share_a_segment(rounds: int) -> None:
    segmenter = _segmenter(max_bytes=8 * 1024 * 1024)
    names = [Namespace("shop", f"c{number}") for number in range(10_000)]
    cuts = [
        cut
        for number in range(rounds)
        for found in _spread(names)
        for cut in segmenter.add(found._replace(cluster_time=at(number + 1)), now=2 * number)
    ]
    segmenter.seal(None)
    last = segmenter.drain()
    assert last is not None
    assert [[count for _, count in _counts(cut)] for cut in (*cuts, last)] == [[1, 1, 1, 1, 9_996]] * rounds
    assert all(cut.segments[-1].namespace is None for cut in (*cuts, last))


def test_what_is_not_sealed_is_given_up_to_the_newest_cluster_time() -> None:
    segmenter = _segmenter()
    older = [operation("insert", 1, 1), operation("insert", 2, 2, namespace=ITEMS), operation("insert", 2, 3)]
    newest = [operation("insert", 3, 4), operation("insert", 3, 5, namespace=NAMES[0])]
    for found in (*older, *newest):
        assert not segmenter.add(found, now=0)
    cut = segmenter.drain()
    assert cut is not None
    assert _counts(cut) == [(ORDERS, 2), (ITEMS, 1)]
    assert cut.position == _after(older[-1])
    assert segmenter.is_empty


def test_the_end_of_an_unsealed_stream_may_be_a_barrier() -> None:
    segmenter = _segmenter()
    barrier = operation("drop", 2)
    list(segmenter.add(operation("insert", 1), now=0))
    list(segmenter.add(barrier, now=0))
    cut = segmenter.drain()
    assert cut is not None
    assert (_counts(cut), cut.position) == ([(ORDERS, 2)], _after(barrier))


def test_of_one_cluster_time_alone_nothing_may_be_committed() -> None:
    segmenter = _segmenter()
    list(segmenter.add(operation("insert", 1, 1), now=0))
    list(segmenter.add(operation("insert", 1, 2), now=0))
    assert segmenter.drain() is None


def test_after_a_commit_one_cluster_time_alone_is_not_committed_either() -> None:
    segmenter = _segmenter()
    for increment in (1, 2):
        list(segmenter.add(operation("insert", increment), now=0))
    (cut,) = segmenter.add(operation("insert", 3), now=1)
    assert cut.position == _after(operation("insert", 2))
    assert segmenter.drain() is None


def test_what_was_partly_handed_out_is_not_committed_unsealed() -> None:
    one = operation("insert", 1)
    segmenter = _segmenter(max_bytes=2 * len(one.raw))
    cuts = [cut for n in (1, 2, 2) for cut in segmenter.add(operation("insert", n), now=0)]
    assert [cut.position for cut in cuts] == [None]
    assert segmenter.drain() is None


def test_what_was_handed_out_before_the_last_commit_does_not_hinder() -> None:
    size = len(operation("insert", 1).raw)
    segmenter = _segmenter(max_bytes=2 * size)
    cuts = [cut for n in (1, 2, 3) for cut in segmenter.add(operation("insert", n), now=0)]
    assert [cut.position for cut in cuts] == [None, _after(operation("insert", 2))]
    # The third opened the next commit; a smaller fourth leaves it open.
    assert not segmenter.add(operation("delete", 4), now=0)
    cut = segmenter.drain()
    assert cut is not None
    assert cut.position == _after(operation("insert", 3))


def test_of_times_that_go_back_nothing_is_committed_unsealed() -> None:
    segmenter = _segmenter()
    for increment in (1, 3, 2, 4):
        assert not segmenter.add(operation("insert", increment), now=0)
    assert segmenter.drain() is None


def test_times_that_went_back_are_forgotten_with_their_commit() -> None:
    segmenter = _segmenter()
    for increment in (3, 2):
        list(segmenter.add(operation("insert", increment), now=0))
    segmenter.seal(None)
    assert segmenter.tick(now=1) is not None
    for increment in (4, 5):
        list(segmenter.add(operation("insert", increment), now=1))
    cut = segmenter.drain()
    assert cut is not None
    assert cut.position == _after(operation("insert", 4))


def test_it_says_how_much_it_holds() -> None:
    segmenter = _segmenter()
    assert segmenter.bytes == 0
    first = operation("insert", 1)
    list(segmenter.add(first, now=0))
    assert segmenter.bytes == len(first.raw)
    segmenter.seal(None)
    segmenter.drain()
    assert segmenter.bytes == 0


def test_a_burst_that_has_ended_is_committed_at_once_when_it_is_worth_its_requests() -> None:
    one = operation("insert", 1)
    for max_bytes, is_cut in ((16 * len(one.raw), True), (16 * len(one.raw) + 1, False)):
        segmenter = _segmenter(max_bytes=max_bytes)
        segmenter.add(one, now=0)
        assert segmenter.tick(now=0) is None  # more of its cluster time may follow
        segmenter.seal(None)
        assert (segmenter.tick(now=0) is not None) is is_cut


@pytest.mark.parametrize(("collections", "shares"), [(1, 1), (3, 3), (5, 5), (12, 5)])
def test_a_burst_is_cut_early_only_where_it_is_worth_a_request_for_each_collection(
    collections: int, shares: int
) -> None:
    filled = LARGE * shares // 16 // collections
    for size, is_cut in ((filled - 300, False), (filled, True)):
        segmenter = _segmenter(max_age_seconds=60)
        for found in _spread(NAMES[:collections], filling=size):
            assert not list(segmenter.add(found, now=0))
        segmenter.seal(None)
        assert (segmenter.tick(now=1) is not None) is is_cut
        assert segmenter.tick(now=60) is not None or is_cut
