"""What status says of restore and comparison, in words."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from d5agent.core.run.hold import Block
from d5agent.core.run.progress import (
    AgentProgress,
    BackupProgress,
    CleanProgress,
    ComparisonProgress,
    OutsideProgress,
    RestoreProgress,
    SideProgress,
)
from d5agent.core.run.read_status import read_status
from d5agent.core.run.services import PhaseState, Service, ServiceState, Status
from d5agent.core.run.status import status_of
from d5agent.screen.status import status_table
from d5agent.screen.terminal import duration, redrawn, size_of
from tests.fakes.coordinator import SINCE
from tests.fakes.progress import a_capture, a_horizon, a_replay

REPLAY = a_replay(
    operations_total=27_000,
    operations_applied=12_150,
    documents_written=9_000,
    bytes_total=3 * 1024**3,
    bytes_applied=1024**3,
    operations_per_second=3_210.4,
    eta_seconds=190.0,
    lanes=5,
    lanes_allowed=8,
)


def what(service: Service, progress: AgentProgress) -> str:
    """Return what the table says beside a service."""
    state = PhaseState(run_id="run").with_service(service, ServiceState(status=Status.RUNNING, since=SINCE))
    console = Console(width=400, highlight=False)
    with console.capture() as captured:
        console.print(status_table(read_status(status_of(state, progress, is_up=True))))
    line = next(line for line in captured.get().splitlines() if f" {service} " in line)
    return line.split("│")[-2].strip()


def test_what_is_said_beside_each_service() -> None:
    progress = AgentProgress(
        capture=a_capture(operations=12, bytes=3_400, segments=5, queue_bytes=77, is_drained=True),
        horizon=a_horizon(lag_seconds=1.5),
        verify=ComparisonProgress(compared=1, compared_total=2, different=0),
        clean=CleanProgress(archived=3, deleted=4),
        restore=RestoreProgress(
            target_write_block=Block.OURS,
            replay=REPLAY,
            in_doubt=2,
            can_cutover=False,
            generation=7,
            carried=8,
            refused_documents=1,
            refused=("shop.orders 1: it is refused",),
            pages=1,
            pages_total=9,
        ),
        steps={Service.CLEAN: "deleting", Service.RESTORE: "comparing", Service.MONITOR_RESTORE: "reading"},
    )
    assert what(Service.REPLICATION, progress) == (
        "operations 12, bytes 3400, segments 5, last cluster time [1, 1], operations after fence 0, queue bytes 77, "
        "is drained True"
    )
    assert what(Service.RESTORE, progress) == (
        "step comparing, target write block set by d5agent, in doubt 2, can cutover False, generation 7, carried 8, "
        "refused documents 1, refused ['shop.orders 1: it is refused'], pages 1, pages total 9"
    )
    assert what(Service.CLEAN, progress) == "step deleting, archived 3, deleted 4"
    assert what(Service.MONITOR_RESTORE, progress) == "step reading"
    for service in (Service.VERIFY, Service.BACKUP, Service.MONITOR_CLEAN):
        assert what(service, progress) == ""
    assert what(Service.REPLICATION, AgentProgress()) == ""
    assert what(Service.RESTORE, AgentProgress()) == ""


def shown(restore: RestoreProgress | None = None, *, step: str | None = None) -> str:
    """Return the table's text, its blanks and lines joined."""
    state = PhaseState(run_id="run").with_service(Service.RESTORE, ServiceState(status=Status.RUNNING, since=SINCE))
    progress = AgentProgress(restore=restore or RestoreProgress())
    if step is not None:
        progress.steps[Service.RESTORE] = step
    values: dict[str, Any] = status_of(state, progress, is_up=True)
    console = Console(width=300, highlight=False)
    with console.capture() as captured:
        console.print(status_table(read_status(values)))
    return " ".join(captured.get().split())


def shown_replay(**changed: Any) -> str:  # noqa: ANN401 -- fields of the replay
    return shown(RestoreProgress(replay=replace(REPLAY, **changed)))


def shown_comparison(*, compared: int, compared_total: int | None, different: int) -> str:
    comparison = ComparisonProgress(compared=compared, compared_total=compared_total, different=different)
    return shown(RestoreProgress(comparison=comparison))


