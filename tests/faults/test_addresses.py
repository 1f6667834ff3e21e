"""In whole lives of agents no journal line, row or answer names an object of the bucket without its address."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from typing_extensions import override

from d5agent.core.reports.addresses import addressed
from d5agent.core.run.status import status_of
from d5agent.runtime.logs import configure_logs
from tests.fakes.mortal import Life
from tests.faults.test_late_operations import (
    applications_move_over,
    late_operations_are_accepted,
    monitor_restore_asks,
    stray_writes_reach_the_source,
)
from tests.faults.world import CAPTURE, CLEAN, CUTOVER, FOLLOW, RESTORE, World

if TYPE_CHECKING:
    from d5agent.runtime.daemon import Daemon
    from tests.faults.world import Act

LATE: tuple[Act, ...] = (
    applications_move_over,
    stray_writes_reach_the_source,
    monitor_restore_asks,
    late_operations_are_accepted,
)


class Remembering(dict[str, bytes]):
    """Objects, and the keys of all that there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    @override
    def __setitem__(self, key: str, body: bytes) -> None:
        self.seen.add(key)
        super().__setitem__(key, body)


def url_of(key: str) -> str:
    return f"s3://bucket/d5/{key}"


@pytest.mark.parametrize(
    ("script", "is_live"),
    [((*CAPTURE, *RESTORE, *LATE), False), ((*FOLLOW, *CUTOVER, *CLEAN), True)],
    ids=["drained, late operations", "live"],
)
async def test_a_whole_life_names_no_object_without_its_address(
    script: tuple[Act, ...],
    is_live: bool,  # noqa: FBT001 -- a case
    capsys: pytest.CaptureFixture[str],
) -> None:
    world = World(is_live=is_live, keep_log_days=None if is_live else 3)
    world.store.objects = objects = Remembering()
    rows: list[Any] = []

    def looked_at(act: Act) -> Act:
        async def look(world: World, daemon: Daemon) -> bool:
            rows.append(addressed(status_of(daemon.state, daemon.progress, is_up=True), url_of))
            return await act(world, daemon)

        return look

    configure_logs(to_journald=True, url_of=url_of)
    try:
        assert await world.live(Life(None), tuple(map(looked_at, script)))
    finally:
        structlog.reset_defaults()
    said = capsys.readouterr().out + "\n".join({repr(row) for row in rows})
    bare = {key for key in objects.seen if re.search(rf"(?<![\w/]){re.escape(key)}", said)}
    assert not bare
    named = {key for key in objects.seen if url_of(key) in said}
    assert {key.rpartition("/")[2] for key in named} >= {"certificate.json", "final.json"}
    unknown = {key for key in objects.seen if addressed(key, url_of) != url_of(key)}
    assert not unknown
