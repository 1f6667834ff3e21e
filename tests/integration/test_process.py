"""Child processes: what they write comes as it is written, and none is left, whatever happens to it or to us."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import aclosing
from pathlib import Path

import pytest

from d5agent.adapters.process import run, running
from d5agent.errors import OperatorError

IGNORES_TERM = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(99)"
)
CHILD_OF_ANOTHER = """
import asyncio, sys
from d5agent.adapters.process import running
async def main():
    async with running(["sh", "-c", "echo $$; exec sleep 99"], on_line=print) as child:
        async for chunk in child.chunks():
            print(chunk.decode(), flush=True)
asyncio.run(main())
"""


def is_alive(pid: int) -> bool:
    """Whether a process runs, and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def waits_in(pid: int) -> str:
    """Return the kernel's function that a process waits in."""
    return Path(f"/proc/{pid}/wchan").read_text(encoding="utf-8")


async def until_gone(pid: int) -> None:
    """Wait until a process has ended."""
    deadline = asyncio.get_running_loop().time() + 10
    while is_alive(pid):
        assert asyncio.get_running_loop().time() < deadline, f"process {pid} still runs"
        await asyncio.sleep(0.01)


async def until_blocked(pid: int) -> None:
    """Wait until a process can write no more: the pipe, and what is read ahead for us, is full."""
    deadline = asyncio.get_running_loop().time() + 10
    while "pipe" not in waits_in(pid):
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)


async def test_output_and_lines_come_and_the_end_is_known() -> None:
    lines: list[str] = []
    async with running(["sh", "-c", "echo one >&2; echo two; echo ' three ' >&2"], on_line=lines.append) as child:
        assert b"".join([chunk async for chunk in child.chunks()]) == b"two\n"
    assert lines == ["one", " three "]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sh", "-c", "echo first >&2; echo 'mongodb://a:hush@host' >&2; exit 3"], "sh failed"),
        (["sh", "-c", "echo last >&2; kill -9 $$"], r"sh was killed \(SIGKILL\)"),
    ],
)
async def test_an_end_that_is_none_tells_its_last_words_without_a_password(argv: list[str], message: str) -> None:
    with pytest.raises(OperatorError, match=message) as failed:
        await run(argv)
    assert str(failed.value.facts["stderr"]) in {"first | mongodb://***@host", "last"}


async def test_secrets_are_hidden_in_errors_only() -> None:
    argv, lines = ["sh", "-c", "echo 'hu sh or hu%20sh in shop.hu sh' >&2; exit 3"], list[str]()
    async with running(argv, on_line=lines.append, secrets=["hu", "hu sh", "hu%20sh"]) as child:
        with pytest.raises(OperatorError, match="sh failed") as failed:
            await anext(child.chunks())
    assert failed.value.facts["stderr"] == "*** or *** in shop.***"
    assert lines == ["hu sh or hu%20sh in shop.hu sh"]


async def test_a_program_that_is_missing_is_named() -> None:
    with pytest.raises(OperatorError, match="/no/such/program cannot be run") as failed:
        await run(["/no/such/program"])
    assert "install it" in failed.value.hint


async def test_without_setpriv_no_child_is_run_and_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OperatorError, match="setpriv cannot be run") as failed:
        await run([sys.executable, "-c", "print('never')"])
    assert "install it" in failed.value.hint


async def test_a_child_that_is_left_in_the_middle_of_its_output_ends() -> None:
    # It fills the pipe and what is read ahead of us: the event loop sees its end only if that is read to the end.
    async with asyncio.timeout(60), running(["yes"], on_line=print) as child, aclosing(child.chunks()) as chunks:
        assert await anext(chunks)
        await until_blocked(child.pid)


async def test_a_child_that_sends_nothing_is_given_up() -> None:
    async with running(["sleep", "99"], on_line=print, stall_seconds=0.2) as child:
        with pytest.raises(OperatorError, match=r"sleep has sent nothing for 0\.2 s") as failed:
            await anext(child.chunks())
    assert "start it again" in failed.value.hint


async def test_a_slow_reader_is_no_silent_child() -> None:
    async with running(["sh", "-c", "seq 100000"], on_line=print, stall_seconds=0.2) as child:
        size = 0
        async for chunk in child.chunks():
            size += len(chunk)
            if size < 2**17:
                await asyncio.sleep(0.25)
    assert size == 588_895


async def test_a_child_that_was_stopped_hears_its_end() -> None:
    argv = ["sh", "-c", "trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done"]
    async with asyncio.timeout(60), running(argv, on_line=print) as child, aclosing(child.chunks()) as chunks:
        assert await anext(chunks)
        os.kill(child.pid, signal.SIGSTOP)
    assert not is_alive(child.pid)


async def test_a_child_that_does_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("d5agent.adapters.process._GRACE_SECONDS", 0.1)
    async with (
        running([sys.executable, "-c", IGNORES_TERM], on_line=print) as child,
        aclosing(child.chunks()) as chunks,
    ):
        assert (await anext(chunks)).startswith(b"ready")
    assert not is_alive(child.pid)


async def test_all_of_a_childs_group_ends_with_it() -> None:
    argv = ["sh", "-c", "sleep 99 & echo $!; wait"]
    async with running(argv, on_line=print) as child, aclosing(child.chunks()) as chunks:
        pid = int(await anext(chunks))
    await until_gone(pid)


async def test_a_grandchild_that_outlives_the_child_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("d5agent.adapters.process._GRACE_SECONDS", 0.1)
    argv = ["sh", "-c", "sleep 99 & echo $!"]
    async with running(argv, on_line=print) as child, aclosing(child.chunks()) as chunks:
        pid = int(await anext(chunks))
        await until_gone(child.pid)
    await until_gone(pid)


async def test_a_child_does_not_outlive_us_when_we_are_killed() -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD_OF_ANOTHER, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert is_alive(pid)
    parent.kill()
    await parent.wait()
    await until_gone(pid)