def test_a_backup_on_its_way() -> None:
    state = PhaseState(run_id="run").with_service(Service.BACKUP, ServiceState(status=Status.RUNNING, since=SINCE))
    target = SideProgress(databases=3, databases_stored=1, documents=12_150, bytes=3 * 1024**2)
    source = SideProgress(databases=2, databases_stored=0, documents=0, bytes=0)
    console = Console(width=300, highlight=False)
    with console.capture() as captured:
        progress = AgentProgress(backup=BackupProgress(target=target, source=source))
        console.print(status_table(read_status(status_of(state, progress, is_up=True))))
    assert (
        "backup target 1 of 3 databases stored, 12,150 documents, 3.0 MiB; "
        "source 0 of 2 databases stored, 0 documents, 0 bytes"
    ) in " ".join(captured.get().split())
    assert captured.get().count("target") == 1
    assert "backup target" not in shown()


def test_a_restore_on_its_way() -> None:
    text = shown(RestoreProgress(replay=REPLAY), step="replaying")
    assert (
        "restore ━━━━━━━━━━━━━━━━━━━━ 45 % 12,150 of 27,000 operations, 1.0 GiB of 3.0 GiB, 9,000 documents written, "
        "3,210/s, done in about 3 min 10 s, 5 of 8 lanes"
    ) in text
    assert "step replaying" in text
    assert "eta" not in text  # not once more, raw, beside the service


def test_a_restore_whose_end_nobody_knows() -> None:
    assert ", …/s, end not known" in shown_replay(operations_per_second=None, eta_seconds=None)
    assert ", 0/s, end not known" in shown_replay(operations_per_second=0.0, eta_seconds=None)


def test_a_restore_that_has_replayed_all_has_no_rate() -> None:
    text = shown_replay(operations_applied=27_000, eta_seconds=0.0)
    assert "100 % 27,000 of 27,000 operations" in text
    assert "/s" not in text
    assert "done in" not in text


def test_nearly_all_is_not_a_hundred_percent() -> None:
    assert " 99 % 26,999 of 27,000" in shown_replay(operations_applied=26_999)


def test_a_live_restore_says_how_far_it_is_behind() -> None:
    assert "2 s behind the source" in shown(RestoreProgress(replay=REPLAY, lag_seconds=2.2))


def test_a_comparison_on_its_way_and_at_its_end() -> None:
    text = shown_comparison(compared=1_500, compared_total=6_000, different=0)
    assert "verify ━━━━━━━━━━━━━━━━━━━━ 25 % 1,500 of about 6,000 documents compared, 0 different" in text
    assert "verify 1,500 documents compared, 3 different" in shown_comparison(
        compared=1_500, compared_total=None, different=3
    )
    assert "100 % 1,500 documents compared" in shown_comparison(compared=1_500, compared_total=1_500, different=0)


def test_nothing_is_said_of_what_has_not_begun() -> None:
    text = shown()
    assert "operations" not in text
    assert "compared" not in text


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.4, "59 s"), (190, "3 min 10 s"), (7_200, "2 h"), (90_061, "1 d 1 h")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 bytes"), (1_023, "1,023 bytes"), (1_536, "1.5 KiB"), (5 * 1024**2, "5.0 MiB")]
)
def test_sizes_in_words(count: int, words: str) -> None:
    assert size_of(count) == words


@pytest.mark.parametrize(
    ("is_terminal", "wants", "moves_up"), [(True, True, True), (False, True, False), (True, False, False)]
)
def test_watching_draws_in_place_on_a_terminal_and_goes_on_below_elsewhere(
    *, is_terminal: bool, wants: bool, moves_up: bool
) -> None:
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=40)
    with redrawn(console, is_wanted=wants) as show:
        show("one\nline")
        show("two\nlines")
    text = console.file.getvalue() if isinstance(console.file, io.StringIO) else ""
    assert ("\x1b[1A" in text) is moves_up
    assert "lines" in text


def test_the_comparison_of_what_the_log_does_not_touch() -> None:
    found = OutsideProgress(
        is_complete=False,
        collections=40,
        collections_compared=12,
        compared=1_234_567,
        missing=1,
        different=2,
        extra=4,
        unchecked=5,
    )
    assert (
        "outside 12 of 40 collections, 1,234,567 documents compared, 3 missing or different in the target, "
        "4 only there, 5 to look at again"
    ) in shown(RestoreProgress(outside=found))
    complete = replace(found, is_complete=True, missing=0, different=0, unchecked=0)
    done = shown(RestoreProgress(outside=complete))
    assert "outside done, 1,234,567 documents compared, 0 missing or different in the target, 4 only there" in done
    assert "look at again" not in done
    assert "outside" not in shown()
