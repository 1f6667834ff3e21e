"""What the agent's user may do on a server, as the server says it (`connectionStatus`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from d5agent.adapters.mongo import Client, translating
from d5agent.core.run.rights import ANY, RESTORING, Grant

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


async def grants_of(client: Client, side: str) -> Sequence[Grant]:
    """Return what the user of this connection was granted; where nobody logs in, everything."""
    with translating(side):
        answer: Mapping[str, Any] = await client.admin.command({"connectionStatus": 1, "showPrivileges": True})
    info = dict(answer)["authInfo"]
    if not list(info["authenticatedUsers"]):
        return [Grant(database=ANY, actions=frozenset(RESTORING))]
    return [
        Grant(database=database, actions=frozenset(privilege["actions"]))
        for privilege in info["authenticatedUserPrivileges"]
        if (database := _database_of(privilege["resource"])) is not None
    ]


def _database_of(resource: Mapping[str, Any]) -> str | None:
    """Return the database that a privilege is about as a whole ("Resource Document", MongoDB manual)."""
    if resource.get("anyResource"):
        return ANY
    return str(resource["db"]) if "db" in resource and resource.get("collection") == "" else None
