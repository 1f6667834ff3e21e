"""The commands of `[cutover]`: they are run, and one that fails, hangs or is not there says what to look at."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from d5agent.adapters.application import CommandApplication
from d5agent.errors import OperatorError

if TYPE_CHECKING:
    from pathlib import Path

HANGS = [sys.executable, "-c", "import time; time.sleep(600)"]
FAILS = [sys.executable, "-c", "import sys; sys.exit('mongodb://root:pw@host said no')"]


def application(command: list[str] | None = None, call_off_command: list[str] | None = None) -> CommandApplication:
    return CommandApplication(command=command, call_off_command=call_off_command, stall_seconds=2)


async def test_each_word_runs_its_command(tmp_path: Path) -> None:
    subject = application(["touch", str(tmp_path / "refused")], ["rm", str(tmp_path / "refused")])
    assert await subject.refuse_writes()
    assert (tmp_path / "refused").exists()
    assert await subject.accept_writes()
    assert not (tmp_path / "refused").exists()


async def test_without_commands_somebody_else_does_it() -> None:
    assert not await application().refuse_writes()
    assert not await application().accept_writes()


@pytest.mark.parametrize(
    ("command", "words"),
    [(FAILS, "said no"), (HANGS, "has sent nothing for 2 s"), (["/no/such/program"], "cannot be run")],
)
async def test_a_command_that_fails_or_hangs_is_told_with_its_last_words(command: list[str], words: str) -> None:
    with pytest.raises(OperatorError, match="could not be made read-only") as failed:
        await application(command=command).refuse_writes()
    assert words in str(failed.value)
    assert "look whether it may write now" in failed.value.hint
    assert "pw" not in str(failed.value)
    with pytest.raises(OperatorError, match="could not be told that it may write again"):
        await application(call_off_command=command).accept_writes()
