"""The control socket's answers: a cutover that no command makes read-only rests on somebody's word."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs
from typing_extensions import override

from d5agent.cli import _ask
from d5agent.core.run.progress import RestoreProgress
from d5agent.core.run.services import Phase, Service, Status
from d5agent.runtime.control import _Session
from d5agent.runtime.control_client import VERSION
from d5agent.settings import load_settings
from tests.fakes.machine import FakeApplication
from tests.fakes.phases import with_rows
from tests.unit.test_daemon import READY, House

if TYPE_CHECKING:
    from pathlib import Path

FOLLOWING = with_rows(replace(READY, phase=Phase.RESTORE), {Service.RESTORE: Status.RUNNING})


async def last_answer(house: House, **request: object) -> dict[str, Any]:
    line = json.dumps({"version": VERSION, **request}).encode()
    return [answer async for answer in _Session(house.daemon)._answers(line)][-1]


@pytest.mark.parametrize("request_", [{"verb": "cutover"}, {"verb": "start", "name": "monitor-replication"}])
@pytest.mark.parametrize(
    ("has_command", "confirmed", "code"), [(True, None, 0), (False, True, 0), (False, None, 78), (False, False, 78)]
)
async def test_cutover_needs_a_command_or_a_word(
    request_: dict[str, str],
    has_command: bool,  # noqa: FBT001 -- a case
    confirmed: bool | None,  # noqa: FBT001 -- a case
    code: int,
) -> None:
    house = House(application=FakeApplication())
    await house.remember(FOLLOWING)
    async with house.up() as daemon:
        daemon.refuses_writes = has_command
        daemon.progress.restore = RestoreProgress(can_cutover=True)
        answer = await last_answer(house, **request_, confirmed=confirmed)
        assert answer["exit"] == code
        assert ("question" in answer) == (code == 78)
        assert (Service.MONITOR_REPLICATION in daemon.state.services) == (code == 0)
        if code:
            assert "d5agent cutover --yes" in answer["hint"]


async def test_nobody_makes_the_application_read_only_too_early() -> None:
    house = House(application=FakeApplication())
    await house.remember(FOLLOWING)
    async with house.up() as daemon:
        daemon.refuses_writes = False
        answer = await last_answer(house, verb="cutover")
        assert "question" not in answer
        assert "restore has not caught up" in answer["error"]
        answer = await last_answer(house, verb="cutover", confirmed=True)  # it stands still already
    assert answer["exit"] == 0


async def test_nobody_is_asked_for_a_cutover_that_is_refused() -> None:
    house = House(application=FakeApplication())
    await house.remember(replace(FOLLOWING, is_paused=True))
    async with house.up() as daemon:
        daemon.refuses_writes = False
        answer = await last_answer(house, verb="cutover")
    assert "question" not in answer
    assert "restore is paused" in answer["error"]


async def test_drained_fence_needs_no_word() -> None:
    house = House()
    await house.remember(READY)
    async with house.up() as daemon:
        daemon.refuses_writes = False
        answer = await last_answer(house, verb="start", name="restore", mode="drained")
    assert answer["exit"] == 0


@pytest.mark.parametrize(("is_told", "words"), [(True, "may write again"), (False, "let it write again")])
async def test_call_off_says_who_lets_the_application_write(is_told: bool, words: str) -> None:  # noqa: FBT001 -- a case
    house = House(application=FakeApplication(is_told=is_told))
    await house.remember(with_rows(FOLLOWING, {Service.MONITOR_REPLICATION: Status.FAILED}))
    async with house.up() as daemon:
        with capture_logs() as logs:
            await daemon.call_off()
    (said,) = [line["application"] for line in logs if line["event"] == "cutover_called_off"]
    assert said.startswith(words)


class Terminal(io.StringIO):
    """Standard input, with or without somebody at it."""

    is_there = True

    @override
    def isatty(self) -> bool:
        return self.is_there


@pytest.mark.parametrize(
    ("typed", "is_there", "code", "asked"),
    [("y\n", True, 0, [False, True]), ("n\n", True, 78, [False]), ("y\n", False, 78, [False])],
)
async def test_question_is_put_to_a_terminal_only(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    typed: str,
    is_there: bool,  # noqa: FBT001 -- a case
    code: int,
    asked: list[bool],
) -> None:
    seen = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = json.loads(await reader.readline())
        seen.append(request["confirmed"])
        refusal = {"exit": 78, "error": "cutover refused", "hint": "type it", "question": "Is it read-only?"}
        writer.write(json.dumps({"exit": 0} if request["confirmed"] else refusal).encode() + b"\n")
        await writer.drain()
        writer.close()

    path = tmp_path / "d5agent.toml"
    path.write_text(f'[source]\n[store]\nbucket = "b"\n[state]\ndirectory = "{tmp_path}"\n')
    terminal = Terminal(typed)
    terminal.is_there = is_there
    monkeypatch.setattr("sys.stdin", terminal)
    async with await asyncio.start_unix_server(answer, tmp_path / "control.sock"):
        assert await _ask(load_settings(path), {"verb": "cutover", "confirmed": False}) == code
    assert seen == asked
