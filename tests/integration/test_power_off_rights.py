"""Who may switch the machine off: the polkit rule, tried in a booted systemd, by the code that asks (ADR 27)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from d5agent.settings import PowerSettings
from tests.integration.booted_machine import Machine, booted_machine, until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

pytestmark = pytest.mark.system

RULE: Final = (Path(__file__).resolve().parents[2] / "polkit" / "49-d5agent.rules").read_text(encoding="utf-8")
POWER_OFF: Final = "org.freedesktop.login1.power-off"
WITH_SESSIONS: Final = "org.freedesktop.login1.power-off-multiple-sessions"
WALL_MESSAGE: Final = "org.freedesktop.login1.set-wall-message"  # logind's own policy: implied by the power-off
SWITCH: Final = """
import asyncio, sys
from d5agent.adapters.power import CommandPowerSwitch
asyncio.run(CommandPowerSwitch(sys.argv[1:], timeout_seconds=20).off())
"""
ALLOWED: Final = """
for action in $(pkaction); do
  if pkcheck --process "$1" --action-id "$action" >/dev/null 2>&1; then echo "$action"; fi
done
"""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A booted machine with the users d5agent and admin, and without the rule."""
    with booted_machine(tmp_path) as booted:
        booted.run("systemd-sysusers", "--inline", "u d5agent -", "u admin -")
        yield booted


def ask(machine: Machine, user: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Let the agent's own code run the command, as the user in a hardened unit."""
    return machine.run_hardened(user, "python3", "-c", SWITCH, *(command or PowerSettings().command))


def assert_refused(machine: Machine, asked: subprocess.CompletedProcess[str], call: str = "PowerOff") -> None:
    assert asked.returncode != 0
    assert f"Call to {call} failed: Interactive authentication required." in asked.stderr
    assert "OperatorError: the power-off failed" in asked.stderr
    assert machine.is_up()


def may_power_off(machine: Machine, user: str) -> str:
    """What logind answers the runbook's question: yes, or challenge: after somebody's password only."""
    manager = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager")
    return machine.run_hardened(user, "busctl", "call", *manager, "CanPowerOff").stdout.strip()


def put(machine: Machine, rule: str) -> None:
    """Install a rule in the running machine by a rename, as packages do, and wait until polkit has read it.

    polkit 122 misses a change now and then where a file is deleted and written anew under its name, as install does: 3
    of 600 times here. Of 400 renames it missed none.
    """
    folder = "/etc/polkit-1/rules.d"
    machine.run("install", "-m", "0644", "/dev/stdin", f"{folder}/.new", stdin=rule)
    machine.run("mv", f"{folder}/.new", f"{folder}/49-d5agent.rules")
    until(lambda: may_power_off(machine, "d5agent") == 's "yes"', what="polkit lets d5agent power off")


def log_in(machine: Machine) -> None:
    """Let admin have a session, which lasts."""
    session = ("--property=User=admin", "--property=PAMName=login", "--setenv=XDG_SESSION_CLASS=user")
    machine.run("systemd-run", "--quiet", *session, "--", "sleep", "infinity")
    until(lambda: "admin" in machine.run("loginctl", "--no-legend").stdout, what="admin is logged in")


def allowed_to(machine: Machine, process: int) -> set[str]:
    """Every action that polkit allows the process without a password."""
    return set(machine.run("sh", "-c", ALLOWED, "sh", str(process)).stdout.split())


def test_without_the_rule_the_agent_may_not_power_off(machine: Machine) -> None:
    assert may_power_off(machine, "d5agent") == 's "challenge"'
    assert_refused(machine, ask(machine, "d5agent"))


def test_with_the_rule_the_agent_powers_off(machine: Machine) -> None:
    put(machine, RULE)
    ask(machine, "d5agent")
    assert machine.how_it_ended() == 0


def test_with_the_rule_the_agent_powers_off_while_somebody_is_logged_in(machine: Machine) -> None:
    assert WITH_SESSIONS in RULE
    put(machine, RULE.replace(WITH_SESSIONS, "none"))
    log_in(machine)
    assert_refused(machine, ask(machine, "d5agent"))  # so that the rest says something about the second action
    put(machine, RULE)
    ask(machine, "d5agent")
    assert machine.how_it_ended() == 0


def test_with_the_rule_the_agent_may_not_reboot(machine: Machine) -> None:
    put(machine, RULE)
    assert_refused(machine, ask(machine, "d5agent", "systemctl", "reboot"), "Reboot")


def test_with_the_rule_another_user_may_not_power_off(machine: Machine) -> None:
    put(machine, RULE)
    assert may_power_off(machine, "nobody") == 's "challenge"'
    assert_refused(machine, ask(machine, "nobody"))


def test_the_rule_gives_the_agent_the_power_off_alone_and_others_nothing(machine: Machine) -> None:
    agent, other = machine.keep_running("d5agent"), machine.keep_running("nobody")
    agent_before, other_before = allowed_to(machine, agent), allowed_to(machine, other)
    put(machine, RULE)
    assert allowed_to(machine, agent) - agent_before == {POWER_OFF, WITH_SESSIONS, WALL_MESSAGE}
    assert allowed_to(machine, other) == other_before
