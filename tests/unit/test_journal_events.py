"""Each warning and error of the journal is documented: what it means, and what to do."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
PACKAGE: Final = ROOT / "d5agent"
LOUD: Final = frozenset({"warning", "error", "critical", "exception"})
HANDS_ON: Final = "runtime/events.py"  # the journal itself: its callers name the event
EVENT: Final = re.compile(r"[a-z]+(?:_[a-z]+)+")


def events_of(source: str) -> Iterator[tuple[str, bool]]:
    """Yield the loud events of a module, and whether it is known what they are called.

    One that a variable holds is an element of the module's table `_EVENTS`.
    """
    tree = ast.parse(source)
    tables = [
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "_EVENTS"
    ]
    table = [
        value.value
        for each in tables
        if isinstance(each, ast.Dict)
        for value in each.values
        if isinstance(value, ast.Constant) and isinstance(value.value, str)
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOUD:
            event = node.args[0] if node.args else None
            if isinstance(event, ast.Constant) and isinstance(event.value, str):
                yield event.value, True
            elif table:
                yield from ((each, True) for each in table)
            else:
                yield ast.unparse(node), False


def loud_events() -> list[tuple[str, bool]]:
    """Return the loud events of the program, without the drill's."""
    paths = [path for path in PACKAGE.rglob("*.py") if "drill" not in path.parts]
    return [
        found
        for path in paths
        if path.relative_to(PACKAGE).as_posix() != HANDS_ON
        for found in events_of(path.read_text(encoding="utf-8"))
    ]


def lines_on(event: str, page: str) -> list[str]:
    """Return the lines of a page that say something of an event beside its name."""
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if f"`{event}`" in line and len(line) > len(event) + 40]


def is_documented(event: str) -> bool:
    """Whether the failure modes say what it means and what to do, or both runbooks."""
    pages = ("failure-modes.md",), ("runbook/README.md", "runbook/README.es.md")
    return any(all(lines_on(event, page) for page in some) for some in pages)


def test_each_loud_event_of_the_journal_is_documented() -> None:
    events = {event for event, is_known in loud_events() if is_known}
    assert len(events) > 40
    assert not sorted(event for event in events if not is_documented(event))


def test_the_name_of_each_loud_event_is_known() -> None:
    found = loud_events()
    assert not [event for event, is_known in found if not is_known]
    assert not [event for event, _ in found if not EVENT.fullmatch(event)]


@pytest.mark.parametrize(
    ("source", "events"),
    [
        ('journal.warning("it_broke", a=1)', [("it_broke", True)]),
        ('self.log().error("it_broke")', [("it_broke", True)]),
        ('journal.info("it_went_well")', []),
        (
            '_EVENTS: Final = {1: "one_left", 2: "none_left"}\nlog.error(event)',
            [("one_left", True), ("none_left", True)],
        ),
        ("log.error(event)", [("log.error(event)", False)]),
    ],
)
def test_events_are_found_in_a_module(source: str, events: list[tuple[str, bool]]) -> None:
    assert list(events_of(source)) == events


def test_an_event_without_a_line_is_found() -> None:
    assert not is_documented("nobody_has_heard_of_it")
    assert is_documented("service_failed")
