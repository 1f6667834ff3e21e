"""The write gate: asked before each attempt of a write, and closed once another agent has the log."""

from __future__ import annotations

import pytest

from d5agent.adapters.write_gate import WriteGate
from d5agent.errors import LogHeldError, TransientError
from tests.fakes.clock import FakeClock


class Hold:
    """What is held: fresh until it is said to be stale; `error`: what a confirmation meets."""

    def __init__(self) -> None:
        self.is_fresh = True
        self.error: Exception | None = None
        self.confirmed = 0

    async def confirm(self) -> None:
        self.confirmed += 1
        if self.error is not None:
            raise self.error
        self.is_fresh = True


async def test_whoever_holds_nothing_may_write() -> None:
    gate = WriteGate()
    await gate.enter()
    assert gate.is_open


async def test_a_write_is_sent_at_once_while_the_log_is_surely_held() -> None:
    hold = Hold()

    async def write() -> int:
        return 7

    assert await WriteGate(hold).retrying(write, clock=FakeClock()) == 7
    assert hold.confirmed == 0


async def test_a_write_after_a_long_pause_is_sent_once_the_log_is_confirmed() -> None:
    hold = Hold()
    hold.is_fresh = False

    async def write() -> int:
        assert hold.is_fresh
        return 7

    assert await WriteGate(hold).retrying(write, clock=FakeClock()) == 7
    assert hold.confirmed == 1


@pytest.mark.parametrize("error", [LogHeldError("another agent has it"), TransientError("nobody could say")])
async def test_a_write_that_is_repeated_after_a_pause_is_not_sent_again_unless_the_log_is_held(
    error: Exception,
) -> None:
    hold, sent = Hold(), 0
    hold.error = error

    async def write() -> None:
        nonlocal sent
        sent += 1
        hold.is_fresh = False  # the process stood still while it waited for the answer
        raise TransientError("the line is cut")

    with pytest.raises(type(error)):
        await WriteGate(hold).retrying(write, clock=FakeClock())
    assert sent == 1


async def test_a_write_that_is_repeated_after_a_pause_is_sent_again_when_the_log_is_held() -> None:
    hold, sent = Hold(), 0

    async def write() -> int:
        nonlocal sent
        sent += 1
        if sent == 1:
            hold.is_fresh = False
            raise TransientError("the line is cut")
        return sent

    assert await WriteGate(hold).retrying(write, clock=FakeClock()) == 2
    assert hold.confirmed == 1
