"""Rights on the target: a user that may only read is named, action by action, before restore begins."""

from __future__ import annotations

import pytest

from d5agent.core.run.rights import ANY, RESTORING, Grant, lacking

ALL = frozenset(RESTORING)


def grant(database: str, *without: str) -> Grant:
    return Grant(database=database, actions=ALL - set(without))


@pytest.mark.parametrize(
    ("grants", "databases", "missing"),
    [
        ([grant(ANY)], ["shop", "crm"], {}),
        ([grant(ANY)], [], {}),
        ([], [], {ANY: list(RESTORING)}),
        ([grant("shop")], ["shop", "crm"], {"crm": list(RESTORING)}),
        ([grant("shop"), grant("crm", "insert", "remove")], ["shop", "crm"], {"crm": ["insert", "remove"]}),
        ([Grant(database=ANY, actions=frozenset({"insert"})), grant("shop", "insert")], ["shop"], {}),
        ([grant("shop")], [], {ANY: list(RESTORING)}),
    ],
)
def test_what_a_user_lacks_is_named_by_database(
    grants: list[Grant], databases: list[str], missing: dict[str, list[str]]
) -> None:
    assert lacking(grants, databases) == missing
